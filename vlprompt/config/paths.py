"""Where this installation and its user keep things."""

import os
from collections.abc import Iterable
from pathlib import Path

from vlprompt.errors import UserError, unknown
from vlprompt.textfiles import path_of

PACKAGE = Path(__file__).resolve().parents[1]


def config_dir() -> Path:
    """The folder `conf`: inside an installed package, else next to run.py."""
    inside = PACKAGE / "conf"
    return inside if inside.is_dir() else PACKAGE.parent / "conf"


def published_dir() -> Path:
    """The folder of published numbers: inside an installed package, else in the checkout."""
    inside = PACKAGE / "published"
    return inside if inside.is_dir() else PACKAGE.parent / "results" / "published"


def results_root() -> Path:
    """VLPROMPT_RESULTS, or `results` in the working directory."""
    return path_of(os.environ.get("VLPROMPT_RESULTS", "").strip() or "results")


def data_root(given: str | None = None) -> Path:
    """Where data sets lie: as given (data.root), VLPROMPT_DATA, or `datasets` in the working directory."""
    return path_of(given or os.environ.get("VLPROMPT_DATA", "").strip() or "datasets")


def bank_folder(root: Path) -> Path:
    """Where features of images are kept below the data root."""
    return root / ".cache" / "features"


def unknown_dataset(name: str, known: Iterable[str]) -> UserError:
    """A data set that is not known, and how a folder of images is given where the name is a path."""
    is_path = Path(name).name != name or Path(name).is_dir()
    do = f"For a folder of your own: dataset=folder dataset.root={name}" if is_path else ""
    return unknown("dataset", name, known, do=do)
