"""A table and its notes on a terminal: whole words, whole numbers, and as many columns as there is room for."""

import re
import sys
from collections.abc import Iterator, Sequence

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.table import Table
from rich.text import Text

from vlprompt.reports.escapes import terminal
from vlprompt.reports.grid import BEST, SECOND, Grid

GAP = 2  # characters between columns
ROOMY, NARROW, LEAST = 28, 20, 12  # characters that a column of texts may always have
HEADING = 14  # and a heading
NUMBER = re.compile(r"([-+−]?[\d.,]+(e[-+]?\d+)?( .*)?)?")
DEVIATION = re.compile(r" ± [\d.]+( \[[^]]*\])?")
STYLES = {BEST: "bold", SECOND: "underline"}
Columns = dict[str, list[str]]  # by heading; the cells from top to bottom


def terminal_width() -> int | None:
    """How many characters a line has; None where stdout is a file or a pipe, which take any."""
    return Console().width if sys.stdout.isatty() else None


def draw(grid: Grid, width: int) -> tuple[str, list[str]]:
    """A table in lines of at most `width` characters; and what there was no room for, in words."""
    cells = {terminal(name): [terminal(text) for text in grid.rows[name]] for name in map(str, grid.rows)}
    extras, order = ([terminal(name) for name in names if name in grid.rows] for names in (grid.extras, grid.order))
    order = [*order, *(name for name in cells if name not in (*extras, *order))]
    shown, widths = next((shown, w) for shown, w in attempts(cells, extras, order, width) if w is not None)
    lacking = [name for name in cells if name not in shown]
    if any("±" in text for name in shown for text in cells[name]) and not any(
        "±" in t for c in shown.values() for t in c
    ):
        lacking.append("deviations")
    drawn = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, GAP - 1, 0, 0))
    for name in shown:
        drawn.add_column(Text("\n".join(lines(name, widths[name]))), width=widths[name], no_wrap=True)
    marks = {(i, terminal(name)): STYLES[mark] for (i, name), mark in grid.marks.items()}
    for i in range(len(grid.rows)):
        texts = {name: "\n".join(lines(shown[name][i], widths[name])) for name in shown}
        drawn.add_row(
            *(styled(t, marks.get((i, name), "")) for name, t in texts.items()), end_section=i + 1 in grid.starts
        )
    if any(cell_len(word) > widths[name] for name in shown for text in (name, *shown[name]) for word in text.split()):
        lacking.append("long names in whole")
    console = Console(width=width)
    with console.capture() as capture:
        console.print(drawn)
    title = wrapped(grid.title, width)
    table = "\n".join(line.rstrip() for line in capture.get().splitlines())
    return f"{title}\n{table}".lstrip("\n"), lacking


def styled(text: str, style: str) -> Text:
    """The number in its style, without the blanks that align it."""
    body = Text(text)
    if style:
        body.stylize(style, len(text) - len(text.lstrip()))
    return body


def attempts(
    cells: Columns, extras: Sequence[str], order: Sequence[str], width: int
) -> Iterator[tuple[Columns, dict[str, int] | None]]:
    """What may be shown, from all to next to nothing, with the widths of its columns; None where it does not fit."""
    means = {name: [DEVIATION.sub("", text) for text in column] for name, column in cells.items()}

    def attempt(names: Sequence[str], of: Columns, cap: int) -> tuple[Columns, dict[str, int] | None]:
        shown = {name: aligned(of[name]) for name in of if name in names}
        return shown, column_widths(shown, width, cap)

    for n in range(len(extras), -1, -1):
        yield attempt([*order, *extras[:n]], cells, ROOMY)
    for of, cap in ((cells, NARROW), (means, NARROW), (means, LEAST)):
        yield attempt(order, of, cap)
    for n in range(len(order) - 1, 0, -1):
        yield attempt(order[:n], means, LEAST)
    yield {name: means[name] for name in order[:1]}, dict.fromkeys(order[:1], width)


def column_widths(shown: Columns, room: int, cap: int) -> dict[str, int] | None:
    """Characters of each column, so that no word is broken but what is longer than `cap`; None: no room for it."""
    widths, wanted = {}, {}
    for name, column in shown.items():
        texts = not all(map(NUMBER.fullmatch, column))
        heading = min(longest_word(name), max(cap, HEADING))
        widest = max(map(cell_len, column), default=0)
        widths[name] = max(heading, min(max(map(longest_word, column), default=0), cap) if texts else widest)
        wanted[name] = (not texts, max(cell_len(name), widest))
    spare = room - sum(widths.values()) - GAP * (len(widths) - 1)
    if spare < 0:
        return None
    for name in sorted(shown, key=lambda name: wanted[name][0]):  # texts first
        more = min(wanted[name][1] - widths[name], spare)
        widths[name], spare = widths[name] + more, spare - more
    return widths


def longest_word(text: str) -> int:
    return max(map(cell_len, text.split()), default=0)


def aligned(column: Sequence[str]) -> list[str]:
    """Numbers with their decimal points below one another; texts as they are."""
    if not all(map(NUMBER.fullmatch, column)):
        return list(column)
    whole = [re.split(r"[. ]", text)[0] for text in column]
    most = max(map(len, whole), default=0)
    return [" " * (most - len(part)) + text if text else "" for part, text in zip(whole, column, strict=True)]


def lines(text: str, width: int, *, whole: bool = False) -> list[str]:
    """A text by its words in lines of at most `width` characters.

    A word that is longer is cut, and ends with an ellipsis; or is on several lines, `whole`, as a path has to be.
    """
    if cell_len(text) <= width:
        return [text]
    done = [""]
    for word in text.split():
        parts = pieces(word, width) if whole else [shortened(word, width)]
        for i, part in enumerate(parts):
            joint = " " * (i == 0 and done[-1] != "")
            if cell_len(done[-1] + joint + part) <= width:
                done[-1] += joint + part
            else:
                done.append(part)
    return done[not done[0] :]


def pieces(word: str, width: int) -> list[str]:
    """The parts of a word that is too long for a line; of a path, its folders."""
    if cell_len(word) <= width:
        return [word]
    parts = [part for part in re.split(r"(?<=[/,=@])", word) if part]
    steps = [len(part) if cell_len(part) <= width else width // 2 for part in parts]
    return [part[i : i + step] for part, step in zip(parts, steps, strict=True) for i in range(0, len(part), step)]


def shortened(word: str, width: int) -> str:
    return word if cell_len(word) <= width else set_cell_size(word, width - 1).rstrip() + "…"


def wrapped(text: str, width: int) -> str:
    """A title or a note in lines of at most `width` characters."""
    return "\n".join(lines(terminal(text), width, whole=True))
