"""Data sets that the package knows and that lie on this machine: their classes, and their images."""

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING

from vlprompt.commands.selection import composed
from vlprompt.errors import UserError

if TYPE_CHECKING:
    from vlprompt.reports.report.images import KnownImages


def class_names(dataset: str) -> Mapping[str, str]:
    """The class of each image of a data set; empty where it is not on this disk."""
    known = loaded(dataset)
    return known[0].classes if known else {}


@cache
def loaded(name: str) -> "tuple[KnownImages, str] | None":
    """A data set of the package and the hash of its lists; None where it is none, or is not on this disk.

    Nothing that a record names is imported or opened, and nothing is fetched.
    """
    from vlprompt.config.about import paths

    if name not in paths("dataset", ()) or name == "folder":
        return None
    from vlprompt.config.datasets import load_dataset
    from vlprompt.config.schema import read_settings
    from vlprompt.data.dataset import PARTS
    from vlprompt.reports.report.images import KnownImages

    try:
        settings = read_settings(composed(f"dataset={name}"))
        dataset = load_dataset(settings, settings.dataset)
    except (UserError, OSError, ValueError):
        return None
    classes = {item.image: dataset.classes[item.label] for part in PARTS for item in getattr(dataset, part)}
    return KnownImages(classes, dataset.open_image, dataset.origin or name), dataset.fingerprint()
