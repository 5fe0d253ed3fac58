"""Learners at their mean ranks over data sets. Source: Demšar, JMLR 2006, section 3.2.4, with Nemenyi's difference."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd

from vlprompt.reports.figures.style import LINE, heading, new_figure, short_names, width_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

AXIS, BAR = 40.0, 4.0  # points below the upper edge, and from one bar to the next


def draw(table: pd.DataFrame, width: float) -> "Figure":
    """The best on the left; a bar joins those that do not differ at the 5 % level. In points, from the upper left."""
    from matplotlib.ticker import MaxNLocator

    table = table.sort_values("rank", kind="stable")
    n, difference = len(table), table.attrs["critical_difference"]
    ranks = table["rank"].tolist()
    total = 72 * width
    shown = short_names(table["name"], 0.32 * total - width_of("  99.99"))
    texts = [f"{shown[name]}  {rank:.2f}" for name, rank in zip(table["name"], ranks, strict=True)]
    half = (n + 1) // 2
    start, end = max(map(width_of, texts[:half])) + 12, total - max(map(width_of, texts[half:])) - 12
    scale = min((end - start) / (n - 1), (total - start - 6) / difference)
    groups = cliques(ranks, difference)
    figure = new_figure(width, 1.0)
    heading(figure, table.attrs["title"] and f"{table.attrs['title']}, {table.attrs['n_datasets']} data sets")
    title = figure._suptitle  # type: ignore[attr-defined]
    title_room = 4 + 11.0 * (title.get_text().count("\n") + 1) if title else 2
    axis = title_room + AXIS
    first = axis + 8 + BAR * len(groups)  # where names begin
    height = first + LINE * half + 2
    figure.set_size_inches(width, height / 72)
    figure.set_layout_engine("none")
    if title:
        title.set(y=1 - 2 / height, va="top")
    panel = figure.add_axes((0, 0, 1, 1))
    panel.set(xlim=(0, total), ylim=(height, 0))
    panel.set_axis_off()

    def at(rank: int | float) -> float:
        return start + (rank - 1) * scale

    panel.plot([at(1), at(n)], [axis, axis], color="black", linewidth=0.8)
    most = max(1, min(n - 1, int((end - start) / 18)))
    ticks = MaxNLocator(most, integer=True, steps=[1, 2, 5, 10]).tick_values(1, n)
    inner = [int(tick) for tick in ticks if at(1) + 12 < at(tick) < at(n) - 12]
    for rank in (1, *inner, n):
        panel.plot([at(rank)] * 2, [axis - 3, axis], color="black", linewidth=0.8)
        panel.text(at(rank), axis - 5, str(rank), ha="center", va="bottom")
    length = difference * scale
    bar = title_room + 15
    panel.plot([start, start, start, start + length], [bar - 2, bar + 2, bar, bar], color="black", linewidth=1.0)
    panel.plot([start + length] * 2, [bar - 2, bar + 2], color="black", linewidth=1.0)
    panel.text(start, bar - 4, f"critical difference {difference:.2f}", ha="left", va="bottom")
    for i, (text, rank) in enumerate(zip(texts, ranks, strict=True)):
        left = i < half
        y = first + LINE * ((i if left else n - 1 - i) + 0.5)
        edge = start - 8 if left else at(n) + 8
        panel.plot([at(rank), at(rank), edge], [axis, y, y], color="0.35", linewidth=0.5)
        panel.text(edge + (-2 if left else 2), y, text, ha="right" if left else "left", va="center_baseline")
    for i, (low, high) in enumerate(groups):
        y = axis + 5 + BAR * i
        panel.plot([at(low) - 1.5, at(high) + 1.5], [y, y], color="black", linewidth=2.2, solid_capstyle="butt")
    return figure


def cliques(ranks: Sequence[float], width: float) -> list[tuple[float, float]]:
    """The longest stretches of rising ranks no longer than `width`, as (first, last); single ranks are none."""
    stretches: list[tuple[float, float]] = []
    for i, start in enumerate(ranks):
        within = [rank for rank in ranks[i:] if rank - start <= width]
        inside = stretches and stretches[-1][1] >= within[-1]
        if len(within) > 1 and not inside:
            stretches.append((start, within[-1]))
    return stretches
