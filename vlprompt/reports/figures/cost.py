"""A metric against what a learner costs, with the Pareto front: those that no other beats at the same cost."""

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from vlprompt.reports.figures.data import COSTS
from vlprompt.reports.figures.labels import names_for
from vlprompt.reports.figures.style import COLUMN, DISTINCT, LINE, heading, looks, new_figure, numbers_along
from vlprompt.reports.summary import H
from vlprompt.results.metrics import find_metric

NARROW = 20  # a range of costs that needs no powers of ten

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw(table: pd.DataFrame, width: float) -> "Figure":
    """A panel a cost, of one scale of the metric, so that a learner is at one height in all of them.

    In one column panels are stacked; with more names than a page holds, it is the first cost alone.
    """
    metric = find_metric(table.attrs["metric"])
    costs = [name for name in COSTS if (table[name] > 0).any()]
    fronts = table[[f"{name}_front" for name in costs]].sum(axis=1)
    sign = -1 if metric.higher_is_better else 1
    ranked = table.assign(front=-fronts, score=sign * table["mean"]).sort_values(["front", "score", "learner"])
    drawn = looks(table, ranked["learner"].tolist())
    stacked = width <= COLUMN
    if stacked and len(table) > DISTINCT:
        costs = costs[:1]
    n_rows, n_columns = (len(costs), 1) if stacked else (1, len(costs))
    points = 72 * width * (0.5 if stacked else 0.66) / n_columns  # of a panel
    height = max(1.35 if stacked else 2.2, LINE * len(table) / 72) + 0.35
    figure = new_figure(width, height * n_rows + 0.35)
    heading(figure, table.attrs["title"])
    panels = list(figure.subplots(n_rows, n_columns, squeeze=False, sharey=True).flat)
    names = names_for(figure, dict(zip(table["learner"], table["name"], strict=True)), drawn, 0.36 if stacked else 0.26)
    for panel, cost in zip(panels, costs, strict=True):
        named = stacked or panel is panels[-1]
        known = table[table[cost].notna()]
        positions = dict(zip(known["learner"], along(panel, known[cost], points), strict=True))
        front = known[known[f"{cost}_front"]].sort_values([cost, "mean"])
        panel.step([positions[learner] for learner in front["learner"]], front["mean"], where="post", color="0.4",
                   linewidth=0.8, linestyle=(0, (3, 1.5)), zorder=1.5)  # fmt: skip
        rows: Any = known.itertuples()
        for row in rows:
            look = drawn[row.learner]
            panel.plot([positions[row.learner]], [row.mean], zorder=3 if look.distinct else 2, **look.points)
            if named:
                names.add(panel, positions[row.learner], row.mean, row.learner)
        panel.set_xlabel(COSTS[cost])
        panel.grid(axis="y")
        panel.margins(0.07)
        if named and not stacked:  # what has a point in another panel alone
            for row in table[table[cost].isna()].itertuples():
                names.add(panel, panel.get_xlim()[1], row.mean, row.learner)
        if stacked or panel is panels[0]:
            panel.set_ylabel(f"H of {metric.label}" if table.attrs["part"] == H else metric.label)
    numbers_along(panels[0].yaxis, 72 * height * 0.7)
    names.arrange()
    return figure


def along(panel: "Axes", values: pd.Series, points: float) -> list[float]:
    """Positions: powers of ten, and nothing left of the smallest; linear where the largest is of its order."""
    positive = values[values > 0]
    if positive.empty or positive.max() < NARROW * positive.min():
        numbers_along(panel.xaxis, points)
        panel.xaxis.set_major_formatter(lambda value, _: engineering(value))
        return values.tolist()
    low, high = int(np.floor(np.log10(positive.min()))), int(np.ceil(np.log10(positive.max())))
    step = max(1, int(np.ceil((high - low + 1) * 26 / points)))
    ticks = {float(power): engineering(10.0**power) for power in range(low, high + 1, step)}
    zero = low - 0.8 * step
    if len(positive) < len(values):
        ticks = {zero: "0", **ticks}
    panel.set_xticks(list(ticks), list(ticks.values()))
    return [float(np.log10(value)) if value > 0 else zero for value in values]


def engineering(value: float) -> str:
    """0.01, 1, 100, 10k, 1M, 10G, ..."""
    from matplotlib.ticker import EngFormatter

    return EngFormatter(sep="")(value) if abs(value) >= 1 else f"{value:g}"
