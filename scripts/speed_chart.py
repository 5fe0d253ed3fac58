"""The chart of benchmark_speed.py: CPU time of CoOp's text side, ours against the originals' algorithm."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, NullFormatter, NullLocator, StrMethodFormatter
from speed_measures import Row

# solid and full against dashed and hollow, blue against vermilion: each alone tells the two in grey and in colour
OURS = {"color": "#0072B2", "linestyle": "-"}
ORIGINALS = {"color": "#D55E00", "linestyle": (0, (5, 3)), "markerfacecolor": "white"}
MARKERS = "os^Dv"
SETTINGS: dict[str, Any] = {"font.size": 10, "svg.fonttype": "path", "svg.hashsalt": "vlprompt", "lines.linewidth": 1.8,
                            "lines.markersize": 6.5, "axes.spines.top": False, "axes.spines.right": False}  # fmt: skip


def draw(rows: Sequence[Row], path: Path) -> None:
    """Against the number of classes, and against the context; nothing where no row is of CoOp's text side."""
    text = [row for row in rows if (row.case, row.method) == ("text", "coop")]
    if not text:
        return
    with matplotlib.rc_context({**matplotlib.rcParamsDefault, **SETTINGS}):
        figure = Figure(figsize=(8, 3.7), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        swept = [n for n in sorted({row.context for row in text}) if len(of(text, context=n)) > 1]
        contexts = swept or sorted({row.context for row in text})
        curves(left, {f"{n} context tokens": of(text, context=n) for n in contexts}, "classes")
        classes = max(sorted({row.classes for row in text}), key=lambda n: len(of(text, classes=n)))
        curves(right, {f"{classes} classes": of(text, classes=classes)}, "context")
        left.set(xlabel="classes", ylabel="CPU seconds a step", yscale="log")
        left.set_title(f"CoOp's text side, {text[0].backbone}, forward and backward", fontsize=10, loc="left")
        right.set(xlabel="context tokens")
        left.yaxis.set(major_locator=LogLocator(subs=(1, 2, 5)), major_formatter=StrMethodFormatter("{x:g}"))
        left.yaxis.set(minor_locator=NullLocator(), minor_formatter=NullFormatter())
        seconds = [s for row in text for s in (row.cpu_seconds, row.plain_cpu_seconds)]
        left.set_ylim(min(seconds) / 1.7, max(seconds) * 1.7)
        sides = [
            left.plot([], [], label=side, **look)[0]
            for side, look in (("originals' algorithm", ORIGINALS), ("vlprompt", OURS))
        ]
        figure.legend(handles=sides, ncols=2, handlelength=4, frameon=False, loc="outside upper center")
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def of(rows: Sequence[Row], **given: int) -> list[Row]:
    """The rows with these values, by classes and context."""
    chosen = [row for row in rows if all(getattr(row, name) == value for name, value in given.items())]
    return sorted(chosen, key=lambda row: (row.classes, row.context))


def curves(panel: Any, series: dict[str, list[Row]], across: str) -> None:
    """Two lines a series, of the same marker, and at their end how many times less vlprompt needs."""
    for marker, (name, rows) in zip(MARKERS, series.items(), strict=False):
        x = [getattr(row, across) for row in rows]
        panel.plot(x, [row.plain_cpu_seconds for row in rows], marker=marker, **ORIGINALS)
        panel.plot(x, [row.cpu_seconds for row in rows], marker=marker, **OURS)
        panel.plot([], [], marker=marker, color="0.35", linestyle="none", label=name)
    panel.legend(fontsize=9, handletextpad=0.2, frameon=False, loc="upper left")
    rows = next(iter(series.values()))
    panel.xaxis.set(major_locator=FixedLocator([getattr(row, across) for row in rows]))
    end = getattr(rows[-1], across)
    ends = (end, rows[-1].cpu_seconds), (end, rows[-1].plain_cpu_seconds)
    panel.annotate("", *ends, arrowprops={"arrowstyle": "<->", "color": "0.4", "shrinkA": 7, "shrinkB": 7})
    middle = (rows[-1].cpu_seconds * rows[-1].plain_cpu_seconds) ** 0.5
    less = f"{rows[-1].cpu_ratio:.0f}x less"
    panel.annotate(less, (end, middle), xytext=(-8, 0), textcoords="offset points", ha="right", va="center")
    panel.grid(color="0.88", linewidth=0.8)
    panel.set_axisbelow(True)
