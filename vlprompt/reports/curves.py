"""A metric against one setting, and the smallest value of it that comes near a reference."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from vlprompt.errors import UserError
from vlprompt.reports.render import Grid, number, spread_text
from vlprompt.reports.summaries import CONTEXT, summarise
from vlprompt.results.metrics import measure
from vlprompt.results.record import Record

PLACE = (*CONTEXT, "shots")  # what the points of a curve and its reference share


@dataclass(frozen=True)
class Curve:
    """One method's points in one place: rows of `summarise`, by the value of `key`."""

    key: str
    split: str
    metric: str
    place: Mapping[str, object]
    method: str
    points: pd.DataFrame  # with `key`, split, n and parameters
    reference: float | None = None  # the metric of what it is held against
    against: str = ""  # the method that this is

    def smallest(self, share: float) -> float | None:
        """The smallest value whose metric is at least this share of the reference's; None where none is."""
        if self.reference is None:
            return None
        near = self.points[self.points[self.split] >= share * self.reference]
        return None if near.empty else near[self.key].min()

    def grid(self) -> Grid:
        """As a table."""
        decimals, title = measure(self.metric).decimals, ", ".join(f"{k} {v}" for k, v in self.place.items())
        rows = pd.DataFrame({self.key: [whole(value) for value in self.points[self.key]]})
        rows["n"] = [str(n) for n in self.points["n"]]
        spreads = zip(self.points[self.split], self.points[f"{self.split}_sd"], strict=True)
        rows[self.split] = [spread_text(*found, decimals=decimals) for found in spreads]
        if self.reference is not None:
            rows[f"% of {self.against}"] = [number(100 * v / self.reference, ".1f") for v in self.points[self.split]]
        rows["parameters"] = [number(value, ",.0f") for value in self.points["parameters"]]
        return Grid(f"{self.method}, {title}", rows)

    def finding(self, share: float) -> str:
        """What `smallest` says, in a sentence."""
        if self.reference is None:
            return ""
        found = self.smallest(share)
        near = f"within {share:.0%} of {self.against}'s {self.reference:.2f} ({self.split})"
        return f"No {self.key} of {self.method} is {near}." if found is None else (
            f"The smallest {self.key} of {self.method} {near} is {whole(found)}."
        )  # fmt: skip


def whole(value: float) -> str:
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
    """The curves over a numeric setting, of each method that has it; `split`: by default the first test of the records.

    Raises:
        UserError: no run has the setting or the split, several points have one value, or the reference is missing.
    """
    if not measure(metric).higher_is_better and against:
        raise UserError(f"a share of {metric} says nothing: drop --reference, or choose another metric")
    table = summarise(records, metric=metric, columns=[key])
    splits = [name.removesuffix("_sd") for name in map(str, table) if name.endswith("_sd")]
    split = split or (splits[0] if splits else "")
    if split not in splits:
        raise UserError(f"no run has a test '{split}': there are {', '.join(splits) or 'none'}")
    numeric = table[key].map(lambda value: isinstance(value, int | float) and not isinstance(value, bool))
    points = table[numeric & table[key].notna() & table[split].notna()]
    if points.empty:
        raise UserError(f"no finished run has a number as {key}")
    found = []
    for values, group in points.groupby([*PLACE, "method"], dropna=False, sort=False):
        place, method = dict(zip(PLACE, values, strict=False)), str(values[-1])
        group = group.sort_values(key)
        if (double := group[key][group[key].duplicated()]).size:
            variants = ", ".join(str(v) for v in group["variant"][group[key] == double.iloc[0]])
            raise UserError(f"{method} has several rows with {key}={double.iloc[0]} ({variants}): choose by --where")
        reference = _reference(table, place, against, split) if against else None
        found.append(Curve(key, split, metric, place, method, group.reset_index(drop=True), reference, against or ""))
    return found


def _reference(table: pd.DataFrame, place: Mapping[str, object], method: str, split: str) -> float:
    rows = table[(table["method"] == method) & table["variant"].isna() & table[split].notna()]
    for name, value in place.items():
        rows = rows[rows[name] == value]
    if len(rows) != 1:
        where = ", ".join(f"{name} {value}" for name, value in place.items())
        raise UserError(f"there is no finished run of {method} to compare with ({where}): run it with its own settings")
    return float(rows[split].iloc[0])
