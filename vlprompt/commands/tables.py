"""`vlprompt table`: results as tables, for the terminal and for papers, next to the published numbers."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlprompt.commands.selection import add_selection, no_runs, published_settings, selected
from vlprompt.errors import UserError, printable
from vlprompt.textfiles import path_of

if TYPE_CHECKING:
    import pandas as pd

    from vlprompt.results.record import Record

FORMATS = ("terminal", "markdown", "csv", "latex")
LAYOUTS = ("runs", "base_to_novel", "few_shot", "cross_dataset", "domain_generalization", "auto", "published")
PUBLISHED_NOTE = (
    "Published numbers in percent, in brackets ours less theirs in points. Theirs were computed in float16, mostly; "
    "precision is no part of a setting."
)
PAPERS_NOTE = "Rows of papers have their source as variant; averages without single data sets: --layout published."


def register(commands: Any) -> None:
    """Add `table` to the sub-commands."""
    table = commands.add_parser("table", help="tables of the runs so far: seeds, averages, distance to the papers")
    add_selection(table)
    table.add_argument("--layout", choices=LAYOUTS, default="runs", help="runs: a row a learner; or as papers print")
    table.add_argument("--format", choices=FORMATS, default="terminal")
    table.add_argument(
        "--columns", nargs="+", default=[], metavar="KEY", help="settings that rows may differ in: fit.lr"
    )
    table.add_argument("--costs", action="store_true", help="all costs: bytes, time and FLOPs of a step, of an image")
    table.add_argument("--interval", choices=("t", "normal", "none"), default="none", help="95 %% around means")
    table.add_argument(
        "--published",
        choices=("difference", "rows", "none"),
        default="difference",
        help="difference: a table below, where papers have the same cells; rows: the papers' numbers as rows, too",
    )
    table.add_argument("--output", type=path_of, help="write into this file instead of showing")
    table.set_defaults(command=show_table)


def write(text: str, output: Path | None) -> None:
    """Show, or write into a file."""
    if output is None:
        sys.stdout.write(text)
        return
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {output}: {error.strerror}") from None


def show_table(options: argparse.Namespace) -> int:
    from vlprompt.reports.averages import across_datasets
    from vlprompt.reports.layouts import of_layout
    from vlprompt.reports.summary import missing_metric
    from vlprompt.reports.variants import distinguishing
    from vlprompt.results.metrics import complete

    papers_alone = options.published == "rows" and options.layout != "published"
    runs, notes = selected(options, may_be_none=papers_alone)
    ours, others = of_layout(complete(runs, options.metric, notes), options.layout)
    papers = published_records(ours, options.layout) if options.published == "rows" else []
    records = [*ours, *papers]
    if not records:
        raise no_runs(options.folders)
    by_themselves = [] if options.format == "csv" else distinguishing(records, across=options.layout != "runs")
    columns = list(dict.fromkeys([*options.columns, *by_themselves]))
    how = {"metric": options.metric, "interval": options.interval, "columns": columns}
    if options.layout == "published":
        text = distance_text(across_datasets(ours, **how)[0], options)
        if not text:
            raise UserError("no published number is of the same cells as these runs")
    elif options.layout == "runs":
        text = runs_text(records, how, options)
    else:
        results, gaps = across_datasets(records, **how)
        text = papers_text(results, records, options)
        notes += gaps
    compared = ours and options.published != "none" and options.layout != "published" and options.metric == "accuracy"
    if compared and options.format != "csv" and (below := distance_text(across_datasets(ours, **how)[0], options)):
        text += f"\n{below}"
    notes += [*others, *missing_metric(records, options.metric), *[PAPERS_NOTE] * bool(papers)]
    if notes and options.format == "csv":  # raw numbers alone
        show_notes(notes)
    elif notes:
        text += notes_text(notes, options.format)
    write(text, options.output)
    return 0


def show_notes(notes: Sequence[str]) -> None:
    """On stderr, where the output is for other programs."""
    sys.stderr.write("".join(printable(f"note: {note}") + "\n" for note in dict.fromkeys(notes)))


def runs_text(records: Sequence["Record"], how: dict[str, Any], options: argparse.Namespace) -> str:
    from vlprompt.reports.render import render
    from vlprompt.reports.summary import summarise

    return render(summarise(records, **how), options.format, costs=options.costs)


def papers_text(results: "pd.DataFrame", records: Sequence["Record"], options: argparse.Namespace) -> str:
    from vlprompt.reports.averages import numbers
    from vlprompt.reports.escapes import csv
    from vlprompt.reports.layouts import grids, notes_of
    from vlprompt.reports.render import INTERVAL_NOTES, general_notes, render_grids

    if options.format == "csv":
        return csv(numbers(results))
    notes = [*notes_of(results, records, options.interval), *INTERVAL_NOTES[options.interval], *general_notes(results)]
    return render_grids(grids(results, options.metric), notes, options.format)


def distance_text(results: "pd.DataFrame", options: argparse.Namespace) -> str:
    """The table of differences to the papers; empty where there are none."""
    from vlprompt.reports.escapes import csv
    from vlprompt.reports.layouts import distance_grid
    from vlprompt.reports.published import distances, load
    from vlprompt.reports.render import render_grids

    if options.metric != "accuracy":
        raise UserError(f"published numbers are accuracies: drop --metric {options.metric}, or choose another layout")
    table = distances(results, load(), published_settings)
    if table.empty:
        return ""
    if options.format == "csv":
        return csv(table.drop(columns="named"))
    return render_grids([distance_grid(table)], [PUBLISHED_NOTE], options.format)


def notes_text(notes: Sequence[str], format: str) -> str:
    from vlprompt.reports.render import render_grids

    return "\n" + render_grids([], list(dict.fromkeys(notes)), format)


def published_records(ours: Sequence["Record"], layout: str) -> list["Record"]:
    """Published numbers of a layout's protocol, of the data sets and backbones of our runs; without runs, of all."""
    from vlprompt.reports.layouts import PAPERS
    from vlprompt.reports.published import as_records, load

    cells = {(record.protocol, record.dataset, record.backbone) for record in ours}
    records = [record for record in as_records(load()) if record.protocol == layout or layout not in PAPERS]
    return [r for r in records if not cells or (r.protocol, r.dataset, r.backbone) in cells]
