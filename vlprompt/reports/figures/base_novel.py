"""Novel against base accuracy, on contours of their harmonic mean."""

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from vlprompt.reports.figures.labels import names_for
from vlprompt.reports.figures.style import LINE, PALE, heading, looks, new_figure, numbers_along
from vlprompt.results.metrics import find_metric

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw(table: pd.DataFrame, width: float) -> "Figure":
    """Lines through distinct points are deviations over seeds."""
    label = find_metric(table.attrs["metric"]).label
    order = table.sort_values(["H", "learner"], ascending=[False, True], kind="stable")["learner"].tolist()
    drawn = looks(table, order)
    figure = new_figure(width, max(min(0.75 * width, 3.6), LINE * len(table) / 72 + 0.7))
    heading(figure, table.attrs["title"])
    panel = figure.subplots()
    axes = table.attrs.get("axes", "{} classes")
    panel.set(xlabel=f"{axes.format('base')}: {label}", ylabel=f"{axes.format('novel')}: {label}")
    names = names_for(figure, dict(zip(table["learner"], table["name"], strict=True)), drawn)
    rows: Any = table.itertuples()
    for row in rows:
        look = drawn[row.learner]
        panel.plot([row.base], [row.novel], zorder=3 if look.distinct else 2, **look.points)
        if look.distinct:
            spreads = [np.nan_to_num(row.base_deviation)], [np.nan_to_num(row.novel_deviation)]
            bars: dict[str, Any] = {
                "color": look.colour,
                "linewidth": 0.5,
                "alpha": 0.6,
                "zorder": 1.5,
                "linestyle": "none",
            }
            panel.errorbar([row.base], [row.novel], xerr=spreads[0], yerr=spreads[1], **bars)
        names.add(panel, row.base, row.novel, row.learner)
    panel.margins(0.08)
    for axis, points in ((panel.xaxis, 72 * width * 0.5), (panel.yaxis, 72 * figure.get_figheight() * 0.6)):
        numbers_along(axis, points)
    contours(panel, 72 * width * 0.5)
    names.arrange()
    return figure


def contours(panel: "Axes", points: float) -> None:
    """Where the harmonic mean is a round number, which stands at the upper end of its line."""
    from matplotlib.ticker import MaxNLocator

    (left, right), (bottom, top) = panel.get_xlim(), panel.get_ylim()
    base, novel = np.meshgrid(*(np.linspace(max(low, 1e-6), high, 200) for low, high in ((left, right), (bottom, top))))
    mean = 2 * base * novel / (base + novel)
    levels = [
        level for level in MaxNLocator(6, steps=[1, 2, 5, 10]).tick_values(mean.min(), mean.max())
        if mean.min() < level < mean.max()
    ]  # fmt: skip
    if levels:
        panel.contour(base, novel, mean, levels=levels, colors=PALE, linewidths=0.6, zorder=1)
    last = -np.inf
    for level in levels:
        at = level * top / (2 * top - level) if 2 * top > level else np.inf
        where = (at - left) / (right - left) * points
        if left <= at <= right and where - last > 26:
            panel.annotate(f"H {level:g}", (at, top), (0, 1.5), textcoords="offset points", ha="center", va="bottom",
                           color="0.45", annotation_clip=False)  # fmt: skip
            last = where
    panel.set(xlim=(left, right), ylim=(bottom, top))
