"""`vlprompt table`: results as tables, for the terminal and for papers, next to the published numbers."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vlprompt.commands.arguments import words
from vlprompt.commands.output import add_output, asked_columns, show, width_of
from vlprompt.commands.selection import add_selection, no_runs, published_settings, selected
from vlprompt.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

    from vlprompt.reports.grid import Grid
    from vlprompt.reports.published import Published
    from vlprompt.results.record import Record

SCORED = ("calibration", "open_world", "ood")  # layouts of several metrics
LAYOUTS = (
    *("runs", "base_to_novel", "few_shot", "cross_dataset", "domain_generalization", "auto"),
    *("test_time", *SCORED, "published"),
)
UNBOUND = ("runs", "auto")  # layouts of all protocols
CONTEXT = ("protocol", "dataset", "backbone", "shots")  # conditions that papers' rows have to meet, too
PUBLISHED_NOTE = (
    "Published numbers in percent, in brackets ours less theirs in points. Theirs were computed in float16, mostly; "
    "precision is no part of a setting."
)


INTERVALS = "95 %% around means; bootstrap: over test images, in the layouts calibration and open_world"


def register(commands: Any) -> None:
    """Add `table` to the sub-commands."""
    table = commands.add_parser("table", help="tables of the runs so far: seeds, averages, distance to the papers")
    add_selection(table)
    add_output(table)
    table.add_argument("--layout", choices=LAYOUTS, default="runs", help="runs: a row a learner; or as papers print")
    table.add_argument("--costs", action="store_true", help="all costs: bytes, time and FLOPs of a step, of an image")
    table.add_argument("--interval", choices=("t", "normal", "bootstrap", "none"), default="none", help=INTERVALS)
    table.add_argument("--split", type=words, default=[], metavar="TESTS", help="in test_time: base,novel,H or others")
    text = "difference: a table below, where papers have the same cells; rows: the papers' numbers as rows, too"
    table.add_argument("--published", choices=("difference", "rows", "none"), help=f"{text} (default with --papers)")
    text = "only the published numbers of these papers: maple,promptsrc"
    table.add_argument("--papers", type=words, default=[], metavar="NAMES", help=text)
    text = "best in bold, second underlined (default in the layouts of papers, but for LaTeX)"
    table.add_argument("--mark-best", action=argparse.BooleanOptionalAction, help=text)
    table.set_defaults(command=show_table)


def show_table(options: argparse.Namespace) -> int:
    from vlprompt.reports.averages import side_by_side

    check_options(options)
    from vlprompt.reports.grid import has_columns
    from vlprompt.reports.layouts import PAPERS, of_layout
    from vlprompt.reports.published import as_records, legend, load, of_papers
    from vlprompt.reports.summary import missing_metric
    from vlprompt.reports.terminal import WIDE
    from vlprompt.reports.variants import distinguishing
    from vlprompt.results.metrics import complete

    published = options.published or ("rows" if options.papers else "difference")
    as_rows = published == "rows" and options.layout != "published"
    printed = of_papers(load(), options.papers)
    theirs = [r for r in as_records(printed) if options.layout in (r.protocol, *UNBOUND)] if as_rows else []
    runs, notes = selected(options, theirs)
    completed = complete(runs, options.metric, notes)
    runs = dict(zip(runs, completed, strict=True))
    ours, others = of_layout(completed, options.layout)
    papers, lacking = published_records(ours, theirs, printed, options) if as_rows else ([], [])
    records = [*ours, *papers]
    if not records:
        raise no_runs(options.folders, lacking)
    asked = asked_columns(options)
    settings = [name for name in asked if is_setting(name, records)]
    in_words = options.format == "csv" or (width_of(options) or WIDE) < WIDE
    by_themselves = [] if in_words else distinguishing(records, across=options.layout != "runs")
    how = {"metric": options.metric, "interval": options.interval}
    how |= {"columns": list(dict.fromkeys([*settings, *by_themselves]))}
    names = asked if len(settings) < len(asked) else []  # settings alone are columns more
    below: list[Grid] = []
    if options.layout in SCORED:
        grids, raw, reading = scored_tables(runs, options, settings)
    elif options.layout == "test_time":
        grids, below, raw, reading = test_time_tables(records, options)
    else:
        grids, raw, reading = tables_of(records, how, options, printed, every=bool(names))
    if options.layout not in ("runs", "published") and not has_columns(raw, names):
        raw = side_by_side(raw)
    gaps = [*missing_metric(records, options.metric), *lacking, *legend(papers)]
    if options.layout == "published" and not grids:
        raise UserError("no published number is of the same cells as these runs")
    compared = ours and published != "none" and options.layout in (*UNBOUND, *PAPERS) and options.metric == "accuracy"
    if compared and options.format != "csv":  # which holds one table
        below, _, more = published_tables(ours, how, printed, options)
        reading = [*reading, *more]
    show(grids, [*reading, *notes, *others, *gaps], options, [raw], names=names, below=below)
    return 0


def tables_of(
    records: Sequence["Record"],
    how: Mapping[str, Any],
    options: argparse.Namespace,
    printed: "pd.DataFrame",
    *,
    every: bool,
) -> tuple[list["Grid"], "pd.DataFrame", list[str]]:
    """The tables of a layout, the same in raw numbers, and how to read them; `every`: with all columns there are."""
    from vlprompt.reports.averages import across_datasets, numbers
    from vlprompt.reports.layouts import grids, notes_of
    from vlprompt.reports.render import INTERVAL_NOTES, general_notes, summary_grids, summary_notes
    from vlprompt.reports.summary import summarise, without_result

    if options.layout == "published":
        return published_tables(records, how, printed, options)
    on_terminal = width_of(options) is not None
    if options.layout == "runs":
        table = summarise(records, **how)
        costs = options.costs or every
        drawn = summary_grids(table, costs=costs, on_terminal=on_terminal, mark=bool(options.mark_best))
        notes = [*summary_notes(table, costs=options.costs), *without_result(records)]
        return drawn, table.drop(columns="named"), notes
    results, gaps = across_datasets(records, **how)
    notes = [*notes_of(results, records, options.interval), *INTERVAL_NOTES[options.interval]]
    drawn = grids(results, options.metric, on_terminal=on_terminal)
    return marked(drawn, options), numbers(results), [*notes, *general_notes(results), *gaps]


def check_options(options: argparse.Namespace) -> None:
    """Raises: UserError for an option that the layout knows nothing of."""
    layout = options.layout
    if options.split and layout != "test_time":
        raise UserError(f"--split has no effect on the layout {layout}: leave it out, or take --layout test_time")
    if options.interval == "bootstrap" and layout not in SCORED:
        raise UserError(
            f"--interval bootstrap is for --layout {' or '.join(SCORED)}: take t or normal, or one of these"
        )
    if layout in SCORED and options.metric != "accuracy":
        raise UserError(f"the layout {layout} has metrics of its own: leave --metric {options.metric} out")
    if layout in (*SCORED, "test_time") and options.papers:
        raise UserError(f"papers have no rows in the layout {layout}: leave --papers out")


def scored_tables(
    runs: Mapping["Path", "Record"], options: argparse.Namespace, columns: Sequence[str]
) -> tuple[list["Grid"], "pd.DataFrame", list[str]]:
    """The tables of a layout of several metrics, as `tables_of`."""
    from vlprompt.reports.render import INTERVAL_NOTES, general_notes
    from vlprompt.reports.scored import tables
    from vlprompt.reports.summary import without_result

    grids, raw, notes = tables(runs, options.layout, how=options.interval, columns=columns)
    notes = [*notes, *INTERVAL_NOTES.get(options.interval, [])]
    return marked(grids, options), raw, [*notes, *general_notes(raw), *without_result([*runs.values()])]


def test_time_tables(
    records: Sequence["Record"], options: argparse.Namespace
) -> tuple[list["Grid"], list["Grid"], "pd.DataFrame", list[str]]:
    """Learners by what is done at test time: the scores, the costs, raw numbers and notes."""
    from vlprompt.reports.at_test_time import tables
    from vlprompt.reports.render import INTERVAL_NOTES, general_notes

    grids, costs, raw, notes = tables(records, options.metric, options.interval, options.split)
    notes = [*notes, *INTERVAL_NOTES[options.interval], *general_notes(raw.drop(columns="inference", errors="ignore"))]
    return marked(grids, options), costs, raw, notes


def marked(grids: Sequence["Grid"], options: argparse.Namespace) -> list["Grid"]:
    """With the best marked, or without: in LaTeX only where it is asked for."""
    marks = options.format != "latex" if options.mark_best is None else options.mark_best
    return [*grids] if marks else [replace(grid, marks={}) for grid in grids]


def published_tables(
    ours: Sequence["Record"], how: Mapping[str, Any], printed: "pd.DataFrame", options: argparse.Namespace
) -> tuple[list["Grid"], "pd.DataFrame", list[str]]:
    """The differences to the papers, as `tables_of`; no grid where there are none."""
    from vlprompt.reports.averages import across_datasets
    from vlprompt.reports.layouts import distance_grid
    from vlprompt.reports.published import distances

    if options.metric != "accuracy":
        raise UserError(f"published numbers are accuracies: drop --metric {options.metric}, or choose another layout")
    table = distances(across_datasets(ours, **how)[0], printed, published_settings)
    if table.empty:
        return [], table, []
    return [distance_grid(table)], table.drop(columns="named"), [PUBLISHED_NOTE]


def is_setting(name: str, records: Sequence["Record"]) -> bool:
    """Whether a column is asked for by a key of the records rather than by its heading."""
    from vlprompt.reports.filters import has_key
    from vlprompt.reports.summary import KEYS

    if name in KEYS or any(name in (record.dataset, *record.scores) for record in records):
        return False
    return "." in name or any(has_key(record, name) for record in records)


def published_records(
    ours: Sequence["Record"], theirs: Sequence["Published"], printed: "pd.DataFrame", options: argparse.Namespace
) -> tuple[list["Published"], list[str]]:
    """The papers' rows of a layout, of `theirs`, and a note on papers that have none.

    Of papers that are named all that `--where` allows, with our backbones where these are among theirs; else what is of
    the same data sets and backbones as our runs, if there are any.
    """
    from vlprompt.reports.filters import conditions_of, meets
    from vlprompt.reports.published import of_papers

    asked = {key: ",".join(texts).split(",") for key, texts in conditions_of(options.where).items() if key in CONTEXT}
    records = [record for record in theirs if meets(record, asked)]
    cells = {(record.protocol, record.dataset, record.backbone) for record in ours}
    if not options.papers:
        return [r for r in records if not cells or (r.protocol, r.dataset, r.backbone) in cells], []
    backbones = {record.backbone for record in ours} & {record.backbone for record in records}
    shown = [record for record in records if not backbones or record.backbone in backbones]
    sources = {record.source for record in shown}
    lacking = [name for name in options.papers if not sources & {*of_papers(printed, [name])["source"]}]
    return shown, [f"No published number of {', '.join(lacking)} is of these runs' kind."] * bool(lacking)
