"""A metric against one setting, and the smallest value of it that comes near a reference."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from vlprompt.errors import UserError
from vlprompt.reports.grid import Grid
from vlprompt.reports.render import number, spread_text
from vlprompt.reports.summary import SHARED, summarise
from vlprompt.results.metrics import find_metric
from vlprompt.results.record import Record

CELL = (*SHARED, "shots")  # what the points of a curve and its reference share


@dataclass(frozen=True)
class Curve:
    """One method's points in one cell: rows of `summarise`, by the value of `key`."""

    key: str
    split: str
    metric: str
    cell: Mapping[str, object]
    method: str
    points: pd.DataFrame  # with `key`, split, n and parameters
    reference: float | None = None  # the metric of what it is compared with
    against: str = ""  # the method that this is

    def smallest(self, share: float) -> int | float | None:
        """The smallest value whose metric is at least this share of the reference's; None where none is."""
        if self.reference is None:
            return None
        near = self.points[self.points[self.split] >= share * self.reference]
        return None if near.empty else near[self.key].min()

    def grid(self) -> Grid:
        """As a table."""
        metric, title = find_metric(self.metric), ", ".join(f"{k} {v}" for k, v in self.cell.items())
        rows = pd.DataFrame({self.key: [whole(value) for value in self.points[self.key]]})
        rows["n"] = [str(n) for n in self.points["n"]]
        spreads = zip(self.points[self.split], self.points[f"{self.split}_sd"], strict=True)
        rows[self.split] = [spread_text(*values, decimals=metric.decimals) for values in spreads]
        if self.reference is not None:
            rows[f"% of {self.against}"] = [number(100 * v / self.reference, ".1f") for v in self.points[self.split]]
        rows["parameters"] = [number(value, ",.0f") for value in self.points["parameters"]]
        return Grid(f"method {self.method}, {title}", rows, unit=metric.label)

    def finding(self, share: float) -> str:
        """What `smallest` says, in a sentence."""
        if self.reference is None:
            return ""
        value = self.smallest(share)
        near = f"within {share:.0%} of {self.against}'s {self.reference:.2f} ({self.split})"
        return f"No {self.key} of {self.method} is {near}." if value is None else (
            f"The smallest {self.key} of {self.method} {near} is {whole(value)}."
        )  # fmt: skip


def whole(value: int | float) -> str:
    """A number without a fraction that says nothing."""
    return f"{int(value):,}" if float(value).is_integer() else str(value)


def curves(
    records: Sequence[Record],
    key: str,
    *,
    split: str | None = None,
    metric: str = "accuracy",
    against: str | None = None,
) -> list[Curve]:
    """The curves over a numeric setting, of each method and cell whose runs differ in it; where none do, its values.

    `split`: by default the first test of each cell.

    Raises:
        UserError: no run has the setting or the split, several points have one value, or the reference is missing.
    """
    if not find_metric(metric).higher_is_better and against:
        raise UserError(f"a share of {metric} says nothing: drop --reference, or choose another metric")
    table = summarise(records, metric=metric, columns=[key])
    splits = [name.removesuffix("_sd") for name in map(str, table) if name.endswith("_sd")]
    if split and split not in splits:
        raise UserError(f"no run has a test '{split}': there are {', '.join(splits) or 'none'}")
    numeric = table[key].map(lambda value: isinstance(value, int | float) and not isinstance(value, bool))
    points = table[numeric & table[[split] if split else splits].notna().any(axis=1)]
    if points.empty:
        raise UserError(f"no finished run has a number as {key}")
    groups = list(points.groupby([*CELL, "method"], sort=False))
    several = [(values, group) for values, group in groups if group[key].nunique() > 1]
    drawn = []
    for values, group in several or groups:
        cell, method = dict(zip(CELL, values, strict=False)), str(values[-1])
        test = split or next(name for name in splits if group[name].notna().any())
        group = group[group[test].notna()].sort_values(key)
        if (double := group[key][group[key].duplicated()]).size:
            variants = ", ".join(v or "default" for v in group["named"][group[key] == double.iloc[0]])
            raise UserError(f"{method} has several rows with {key}={double.iloc[0]} ({variants}): choose by --where")
        reference = _reference(table, cell, against, test) if against else None
        drawn.append(Curve(key, test, metric, cell, method, group.reset_index(drop=True), reference, against or ""))
    return drawn


def _reference(table: pd.DataFrame, cell: Mapping[str, object], method: str, split: str) -> float:
    rows = table[(table["method"] == method) & (table["variant"] == "") & table[split].notna()]
    for name, value in cell.items():
        rows = rows[rows[name] == value]
    if len(rows) != 1:
        where = ", ".join(f"{name} {value}" for name, value in cell.items())
        raise UserError(f"there is no finished run of {method} to compare with ({where}): run it with its own settings")
    return float(rows[split].iloc[0])
