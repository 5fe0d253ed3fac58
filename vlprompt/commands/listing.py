"""`vlprompt list`: the methods, data sets, backbones, protocols and recipes there are, with their papers."""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

from vlprompt.commands.arguments import add_config_dir
from vlprompt.errors import UserError, unknown

if TYPE_CHECKING:
    from vlprompt.config.about import Group

KINDS: dict[str, "Group | None"] = {
    "methods": "method",
    "datasets": "dataset",
    "backbones": "backbone",
    "protocols": "protocol",
    "recipes": None,
}
FORMATS = ("terminal", "markdown", "csv", "json")
GAP = "  "  # between columns
LEAST = 36  # characters of a column of texts; with less room they stand below the names

Row = dict[str, str]


def register(commands: Any) -> None:
    """Add `list` to the sub-commands."""
    text = "the methods, datasets, backbones, protocols or recipes there are, with their papers"
    parser = commands.add_parser("list", help=text, description=text)
    parser.add_argument("kind", metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("--format", choices=FORMATS, default="terminal")
    add_config_dir(parser)
    parser.set_defaults(command=show_list, overrides=[])


def show_list(options: argparse.Namespace) -> int:
    if options.kind not in KINDS:
        raise unknown("kind", options.kind, KINDS)
    rows = rows_of(options.kind, folders_of(options))
    if options.format == "json":
        text = json.dumps(rows, indent=1, ensure_ascii=False)
    elif options.format == "terminal":
        text = "\n".join(lines_of(rows)).lstrip("\n")
    else:
        text = table_of(rows, options.format)
    sys.stdout.write(f"{text.rstrip()}\n")
    return 0


def folders_of(options: argparse.Namespace) -> tuple[Path, ...]:
    """The folders of the user's own settings. Raises: UserError for other settings, and where one is no folder."""
    for text in options.overrides:
        if not text.startswith("hydra.searchpath="):
            raise UserError(f"'{text}' cannot be set here: list takes --config-dir and hydra.searchpath alone")
    folders = [options.config_dir] if options.config_dir else []
    if options.overrides:
        from vlprompt.config.compose import config_dirs  # brings Hydra and torch

        folders += config_dirs(options.overrides)[1:]
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder}, of --config-dir or hydra.searchpath, is no folder")
    return tuple(folders)


def rows_of(kind: str, folders: tuple[Path, ...]) -> list[Row]:
    """What there is, by family; recipes by method."""
    from vlprompt.config.about import about, by_family, recipes_by_method

    if (group := KINDS[kind]) is None:
        return [
            {"name": name, "family": about("method", method, folders).name, "about": sentence}
            for method, recipes in recipes_by_method(folders).items()
            for name, sentence in recipes.items()
        ]
    return [
        {"name": name, "title": one.name, "family": family, "paper": one.paper or "", "source": one.source or ""}
        for family, members in by_family(group, folders).items()
        for name, one in members.items()
    ]


def table_of(rows: Sequence[Row], format: str) -> str:
    """As Markdown, or as CSV."""
    import pandas as pd

    from vlprompt.reports.escapes import csv, markdown

    table = pd.DataFrame(rows)
    return csv(table) if format == "csv" else table.map(markdown).to_markdown(index=False)


def lines_of(rows: Sequence[Row]) -> Iterator[str]:
    """For the terminal: families as headings, columns below one another, as many as a line has room for.

    Into a file or a pipe all of them are written, and nothing is wrapped.
    """
    from vlprompt.reports.escapes import terminal
    from vlprompt.reports.terminal import lines as words
    from vlprompt.reports.terminal import terminal_width

    room = terminal_width()
    cells = [[terminal(text) for key, text in row.items() if key != "family"] for row in rows]
    has_addresses = len(cells[0]) > 2
    attempts = [aligned(cells), aligned([entry[:-1] for entry in cells])] if has_addresses else []
    drawn = next((lines for lines in attempts if fits(lines, room)), None) or wrapped(cells, room)
    family = None
    for row, text in zip(rows, drawn, strict=True):
        if row["family"] != family:
            family = row["family"]
            yield f"\n{terminal(family)}"
        yield text
    if has_addresses and not fits(attempts[0], room):
        yield "\n" + "\n".join(words("Addresses: in a wider terminal, or with --format csv.", room or 0))


def aligned(cells: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(cell_len, column)) for column in zip(*cells, strict=True)]
    return [(GAP + GAP.join(map(set_cell_size, entry, widths))).rstrip() for entry in cells]


def fits(lines: Sequence[str], room: int | None) -> bool:
    return room is None or max(map(cell_len, lines)) <= room


def wrapped(cells: Sequence[Sequence[str]], room: int | None) -> Iterator[str]:
    """Two columns: the name, and all else but the address by words in the room that is left."""
    width = max(cell_len(entry[0]) for entry in cells)
    left = (room or 10**6) - width - 2 * len(GAP)
    below, console = left < LEAST, Console()
    for name, *others in cells:
        title, paper = [*others[:2], ""][:2]
        text = Text(f"{title} ({paper})" if paper else title)
        lines = [line.plain.rstrip() for line in text.wrap(console, (room or 0) - 2 * len(GAP) if below else left)]
        if below:
            yield "\n".join([f"{GAP}{name}", *(f"{GAP}{GAP}{line}" for line in lines if line)])
        else:
            names = [set_cell_size(part, width) for part in (name, *[""] * (len(lines) - 1))]
            yield "\n".join(aligned([*zip(names, lines or [""], strict=True)]))
