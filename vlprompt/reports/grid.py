"""One table of texts, as every format draws it."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pandas as pd

from vlprompt.errors import unknown
from vlprompt.reports.filters import MOST_NAMES

BEST, SECOND = "best", "second"
NOT_APPLICABLE, FAILED = "n/a", "failed"  # instead of a number
RAW = {"mean of h": "mean_H", "peak mb": "peak_bytes", "stored kb": "stored_bytes", "model mb": "backbone_bytes",
       "ms/step": "step_s", "ms/image": "image_s", "mflops/image": "image_flops", "gflops/image": "image_flops",
       "can be merged": "mergeable", "mflops of classes": "classes_flops"}  # fmt: skip
"""Columns of a table by their names in CSV, which has other units."""


@dataclass(frozen=True)
class Grid:
    """One table of cells that are text already; `title` is what its rows share, `unit` what its numbers are.

    `marks` names the best and the second cell by (row, column). A rule goes between rows whose `blocks` differ. `keys`
    are the columns that tell rows apart, the first of them that of their names; those in `shared` stand above the
    table where all rows have the same value, on a terminal any but the first. `extras` are columns that only a wide
    terminal shows, the most important first; `order` has the others by importance (default: as they stand).
    """

    title: str
    rows: pd.DataFrame
    marks: dict[tuple[int, str], str] = field(default_factory=dict)
    blocks: Sequence[object] = ()
    keys: Sequence[str] = ()
    shared: Sequence[str] = ()
    extras: Sequence[str] = ()
    order: Sequence[str] = ()
    unit: str = ""

    @property
    def starts(self) -> list[int]:
        """The rows that begin a block, but for the first."""
        return [i for i in range(1, len(self.blocks)) if self.blocks[i] != self.blocks[i - 1]]

    @property
    def constants(self) -> list[str]:
        """What stands above the table on a terminal, if it is the same in all rows."""
        return [name for name in dict.fromkeys([*self.shared, *self.keys]) if name not in self.keys[:1]]

    def gathered(self, names: Sequence[str]) -> "Grid":
        """With what all rows share above the table. Rows without a run may not know their weights and precision."""
        n = self.rows.get("n", pd.Series("1", index=self.rows.index))
        ran = self.rows[~n.isin(["", "0"])] if (~n.isin(["", "0"])).any() else self.rows
        values = {name: ran[name].iloc[0] for name in names if name in ran and len(ran)}
        constant = {name: v for name, v in values.items() if set(ran[name]) == {v} and {*self.rows[name]} <= {v, ""}}
        head = ", ".join([*filter(None, [self.title]), *(f"{name} {v}" for name, v in constant.items() if v != "")])
        title = "; ".join(filter(None, [head, self.unit]))
        return replace(self, title=title, unit="", rows=self.rows.drop(columns=[*constant]))

    def with_variants_in_names(self) -> "Grid":
        """With each variant after its method's name, instead of in a column."""
        if not {"method", "variant"} <= {*self.rows}:
            return self
        variants = self.rows["variant"].where(self.rows["variant"] == "", "@" + self.rows["variant"])
        names = (self.rows["method"] + " " + variants).str.rstrip()
        return replace(self, rows=self.rows.assign(method=names).drop(columns="variant"))


def choose(grids: Sequence[Grid], names: Sequence[str]) -> list[Grid]:
    """Only the columns of these names, in this order; before them what tells rows apart, if none of them does.

    Raises: UserError where no grid has such a column.
    """
    check(names, [column for grid in grids for column in map(str, grid.rows)])
    return [_chosen(grid, list(dict.fromkeys(map(plain, names)))) for grid in grids] if names else list(grids)


def choose_raw(tables: Sequence[pd.DataFrame], names: Sequence[str]) -> list[pd.DataFrame]:
    """The same of raw numbers; a mean brings its deviation and interval. Raises: UserError."""
    check(in_raw(names), [column for table in tables for column in map(str, table)])
    if not names:
        return list(tables)
    asked = list(map(plain, in_raw(names)))
    wanted = [name + end for name in asked for end in ("", " sd", " ci95")]
    columns = [[c for name in wanted for c in map(str, table) if plain(c) == name] for table in tables]
    return [table[list(dict.fromkeys(c))] for table, c in zip(tables, columns, strict=True)]


def has_columns(table: pd.DataFrame, names: Sequence[str]) -> bool:
    """Whether `choose_raw` finds all of these."""
    return {*map(plain, in_raw(names))} <= {*map(plain, map(str, table))}


def in_raw(names: Sequence[str]) -> list[str]:
    return [RAW.get(plain(name), name) for name in names]


def check(names: Sequence[str], known: Sequence[str]) -> None:
    for name in names:
        if plain(name) not in map(plain, known):
            do = "All are those of --format csv or of a wide terminal; settings go by their keys, as fit.lr."
            raise unknown("column", name, set(known), most=MOST_NAMES, do=do)


def _chosen(grid: Grid, names: Sequence[str]) -> Grid:
    asked = [column for name in names for column in map(str, grid.rows) if plain(column) == name]
    differing = [name for name in grid.gathered(grid.constants).rows if name in grid.keys]
    before = [] if {*asked} & {*grid.keys} else differing
    columns = [*before, *asked]
    unasked = [name for name in dict.fromkeys([*grid.constants, *grid.keys]) if name not in columns]
    grid = replace(grid, rows=grid.rows[[*columns, *(name for name in unasked if name in grid.rows)]])
    constant = grid.gathered(unasked)
    marks = {(i, name): mark for (i, name), mark in grid.marks.items() if name in columns}
    if "inference" in grid.rows and "inference" not in columns and grid.rows["inference"].nunique() > 1:
        marks = {}  # what saw more of the test is not compared with the others in silence
    return replace(constant, rows=grid.rows[columns], marks=marks, keys=(), shared=(), extras=(), order=())


def plain(name: str) -> str:
    """A column's name as it may be typed: train_s is "train s"."""
    return name.replace("_", " ").lower()
