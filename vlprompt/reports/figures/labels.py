"""Names next to what they name: to the right of the axes, none over another, and legends as wide as the figure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from vlprompt.reports.figures.style import LINE, PALE, Look, short_names, width_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

KEY, TEXT_AT = 9.0, 14.0  # points from the axes to the marker next to a name, and to the name


def spread_out(wanted: ArrayLike, gap: float, low: float, high: float) -> Float[np.ndarray, " N"]:
    """Positions at least `gap` from each other, as near to the wanted ones as can be (least squares), in their order.

    Within `low` and `high` where there is room for all. Less the gaps before them, positions must not fall: that is
    isotonic regression.
    """
    from scipy.optimize import isotonic_regression

    values = np.asarray(wanted, dtype=float)
    if not len(values):
        return np.zeros(0)
    order = np.argsort(values, kind="stable")
    steps = gap * np.arange(len(order))
    level = isotonic_regression(values[order] - steps).x
    positions = np.empty(len(order))
    positions[order] = np.clip(level, low, max(low, high - steps[-1])) + steps
    return positions


@dataclass
class Names:
    """The names of points, to the right of their axes; `arrange` moves them to where none covers another."""

    figure: "Figure"
    looks: Mapping[str, Look]
    shown: dict[str, str]  # by learner
    of_axes: dict["Axes", list[tuple[float, float, str, Any]]] = field(default_factory=dict)

    def add(self, axes: "Axes", x: float, y: float, learner: str) -> None:
        """The name of what has its end, or its point, at x and y."""
        text = axes.text(1, 0.5, self.shown[learner], transform=axes.transAxes, ha="left", va="center_baseline")
        text.set_position((1 + TEXT_AT / 100, 0.5))  # for the layout; in axes of two inches
        if not self.looks[learner].distinct:
            text.set_color("0.35")
        self.of_axes.setdefault(axes, []).append((x, y, learner, text))

    def arrange(self) -> None:
        """Lay the figure out, as high as the names need, and move each as near to its point as there is room."""
        from matplotlib.transforms import ScaledTranslation

        for _ in range(5):
            self.figure.draw_without_rendering()
            lacking = [LINE * len(names) - _size(axes)[1] for axes, names in self.of_axes.items()]
            if max(lacking, default=0) <= 0.5:
                break
            rows = len({round(axes.get_position().y0, 2) for axes in self.of_axes})
            self.figure.set_figheight(self.figure.get_figheight() + rows * (max(lacking) + 1) / 72)
        self.figure.set_layout_engine("none")
        for axes, names in self.of_axes.items():
            height = _size(axes)[1]
            ends = axes.transData.transform([(x, y) for x, y, *_ in names])
            wanted = axes.transAxes.inverted().transform(ends)[:, 1] * height
            for (x, y, learner, text), at in zip(
                names, spread_out(wanted, LINE, LINE / 2, height - LINE / 2) / height, strict=True
            ):
                right = [
                    axes.transAxes + ScaledTranslation(points / 72, 0, self.figure.dpi_scale_trans)
                    for points in (KEY - 4, KEY, TEXT_AT)
                ]
                text.set_transform(right[2])
                text.set_position((1, at))
                self._lead(axes, (x, y), at, self.looks[learner], right)

    def _lead(self, axes: "Axes", end: tuple[float, float], at: float, look: Look, right: Sequence[Any]) -> None:
        """The line from a point to its name, dotted, since it is no curve, and the marker before the name."""
        from matplotlib.patches import ConnectionPatch

        leader = ConnectionPatch(
            end, (1, at), axes.transData, right[0] if look.distinct else right[1], axesA=axes, axesB=axes,
            linewidth=0.5, linestyle=(0, (1, 2)) if look.distinct else "-", zorder=0.5, clip_on=False,
            color=look.colour if look.distinct else PALE,
        )  # fmt: skip
        leader.set_in_layout(False)
        axes.add_artist(leader)
        if look.distinct:
            axes.plot([1], [at], transform=right[1], clip_on=False, scalex=False, scaley=False, **look.points)


def _size(axes: "Axes") -> tuple[float, float]:
    """Width and height in points."""
    box = axes.get_window_extent()
    return box.width * 72 / axes.figure.dpi, box.height * 72 / axes.figure.dpi


def names_for(figure: "Figure", learners: Mapping[str, str], looks: Mapping[str, Look], share: float = 0.36) -> Names:
    """Names (by learner) of at most that share of the figure's width."""
    shown = short_names(learners.values(), 72 * figure.get_figwidth() * share - TEXT_AT)
    return Names(figure, looks, {learner: shown[name] for learner, name in learners.items()})


def legend(figure: "Figure", handles: Sequence[Any], labels: Sequence[str]) -> "SubFigure":
    """Below the figure, which grows by it, in as many columns as fit; -> what is above it, for the panels."""
    points = 72 * figure.get_figwidth() * 0.96
    shown = short_names(labels, min(points - 40, 200.0))
    n_columns = max(1, min(len(labels), int(points / (max(map(width_of, shown.values())) + 36))))
    n_rows = -(-len(labels) // n_columns)
    height, needed = figure.get_figheight(), (LINE * 1.25 * n_rows + 3) / 72
    figure.set_figheight(height + needed)
    parts: Any = figure.subfigures(2, 1, height_ratios=[height, needed], hspace=0)
    above, below = parts
    below.legend(handles, [shown[label] for label in labels], loc="center", ncols=-(-len(labels) // n_rows),
                 borderaxespad=0, borderpad=0)  # fmt: skip
    return above


def lines_of(learners: Sequence[str], looks: Mapping[str, Look]) -> list[Any]:
    """What stands for each learner in a legend."""
    from matplotlib.lines import Line2D

    return [Line2D([], [], **{**looks[learner].lines, "markeredgecolor": "0.25"}) for learner in learners]
