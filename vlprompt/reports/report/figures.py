"""Which figures the page has, and of which runs each shows a view."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from vlprompt.reports.figures.cells import CELL, Request, Runs
from vlprompt.reports.report import drawing, drawing_images
from vlprompt.reports.report.charts import MOST_VIEWS, Chart, Styles, View, cells_of
from vlprompt.reports.report.notes import in_print

COMPARED = ("protocol", "backbone", "weights", "shots")
MOST_NOTES = 3
MOST_COMPARED = 40  # learners in cells whose images are drawn anew: a tenth of a second each
Draw = Callable[[Runs, Request, Styles, list[str]], View | list[View]]


@dataclass(frozen=True)
class Figure:
    name: str  # as `vlprompt plot` takes it
    title: str
    explained: str
    draw: Draw
    cell: Sequence[str] = COMPARED  # what the runs of a view share
    protocol: str = ""  # the one that it is of
    of_predictions: bool = False
    by_dataset: bool = False  # a view for each data set, after that of all


FIGURES = (
    Figure("few-shot", "Few-shot curves", "Accuracy over labelled images a class; bars: sample deviation over seeds.",
           drawing.few_shot, ("backbone", "weights"), "few_shot"),
    Figure("base-novel", "Base against novel classes", "Means over seeds; dotted: lines of equal harmonic mean H.",
           drawing.base_novel, protocol="base_to_novel", by_dataset=True),
    Figure("cost", "Accuracy against cost", "The line joins what nothing beats at no higher cost (Pareto front).",
           drawing.cost, by_dataset=True),
    Figure("critical-difference", "Mean ranks over data sets",
           "Learners differ at the 5 % level where their bars do not overlap (Nemenyi; Demšar, JMLR 2006).",
           drawing.critical_difference),
    Figure("forest", "Differences to zero-shot",
           "On the same images; 95 % intervals by a paired bootstrap over images. What crosses 0 may be chance.",
           drawing_images.forest, of_predictions=True),
    Figure("class-gains", "Gains by class", "Accuracy of each class less that of zero-shot; blue: better.",
           drawing_images.class_gains, CELL, of_predictions=True),
    Figure("confusion", "Worst confusions", "Of the images of a class, the share that is taken for another one.",
           drawing_images.confusion, CELL, of_predictions=True),
    Figure("reliability", "Reliability",
           "Below the diagonal a learner is surer than right (Guo et al., ICML 2017). Of many learners these are on at "
           "first: zero-shot, and the best and the worst calibrated of the coloured.",
           drawing_images.reliability, CELL, of_predictions=True),
    Figure("training", "Training curves", "Means over seeds, on training images.", drawing.training, CELL),
)  # fmt: skip


def draw_all(runs: Runs, read: Runs, request: Request, styles: Styles) -> tuple[list[Chart], list[str]]:
    """The figures that these runs have, and why others are missing. `read`: runs whose predictions are read."""
    charts, missing = [], []
    for figure in FIGURES:
        chart = draw(figure, read if figure.of_predictions else runs, request, styles)
        if chart.views:
            chart.notes = list(dict.fromkeys(chart.notes))[:MOST_NOTES]
            charts.append(chart)
        elif not figure.protocol or any(record.protocol == figure.protocol for record in runs.values()):
            missing.append(f"{figure.title}: {chart.notes[0] if chart.notes else 'no finished run can be drawn'}")
    return charts, missing


def draw(figure: Figure, runs: Runs, request: Request, styles: Styles) -> Chart:
    chart = Chart(f"figure-{figure.name}", figure.title, figure.explained, figure.name)
    of_protocol = {folder: r for folder, r in runs.items() if figure.protocol in ("", r.protocol)}
    reasons: list[str] = []
    n_compared, n_left = 0, 0
    for cell in _cells(figure, of_protocol):
        n = len({record.learner for record in cell.values()})
        if len(chart.views) >= MOST_VIEWS or (
            figure.name == "forest" and n_compared > 0 and n_compared + n > MOST_COMPARED
        ):
            n_left += 1
            continue
        n_compared += n
        notes: list[str] = []
        chart.add(partial(figure.draw, cell, request, styles, notes))
        reasons += [note for note in notes if not note.startswith("Drawn")]
    most = max((view.n_learners for view in chart.views), default=0)
    chart.views.sort(key=lambda view: 2 * view.n_learners <= most)  # one of few is no good first one
    if chart.views:  # cells without a picture are none of a reader's concern then
        chart.notes = in_print(reasons)
    if n_left:
        cells = "cell has" if n_left == 1 else "cells have"
        chart.notes.insert(0, f"{n_left} more {cells} no view here: choose runs with --where.")
    return chart


def _cells(figure: Figure, runs: Runs) -> list[dict[Any, Any]]:
    """The largest first; of figures that average over data sets, each data set, too."""
    cells = cells_of(runs, figure.cell)
    if not figure.by_dataset:
        return cells
    drawn = []
    for cell in cells:
        parts = cells_of(cell, (*figure.cell, "dataset"))
        drawn += [cell, *(parts if len(parts) > 1 else [])]
    return drawn
