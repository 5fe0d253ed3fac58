"""A metric against a setting that needs no training: a panel for each test, a line a learner."""

from typing import TYPE_CHECKING, Any

import pandas as pd

from vlprompt.config.about import about
from vlprompt.reports.figures.labels import legend, lines_of
from vlprompt.reports.figures.style import COLUMN, TEXT, balanced, heading, looks, new_figure, numbers_along, panels
from vlprompt.results.metrics import find_metric

if TYPE_CHECKING:
    from matplotlib.figure import Figure

AXES = {"interpolation": "share of the tuned weights (0: frozen)"}
CELL = ["protocol", "dataset", "backbone"]


def draw(rows: pd.DataFrame, setting: str, metric: str) -> "Figure":
    """Means over seeds, bands their deviations. `rows` as `vlprompt evaluate` has them: one a run and value."""
    tests = [*rows.columns[list(rows.columns).index(setting) + 1 :]]
    several = rows["shots"].nunique() > 1
    parts = zip(rows["method"], rows["named"], rows["shots"], strict=True)
    learners = [[about("method", method).name, named, f"{shots} shots" * several] for method, named, shots in parts]
    rows = rows.assign(learner=[" ".join(filter(None, parts)) for parts in learners])
    cells = [(cell, test, part) for cell, of_cell in rows.groupby(CELL, sort=False) for test in tests
             if not (part := of_cell[of_cell[test].notna()]).empty]  # fmt: skip
    n_columns, one = balanced(len(cells), 4), len({cell for cell, _, _ in cells}) == 1
    figure = new_figure(TEXT if len(cells) > 1 else COLUMN, 1.8 * -(-len(cells) // n_columns) + 0.4)
    order = sorted(rows["learner"].unique())
    drawn = looks(rows, order)
    upper = legend(figure, lines_of(order, drawn), order)
    heading(upper, ", ".join(titled(cells[0][0])) if one else "")
    upper.supxlabel(AXES.get(setting, setting))
    upper.supylabel(find_metric(metric).label)
    for panel, (cell, test, part) in zip(panels(upper, len(cells), n_columns, sharex=True), cells, strict=True):
        for learner, of_learner in part.groupby("learner"):
            look, spread = drawn[str(learner)], of_learner.groupby(setting)[test].agg(["mean", "std"]).fillna(0)
            panel.plot(spread.index, spread["mean"], **look.lines)
            low, high = spread["mean"] - spread["std"], spread["mean"] + spread["std"]
            panel.fill_between(spread.index, low, high, color=look.colour, alpha=0.15, linewidth=0)
        panel.set_title(test if one else f"{test}, {titled(cell)[1]}")
        panel.grid(axis="y")
        numbers_along(panel.yaxis, 100)
    return figure


def titled(cell: Any) -> list[str]:
    """Protocol, data set and backbone as they are called in print."""
    protocol, dataset, backbone = cell
    return [about("protocol", protocol).name, about("dataset", dataset).name, about("backbone", backbone).name]
