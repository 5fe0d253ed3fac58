"""Accuracy against shots: a panel for the average and for each data set. Source: Zhou et al., IJCV 2022, figure 3."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd

from vlprompt.reports.figures.cells import dataset_name
from vlprompt.reports.figures.labels import Names, legend, lines_of, names_for
from vlprompt.reports.figures.style import (
    COLUMN,
    DISTINCT,
    LINE,
    Look,
    balanced,
    heading,
    looks,
    new_figure,
    numbers_along,
    panels,
    short,
)
from vlprompt.results.metrics import find_metric
from vlprompt.results.record import shots_order

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHOTS = "labelled images per class"


def draw(table: pd.DataFrame, width: float) -> "Figure":
    """Bands are deviations over seeds. One panel names its lines at their ends; several share a legend, or, with more
    than 12 learners, the names next to a large first panel.
    """
    metric = find_metric(table.attrs["metric"])
    order = ranked(table, metric.higher_is_better)
    learners = {learner: table[table["learner"] == learner]["name"].iloc[0] for learner in order}
    drawn = looks(table, order)
    numbers = [shots for shots in table["shots"] if not isinstance(shots, str)]
    positions = {shots: i for i, shots in enumerate([*sorted(set(numbers)), *{*table["shots"]} - {*numbers}])}
    counts = table.groupby("dataset", sort=False)["learner"].nunique()
    datasets = sorted(counts.index, key=lambda name: not name.startswith("average_"))
    datasets.insert(0, datasets.pop(int(counts[datasets].to_numpy().argmax())))  # in which most are named
    large = len(datasets) == 1 or len(learners) > DISTINCT
    small = datasets[1:] if large else datasets
    n_columns = balanced(len(small), 2 if width <= COLUMN else 4) if small else 1
    n_rows = -(-len(small) // n_columns)
    height = max(2.0, min(3.6, 0.62 * width)) if large else 0.0
    height = max(height, LINE * len(learners) / 72 + 0.6) if large else 0.0
    figure = new_figure(width, height + 1.35 * n_rows + 0.45)
    if large and small:
        parts: Any = figure.subfigures(2, 1, height_ratios=[height, 1.35 * n_rows])
        upper, lower = parts
    elif large:
        upper = lower = figure
    else:
        upper = lower = legend(figure, lines_of(order, drawn), list(learners.values()))
    heading(upper, table.attrs["title"])
    axes: dict[str, Axes] = {}
    if large:
        axes[datasets[0]] = upper.subplots()
        axes[datasets[0]].set(xlabel=SHOTS, ylabel=metric.label)
    if small:
        axes |= dict(zip(small, panels(lower, len(small), n_columns, sharex=True), strict=True))
        lower.supxlabel(SHOTS)
        lower.supylabel(metric.label)
    for dataset, panel in axes.items():
        of_panel = width * 72 * (0.6 if panel in upper.axes and large else 0.75 / n_columns)
        curves(panel, table[table["dataset"] == dataset], drawn, positions)
        numbers_along(panel.yaxis, 72 * (height if large and dataset == datasets[0] else 1.2))
        if len(datasets) > 1:
            panel.set_title(short(dataset_name(dataset, datasets), of_panel))
    names = names_for(figure, learners, drawn)
    if large:
        name_ends(names, axes[datasets[0]], table[table["dataset"] == datasets[0]], positions)
    names.arrange()
    return figure


def ranked(table: pd.DataFrame, higher_is_better: bool) -> list[str]:
    """Learners with the most numbers of shots first, then by their scores at the last of these."""
    rows = table.assign(position=table["shots"].map(shots_order))
    rows = rows.sort_values("position", kind="stable")
    last = rows.groupby(["learner", "dataset"], sort=False)["mean"].last().groupby("learner").mean()
    n_shots = rows[rows["trained"]].groupby("learner")["shots"].nunique().reindex(last.index, fill_value=0)
    sign = -1 if higher_is_better else 1
    return sorted(last.index, key=lambda learner: (-n_shots[learner], sign * last[learner], learner))


def curves(panel: "Axes", rows: pd.DataFrame, drawn: Mapping[str, Look], positions: Mapping[object, int]) -> None:
    """One line a learner, the distinct ones on top."""
    panel.grid(axis="y")
    for learner in sorted(rows["learner"].unique(), key=lambda learner: drawn[learner].distinct):
        look = drawn[learner]
        line = rows[rows["learner"] == learner].assign(x=rows["shots"].map(positions)).sort_values("x")
        zorder = 2.5 if look.distinct else 2
        if look.distinct:
            spread = line["deviation"].fillna(0)
            low, high = line["mean"] - spread, line["mean"] + spread
            panel.fill_between(line["x"], low, high, color=look.colour, alpha=0.15, linewidth=0)
        level = {} if line["trained"].all() else {"linestyle": ":", "markevery": [-1]}
        panel.plot(line["x"], line["mean"], zorder=zorder, **{**look.lines, **level})
        if len(line) == 1 and look.distinct:
            panel.errorbar(line["x"], line["mean"], spread, color=look.colour, linewidth=0.6, zorder=2)
    panel.set_xticks(list(positions.values()), [str(shots) for shots in positions])
    panel.set_xlim(-0.2, max(len(positions) - 0.8, 0.2))


def name_ends(names: Names, panel: "Axes", rows: pd.DataFrame, positions: Mapping[object, int]) -> None:
    for learner, of_learner in rows.groupby("learner", sort=False):
        last = of_learner.iloc[int(of_learner["shots"].map(positions).to_numpy().argmax())]
        names.add(panel, float(positions[last["shots"]]), last["mean"], str(learner))
