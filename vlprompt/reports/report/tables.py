"""Tables of the page: cells with what they are sorted by, and what their rows are filtered by."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

from vlprompt.config.about import display_name
from vlprompt.reports.render import spread_text
from vlprompt.reports.report.notes import averages_in_words
from vlprompt.reports.summary import MEAN_OF_H, H, is_transfer, without_usual
from vlprompt.results.metrics import find_metric
from vlprompt.results.record import shots_order

FILTERS = ("protocol", "dataset", "backbone", "shots")
COSTS = {
    "parameters": ("trained parameters", 1, ",.0f"),
    "train_s": ("training (s)", 1, ",.1f"),
    "step_s": ("step (ms)", 1e3, ",.1f"),
    "views": ("views", 1, ",.0f"),
    "image_s": ("image (ms)", 1e3, ",.2f"),
    "image_flops": ("image (MFLOPs)", 1e-6, ",.1f"),
    "classes_flops": ("classes (MFLOPs)", 1e-6, ",.1f"),
    "peak_bytes": ("peak memory (MB)", 2**-20, ",.0f"),
    "stored_bytes": ("stored (kB)", 2**-10, ",.1f"),
    "backbone_bytes": ("frozen model (MB)", 2**-20, ",.1f"),
}
"""By column of the summary: heading, factor, format."""

MOST_NUMBERS = 8  # of results next to which there is room for costs
FIRST = -1e12


@dataclass(frozen=True)
class Cell:
    text: str
    order: int | float | None = None  # a number that the column is sorted by; None: by the text
    mark: str = ""  # "best", "second"
    link: str = ""  # the id of an element of the page

    @property
    def sorted_by(self) -> int | float:
        """Nothing comes before all numbers, words come after them."""
        return self.order if self.order is not None else FIRST if not self.text else -FIRST


@dataclass(frozen=True)
class Row:
    cells: list[Cell]
    keys: Mapping[str, str] = field(default_factory=dict)  # of FILTERS


@dataclass(frozen=True)
class Table:
    """Columns named in `headings` (`heading`: the one that names its row) are texts, all others numbers."""

    caption: str
    columns: list[str]
    rows: list[Row]
    texts: frozenset[str] = frozenset()
    heading: str = ""

    def without_constant(self, column: str) -> "Table":
        """The same without this column, where all rows have one value in it."""
        i = self.columns.index(column)
        if len({row.cells[i].text for row in self.rows}) > 1:
            return self
        rows = [replace(row, cells=[*row.cells[:i], *row.cells[i + 1 :]]) for row in self.rows]
        return replace(self, columns=[name for name in self.columns if name != column], rows=rows)

    @property
    def orders(self) -> list[bool]:
        """Which columns are sorted by numbers."""
        return [any(row.cells[i].order is not None for row in self.rows) for i in range(len(self.columns))]


def cell(value: Any, form: str = "", factor: int | float = 1) -> Cell:
    """A number with its format, or a text."""
    if isinstance(value, str):
        return Cell(value, float(value) if value.isdigit() else None)
    return Cell("") if pd.isna(value) else Cell(format(factor * value, form), float(value))


def cost(row: Mapping[Any, Any], name: str) -> Cell:
    _, factor, form = COSTS[name]
    return cell(row[name], form, factor)


def keys_of(row: Mapping[Any, Any]) -> dict[str, str]:
    return {name: str(row[name]) for name in FILTERS if str(row.get(name, "")) != ""}


def plain(caption: str, table: pd.DataFrame, forms: Mapping[str, str] = {}, heading: str = "") -> Table:
    """A frame as it is: numbers in the format of their column, all else as text."""
    columns = list(map(str, table))
    rows = [
        Row([cell(value if forms.get(name) else str(value), forms.get(name, "")) for name, value in row.items()], keys)
        for row in table.rename(columns=str).to_dict("records")
        for keys in [keys_of(row)]
    ]
    return Table(caption, columns, rows, frozenset(columns) - {*forms}, heading or columns[0])


def results(summary: pd.DataFrame, links: Sequence[str]) -> list[Table]:
    """A table for each protocol, as `vlprompt table` has them. `links[i]` is the id of row i's runs."""
    table = summary.assign(link=links)
    return [_results(part, str(protocol)) for protocol, part in table.groupby("protocol", sort=False)]


def _results(table: pd.DataFrame, protocol: str) -> Table:
    shown = find_metric(table.attrs.get("metric", "accuracy"))
    keys, asked = _keys(without_usual(table))
    numbers = [name for name in number_columns(table) if table[name].notna().any()]
    if (table["n"] <= 1).all():
        numbers = [name for name in numbers if name != "mean_H"]
    counts = ["n", *(name for name in ("failed", "missing") if table[name].any())]
    marks = best(table, headline_of(numbers, protocol), shown.higher_is_better) if shown.has_best else {}
    shown_costs = ("parameters", "train_s") if len(numbers) <= MOST_NUMBERS else ()
    rows = []
    for i, row in enumerate(table.to_dict("records")):
        cells = [learner_cell(row), *(cell(str(row[name])) for name in [*keys, *asked])]
        cells += [cell(row[name], "d") for name in counts]
        for name in numbers:
            text = spread_text(row[name], row.get(f"{name}_sd", float("nan")), decimals=shown.decimals)
            mark = marks.get(i, "") if name == headline_of(numbers, protocol) else ""
            cells.append(Cell(text, row[name] if text else None, mark))
        cells += [cost(row, name) for name in shown_costs]
        rows.append(Row(cells, keys_of(row)))
    columns = ["method", *keys, *asked, *counts, *(name.replace("mean_H", MEAN_OF_H) for name in numbers)]
    columns += [COSTS[name][0] for name in shown_costs]
    return Table(f"{protocol}: {shown.label}", columns, rows, frozenset(["method", *keys, *asked]), "method")


def _keys(table: pd.DataFrame) -> tuple[list[str], list[str]]:
    """The columns of what a row is: those that differ between rows, and settings that were asked for."""
    names = list(map(str, table))
    keys = ["dataset", "backbone", "weights", "precision", "shots"]
    known = (*keys, "protocol", "method", "variant", "named", "changes")
    asked = [name for name in names[: names.index("n")] if name not in known]
    always = ("dataset", "shots")
    return [name for name in keys if name in always or len({*table[name]} - {""}) > 1], asked


def number_columns(summary: pd.DataFrame) -> list[str]:
    """The columns of a summary that hold means."""
    names = list(map(str, summary))
    return [n for n in names[names.index("n") + 1 : names.index("parameters")] if not n.endswith(("_sd", "_ci95"))]


def headline_of(columns: Sequence[str], protocol: str) -> str:
    """What a protocol is judged by."""
    wanted = ("average", "test") if is_transfer(protocol) else (H, "test", "all")
    return next((name for name in (*wanted, *columns) if name in columns), "")


def best(table: pd.DataFrame, column: str, higher: bool) -> dict[int, str]:
    """The best and the second row, by position, of each cell that has several."""
    if not column:
        return {}
    cells = table[column].round(2).groupby([table[name] for name in ("dataset", "backbone", "weights", "shots")])
    ranks = cells.rank(method="dense", ascending=not higher).where(cells.transform("count") > 1)
    return {i: {1: "best", 2: "second"}[rank] for i, rank in enumerate(ranks) if rank in (1, 2)}


def learner_cell(row: Mapping[Any, Any]) -> Cell:
    return Cell(display_name(row["method"], row["named"]), link=row["link"])


def costs(summary: pd.DataFrame, links: Sequence[str]) -> list[Table]:
    """All costs of what finished, a table for each protocol that has any."""
    table = summary.assign(link=links)
    parts = table[table["n"] > 0].groupby("protocol", sort=False)
    return [costs_of for protocol, part in parts if (costs_of := _costs(part, str(protocol)))]


def _costs(table: pd.DataFrame, protocol: str) -> Table | None:
    known = [name for name in COSTS if table[name].notna().any()]
    if not known:
        return None
    keys = _keys(table)[0]
    rows = []
    for row in table.to_dict("records"):
        cells = [learner_cell(row), *(cell(str(row[name])) for name in keys)]
        rows.append(Row(cells + [cost(row, name) for name in known], keys_of(row)))
    columns = ["method", *keys, *(COSTS[name][0] for name in known)]
    return Table(
        f"{protocol}: means over the runs that finished", columns, rows, frozenset(["method", *keys]), "method"
    )


def winners(results: pd.DataFrame, metric: str) -> Table | None:
    """The best and the second of each protocol and data set or average, at the most shots; None without any."""
    shown, rows = find_metric(metric), []
    context = ["protocol", "source", "backbone", "weights"]
    filled = results[results["n"] > 0]
    for key, members in filled.groupby(context, sort=False):
        shots = max(members["shots"], key=shots_order)
        at_most = members[members["shots"] == shots]
        for dataset in _averages_first(at_most["dataset"]):
            of_set = at_most[at_most["dataset"] == dataset]
            part = headline_of(list(dict.fromkeys(of_set["part"])), str(key[0]))
            ranked = of_set[of_set["part"] == part].sort_values("mean", ascending=not shown.higher_is_better)
            if ranked.empty:
                continue
            shared = dict(zip(context, key, strict=True)) | {"dataset": dataset, "shots": shots}
            rows.append(_winner(shared, ranked, shown.decimals, part))
    columns = ["protocol", "dataset", "backbone", "shots", "of", "best", "best: score", "second", "second: score"]
    texts = frozenset(["protocol", "dataset", "backbone", "of", "best", "second"])
    table = Table(
        f"The best of each protocol, {shown.label}", [*columns, "zero-shot", "learners"], rows, texts, "protocol"
    )
    return table.without_constant("backbone") if rows else None


def _winner(shared: Mapping[str, Any], ranked: pd.DataFrame, decimals: int, part: str) -> Row:
    def score(row: Mapping[Any, Any]) -> Cell:
        return Cell(spread_text(row["mean"], row["deviation"], decimals=decimals), row["mean"])

    rows = ranked.to_dict("records")
    zero = [row for row in rows if row["method"] == "zero_shot" and not row["named"]]  # without settings
    dataset = averages_in_words(shared["dataset"])
    cells = [cell(str(text)) for text in (shared["protocol"], dataset, shared["backbone"], shared["shots"], part)]
    for row in [*rows[:2], None][:2]:
        cells += [Cell(display_name(row["method"], row["named"])), score(row)] if row else [Cell(""), Cell("")]
    cells += [score(zero[0]) if zero else Cell(""), Cell(str(len(rows)), len(rows))]
    return Row(cells, keys_of(shared))


def _averages_first(datasets: Iterable[str]) -> list[str]:
    return sorted(dict.fromkeys(datasets), key=lambda name: not name.startswith("average_"))
