"""Figures of results. They need matplotlib, the extra `plots`."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from vlprompt.errors import UserError
from vlprompt.reports.averages import in_papers_order
from vlprompt.reports.escapes import figure as harmless
from vlprompt.reports.significance import critical_difference
from vlprompt.reports.summary import UNTRAINED
from vlprompt.results.metrics import find_metric

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = (".pdf", ".png", ".svg")
LETTERS = 12  # of a legend, in an inch
MARKERS = "osD^vP*Xh<>p"


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure, in inches. Raises: UserError where matplotlib is missing."""
    try:
        from matplotlib import rcParams
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("figures need matplotlib, which is not installed: pip install 'vlprompt[plots]'") from None
    rcParams["text.usetex"] = False  # a `matplotlibrc` in the working directory could have LaTeX run
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


def legend(name: str, width: float) -> str:
    """A label of a legend, in lines that fit into `width` inches."""
    words = name.replace(",", ", ")
    return "\n".join(map(harmless, textwrap.wrap(words, max(int(width * LETTERS) - 6, 8)) or [""]))


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
        (drawn,) = upper.plot(
            filled["confidence"], filled["accuracy"], marker=marker, markersize=4, label=legend(name, 4.5)
        )
        lower.stairs(share, [*curve["low"], 1], color=drawn.get_color())
    upper.set(ylabel="accuracy", xlim=(0, 1), ylim=(0, 1), title=harmless(title))
    upper.legend(fontsize="small")
    lower.set(xlabel="confidence", ylabel="share of images")
    return figure


def few_shot(results: pd.DataFrame, metric: str) -> "Figure":
    """Accuracy over shots, a panel for the average and for each data set; bars are deviations over seeds.

    `results` are those of `across_datasets`. Source: Zhou et al., IJCV 2022, figure 3.
    """
    tests = results[(results["n"] > 0) & (results["part"] == "test")]
    if tests.empty:
        raise UserError("there are no few-shot results to draw: run protocol=few_shot first")
    names = sorted(in_papers_order(tests["dataset"]), key=lambda name: not name.startswith("average_"))
    n_columns = min(4, len(names))
    n_rows = -(-len(names) // n_columns)
    figure = new_figure(max(3.4 * n_columns, 4.5), 2.8 * n_rows + 0.5)
    panels = list(figure.subplots(n_rows, n_columns, squeeze=False).flat)
    learners = list(dict.fromkeys(results["learner"]))
    for panel, name in zip(panels, names, strict=False):
        _curves(panel, tests[tests["dataset"] == name], learners, figure.get_figwidth())
        panel.set_title(harmless(name), fontsize="medium")
    for panel in panels[len(names) :]:
        panel.set_axis_off()
    figure.supxlabel("labelled images a class")
    figure.supylabel(find_metric(metric).label)
    shown = {
        label: line for panel in figure.axes for line, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    lines = [label.count("\n") + 1 for label in shown]
    longest = max(map(len, "\n".join(shown).splitlines()), default=1)
    n_columns = max(1, min(4, int(figure.get_figwidth() * LETTERS) // (longest + 6)))
    figure.set_figheight(figure.get_figheight() + 0.2 * sum(lines) / n_columns)
    figure.legend(shown.values(), shown.keys(), loc="outside upper center", ncols=n_columns, fontsize="small")
    return figure


def _curves(panel: "Axes", tests: pd.DataFrame, learners: Sequence[str], width: float) -> None:
    tests = tests[tests["shots"] != "all"].sort_values("shots", kind="stable")
    positions = {shots: i for i, shots in enumerate(dict.fromkeys(tests["shots"]))}
    for i, learner in enumerate(learners):
        line = tests[tests["learner"] == learner]
        x, means = line["shots"].map(positions).tolist(), line["mean"].tolist()
        label = legend(learner, width)
        style: dict[str, Any] = {"color": f"C{i}", "marker": MARKERS[i % len(MARKERS)], "markersize": 4}
        if (line["given_shots"] == UNTRAINED).any():
            panel.plot(x, means, label=label, linestyle=":", **style)
        elif x:
            panel.errorbar(x, means, line["deviation"].fillna(0).tolist(), capsize=2, label=label, **style)
    panel.set_xticks(range(len(positions)), map(str, positions))
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
    panel.set_title(harmless(f"{title}; {n_datasets} data sets"), fontsize="medium")
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
        panel.text(x - 0.03 if left else x + 0.03, y, harmless(f"{name} ({rank:.2f})"), **side, clip_on=False)
    for i, (start, end) in enumerate(groups):
        y = 0.35 + 0.35 * i
        panel.plot([start - 0.04, end + 0.04], [y, y], color="black", linewidth=3.5, solid_capstyle="butt")
    return figure


def cliques(ranks: Sequence[float], width: float) -> list[tuple[float, float]]:
    """The longest stretches of rising ranks no longer than `width`, as (first, last); single ranks are none."""
    stretches: list[tuple[float, float]] = []
    for i, start in enumerate(ranks):
        end = max(rank for rank in ranks[i:] if rank - start <= width)
        inside = stretches and stretches[-1][1] >= end
        if end > start and not inside:
            stretches.append((start, end))
    return stretches
