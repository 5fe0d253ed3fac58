"""Tables as text: for the terminal, Markdown, LaTeX and, in numbers, CSV."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

from vlprompt.errors import UserError, unknown
from vlprompt.reports.escapes import ESCAPES, csv, latex_comment, terminal
from vlprompt.reports.summary import MEAN_OF_H, NO_RUNS, SHARED, summarise
from vlprompt.reports.variants import distinguishing, single_class_notes
from vlprompt.results.metrics import find_metric
from vlprompt.results.record import Record

FORMATS = ("terminal", "markdown", "csv", "latex")
DEMO_NOTE = "The demo world checks the software; it ranks nothing."
PRECISION_NOTE = "Rows differ in precision: compare them with care."
COST_NOTE = (
    "Stored: what is trained. Model: the frozen weights. FLOPs: of products and convolutions, without merging; of the "
    "classes once, of each image then; × frozen: times zero-shot with one template. ms/image: of four at once, from "
    "pixels."
)
IMPORTED_NOTE = "Rows of the variant imported were read from logs of other software, most of them rounded to 0.1."
INTERVAL_NOTES = {
    "none": [],
    "t": ["In brackets: the 95 % interval by Student's t over n seeds."],
    "normal": ["±: population deviation; in brackets: 1.96 standard errors, as the originals' scripts print them."],
}
BEST, SECOND = "best", "second"
MARKED = {
    "markdown": {BEST: "**{}**", SECOND: "<u>{}</u>"},
    "latex": {BEST: r"\textbf{{{}}}", SECOND: r"\underline{{{}}}"},
}
WIDE_ONLY = ["parameters", "train s", "peak MB"]  # columns that a narrow terminal has to do without, the last one first
GAP = 3  # characters between columns on a terminal
STYLES = {BEST: "bold", SECOND: "underline"}


@dataclass(frozen=True)
class Grid:
    """One table of cells that are text already; `title` is what its rows share.

    `marks` names the best and the second cell by (row, column). A rule goes between rows whose `blocks` differ.
    """

    title: str
    rows: pd.DataFrame
    marks: dict[tuple[int, str], str] = field(default_factory=dict)
    blocks: Sequence[object] = ()

    @property
    def starts(self) -> list[int]:
        """The rows that begin a block, but for the first."""
        return [i for i in range(1, len(self.blocks)) if self.blocks[i] != self.blocks[i - 1]]


def render(table: pd.DataFrame, format: str = "terminal", *, costs: bool = False) -> str:
    """A summary as text, a table for each protocol; with `costs` all of them have columns.

    CSV is one table of the raw numbers; the others have two decimals, `mean ± deviation`, and what all rows of a table
    share above it (LaTeX: in columns).

    "terminal" is a rich table on a terminal; into a file or a pipe it is plain, never wrapped, never cut.
    """
    check_format(format)
    if table.empty:
        raise UserError(NO_RUNS)
    if format == "csv":
        return csv(table.drop(columns="named"))
    parts = [part for _, part in table.groupby("protocol", sort=False)]
    notes = [*INTERVAL_NOTES[table.attrs.get("interval", "none")], *general_notes(table)]
    metric = table.attrs.get("metric", "accuracy")
    if costs:
        notes.append(COST_NOTE)
    return render_grids([_summary_grid(part, format, metric, costs) for part in parts], notes, format)


def in_words(records: Sequence[Record]) -> str:
    """What runs came to, for the terminal, with a column for each setting in which variants differ."""
    notes = single_class_notes(records)
    return "\n\n".join([render(summarise(records, columns=distinguishing(records))).rstrip(), *map(terminal, notes)])


def check_format(format: str) -> None:
    if format not in FORMATS:
        raise unknown("format", format, FORMATS)


def render_grids(grids: Sequence[Grid], notes: Sequence[str], format: str) -> str:
    """Tables and the notes below them as text, in any format but CSV; all texts are harmless in it (`escapes`)."""
    return "\n\n".join([*(_draw(grid, format) for grid in grids), *map(ESCAPES[format], notes)]) + "\n"


def general_notes(table: pd.DataFrame) -> list[str]:
    """Of a table with the columns dataset, backbone, precision and variant."""
    demo = table["dataset"].str.startswith("shapes") | (table["backbone"] == "shapes_vit")
    mixed = len({*table["precision"]} - {"", None}) > 1
    imported = table["variant"].fillna("").str.match(r"imported(-|$)")
    notes = {DEMO_NOTE: demo.any(), PRECISION_NOTE: mixed, IMPORTED_NOTE: imported.any()}
    return [note for note, applies in notes.items() if applies]


def number(value: float, form: str = ".2f") -> str:
    return "" if pd.isna(value) else format(value, form)


def spread_text(mean: float, deviation: float, half_width: float = float("nan"), *, decimals: int = 2) -> str:
    """83.90 ± 3.70 [74.71, 93.09], as far as there are numbers."""
    form = f".{decimals}f"
    text = number(mean, form) + (f" ± {number(deviation, form)}" if pd.notna(deviation) else "")
    if pd.notna(half_width):
        text += f" [{number(mean - half_width, form)}, {number(mean + half_width, form)}]"
    return text


def _summary_grid(table: pd.DataFrame, format: str, metric: str, costs: bool) -> Grid:
    shown = _readable(table, find_metric(metric).decimals, costs)
    if format == "latex":
        return Grid("", shown)
    ran = shown[table["n"] > 0] if (table["n"] > 0).any() else shown  # others may not know their weights and precision
    shared = [name for name in SHARED if name in shown and ran[name].nunique() == 1 == len({*shown[name]} - {""})]
    title = ", ".join(f"{name} {ran[name].iloc[0]}" for name in shared)
    if metric != "accuracy":
        title += f", {find_metric(metric).label}"
    return Grid(title, shown.drop(columns=shared))


def _readable(table: pd.DataFrame, decimals: int, costs: bool) -> pd.DataFrame:
    """The cells as text; columns that say nothing (no variants, none failed) left out."""
    n_keys = list(table.columns).index("n")
    keys = table.iloc[:, :n_keys].assign(variant=table["named"]).drop(columns=["named", "changes"])
    shown = keys.map(lambda value: "" if pd.isna(value) else str(value))
    shown["n"] = table["n"].astype(str)
    none = pd.Series(float("nan"), index=table.index)
    for column in table.columns[n_keys + 1 : list(table.columns).index("parameters")]:
        deviations, widths = (table.get(f"{column}_{end}", none) for end in ("sd", "ci95"))
        if not column.endswith(("_sd", "_ci95")) and (column != "mean_H" or (table["n"] > 1).any()):
            spreads = zip(table[column], deviations, widths, strict=True)
            shown[column.replace("mean_H", MEAN_OF_H)] = [spread_text(*values, decimals=decimals) for values in spreads]
    shown["parameters"] = [number(value, ",.0f") for value in table["parameters"]]
    shown["train s"] = [number(value, ".1f") for value in table["train_s"]]
    shown["peak MB"] = [number(value / 2**20, ".0f") for value in table["peak_bytes"]]
    if costs:
        shown = shown.assign(**_costs(table))
    for column in ("failed", "missing"):
        if table[column].any():
            shown[column] = table[column].astype(str)
    return shown.drop(columns=[name for name in shown if (shown[name] == "").all()])


def _costs(table: pd.DataFrame) -> dict[str, list[str]]:
    """Columns of the costs that a table shows where it is asked for them."""
    flops = {"image": "MFLOPs/image", "classes": "MFLOPs of classes"}
    columns = {
        "stored kB": [number(value / 2**10, ",.1f") for value in table["stored_bytes"]],
        "model MB": [number(value / 2**20, ",.1f") for value in table["backbone_bytes"]],
        "ms/step": [number(1000 * value, ".1f") for value in table["step_s"]],
        "ms/image": [number(1000 * value, ".2f") for value in table["image_s"]],
    }
    for part, title in flops.items():
        learner, frozen = table[f"{part}_flops"], table[f"frozen_{part}_flops"]
        columns[title] = [number(value / 1e6, ",.1f") for value in learner]
        columns[f"{part}: × frozen"] = [number(value, ".3f") for value in learner / frozen.where(frozen > 0)]
    words = {1.0: "yes", 0.0: "no"}
    columns["can be merged"] = [words.get(value, "") for value in table["mergeable"]]
    return columns


def _draw(grid: Grid, format: str) -> str:
    if format == "terminal" and sys.stdout.isatty():
        return _rich(grid).rstrip("\n")
    escape, names = ESCAPES[format], list(grid.rows)
    rows = [[escape(text) for text in row] for row in grid.rows.values.tolist()]
    for (row, column), mark in grid.marks.items():
        i = names.index(column)
        rows[row][i] = MARKED.get(format, {}).get(mark, "{}").format(rows[row][i])
    headers = [escape(name) for name in names]
    if format == "latex":
        return _latex(latex_comment(grid.title), headers, rows, grid.starts)
    title = escape(grid.title)
    if format == "markdown":
        return f"{title}\n\n{_tabulated(headers, rows, 'pipe')}".lstrip("\n")
    return f"{title}\n{_tabulated(headers, rows, 'simple', grid.starts)}".lstrip("\n")


def _latex(title: str, headers: Sequence[str], rows: Sequence[Sequence[str]], starts: Sequence[int]) -> str:
    """booktabs; the title as a comment."""
    lines = [f"% {title}"] * bool(title) + [rf"\begin{{tabular}}{{{'l' * len(headers)}}}", r"\toprule"]
    lines += [" & ".join(headers) + r" \\", r"\midrule"]
    for i, row in enumerate(rows):
        lines += [r"\midrule"] * (i in starts) + [" & ".join(row) + r" \\"]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])


def _tabulated(headers: Sequence[str], rows: Sequence[Sequence[str]], form: str, starts: Sequence[int] = ()) -> str:
    from tabulate import SEPARATING_LINE, tabulate

    lines: list[Any] = list(rows)
    for start in reversed(starts):
        lines.insert(start, SEPARATING_LINE)
    return tabulate(lines, headers=headers, tablefmt=form, disable_numparse=True).rstrip("\n")


def _rich(grid: Grid) -> str:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    optional, dropped = [name for name in WIDE_ONLY if name in grid.rows], list[str]()
    while (widths := column_widths(grid.rows.drop(columns=dropped), console.width)) is None and optional:
        dropped.append(optional.pop())
    grid = replace(grid, rows=grid.rows.drop(columns=dropped))
    note = f"No room for {', '.join(reversed(dropped))}: widen the terminal, or pipe this." if dropped else None
    drawn = Table(title=Text(terminal(grid.title)), title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    drawn.caption, drawn.caption_justify = note, "left"
    given: Sequence[int | None] = widths or [None] * len(grid.rows.columns)  # where even this is too wide, words break
    for name, width in zip(grid.rows, given, strict=True):
        drawn.add_column(Text(terminal(name)), overflow="fold", width=width)
    for i, row in enumerate(grid.rows.values.tolist()):
        cells = zip(grid.rows, row, strict=True)
        styled = [
            Text(terminal(text), style=STYLES.get(grid.marks.get((i, str(name)), ""), "")) for name, text in cells
        ]
        drawn.add_row(*styled, end_section=i + 1 in grid.starts)
    with console.capture() as capture:
        console.print(drawn)
    return capture.get()


def column_widths(rows: pd.DataFrame, room: int) -> list[int] | None:
    """Characters of each column, so that no word is broken and, from the left, few texts wrap; None: no room for it."""
    texts = [[str(name), *rows[name]] for name in rows]
    widths = [max(len(word) for text in column for word in text.split() or [""]) for column in texts]
    spare = room - sum(width + GAP for width in widths)
    if spare < 0:
        return None
    for i, column in enumerate(texts):
        more = min(max(map(len, column)) - widths[i], spare)
        widths[i], spare = widths[i] + more, spare - more
    return widths
