"""Figures of results. They need matplotlib, the extra `plots`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from vlprompt.errors import UserError
from vlprompt.reports.lines import Line, datasets_of
from vlprompt.reports.statistics import critical_difference
from vlprompt.results.metrics import measure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = (".pdf", ".png", ".svg")
MARKERS = "osD^vP*Xh<>p"


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure, in inches. Raises: UserError where matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("figures need matplotlib, which is not installed: pip install 'vlprompt[plots]'") from None
    return Figure(figsize=(width, height), layout="constrained")


def save(figure: "Figure", path: Path) -> None:
    """Raises: UserError for an ending that is none of SUFFIXES, or a path that cannot be written."""
    if path.suffix not in SUFFIXES:
        raise UserError(f"'{path}' is no figure: end its name with {', '.join(SUFFIXES)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=200)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None


def reliability(curves: Mapping[str, pd.DataFrame], title: str) -> "Figure":
    """Accuracy over confidence, as `metrics.reliability` has it, by label; below it the share of images in each bin.

    Below the diagonal a learner is more confident than right. Source: Guo et al., ICML 2017, figure 1.
    """
    figure = new_figure(5.0, 5.5)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    upper.plot([0, 1], [0, 1], color="grey", linestyle=":", linewidth=1)
    for (name, curve), marker in zip(curves.items(), MARKERS * len(curves), strict=False):
        share = curve["images"] / curve["images"].sum()
        filled = curve[curve["images"] > 0]
        (drawn,) = upper.plot(filled["confidence"], filled["accuracy"], marker=marker, markersize=4, label=name)
        lower.stairs(share, [*curve["low"], 1], color=drawn.get_color())
    upper.set(ylabel="accuracy", xlim=(0, 1), ylim=(0, 1), title=title)
    upper.legend(fontsize="small")
    lower.set(xlabel="confidence", ylabel="share of images")
    return figure


def few_shot(lines: Sequence[Line], metric: str) -> "Figure":
    """Accuracy over shots, a panel for each data set and for the average; bars are deviations over seeds.

    Source: Zhou et al., IJCV 2022, figure 3.
    """
    known = {place for line in lines for place in line.spreads if place[1] == "test"}
    first = sorted(place for place in known if place[0].startswith("average_"))
    places = first + [(name, "test") for name in datasets_of(lines) if (name, "test") in known]
    if not places:
        raise UserError("there are no few-shot results to draw: run protocol=few_shot first")
    n_columns = min(4, len(places))
    n_rows = -(-len(places) // n_columns)
    figure = new_figure(3.4 * n_columns, 2.8 * n_rows + 0.5)
    panels = figure.subplots(n_rows, n_columns, squeeze=False).flat
    for panel, place in zip(panels, places, strict=False):
        _curves(panel, lines, place)
        panel.set_title(place[0], fontsize="medium")
    for panel in list(panels)[len(places) :]:
        panel.set_axis_off()
    figure.supxlabel("labelled images a class")
    figure.supylabel(measure(metric).label)
    shown = {
        label: line for panel in figure.axes for line, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    figure.legend(shown.values(), shown.keys(), loc="outside upper center", ncols=4, fontsize="small")
    return figure


def _curves(panel: "Axes", lines: Sequence[Line], place: tuple[str, str]) -> None:
    learners = list(dict.fromkeys(line.learner for line in lines))
    shots: list[Any] = sorted({line.shots for line in lines if isinstance(line.shots, int) and place in line.spreads})
    for i, name in enumerate(learners):
        own = [line for line in lines if line.learner == name and line.shots in shots and place in line.spreads]
        own.sort(key=lambda line: shots.index(line.shots))
        x = [shots.index(line.shots) for line in own]
        means = [line.spreads[place].mean for line in own]
        bars = [np.nan_to_num(line.spreads[place].deviation) for line in own]
        style: dict[str, Any] = {"color": f"C{i}", "marker": MARKERS[i % len(MARKERS)], "markersize": 4, "label": name}
        if own and own[0].given_shots == 0:
            panel.plot(x, means, **style | {"linestyle": ":"})
        elif own:
            panel.errorbar(x, means, bars, capsize=2, **style)
    panel.set_xticks(range(len(shots)), map(str, shots))
    panel.grid(alpha=0.3)


def critical_difference_diagram(ranks: pd.Series, n_datasets: int, title: str) -> "Figure":
    """Learners at their mean ranks, the best on the left; a bar joins those that do not differ at the 5 % level.

    Source: Demšar, JMLR 2006, section 3.2.4, with the critical difference of Nemenyi's test.
    """
    ranks = ranks.sort_values(kind="stable")
    n = len(ranks)
    width = critical_difference(n, n_datasets)
    groups = cliques(ranks.tolist(), width)
    half = (n + 1) // 2
    first = 0.6 + 0.35 * len(groups)  # where names begin, below the axis
    figure = new_figure(8.0, 1.6 + 0.28 * (first + half) + 0.3)
    panel = figure.add_subplot()
    panel.set(xlim=(0.2, n + 0.8), ylim=(first + 0.8 * half, -2.2))
    panel.set_axis_off()
    panel.set_title(f"{title}; {n_datasets} data sets", fontsize="medium")
    panel.plot([1, n], [0, 0], color="black", linewidth=1)
    for rank in range(1, n + 1):
        panel.plot([rank, rank], [-0.2, 0], color="black", linewidth=1)
        panel.text(rank, -0.3, str(rank), ha="center", va="bottom", fontsize="small")
    panel.plot([1, min(1 + width, n + 0.8)], [-1.4, -1.4], color="black", linewidth=1.5)
    panel.text(1, -1.5, f"critical difference {width:.2f}", ha="left", va="bottom", fontsize="small")
    for i, (name, rank) in enumerate(ranks.items()):
        left = i < half
        y, x = first + 0.8 * (i if left else n - 1 - i), 0.9 if left else n + 0.1
        panel.plot([rank, rank, x], [0, y, y], color="black", linewidth=0.8)
        side: dict[str, Any] = {"ha": "right" if left else "left", "va": "center", "fontsize": "small"}
        panel.text(x - 0.03 if left else x + 0.03, y, f"{name} ({rank:.2f})", **side, clip_on=False)
    for i, (start, end) in enumerate(groups):
        y = 0.35 + 0.35 * i
        panel.plot([start - 0.04, end + 0.04], [y, y], color="black", linewidth=3.5, solid_capstyle="butt")
    return figure


def cliques(ranks: Sequence[float], width: float) -> list[tuple[float, float]]:
    """The longest stretches of rising ranks no longer than `width`, as (first, last); single ranks are none."""
    found: list[tuple[float, float]] = []
    for i, start in enumerate(ranks):
        end = max(rank for rank in ranks[i:] if rank - start <= width)
        inside = found and found[-1][1] >= end
        if end > start and not inside:
            found.append((start, end))
    return found
