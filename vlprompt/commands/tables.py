"""`vlprompt table`: results as tables, for the terminal and for papers, beside the published numbers."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlprompt.errors import UserError

if TYPE_CHECKING:
    from vlprompt.reports.lines import Line
    from vlprompt.results.record import Record

FORMATS = ("terminal", "markdown", "csv", "latex")
LAYOUTS = ("runs", "base_to_novel", "few_shot", "cross_dataset", "domain_generalization", "auto", "published")
METRICS = ("accuracy", "top5", "per_class", "macro_f1", "ece", "nll")
PUBLISHED_NOTE = (
    "Published numbers in percent, behind them ours less theirs in points. Theirs were computed in float16, mostly; "
    "precision is no part of a setting."
)

BESIDE_NOTE = "Rows of papers have their source as variant; averages without single data sets: --layout published."


def register(commands: Any) -> None:
    """Add `table` to the sub-commands."""
    table = commands.add_parser("table", help="tables of the runs so far: seeds, averages, distance to the papers")
    add_selection(table)
    table.add_argument("--layout", choices=LAYOUTS, default="runs", help="runs: a row a learner; or as papers print")
    table.add_argument("--format", choices=FORMATS, default="terminal")
    table.add_argument("--columns", nargs="+", default=[], metavar="KEY", help="settings that tell rows apart: fit.lr")
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
    place = "results folders (default: results, or VLPROMPT_RESULTS)"
    if positional:
        parser.add_argument("folders", nargs="*", type=Path, help=place)
    else:
        parser.add_argument("--results", dest="folders", nargs="+", type=Path, default=[], metavar="FOLDER", help=place)
    parser.add_argument(
        "--where", nargs="+", default=[], metavar="KEY=VALUE", help="only these runs: method=coop fit.lr=0.002"
    )
    parser.add_argument("--metric", choices=METRICS, default="accuracy")


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
    from vlprompt.reports.layouts import of_layout
    from vlprompt.reports.lines import lines_of
    from vlprompt.reports.summaries import NO_RUNS
    from vlprompt.results.metrics import complete, gaps

    runs, notes = selected(options)
    ours, others = of_layout(complete(runs, options.metric), options.layout)
    beside = published_beside(ours, options.layout) if options.published == "rows" else []
    records = [*ours, *beside]
    if not records:
        raise UserError(NO_RUNS)
    how = {"metric": options.metric, "interval": options.interval, "columns": options.columns}
    own = lines_of(ours, **how)[0] if ours else []
    if options.layout == "published":
        text = distance_text(own, options, missing="no published number is of the same cells as these runs")
    elif options.layout == "runs":
        text = runs_text(records, how, options)
    else:
        lines, lacking = lines_of(records, **how)
        text = papers_text(lines, options)
        notes += lacking
    compared = options.published != "none" and options.layout != "published" and options.metric == "accuracy"
    if compared and options.format != "csv":
        text += distance_text(own, options)
    notes += [*others, *gaps(records, options.metric), *[BESIDE_NOTE] * bool(beside)]
    if notes and options.format == "csv":  # raw numbers alone
        sys.stderr.write("".join(f"note: {note}\n" for note in dict.fromkeys(notes)))
    elif notes:
        text += notes_text(notes, options.format)
    write(text, options.output)
    return 0


def runs_text(records: Sequence["Record"], how: dict[str, Any], options: argparse.Namespace) -> str:
    from vlprompt.reports.render import render
    from vlprompt.reports.summaries import summarise

    return render(summarise(records, **how), options.format, costs=options.costs)


def papers_text(lines: Sequence["Line"], options: argparse.Namespace) -> str:
    from vlprompt.reports.layouts import grids, notes_of
    from vlprompt.reports.lines import numbers
    from vlprompt.reports.render import INTERVAL_NOTES, general_notes, render_grids
    from vlprompt.reports.summaries import frame

    if options.format == "csv":
        return numbers(lines, options.metric).to_csv(index=False)
    records = [record for line in lines for record in line.records]
    notes = [*notes_of(lines, options.interval), *INTERVAL_NOTES[options.interval], *general_notes(frame(records))]
    return render_grids(grids(lines, options.metric), notes, options.format)


def distance_text(lines: Sequence["Line"], options: argparse.Namespace, *, missing: str | None = None) -> str:
    """The table of differences to the papers; empty where there are none, or an error that says what is missing."""
    from vlprompt.reports.layouts import distance_grid
    from vlprompt.reports.published import distances, load
    from vlprompt.reports.render import render_grids

    if options.metric != "accuracy":
        raise UserError(f"published numbers are accuracies: drop --metric {options.metric}, or choose another layout")
    table = distances(lines, load(), cached_settings())
    if table.empty:
        if missing:
            raise UserError(missing)
        return ""
    if options.format == "csv":
        return table.to_csv(index=False)
    text = render_grids([distance_grid(table)], [PUBLISHED_NOTE], options.format)
    return text if missing else f"\n{text}"


def notes_text(notes: Sequence[str], format: str) -> str:
    from vlprompt.reports.render import render_grids

    return "\n" + render_grids([], list(dict.fromkeys(notes)), format)


def published_beside(ours: Sequence["Record"], layout: str) -> list["Record"]:
    """Published numbers of a layout's protocol, of the data sets and backbones of our runs; without runs, of all."""
    from vlprompt.reports.layouts import PROTOCOLS
    from vlprompt.reports.published import as_records, load

    places = {(record.protocol, record.dataset, record.backbone) for record in ours}
    found = [record for record in as_records(load()) if record.protocol == layout or layout not in PROTOCOLS]
    return [r for r in found if not places or (r.protocol, r.dataset, r.backbone) in places]


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

        return compose(list(overrides))

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
