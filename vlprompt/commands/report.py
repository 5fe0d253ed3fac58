"""`vlprompt report`: all results as one page that needs no network."""

import argparse
import shlex
from typing import TYPE_CHECKING, Any

from vlprompt.commands.known_data import class_names, loaded
from vlprompt.commands.output import write
from vlprompt.commands.selection import add_selection, published_settings, selected
from vlprompt.errors import UserError, printable
from vlprompt.textfiles import path_of

if TYPE_CHECKING:
    from vlprompt.reports.report.images import KnownImages
    from vlprompt.results.record import Record


def register(commands: Any) -> None:
    """Add `report` to the sub-commands."""
    text = "all results as one HTML page that needs no network: tables, figures, each run"
    report = commands.add_parser("report", help=text, description=text)
    add_selection(report)
    report.add_argument("--title", default="Results", help="what the page is called")
    report.add_argument("--output", type=path_of, required=True, help="a file that ends with .html")
    report.set_defaults(command=make_report)


def make_report(options: argparse.Namespace) -> int:
    from vlprompt.reports.report.content import Sources, content
    from vlprompt.reports.report.page import render
    from vlprompt.results.metrics import find_metric

    if options.output.suffix not in (".html", ".htm"):
        raise UserError(f"--output={options.output} is no page: end its name with .html")
    find_metric(options.metric)
    runs, notes = selected(options)
    sources = Sources(published_settings, images_of, class_names)
    page = render(content(runs, options.metric, notes, sources), options.title, command_of(options), selection(options))
    write(page, options.output)
    size = len(page.encode()) / 1e6
    print(printable(f"{options.output}: {len(runs):,} runs, {size:.1f} MB; open it in a browser"))  # noqa: T201
    return 0


def command_of(options: argparse.Namespace) -> str:
    """What makes the same page."""
    return f"vlprompt report {selection(options)} --output {shlex.quote(options.output.name)}".replace("  ", " ")


def selection(options: argparse.Namespace) -> str:
    """What chooses the runs, as on a command line."""
    words = [*map(str, options.folders), *(["--where", *options.where] if options.where else [])]
    return shlex.join(words + (["--metric", options.metric] if options.metric != "accuracy" else []))


def images_of(record: "Record", test: str) -> "KnownImages | None":
    """The images of a test: of the data set that the package describes, where its lists are those of the run."""
    from vlprompt.reports.summary import is_transfer

    name = test if is_transfer(record.protocol) else record.dataset
    hashes = {record.dataset: record.split_hash, **record.target_hashes}
    known = loaded(name)
    return known[0] if known and known[1] == hashes.get(name) else None
