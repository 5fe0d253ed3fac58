"""Tables as text: for the terminal, Markdown, LaTeX and, in numbers, CSV."""

from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from vlprompt.errors import UserError, folded, unknown
from vlprompt.reports import latex
from vlprompt.reports.escapes import ESCAPES, csv
from vlprompt.reports.grid import BEST, SECOND, Grid
from vlprompt.reports.marks import best_and_second
from vlprompt.reports.summary import (
    MEAN_OF_H,
    NO_RUNS,
    SHARED,
    TOLD,
    USUAL,
    WORDS,
    H,
    summarise,
    without_result,
    without_usual,
)
from vlprompt.reports.terminal import WIDE, draw, terminal_width, wrapped
from vlprompt.reports.variants import distinguishing, single_class_notes
from vlprompt.results.metrics import find_metric
from vlprompt.results.record import Record

FORMATS = ("terminal", "markdown", "csv", "latex")
DEMO_NOTE = "The demo world checks the software; it ranks nothing."
PRECISION_NOTE = "Rows differ in precision: compare them with care."
COST_NOTE = (
    "Stored: what is trained. Model: the frozen weights. FLOPs: of products and convolutions, without merging; of the "
    "classes once, of each image then; × frozen: times zero-shot with one template. ms/image: from pixels, of four at "
    "once; of one with its views where these adapt the learner."
)
MCE_NOTE = (
    "mCE: mean over kinds of the error over severities, in percent of that of zero-shot without further settings; "
    "smaller is better."
)
NO_MCE_NOTE = (
    "No mCE where zero-shot has no run on the same corruptions, data set and backbone: run method=zero_shot with the "
    "same settings of the protocol."
)
IMPORTED_NOTE = "Rows of the variant imported were read from logs of other software, most of them rounded to 0.1."
INTERVAL_NOTES = {
    "none": [],
    "t": ["In brackets: the 95 % interval by Student's t over n seeds."],
    "normal": ["±: population deviation; in brackets: 1.96 standard errors, as the originals' scripts print them."],
}
MARKED = {"markdown": {BEST: "**{}**", SECOND: "<u>{}</u>"}}
NO_ROOM = "widen the terminal, or send this to a file"
MANY_FLOPS = 1e11
OF_WHAT = {"selection": "selection, of settings or the epoch", "inference": "inference, how each test image is judged"}


def render(table: pd.DataFrame, format: str = "terminal", *, costs: bool = False, width: int | None = None) -> str:
    """A summary as text, a table for each protocol; with `costs` all of them have columns.

    CSV is one table of the raw numbers; the others have two decimals, `mean ± deviation`, and what all rows of a table
    share above it. "terminal" is plain, never wrapped, never cut, unless it has a `width`.
    """
    check_format(format)
    if format == "csv":
        return csv(_checked(table).drop(columns="named"))
    grids = summary_grids(table, costs=costs, on_terminal=width is not None)
    return render_grids(grids, summary_notes(table, costs=costs), format, width=width)


def _checked(table: pd.DataFrame) -> pd.DataFrame:
    if table.empty:
        raise UserError(NO_RUNS)
    return table


def summary_grids(
    table: pd.DataFrame, *, costs: bool = False, on_terminal: bool = False, mark: bool = False
) -> list[Grid]:
    """A summary as a table for each protocol; `mark`: the best and the second of each cell.

    On a terminal rows without a result are left to the notes, if others have one.
    """
    ran = _checked(table)["n"] > 0
    shown = table[ran] if on_terminal and ran.any() else table
    metric, columns = table.attrs.get("metric", "accuracy"), table.attrs.get("columns", ())
    parts = [without_usual(part, columns) for _, part in shown.groupby("protocol", sort=False)]
    return [_summary_grid(part, metric, costs, mark) for part in parts]


def summary_notes(table: pd.DataFrame, *, costs: bool = False) -> list[str]:
    notes = [*INTERVAL_NOTES[table.attrs.get("interval", "none")], *general_notes(table)]
    if "corrupted" in table and table.attrs.get("metric") == "accuracy":
        corrupted = table["corrupted"].notna()
        related = table["mCE"].notna() if "mCE" in table else ~corrupted
        notes += [MCE_NOTE] * bool(related.any()) + [NO_MCE_NOTE] * bool((corrupted & ~related).any())
    return [*notes, *[COST_NOTE] * costs]


def in_words(records: Sequence[Record]) -> str:
    """What runs came to, for the terminal, with a column for each setting in which variants differ."""
    width = terminal_width()
    table = summarise(records, columns=[] if width and width < WIDE else distinguishing(records))
    grids = summary_grids(table, on_terminal=width is not None)
    notes = [*summary_notes(table), *without_result(records), *single_class_notes(records)]
    return render_grids(grids, notes, "terminal", width=width).rstrip()


def check_format(format: str) -> None:
    if format not in FORMATS:
        raise unknown("format", format, FORMATS)


def render_grids(
    grids: Sequence[Grid], notes: Sequence[str], format: str, *, width: int | None = None, more: str = NO_ROOM
) -> str:
    """Tables and the notes below them as text, in any format but CSV; all texts are harmless in it (`escapes`).

    `width`: of a terminal, which a table must not exceed; `more` says how to see what there is no room for.
    """
    if format == "latex":
        return latex.document([grid.gathered(grid.constants) for grid in grids], folded(notes))
    if width is None:
        drawn = [_draw(grid.gathered(grid.shared), format) for grid in grids]
        return "\n\n".join([*drawn, *map(ESCAPES[format], folded(notes))]) + "\n"
    fitted = [draw(grid.gathered(grid.constants), width) for grid in grids]
    lacking = dict.fromkeys(name for _, names in fitted for name in names)
    room = [f"No room for {', '.join(lacking)}: {more}."] if lacking else []
    return (
        "\n\n".join([*(text for text, _ in fitted), *(wrapped(note, width) for note in [*room, *folded(notes)])]) + "\n"
    )


def general_notes(table: pd.DataFrame) -> list[str]:
    """Of a table with the columns dataset, backbone, precision, variant and, if it shows that, selection."""
    demo = table["dataset"].str.startswith("shapes") | (table["backbone"] == "shapes_vit")
    mixed = len({*table["precision"]} - {"", None}) > 1
    imported = table["variant"].fillna("").str.match(r"imported(-|$)")
    notes = {DEMO_NOTE: demo.any(), PRECISION_NOTE: mixed, IMPORTED_NOTE: imported.any()}
    told = [note for name in TOLD for note in told_notes(table.get(name, ()), name)]
    return [*(note for note, applies in notes.items() if applies), *told]


def told_notes(values: Iterable[str], name: str) -> list[str]:
    """What the words in a column of `TOLD` mean; nothing where they are the usual. Tables without it have NaN there."""
    said = {word for value in values if isinstance(value, str) for word in value.split(", ")} - {""}
    if said <= {USUAL[name]}:
        return []
    means = "; ".join(f"{word}: {means}" for word, means in WORDS[name].items() if word in said)
    return [f"{OF_WHAT[name]}: {means}."]


def number(value: float, form: str = ".2f") -> str:
    return "" if pd.isna(value) else format(value, form)


def spread_text(mean: float, deviation: float, half_width: float = float("nan"), *, decimals: int = 2) -> str:
    """83.90 ± 3.70 [74.71, 93.09], as far as there are numbers."""
    form = f".{decimals}f"
    text = number(mean, form) + (f" ± {number(deviation, form)}" if pd.notna(deviation) else "")
    if pd.notna(half_width):
        text += f" [{number(mean - half_width, form)}, {number(mean + half_width, form)}]"
    return text


def _summary_grid(table: pd.DataFrame, metric: str, costs: bool, mark: bool) -> Grid:
    rows = _readable(table, find_metric(metric).decimals, costs)
    names, n = list(map(str, rows)), list(map(str, rows)).index("n")
    asked = [name for name in names[:n] if name not in (*SHARED, "method", "variant", "shots")]
    keys = [name for name in ("method", "dataset", "variant", "shots", *asked, *SHARED[2:], "protocol") if name in rows]
    headline = [name for name in (H, "test", "average") if name in rows][:1]
    headline += [name for name in ("mCE", "corrupted", "clean") if name in rows]
    splits = [name for name in names[n + 1 :] if name in table and name not in ("failed", "missing", "parameters")]
    first, last = ("failed", "parameters", "all"), ("train s", "peak MB", MEAN_OF_H, "missing")
    extras = [*first, *(name for name in names[n + 1 :] if name not in (*splits, *first, *last)), *last]
    cells = table[[*SHARED, "shots"]].astype(str).agg(" ".join, axis=1).tolist()
    marked = [name for name in splits if name != "mCE"]  # of which the smallest is the best
    marks = best_and_second(table[marked], cells, find_metric(metric)) if mark else {}
    return Grid(
        "", rows, marks, keys=keys, shared=[*SHARED, *TOLD],
        extras=[name for name in extras if name in rows], order=[*keys[:1], *headline, "inference", *keys[1:], "n"],
        unit="" if metric == "accuracy" else find_metric(metric).label,
    )  # fmt: skip


def _readable(table: pd.DataFrame, decimals: int, costs: bool) -> pd.DataFrame:
    """The cells as text; columns that say nothing (no variants, none failed) left out."""
    n_keys = list(table.columns).index("n")
    keys = table.iloc[:, :n_keys].assign(variant=table["named"]).drop(columns=["named", "changes"])
    shown = keys.map(lambda value: "" if pd.isna(value) else str(value))
    shown["n"] = table["n"].astype(str)
    if "source" in table:  # a paper's seeds are not known
        shown["n"] = shown["n"].where(table["source"] == "", "")
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
    return shown.drop(columns=[name for name in shown if name != "n" and (shown[name] == "").all()])


def _costs(table: pd.DataFrame) -> dict[str, list[str]]:
    """Columns of the costs that a table shows where it is asked for them."""
    unit, factor = flops_unit(table["image_flops"])
    flops = {"image": (f"{unit}/image", factor), "classes": ("MFLOPs of classes", 1e6)}
    columns = {
        "stored kB": [number(value / 2**10, ",.1f") for value in table["stored_bytes"]],
        "model MB": [number(value / 2**20, ",.1f") for value in table["backbone_bytes"]],
        "ms/step": [number(1000 * value, ".1f") for value in table["step_s"]],
        "views": [number(value, ",.0f") for value in table["views"]],
        "ms/image": [number(1000 * value, ".2f") for value in table["image_s"]],
    }
    for part, (title, factor) in flops.items():
        learner, frozen = table[f"{part}_flops"], table[f"frozen_{part}_flops"]
        columns[title] = [number(value / factor, ",.1f") for value in learner]
        columns[f"{part}: × frozen"] = [number(value, ".3f") for value in learner / frozen.where(frozen > 0)]
    words = {1.0: "yes", 0.0: "no"}
    columns["can be merged"] = [words.get(value, "") for value in table["mergeable"]]
    return columns


def flops_unit(flops: Iterable[float]) -> tuple[str, float]:
    """In what FLOPs of an image read well: their unit, and so many."""
    return ("GFLOPs", 1e9) if any(value >= MANY_FLOPS for value in flops) else ("MFLOPs", 1e6)


def _draw(grid: Grid, format: str) -> str:
    escape, names = ESCAPES[format], list(grid.rows)
    rows = [[escape(text) for text in row] for row in grid.rows.values.tolist()]
    for (row, column), mark in grid.marks.items():
        i = names.index(column)
        rows[row][i] = MARKED.get(format, {}).get(mark, "{}").format(rows[row][i])
    headers = [escape(name) for name in names]
    title = escape(grid.title)
    if format == "markdown":
        return f"{title}\n\n{_tabulated(headers, rows, 'pipe')}".lstrip("\n")
    return f"{title}\n{_tabulated(headers, rows, 'simple', grid.starts)}".lstrip("\n")


def _tabulated(headers: Sequence[str], rows: Sequence[Sequence[str]], form: str, starts: Sequence[int] = ()) -> str:
    from tabulate import SEPARATING_LINE, tabulate

    lines: list[Any] = list(rows)
    for start in reversed(starts):
        lines.insert(start, SEPARATING_LINE)
    return tabulate(lines, headers=headers, tablefmt=form, disable_numparse=True).rstrip("\n")
