"""Loss and accuracy on training images, by epoch."""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from vlprompt.reports.figures.labels import names_for
from vlprompt.reports.figures.style import COLUMN, LINE, heading, looks, new_figure, numbers_along

if TYPE_CHECKING:
    from matplotlib.axis import YAxis
    from matplotlib.figure import Figure

WIDE = 10  # a range of losses that asks for powers
MEASURES = {"loss": "training loss (nats)", "accuracy": "training accuracy (%)"}


def draw(table: pd.DataFrame, width: float) -> "Figure":
    """Means over seeds, bands their deviations; in one column the two panels are stacked."""
    last = table.sort_values("epoch").groupby("learner")[["accuracy", "loss"]].last().reset_index()
    order = last.sort_values(["accuracy", "loss", "learner"], ascending=[False, True, True])["learner"].tolist()
    drawn = looks(table, order)
    measures = [name for name in MEASURES if table[name].notna().any()]
    stacked = width <= COLUMN
    n_rows, n_columns = (len(measures), 1) if stacked else (1, len(measures))
    height = max(1.3 if stacked else 2.0, LINE * len(order) / 72) + 0.3
    figure = new_figure(width, height * n_rows + 0.3)
    heading(figure, table.attrs["title"])
    panels = list(figure.subplots(n_rows, n_columns, squeeze=False).flat)
    learners = dict(zip(table["learner"], table["name"], strict=True))
    names = names_for(figure, learners, drawn, 0.36 if stacked else 0.2)
    for panel, measure in zip(panels, measures, strict=True):
        for learner in reversed(order):
            look = drawn[learner]
            line = table[(table["learner"] == learner) & table[measure].notna()].sort_values("epoch")
            if line.empty:
                continue
            marks = {"markevery": max(1, (len(line) - 1) // 5)}
            zorder = 2.5 if look.distinct else 2
            style = look.lines if look.distinct else look.lines | {"marker": ""}
            panel.plot(line["epoch"], line[measure], zorder=zorder, **style, **marks)
            if look.distinct:
                spread = line[f"{measure}_deviation"].fillna(0)
                panel.fill_between(line["epoch"], line[measure] - spread, line[measure] + spread, color=look.colour,
                                   alpha=0.15, linewidth=0)  # fmt: skip
            names.add(panel, float(line["epoch"].iloc[-1]), line[measure].iloc[-1], learner)
        panel.set(ylabel=MEASURES[measure])
        if not stacked or panel is panels[-1]:
            panel.set_xlabel("epoch")
        panel.grid(axis="y")
        panel.set_xlim(table["epoch"].min() - 0.5, table["epoch"].max() + 0.5)
        if measure == "loss" and table["loss"].min() > 0 and table["loss"].max() > WIDE * table["loss"].min():
            in_powers(panel.yaxis)
            panel.set_ylim(bottom=0.8 * table["loss"].min())  # a band may reach zero
        else:
            numbers_along(panel.yaxis, 72 * height * 0.7)
        numbers_along(panel.xaxis, 72 * width * 0.5 / n_columns, integer=True)
    names.arrange()
    return figure


def in_powers(axis: "YAxis") -> None:
    """Each halving is as high as the last."""
    from matplotlib.ticker import LogLocator, NullLocator

    axis.axes.set_yscale("log")
    axis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=8))
    axis.set_major_formatter(lambda value, _: np.format_float_positional(value, 2, fractional=False, trim="-"))
    axis.set_minor_locator(NullLocator())
