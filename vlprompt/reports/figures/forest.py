"""Differences to a reference on the same images, with their intervals, a row a learner."""

from typing import TYPE_CHECKING

import pandas as pd

from vlprompt.reports.figures.cells import dataset_name
from vlprompt.reports.figures.style import (
    COLUMN,
    balanced,
    heading,
    new_figure,
    numbers_along,
    panels,
    short,
    short_names,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROW = 10.0  # points


def draw(table: pd.DataFrame, width: float) -> "Figure":
    """A panel a data set and test; filled markers where the interval is on one side of zero. The best first."""
    cells = list(table[["dataset", "split"]].drop_duplicates().itertuples(index=False, name=None))
    order = table.groupby("learner")["difference"].mean().sort_values(ascending=False, kind="stable").index.tolist()
    learners = table.drop_duplicates("learner").set_index("learner")["name"]
    shown = short_names(learners[order], 72 * width * 0.36)
    n_columns = balanced(len(cells), 2 if width <= COLUMN else 5)
    n_rows = -(-len(cells) // n_columns)
    figure = new_figure(width, (ROW * len(order) + 14) * n_rows / 72 + 0.7)
    datasets, splits = (table[name].unique().tolist() for name in ("dataset", "split"))
    if table.attrs["title"]:
        protocol, *others = table.attrs["title"].split(", ")
        dataset = [dataset_name(datasets[0])] if len(datasets) == 1 else []
        split = [splits[0]] if len(splits) == 1 and splits != ["test"] else []
        heading(figure, ", ".join([protocol, *dataset, *others, *split]))
    of_panel = 72 * width * 0.62 / n_columns
    grid = panels(figure, len(cells), n_columns, sharex=True, sharey=True)
    for panel, (dataset, split) in zip(grid, cells, strict=True):
        rows = table[(table["dataset"] == dataset) & (table["split"] == split)]
        panel.axvline(0, color="black", linewidth=0.6)
        for row in rows.itertuples():
            y = order.index(row.learner)
            clear = row.low > 0 or row.high < 0
            face = "#0072B2" if clear else "white"
            panel.plot([row.low, row.high], [y, y], color="#0072B2", linewidth=1.0)
            panel.plot([row.difference], [y], "o", markerfacecolor=face, markeredgecolor="#0072B2")
        if len(cells) > 1:
            names = [dataset_name(dataset, datasets)] * (len(datasets) > 1) + [split] * (len(splits) > 1)
            panel.set_title(short(", ".join(names), of_panel))
        panel.set_yticks(range(len(order)), [shown[learners[learner]] for learner in order])
        panel.set_ylim(len(order) - 0.4, -0.6)
        panel.tick_params(axis="y", length=0)
        panel.spines["left"].set_visible(False)
        panel.grid(axis="x")
        numbers_along(panel.xaxis, of_panel)
    figure.supxlabel(f"accuracy less that of {short(table.attrs['against'], 90.0)} (points), 95 % interval")
    return figure
