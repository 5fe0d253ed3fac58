"""What is inside a learner: values next to what chance gives, or numbers by layer and site."""

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from vlprompt.reports.figures.style import (
    COLOURS,
    COLUMN,
    FONT,
    GREY,
    PALE,
    TEXT,
    heading,
    new_figure,
    numbers_along,
    short,
    width_of,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROW, CELL = 10.0, (24.0, 11.0)  # points
MOST = 48  # rows of a figure
NARROW = 0.001  # a range that is no range


def draw(figure: Any, title: str) -> "Figure":
    """`Dots` or `Cells`, by what it has."""
    if hasattr(figure, "panels"):
        return draw_cells(figure.panels, figure.axis, title)
    return draw_dots(figure.table, figure.axis, figure.chance, title)


def draw_dots(table: pd.DataFrame, axis: str, chance: str, title: str) -> "Figure":
    """A row each: the value as a dot, a grey band or line for what chance gives, and a text at the right."""
    left_out, table = max(0, len(table) - MOST), table.head(MOST)
    figure = new_figure(COLUMN, (ROW * len(table) + 66) / 72)
    heading(figure, title + (f" (the first {MOST}, {left_out} more are not drawn)" if left_out else ""))
    panel = figure.subplots()
    shown = [short(label, 72 * COLUMN * 0.36) for label in table["label"]]
    half = 0.36
    for y, (low, high) in enumerate(table[["low", "high"]].to_numpy(dtype=float)):
        if np.isfinite(low):
            if high > low:
                panel.fill_betweenx([y - half, y + half], low, high, color=PALE, linewidth=0)
            panel.plot([high, high], [y - half, y + half], color=GREY, linewidth=1.2)
    panel.plot(table["value"], range(len(table)), "o", color=COLOURS[0], markeredgecolor="0.25", linestyle="none")
    panel.set_yticks(range(len(table)), shown)
    panel.set_ylim(len(table) - 0.4, -0.6)
    panel.tick_params(axis="y", length=0)
    panel.spines["left"].set_visible(False)
    panel.grid(axis="x")
    right = panel.get_yaxis_transform()
    for y, text in enumerate(table["text"]):
        panel.text(1.02, y, short(text, 72 * COLUMN * 0.22), transform=right, va="center_baseline")
    numbers = table[["value", "low", "high"]].to_numpy(dtype=float)
    if np.nanmax(numbers) - np.nanmin(numbers) < NARROW:  # or the axis would show the digits of rounding
        panel.set_xlim(np.nanmin(numbers) - NARROW, np.nanmax(numbers) + NARROW)
    known = chance and table["low"].notna().any()
    panel.set_xlabel(f"{axis}\ngrey: {chance}" if known else axis)
    numbers_along(panel.xaxis, 72 * COLUMN * 0.45)
    return figure


def draw_cells(panels: dict[str, pd.DataFrame], axis: str, title: str) -> "Figure":
    """A heat map for each tower, all with the same colours, with the number in each cell."""
    columns = max(wide.shape[1] for wide in panels.values())
    upright = max(width_of(str(name)) for wide in panels.values() for name in wide) > CELL[0]
    width = COLUMN if len(panels) * (columns * CELL[0] + 36) + 40 < 72 * COLUMN else TEXT
    rows = max(len(wide) for wide in panels.values())
    below = max(width_of(str(name)) for wide in panels.values() for name in wide) if upright else FONT
    figure = new_figure(width, (CELL[1] * rows + below + 62) / 72)
    heading(figure, title)
    values = np.concatenate([wide.to_numpy(dtype=float, na_value=np.nan).ravel() for wide in panels.values()])
    most = float(np.nanmax(values)) if np.isfinite(values).any() else 1.0
    grid = figure.subplots(1, len(panels), squeeze=False)[0]
    for panel, (name, wide) in zip(grid, panels.items(), strict=True):
        cells = wide.to_numpy(dtype=float, na_value=np.nan)
        mesh = panel.pcolormesh(
            np.ma.masked_invalid(cells), cmap="cividis", vmin=0, vmax=most or 1.0, edgecolor="white", linewidth=0.5
        )
        n_rows, n_columns = cells.shape
        panel.set(
            ylim=(n_rows, 0), xlim=(0, n_columns), title=f"{name} tower", ylabel="layer" if panel is grid[0] else ""
        )
        panel.set_xticks(np.arange(n_columns) + 0.5, list(map(str, wide)), rotation=90 if upright else 0)
        panel.set_yticks(np.arange(n_rows) + 0.5, list(map(str, wide.index)))
        panel.tick_params(length=0)
        panel.spines[:].set_visible(False)
        for (i, j), value in np.ndenumerate(cells):
            text = "" if not np.isfinite(value) else f"{value:#.3g}".rstrip(".") if value < 1000 else f"{value:.0f}"
            if text and width_of(text) <= (72 * width - 60) / len(grid) / n_columns - 2:
                red, green, blue, _ = mesh.cmap(mesh.norm(value))
                dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.52
                panel.text(
                    j + 0.5, i + 0.5, text, ha="center", va="center_baseline", color="white" if dark else "black"
                )
    figure.supxlabel(axis)
    return figure
