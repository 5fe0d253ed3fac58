"""Where this installation and its user keep things."""

import os
from pathlib import Path


def config_dir() -> Path:
    """The folder `conf`: inside an installed package, else beside run.py."""
    inside = Path(__file__).parent / "conf"
    return inside if inside.is_dir() else Path(__file__).parents[1] / "conf"


def data_root(given: str | None = None) -> Path:
    """Where data sets lie: as given (data.root), VLPROMPT_DATA, or `datasets` in the working directory."""
    return Path(given or os.environ.get("VLPROMPT_DATA") or "datasets").expanduser()


def bank_folder(root: Path) -> Path:
    """Where features of images are kept below the data root."""
    return root / ".cache" / "features"
