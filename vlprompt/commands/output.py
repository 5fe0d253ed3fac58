"""What commands show: tables and notes, on a terminal, in a file, or for other programs."""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlprompt.commands.arguments import words
from vlprompt.errors import UserError, folded, printable
from vlprompt.textfiles import path_of

if TYPE_CHECKING:
    import pandas as pd

    from vlprompt.reports.grid import Grid

FORMATS = ("terminal", "markdown", "csv", "latex")
NO_ROOM = "choose with --columns, or see --format csv"


def add_output(parser: argparse.ArgumentParser, formats: Sequence[str] = FORMATS) -> None:
    """The options that `show` reads."""
    parser.add_argument("--format", choices=formats, default="terminal")
    text = "columns to show, in this order: method,n,H"
    if parser.prog.endswith(" table"):
        text += "; settings become columns, too: fit.lr"
    parser.add_argument("--columns", nargs="+", type=words, default=[], metavar="NAMES", help=text)
    parser.add_argument("--output", type=path_of, help="write into this file instead of showing")


def asked_columns(options: argparse.Namespace) -> list[str]:
    return list(dict.fromkeys(name for names in options.columns for name in names))


def width_of(options: argparse.Namespace) -> int | None:
    """The characters of a line of the terminal that is written to; None where it is a file or a pipe."""
    from vlprompt.reports.terminal import terminal_width

    return None if options.output or options.format != "terminal" else terminal_width()


def show(
    grids: Sequence["Grid"],
    notes: Sequence[str],
    options: argparse.Namespace,
    raw: Sequence["pd.DataFrame"],
    *,
    names: Sequence[str] | None = None,
    below: Sequence["Grid"] = (),
) -> None:
    """Tables with notes below them; as CSV the raw ones, with the notes on stderr.

    `names` of columns (default: those asked for) choose among those of all tables but the ones `below`.
    """
    from vlprompt.reports.escapes import csv
    from vlprompt.reports.grid import choose, choose_raw
    from vlprompt.reports.render import render_grids

    names = asked_columns(options) if names is None else names
    if options.format == "csv":
        text = "\n".join(csv(table) for table in choose_raw(raw, names))
        show_notes(notes)
    else:
        chosen = [*choose(grids, names), *below]
        text = render_grids(chosen, notes, options.format, width=width_of(options), more=NO_ROOM)
    write(text, options.output)


def show_rows(rows: Sequence[Mapping[str, Any]], title: str = "", keys: Sequence[str] = (), **layout: Any) -> "Grid":
    """A table of a command that has no formats, which is returned; `layout` as `Grid` has it."""
    import pandas as pd

    from vlprompt.reports.grid import Grid
    from vlprompt.reports.render import render_grids
    from vlprompt.reports.terminal import terminal_width

    table = pd.DataFrame(list(rows), dtype=object).fillna("").map(str)
    grid = Grid(title, table.loc[:, (table != "").any() | (len(table) == 0)], keys=keys, **layout)
    sys.stdout.write(render_grids([grid], [], "terminal", width=terminal_width()))
    return grid


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


def check_writable(output: Path | None) -> None:
    """Before long work: refuse a file that cannot be written after it. Raises: UserError."""
    if output is None:
        return
    nearest = next(path for path in (output, *output.absolute().parents) if path.exists())
    if output.is_dir() or not os.access(nearest, os.W_OK) or (nearest != output and not nearest.is_dir()):
        why = "it is a folder" if output.is_dir() else f"{nearest} cannot be written to"
        raise UserError(f"cannot write {output}: {why}")


def show_notes(notes: Sequence[str]) -> None:
    """On stderr, where the output is for other programs."""
    sys.stderr.write("".join(printable(f"note: {note}") + "\n" for note in folded(notes)))
