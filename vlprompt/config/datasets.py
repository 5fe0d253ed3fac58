"""From a data set's settings to the data set."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vlprompt.config.hashing import config_hash
from vlprompt.config.locate import import_named, make_protocol
from vlprompt.config.paths import bank_folder, data_root
from vlprompt.config.schema import DataSource, Settings, check_arguments
from vlprompt.data.dataset import Dataset, same_prompts
from vlprompt.data.disk import complain
from vlprompt.data.download.get import ensure
from vlprompt.data.presence import USE_PRESENT
from vlprompt.data.sources import banked
from vlprompt.data.sources.banked import DATASETS
from vlprompt.errors import UserError, first_names
from vlprompt.textfiles import absolute
from vlprompt.training.progress import Reporter

LOCATION = ("path", "labels", "names", "stored")  # arguments of a source that say where it lies, not what it is


def load_datasets(settings: Settings) -> tuple[Dataset, dict[str, Dataset]]:
    """The data set that is trained on, and all others by name: targets, and those out of distribution.

    Raises: UserError that names all which cannot be loaded.
    """
    loaded: dict[str, Dataset] = {}
    problems: dict[str, UserError] = {}

    def attempt(name: str, described: DataSource) -> None:
        try:
            loaded[name] = load_dataset(settings, described)
        except UserError as error:
            problems[name] = error

    source = settings.dataset.name
    attempt(source, settings.dataset)
    dataset = loaded.pop(source, None)
    by_name = dataset.name if dataset else source
    lists = {"targets": target_names(settings, by_name), "ood": ood_names(settings, by_name)}
    for key, names in lists.items():
        if unknown := [name for name in names if name not in settings.targets]:
            raise UserError(f"protocol.{key} names {', '.join(unknown)}, which conf/dataset does not describe.")
    for name in dict.fromkeys([*lists["targets"], *lists["ood"]]):
        attempt(name, settings.targets[name].dataset)
    if dataset is None or problems:
        raise not_loaded(problems, source, lists)
    if settings.debug:
        n = settings.debug.images
        return dataset.first(n), {name: target.first(n) for name, target in loaded.items()}
    return dataset, loaded


def target_names(settings: Settings, source: str) -> list[str]:
    """The data sets that the protocol tests in addition to the source, which is left out where it is one of them."""
    sources = source, settings.dataset.name  # which differ where some of its classes are left out
    return [name for name in dict.fromkeys(make_protocol(settings).targets) if name not in sources]


def ood_names(settings: Settings, source: str) -> list[str]:
    """The data sets whose test images are out of distribution; none where a test image shall not be looked at.

    Raises: UserError where one of them is the source.
    """
    names = list(dict.fromkeys(settings.protocol.get("ood", [])))
    if itself := {source, settings.dataset.name}.intersection(names):
        raise UserError(
            f"protocol.ood names {itself.pop()}, the data set that the run is on, whose images are in distribution: "
            "name others (new classes of the same data set are what protocol=base_to_novel tests)"
        )
    return names if settings.protocol.get("part", "test") == "test" else []


def not_loaded(problems: Mapping[str, UserError], source: str, lists: Mapping[str, Sequence[str]]) -> UserError:
    """One sentence for all data sets that cannot be loaded, with the reason of the first."""
    first = next(iter(problems.values()))
    if list(problems) == [source]:
        return first
    which = (
        f"{', '.join(problems)}, the first of them because"
        if len(problems) > 1
        else f"{'the target' if next(iter(problems)) in lists['targets'] else 'protocol.ood'} {next(iter(problems))}:"
    )
    without = ""
    for key, names in lists.items():
        left = [name for name in names if name not in problems]
        if len(left) < len(names) and (left or key == "ood"):
            what = "targets" if key == "targets" else "data sets"
            without += f" protocol.{key}=[{','.join(left)}] does without {what} that are not there."
    why = str(first) if source in problems else str(first).replace(f", {USE_PRESENT}", "")  # targets have to be whole
    return UserError(f"cannot load {which} {why.rstrip('.')}.{without}")


def load_dataset(settings: Settings, described: DataSource) -> Dataset:
    """A data set as described; fetched first, where it is missing and the user agrees."""
    root = data_root(settings.data.root)
    base = folder_of(described, root)
    contents = bank_folder(root) / DATASETS / f"{stored_name(described)}.json"
    if contents.is_file() and not base.exists():
        return replace(banked.read(contents).dataset(), origin=stored_name(described))
    if described.about and not described.root:
        ensure(described.name, described.about, base, download=settings.data.download, reporter=Reporter())
    dataset = load_source(described.name, described.source, root, **only(described))
    if not described.about and (same := same_prompts(dataset.classes)):  # published ones have such by design
        complain(
            f"classes of {dataset.name} have the same prompt, so that their names do not distinguish them: "
            f"{first_names([' = '.join(map(repr, names)) for names in same])}; rename them, or give dataset.names=FILE"
        )
    origin = {**described.source, "root": str(root), "split": dataset.fingerprint()}
    return replace(dataset, origin=config_hash(origin))


def folder_of(described: DataSource, root: Path) -> Path:
    """Where a data set lies: in its `root`, else below the root of all data."""
    return absolute(described.root or root / described.source.get("folder", ""))


def load_source(name: str, source: Mapping[str, Any], root: Path, **more: Any) -> Dataset:
    """The data set that `_target_` of a source reads; `more` are arguments that no configuration gives."""
    arguments = {key: value for key, value in source.items() if key != "_target_"} | {"root": root}
    target = source.get("_target_", "")
    load = import_named(target, "dataset.source")
    if not callable(load):
        raise UserError(f"dataset.source._target_ is '{target}', allowed is the import path of a function")
    check_arguments(load, arguments, "dataset.source")
    known = inspect.signature(load).parameters
    if more.get("present") and "present" not in known:
        raise UserError(f"dataset.classes=present is for data sets of files on this disk, and {name} is none: drop it")
    dataset: Dataset = load(name=name, **arguments, **{key: value for key, value in more.items() if key in known})
    return dataset


def only(described: DataSource) -> dict[str, bool]:
    """What a source is told of the classes to read."""
    return {"present": True} if described.classes == "present" else {}


def dataset_identity(described: DataSource) -> dict[str, Any]:
    """A data set's settings without those that say where it lies."""
    source = {key: value for key, value in described.source.items() if key not in LOCATION}
    return described.model_dump() | {"source": source}


def stored_name(described: DataSource) -> str:
    """What a data set is called in a feature bank."""
    return config_hash(dataset_identity(described) | only(described))
