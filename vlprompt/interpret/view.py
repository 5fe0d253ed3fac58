"""One thing to look at: a table of numbers, the same as texts, and what a figure draws of it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd


@dataclass(frozen=True)
class Dots:
    """Values along an axis, a row each; `low` to `high` is where chance would be (NaN: nothing is known)."""

    table: pd.DataFrame  # label, value, low, high; text: what is written next to the dot
    axis: str
    chance: str = ""  # what the band is


@dataclass(frozen=True)
class Cells:
    """Numbers by layer and site, a panel for each tower."""

    panels: dict[str, pd.DataFrame]  # wide: rows are layers, columns sites; NaN: nothing there
    axis: str


@dataclass(frozen=True)
class View:
    """What `vlprompt interpret` shows as one table.

    `table` has the numbers, one row each, for CSV and JSON; `grids` the same as texts, by title.
    """

    title: str
    table: pd.DataFrame
    grids: dict[str, pd.DataFrame]
    notes: Sequence[str] = ()
    figure: Dots | Cells | None = None
    keys: Sequence[str] = field(default_factory=tuple)  # columns that tell rows apart


def rounded(value: Any, form: str = ".2f") -> str:
    """A number as a cell; one that is not known is a dash, and zero has no sign."""
    if value is None or pd.isna(value):
        return "–"
    text = format(value, form).rstrip(".")  # which the form #.3g puts after whole numbers
    return text if float(text) else text.lstrip("-")
