"""Accuracy against confidence, a panel a learner. Source: Guo et al., ICML 2017, figure 1."""

from typing import TYPE_CHECKING

import pandas as pd

from vlprompt.reports.figures.labels import legend
from vlprompt.reports.figures.style import COLUMN, LINE, balanced, heading, new_figure, short_names

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RIGHT, GAP, SHARE = "#56B4E9", "#D55E00", "0.35"


def draw(table: pd.DataFrame, width: float) -> "Figure":
    """The best calibrated first, its tests next to one another. Below the diagonal a learner is surer than right."""
    from matplotlib.patches import Patch

    panels_of = table.drop_duplicates(["learner", "split"])
    errors = panels_of.groupby("learner")["ece"].mean().rename("mean")
    panels_of = panels_of.join(errors, on="learner").sort_values(["mean", "learner"], kind="stable")
    order = list(panels_of[["learner", "split"]].itertuples(index=False, name=None))
    splits = list(dict.fromkeys(table["split"]))
    most = (3 if len(order) <= 9 else 4) if width <= COLUMN else (6 if len(order) <= 24 else 7)
    n_columns = max(2, balanced(len(order), most))
    if len(splits) > 1:  # a learner's panels stay in one row
        n_columns = max(most // len(splits), 1) * len(splits)
        n_columns = min(n_columns, len(order))
    n_rows = -(-len(order) // n_columns)
    left, right, bottom, gap = 28.0, 6.0, 24.0, 12.0  # points: explicit, since layouts of many are slow
    top = 2 * LINE + (20.0 if table.attrs["title"] else 6.0)
    across = (72 * width - left - right - gap * (n_columns - 1)) / n_columns
    high = min(across, 110.0)
    between = 2 * LINE + 4
    total = top + bottom + high * n_rows + between * (n_rows - 1)
    figure = new_figure(width, total / 72)
    figure.set_layout_engine("none")
    above = legend(
        figure,
        [
            Patch(facecolor=RIGHT, edgecolor="black", linewidth=0.3),
            Patch(facecolor="none", edgecolor=GAP, hatch="////", linewidth=0.3),
            Patch(facecolor="none", edgecolor=SHARE, linewidth=1.2),
        ],
        ["of the bin that is right (accuracy)", "gap to its mean confidence", "of all images that is in the bin"],
    )
    shown = short_names(dict(zip(table["learner"], table["name"], strict=True)).values(), across + gap - 3)
    grid = {"left": left / 72 / width, "right": 1 - right / 72 / width, "bottom": bottom / total,
            "top": 1 - top / total, "wspace": gap / across, "hspace": between / high}  # fmt: skip
    cells = above.add_gridspec(n_rows, n_columns, **grid)
    for i, (learner, split) in enumerate(order):
        curve = table[(table["learner"] == learner) & (table["split"] == split)]
        panel = above.add_subplot(cells[divmod(i, n_columns)])
        bars(panel, curve)
        error = f"{split}: " * (len(splits) > 1) + f"ECE {100 * curve['ece'].iloc[0]:.1f} %"
        panel.set_title(f"{shown[curve['name'].iloc[0]]}\n{error}", linespacing=1.1)
        panel.tick_params(labelbottom=i + n_columns >= len(order), labelleft=i % n_columns == 0)
    heading(above, table.attrs["title"], y=1 - 3 / total, va="top")
    above.supxlabel("confidence", y=3 / total, va="bottom")
    above.supylabel("share", x=2 / 72 / width, ha="left")
    return figure


def bars(panel: "Axes", curve: pd.DataFrame) -> None:
    filled = curve[curve["images"] > 0]
    x, widths = filled["low"], filled["high"] - filled["low"]
    low, high = filled[["accuracy", "confidence"]].min(axis=1), filled[["accuracy", "confidence"]].max(axis=1)
    panel.bar(x, filled["accuracy"], widths, align="edge", color=RIGHT, edgecolor="black", linewidth=0.3)
    panel.bar(x, high - low, widths, bottom=low, align="edge", color="none", edgecolor=GAP, hatch="////", linewidth=0.3)
    panel.stairs(curve["share"], [*curve["low"], curve["high"].iloc[-1]], color=SHARE, linewidth=1.0)
    panel.plot([0, 1], [0, 1], color="black", linestyle=":", linewidth=0.7)
    panel.set(xlim=(0, 1), ylim=(0, 1))
    panel.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    panel.set_yticks([0, 0.5, 1], ["0", "0.5", "1"])
