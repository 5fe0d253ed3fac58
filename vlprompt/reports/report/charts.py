"""The figures of the page: what `reports/figures` computes, as traces of plotly.js, with their numbers as tables."""

from collections import Counter
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlprompt.errors import UserError
from vlprompt.reports.escapes import terminal
from vlprompt.reports.figures.cells import CELL, Runs, learners
from vlprompt.reports.report.tables import Table
from vlprompt.reports.summary import UNTRAINED
from vlprompt.results.record import Record

COLOURS = (
    *("#0072b2", "#d55e00", "#009e73", "#c0619a", "#8a7a00", "#8a63d2"),
    *("#d62f4b", "#1d93ad", "#a0622d", "#4f8f2f", "#e05a9b", "#5b7fdb"),
)  # each with a contrast of 3.4 or more to white and to the dark page
SYMBOLS = {
    "circle": "●", "square": "■", "diamond": "◆", "triangle-up": "▲", "triangle-down": "▼", "cross": "✚", "x": "✖",
    "star": "★", "pentagon": "⬟", "hexagon": "⬢", "triangle-left": "◀", "triangle-right": "▶",
}  # fmt: skip
GREY = "#8c8c8c"
MOST_VIEWS = 16  # of a figure
MOST_LINES = 12  # learners whose lines are shown at first
ROW = 22  # pixels of a line of text
LONGEST = 44  # characters of a name at an axis


@dataclass(frozen=True)
class Style:
    colour: str
    symbol: str
    emphasised: bool

    @property
    def mark(self) -> str:
        return SYMBOLS[self.symbol]


@dataclass(frozen=True)
class View:
    """One cell of a figure."""

    label: str
    data: list[dict[str, Any]]
    layout: dict[str, Any]
    table: Table

    @property
    def n_learners(self) -> int:
        """Of its traces; a heat map has none."""
        return len({trace["meta"] for trace in self.data if "meta" in trace})


@dataclass
class Chart:
    id: str
    title: str
    explained: str
    name: str  # as `vlprompt plot` takes it
    views: list[View] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, draw: Callable[[], View | Sequence[View]]) -> None:
        """What cannot be drawn adds nothing; the first reasons are told."""
        if len(self.views) >= MOST_VIEWS:
            return
        try:
            drawn = draw()
        except UserError as error:
            self.notes.append(str(error))
            return
        for view in [drawn] if isinstance(drawn, View) else drawn:
            if view.label not in [known.label for known in self.views]:
                self.views.append(view)


class Styles:
    """A colour and a symbol for each of the twelve learners with the most results; zero-shot and others are grey."""

    def __init__(self, runs: Runs) -> None:
        counts: Counter[str] = Counter()
        for cell in [*cells_of(runs, CELL[:1]), *cells_of(runs)]:  # what learners are called depends on their company
            table = learners(cell)
            counts.update(table["name"][table["method"] != "zero_shot"])
        symbols = list(SYMBOLS)
        self.known = {
            name: Style(colour, symbol, True)
            for name, colour, symbol in zip(dict(counts.most_common()), COLOURS, symbols, strict=False)
        }

    def __getitem__(self, name: str) -> Style:
        return self.known.get(name, Style(GREY, "circle", False))


def text(value: object) -> str:
    """A text for plotly.js, which reads a little HTML, %{...} and $TeX$ in texts: none is any."""
    line = str(value) if str(value).isprintable() else terminal(value)
    escaped = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return escaped.replace("%{", "%&#123;").replace("$", "&#36;")


def trace(name: str, styles: Styles, **more: Any) -> dict[str, Any]:
    """A trace of a learner, which the page shows and hides by `meta`."""
    style = styles[name]
    marker = {"color": style.colour, "symbol": style.symbol, "size": 9 if style.emphasised else 6}
    line = {"color": style.colour, "width": 2 if style.emphasised else 1}
    shared = {"type": "scatter", "meta": terminal(name), "name": text(name), "marker": marker, "line": line}
    return {**shared, "hoverinfo": "text", "showlegend": False, **more}


def hover(name: str, *parts: str) -> str:
    return "<br>".join([f"<b>{text(name)}</b>", *map(text, parts)])


def guide(x: Sequence[int | float], y: Sequence[int | float], **line: Any) -> dict[str, Any]:
    """A line that is no learner's."""
    shape = {"type": "scatter", "mode": "lines", "x": list(x), "y": list(y), "hoverinfo": "skip", "showlegend": False}
    return {**shape, "line": {"color": GREY, "width": 1, "dash": "dot", **line}}


def cells_of(runs: Runs, names: Sequence[str] = CELL) -> list[dict[Path, Record]]:
    """The finished runs by what they share, those with the most learners first.

    A learner that is not trained belongs to every number of shots, and is a cell of its own where there is none.
    """
    cells: dict[tuple[Any, ...], dict[Path, Record]] = {}
    finished = {folder: record for folder, record in runs.items() if record.status == "finished"}
    trained_first = sorted(finished, key=lambda folder: finished[folder].shots == UNTRAINED)
    for folder in trained_first:
        record = finished[folder]
        key = tuple(getattr(record, name) for name in names)
        same = [other for other in cells if _same(key, other, names)] if record.shots == UNTRAINED else []
        for cell in same or [key]:
            cells.setdefault(cell, {})[folder] = record
    return sorted(cells.values(), key=lambda cell: -len({record.learner for record in cell.values()}))


def _same(one: tuple[Any, ...], other: tuple[Any, ...], names: Sequence[str]) -> bool:
    return all(a == b for a, b, name in zip(one, other, names, strict=True) if name != "shots")


def layered(
    traces: list[dict[str, Any]], styles: Styles, most: int | None = None, shown: Container[str] | None = None
) -> list[dict[str, Any]]:
    """Coloured learners above grey ones; of more than `most`, only those in `shown` (the coloured) are on at first."""
    ordered = sorted(traces, key=lambda trace: trace.get("meta") in styles.known)
    if most is None or sum("meta" in trace for trace in traces) <= most:
        return ordered
    on = styles.known if shown is None else shown
    return [t if "meta" not in t or t["meta"] in on else t | {"visible": False} for t in ordered]


def names_axis(names: Sequence[str]) -> dict[str, Any]:
    """A line for each learner, from the bottom up, and the height that they need."""
    return {"yaxis": categories(names), "height": 140 + ROW * len(names)}


def categories(names: Sequence[str], longest: int = LONGEST) -> dict[str, Any]:
    """An axis of names, of which long ones are cut: the texts of its points say them whole."""
    order = [text(name) for name in names]
    cut = [text(name if len(name) <= longest else f"{name[: longest - 1]}…") for name in names]
    shared = {"type": "category", "categoryarray": order, "categoryorder": "array", "automargin": True}
    return {**shared, "tickmode": "array", "tickvals": order, "ticktext": cut}
