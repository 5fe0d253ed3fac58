"""`vlprompt table`: results as tables, for the terminal and for papers, next to the published numbers."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlprompt.errors import UserError

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
    table.add_argument("--output", type=Path, help="write into this file instead of showing")
    table.set_defaults(command=show_table)


def add_selection(parser: argparse.ArgumentParser, *, positional: bool = True) -> None:
    """What commands on results share: folders, conditions, the metric."""
    text = "results folders (default: results, or VLPROMPT_RESULTS)"
    if positional:
        parser.add_argument("folders", nargs="*", type=Path, help=text)
    else:
        parser.add_argument("--results", dest="folders", nargs="+", type=Path, default=[], metavar="FOLDER", help=text)
    parser.add_argument(
        "--where", nargs="+", default=[], metavar="KEY=VALUE", help="only these runs: method=coop fit.lr=0.002"
    )
    parser.add_argument("--metric", default="accuracy", help="accuracy, top5, per_class, macro_f1, ece, nll")


def selected(options: argparse.Namespace) -> tuple[dict[Path, "Record"], list[str]]:
    """The runs that are asked for, and a note on the others. Raises: UserError where a folder is missing."""
    from vlprompt.config.paths import results_root
    from vlprompt.reports.filters import select
    from vlprompt.results.store import find_runs

    missing = [str(root) for root in options.folders if not root.is_dir()]
    if missing:
        raise UserError(f"no such folder of results: {', '.join(missing)}")
    return select(find_runs(options.folders or [results_root()]), options.where)


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
    from vlprompt.reports.summary import NO_RUNS
    from vlprompt.results.metrics import complete, missing_metric

    runs, notes = selected(options)
    ours, others = of_layout(complete(runs, options.metric), options.layout)
    papers = published_records(ours, options.layout) if options.published == "rows" else []
    records = [*ours, *papers]
    if not records:
        raise UserError(NO_RUNS)
    how = {"metric": options.metric, "interval": options.interval, "columns": options.columns}
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
        sys.stderr.write("".join(f"note: {note}\n" for note in dict.fromkeys(notes)))
    elif notes:
        text += notes_text(notes, options.format)
    write(text, options.output)
    return 0


def runs_text(records: Sequence["Record"], how: dict[str, Any], options: argparse.Namespace) -> str:
    from vlprompt.reports.render import render
    from vlprompt.reports.summary import summarise

    return render(summarise(records, **how), options.format, costs=options.costs)


def papers_text(results: "pd.DataFrame", records: Sequence["Record"], options: argparse.Namespace) -> str:
    from vlprompt.reports.averages import numbers
    from vlprompt.reports.layouts import grids, notes_of
    from vlprompt.reports.render import INTERVAL_NOTES, general_notes, render_grids

    if options.format == "csv":
        return numbers(results).to_csv(index=False)
    notes = [*notes_of(results, records, options.interval), *INTERVAL_NOTES[options.interval], *general_notes(results)]
    return render_grids(grids(results, options.metric), notes, options.format)


def distance_text(results: "pd.DataFrame", options: argparse.Namespace) -> str:
    """The table of differences to the papers; empty where there are none."""
    from vlprompt.reports.layouts import distance_grid
    from vlprompt.reports.published import distances, load
    from vlprompt.reports.render import render_grids

    if options.metric != "accuracy":
        raise UserError(f"published numbers are accuracies: drop --metric {options.metric}, or choose another layout")
    table = distances(results, load(), cached_settings())
    if table.empty:
        return ""
    if options.format == "csv":
        return table.to_csv(index=False)
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


def cached_settings() -> Any:
    """What `published.distances` asks: the configuration that a recipe gives for a record's cell."""

    from vlprompt.config import recipes

    @cache
    def known() -> dict[str, list[str]]:
        from vlprompt.config.compose import GROUPS, names
        from vlprompt.config.paths import config_dir

        folders = [config_dir()]
        return {group: names(group, folders) for group in GROUPS} | {"recipe": recipes.known("recipe", folders)}

    @cache
    def composed(*overrides: str) -> Mapping[str, Any]:
        from vlprompt.config.compose import compose
        from vlprompt.config.spec import with_resolved_method

        return with_resolved_method(compose(list(overrides)))

    def settings_of(record: "Record", recipe: str) -> Mapping[str, Any] | None:
        from vlprompt.config.compose import GROUPS

        chosen = {group: getattr(record, group) for group in GROUPS}
        if any(name not in known()[group] for group, name in chosen.items()):
            return None
        if recipe in known()["recipe"]:
            chosen["recipe"] = recipe
        elif recipe != f"{record.method}/{record.protocol}":  # the default of a pair may have no file
            return None
        shots = [f"shots={record.shots}"] if record.shots else []
        return composed(*(f"{group}={name}" for group, name in chosen.items()), *shots)

    return settings_of
