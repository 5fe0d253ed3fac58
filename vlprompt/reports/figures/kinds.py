"""Each kind of figure: where its table comes from, and what draws it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from vlprompt.reports.figures import (
    base_novel,
    cost,
    data,
    few_shot,
    forest,
    heat,
    images,
    ranks,
    reliability,
    training,
)
from vlprompt.reports.figures.cells import Request, Runs
from vlprompt.reports.figures.style import COLUMN, TEXT, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Kind:
    """`data`: runs, what is asked for, notes -> the tidy table; `paint`: the table, inches -> the figure."""

    data: Callable[[Runs, Request, list[str]], pd.DataFrame]
    paint: Callable[[pd.DataFrame, float], "Figure"]
    width: float  # in inches, unless another is asked for

    def draw(self, table: pd.DataFrame, width: float | None = None) -> "Figure":
        """Raises: UserError where matplotlib is missing."""
        with styled():
            return self.paint(table, width or self.width)


KINDS = {
    "few-shot": Kind(data.few_shot, few_shot.draw, TEXT),
    "base-novel": Kind(data.base_novel, base_novel.draw, COLUMN),
    "open-world": Kind(data.open_world, base_novel.draw, COLUMN),
    "cost": Kind(data.cost, cost.draw, TEXT),
    "critical-difference": Kind(data.critical_difference, ranks.draw, TEXT),
    "reliability": Kind(images.reliability, reliability.draw, TEXT),
    "confusion": Kind(images.confusion, heat.confusion, TEXT),
    "class-gains": Kind(images.class_gains, heat.class_gains, TEXT),
    "training": Kind(data.training, training.draw, TEXT),
    "forest": Kind(images.forest, forest.draw, COLUMN),
}
