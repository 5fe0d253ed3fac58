"""A table and its notes on a terminal: whole words, whole numbers, and as many columns as there is room for."""

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from shutil import get_terminal_size

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.table import Table
from rich.text import Text

from vlprompt.reports.escapes import terminal
from vlprompt.reports.grid import BEST, FAILED, NOT_APPLICABLE, SECOND, Grid

GAP = 2  # characters between columns
ROOMY, NARROW, LEAST = 28, 20, 12  # characters that a column of texts may always have
HEADING = 14  # and a heading
WIDE = 100  # characters of a line in which settings have columns of their own, and are not words in that of variants
NUMBER = re.compile(rf"([-+−]?[\d.,]+(e[-+]?\d+)?( .*)?|{NOT_APPLICABLE}|{FAILED})?")
DEVIATION = re.compile(r" ± [\d.]+( \[[^]]*\])?")
STYLES = {BEST: "bold", SECOND: "underline"}


class Column:
    """The cells of a column from top to bottom, numbers with their decimal points below one another."""

    def __init__(self, name: str, cells: Sequence[str]) -> None:
        self.is_text = not all(map(NUMBER.fullmatch, cells))
        self.cells = list(cells) if self.is_text else aligned(cells)
        self.heading, self.widest = longest_word(name), max(map(cell_len, self.cells), default=0)
        self.wanted = max(cell_len(name), self.widest)
        self.word = max(min(self.widest, LEAST), *map(longest_word, self.cells)) if self.is_text else self.widest

    def least(self, cap: int) -> int:
        """The width in which no word is broken but what is longer than `cap`."""
        return max(min(self.heading, max(cap, HEADING)), min(self.word, cap) if self.is_text else self.word, 1)


def aligned(numbers: Sequence[str]) -> list[str]:
    whole = ["" if number in (NOT_APPLICABLE, FAILED) else re.split(r"[. ]", number)[0] for number in numbers]
    most = max(map(len, whole), default=0)
    return [" " * (most - len(part)) + number for part, number in zip(whole, numbers, strict=True)]


Columns = Mapping[str, Column]


def terminal_width() -> int | None:
    """How many characters a line has; None where stdout is a file or a pipe, which take any."""
    return get_terminal_size().columns if sys.stdout.isatty() else None


@dataclass(frozen=True)
class Fitted:
    """The columns of a table that a line has room for, their widths, and what is lost."""

    grid: Grid
    shown: Columns
    widths: Mapping[str, int]
    missing: Sequence[str]  # columns
    no_deviations: bool
    cut: int  # headings and cells with a word that is too long

    @property
    def lost(self) -> tuple[int, bool, int]:
        """More is worse: numbers first. `extras` do not count."""
        return len({*self.missing} - {*map(terminal, self.grid.extras)}), self.no_deviations, self.cut

    @property
    def lacking(self) -> list[str]:
        """What there was no room for, in words."""
        long = ["long names in whole"] * (self.cut > 0)
        return [*self.missing, *["deviations"] * self.no_deviations, *long]


def draw(grid: Grid, width: int) -> tuple[str, list[str]]:
    """A table in lines of at most `width` characters; and what there was no room for, in words.

    Variants follow the names, instead of having a column, where less is lost then.
    """
    fitted = min((fitted_to(width, one) for one in (grid, grid.with_variants_in_names())), key=lambda one: one.lost)
    return f"{wrapped(grid.title, width)}\n{drawn(fitted, width)}".lstrip("\n"), fitted.lacking


def fitted_to(width: int, grid: Grid) -> Fitted:
    cells = {terminal(name): [terminal(text) for text in grid.rows[name]] for name in map(str, grid.rows)}
    means = {name: [DEVIATION.sub("", cell) for cell in column] for name, column in cells.items()}
    whole, short = ({name: Column(name, column) for name, column in of.items()} for of in (cells, means))
    shown, cap = fit(grid, whole, short, width)
    widths = column_widths(shown, width, cap)
    no_deviations = any([cell.strip() for cell in column.cells] != cells[name] for name, column in shown.items())
    cut = sum(longest_word(text) > widths[name] for name in shown for text in (name, *shown[name].cells))
    return Fitted(grid, shown, widths, [name for name in cells if name not in shown], no_deviations, cut)


def drawn(fitted: Fitted, width: int) -> str:
    shown, widths, n = fitted.shown, fitted.widths, len(fitted.grid.rows)
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, GAP - 1, 0, 0))
    for name in shown:
        table.add_column(Text("\n".join(lines(name, widths[name]))), width=widths[name], no_wrap=True)
    marks = {(i, terminal(name)): STYLES[mark] for (i, name), mark in fitted.grid.marks.items()}
    for i in range(n):
        texts = ["\n".join(lines(column.cells[i], widths[name])) for name, column in shown.items()]
        styles = [marks.get((i, name), "") for name in shown]
        table.add_row(*map(styled, texts, styles), end_section=i + 1 in fitted.grid.starts)
    console = Console(width=width, height=n)  # both, or a dumb terminal has 80
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def styled(text: str, style: str) -> Text:
    """The number in its style, without the blanks that align it."""
    body = Text(text)
    if style:
        body.stylize(style, len(text) - len(text.lstrip()))
    return body


def fit(grid: Grid, cells: Columns, means: Columns, width: int) -> tuple[Columns, int]:
    """The most that may be shown, and the `cap` of its columns of texts: first `extras` go, then deviations, then what
    counts least."""
    extras, order = ([terminal(n) for n in names if terminal(n) in cells] for names in (grid.extras, grid.order))
    order = [*order, *(name for name in cells if name not in (*extras, *order))]
    attempts = [(cells, [*order, *extras[:n]], ROOMY) for n in range(len(extras), -1, -1)]
    attempts += [(cells, order, NARROW), (means, order, NARROW), (means, order, LEAST)]
    attempts += [(means, order[:n], LEAST) for n in range(len(order) - 1, 0, -1)]
    for of, names, cap in attempts:
        shown = {name: of[name] for name in of if name in names}
        if sum(column.least(cap) + GAP for column in shown.values()) - GAP <= width:
            break
    return shown, cap


def column_widths(shown: Columns, room: int, cap: int) -> dict[str, int]:
    """Characters of each column: what it needs, and of what is left what it wants, those of texts first, in equal
    shares."""
    widths = {name: min(column.least(cap), room) for name, column in shown.items()}
    spare = max(room - sum(widths.values()) - GAP * (len(widths) - 1), 0)
    wants = {name: max(column.wanted - widths[name], 0) for name, column in shown.items()}
    for of_text in (True, False):
        names = sorted((name for name in shown if shown[name].is_text == of_text), key=lambda name: wants[name])
        for i, name in enumerate(names):
            more = min(wants[name], spare // (len(names) - i))
            widths[name], spare = widths[name] + more, spare - more
    return widths


def longest_word(text: str) -> int:
    return max(map(cell_len, text.split()), default=0)


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
    """A word that is too long, with an ellipsis: of a setting the end stays, which is its value."""
    if cell_len(word) <= width:
        return word
    if "=" in word:
        return "…" + set_cell_size(word[::-1], width - 1)[::-1].lstrip()
    return set_cell_size(word, width - 1).rstrip() + "…"


def wrapped(text: str, width: int) -> str:
    """A title or a note in lines of at most `width` characters."""
    return "\n".join(lines(terminal(text), width, whole=True))
