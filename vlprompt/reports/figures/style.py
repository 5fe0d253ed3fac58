"""How all figures look: sizes of a paper, one font, colours and markers that read in grey.

A column of two is 3.35 inches wide, the text over both 6.9: a figure is pasted as it is, so that its font has its size.
matplotlib is imported on use.
"""

import warnings
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlprompt.errors import UserError
from vlprompt.reports.escapes import figure as harmless
from vlprompt.reports.figures.cells import ZERO_SHOT

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

COLUMN, TEXT, PAGE = 3.35, 6.9, 9.0  # inches
WIDTHS = {"column": COLUMN, "text": TEXT}
SUFFIXES = (".pdf", ".png", ".svg")
FONT = 7.0  # points
LINE = 8.6  # points from one line to the next
GREY, PALE = "0.6", "0.85"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9",  # Okabe and Ito
           "#332288", "#882255", "#999933", "#117733", "#661100", "#AA4499")  # fmt: skip # Tol's muted ones
MARKERS = "osD^vPX*<>ph"
DISTINCT = len(COLOURS)  # learners with a look of their own
OTHER_FONTS = ("Noto Sans CJK SC", "Noto Sans CJK JP", "WenQuanYi Micro Hei", "Microsoft YaHei", "PingFang SC",
               "Noto Sans Arabic", "Noto Sans Devanagari")  # fmt: skip # where installed: for what the first one lacks
SETTINGS: dict[str, Any] = {
    "text.usetex": False, "font.size": FONT, "axes.labelsize": FONT, "axes.titlesize": FONT, "legend.fontsize": FONT,
    "xtick.labelsize": FONT, "ytick.labelsize": FONT, "figure.titlesize": 8.0, "figure.labelsize": FONT,
    "axes.titlepad": 3.0, "axes.labelpad": 2.0, "axes.linewidth": 0.6, "axes.spines.top": False,
    "axes.spines.right": False, "axes.axisbelow": True, "grid.color": PALE, "grid.linewidth": 0.4,
    "xtick.major.size": 2.0, "ytick.major.size": 2.0, "xtick.major.width": 0.6, "ytick.major.width": 0.6,
    "xtick.major.pad": 2.0, "ytick.major.pad": 2.0, "lines.linewidth": 1.0, "lines.markersize": 3.6,
    "lines.markeredgewidth": 0.5, "hatch.linewidth": 0.4, "legend.frameon": False, "legend.handlelength": 2.2,
    "legend.columnspacing": 1.2, "legend.handletextpad": 0.5, "axes.formatter.useoffset": False,
    "pdf.fonttype": 42, "ps.fonttype": 42, "svg.fonttype": "path", "svg.hashsalt": "vlprompt",
    "savefig.dpi": 200, "figure.dpi": 100,
}  # fmt: skip


@contextmanager
def styled() -> Iterator[None]:
    """matplotlib with these settings and its own defaults: no `matplotlibrc` of a user or of a folder counts.

    Raises: UserError where it is missing.
    """
    try:
        import matplotlib
        from matplotlib.font_manager import fontManager
    except ImportError:
        raise UserError("figures need matplotlib, which is not installed: pip install 'vlprompt[plots]'") from None
    installed = set(fontManager.get_font_names())
    settings: Any = SETTINGS | {"font.family": ["DejaVu Sans", *(name for name in OTHER_FONTS if name in installed)]}
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="(Glyph|Matplotlib currently does not support)")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(settings)
        yield


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure, in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    engine: Any = figure.get_layout_engine()
    engine.set(w_pad=0.03, h_pad=0.03, wspace=0.03, hspace=0.03)
    return figure


def check_suffix(path: Path) -> None:
    """Raises: UserError for an ending that is none of SUFFIXES."""
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"'{path}' is no figure: end its name with {', '.join(SUFFIXES)}")


def save(figure: "Figure", path: Path) -> None:
    """The same figure is the same file. Raises: UserError for another ending, or a path that cannot be written."""
    check_suffix(path)
    undated: dict[str, Any] = {".pdf": {"CreationDate": None}, ".svg": {"Date": None}, ".png": {}}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with styled():
            figure.savefig(path, metadata=undated[path.suffix.lower()])
    except FileExistsError as error:
        raise UserError(f"cannot write {path}: {error.filename} is no folder") from None
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None


@dataclass(frozen=True)
class Look:
    """How a learner is drawn."""

    colour: str = GREY
    marker: str = "."
    line: Any = "-"
    distinct: bool = False

    @property
    def points(self) -> dict[str, Any]:
        """For a marker alone; light ones have a dark edge."""
        edge = "0.25" if self.distinct else GREY
        return {"marker": self.marker, "color": self.colour, "markeredgecolor": edge, "linestyle": "none"}

    @property
    def lines(self) -> dict[str, Any]:
        width = 1.0 if self.distinct else 0.6
        return {"marker": self.marker, "color": self.colour, "linestyle": self.line, "linewidth": width}


def looks(table: "pd.DataFrame", first: Sequence[str]) -> dict[str, Look]:
    """By learner: the first 12 of `first` are distinct, zero-shot is black and dotted, all others are grey.

    Colours go by name, so that a learner has the same in every figure of the same learners.
    """
    learners = dict(zip(table["learner"], table["method"], strict=True))
    of_zero_shot = next((learner for learner in first if learners[learner] == ZERO_SHOT), None)
    others = [learner for learner in first if learner != of_zero_shot]
    chosen = sorted(others[: DISTINCT - (of_zero_shot is not None)])
    drawn = {learner: Look() for learner in learners}
    for i, learner in enumerate(chosen):
        line = "-" if i < DISTINCT // 2 else (0, (4, 1.2))
        drawn[learner] = Look(COLOURS[i], MARKERS[i], line, True)
    if of_zero_shot:
        drawn[of_zero_shot] = Look("black", "d", ":", True)
    return drawn


@cache
def width_of(text: str, size: float = FONT) -> float:
    """Of a line of text, in points."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    return float(text_to_path.get_text_width_height_descent(text, FontProperties(size=size), ismath=False)[0])


def short(text: object, points: float) -> str:
    """One line of at most so many points, harmless to matplotlib; what is longer loses its middle."""
    line = " ".join(str(text).split())
    longest = int(points)  # a letter has at least a point
    if len(line) > 2 * longest:
        line = f"{line[:longest]}…{line[-longest:]}"

    def cut(keep: int) -> str:
        if keep >= len(line):
            return harmless(line)
        return harmless(f"{line[: -(-keep // 2)].rstrip()}…{line[len(line) - keep // 2 :].lstrip()}")

    fitting = bisect_right(range(len(line) + 1), points, key=lambda keep: width_of(cut(keep))) - 1
    return cut(max(2, fitting))


def short_names(names: Iterable[str], points: float) -> dict[str, str]:
    """Each name in at most so many points; those that would be the same are numbered."""
    shown: dict[str, str] = {}
    for name in dict.fromkeys(names):
        text, n = short(name, points), 1
        while text in shown.values():
            n += 1
            text = f"{short(name, points - width_of(f' ({n})'))} ({n})"
        shown[name] = text
    return shown


def heading(figure: "Figure | SubFigure", title: str, **where: Any) -> None:
    """What all of a figure shares, above it, in as many lines as it takes."""
    points = 72 * figure.bbox.width / figure.dpi * 0.94
    lines = wrapped(title, points)
    even = wrapped(title, 1.15 * width_of(harmless(title[:1000]), 8.0) / len(lines))
    lines = even if len(even) == len(lines) else lines
    shown = [harmless(line) if width_of(harmless(line), 8.0) <= points else short(line, points * FONT / 8.0)
             for line in lines if line]  # fmt: skip
    if shown:
        figure.suptitle("\n".join(shown[:3]), **where)


def wrapped(text: str, points: float) -> list[str]:
    """Lines of a heading of at most so many points; a word that is longer has one of its own."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        lines = [*lines[:-1], longer] if width_of(harmless(longer), 8.0) <= points else [*lines, word]
    return [line for line in lines if line] or [""]


def numbers_along(axis: Any, points: float, *, integer: bool = False) -> None:
    """Ticks at round numbers, few enough for so many points: numbers are wider than they are high."""
    from matplotlib.ticker import MaxNLocator

    needs = 26.0 if axis.axis_name == "x" else 17.0
    axis.set_major_locator(MaxNLocator(max(1, min(6, int(points / needs))), steps=[1, 2, 2.5, 5, 10], integer=integer))


def balanced(n: int, most: int) -> int:
    """Columns for so many panels: at most `most`, in as few rows as that takes, these as long as each other."""
    return -(-n // -(-n // most))


def panels(figure: "Figure | SubFigure", n: int, n_columns: int, **options: Any) -> list["Axes"]:
    """So many axes in rows; the lowest of each column has the numbers below it."""
    n_rows = -(-n // n_columns)
    grid = figure.subplots(n_rows, n_columns, squeeze=False, **options)
    axes = list(grid.flat)
    for empty in axes[n:]:
        empty.remove()
    for lowest in axes[max(0, n - n_columns) : n]:
        lowest.tick_params(labelbottom=True)
    return axes[:n]
