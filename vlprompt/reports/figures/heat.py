"""Numbers of learners by class or pair of classes, a cell each: worst confusions, and gains over zero-shot."""

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from vlprompt.reports.figures.style import heading, new_figure, numbers_along, short, short_names, width_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CELL = (18.0, 10.0)  # points
BAR = 9.5  # points of a bar with its name below
NAME = 110.0  # points of a name that stands upright
LESS, MORE = "#E08214", "#5E3C99"  # the ends of matplotlib's PuOr


def confusion(table: pd.DataFrame, width: float) -> "Figure":
    """Of the images of each true class, the percent that a learner takes for the other; the best learner first."""
    names = short_names([*table["true"], *table["predicted"]], NAME)
    pairs = [f"{names[true]} →\n{names[taken]}" for true, taken in zip(table["true"], table["predicted"], strict=True)]
    wide = _wide(table.assign(column=pairs, value=table["share"]))
    wide = wide.loc[wide.mean(axis=1).sort_values(kind="stable").index]
    wide = wide.iloc[:, : _n_columns(table, width)]
    label = f"the {wide.shape[1]} worst pairs, true → predicted: % of the true class"
    return _cells(wide, table, width, "Blues", (0.0, max(10.0, float(wide.to_numpy().max()))), label)


def class_gains(table: pd.DataFrame, width: float) -> "Figure":
    """Accuracy less the reference's, in points, by class; bars for one learner, else cells; the largest gain first."""
    label = f"accuracy less that of {short(table.attrs['against'], 80.0)} (points)"
    wide = _wide(table.assign(column=table["class_name"], value=table["gain"]))
    wide = wide.loc[wide.mean(axis=1).sort_values(ascending=False, kind="stable").index]
    wide = wide.iloc[:, np.argsort(-wide.mean().to_numpy(), kind="stable")]
    total = wide.shape[1]
    single = len(wide) == 1
    most = int((72 * width - 40) / BAR) if single else _n_columns(table, width)
    if total > most:
        wide = wide.iloc[:, [*range(-(-most // 2)), *range(total - most // 2, total)]]
        label += f": the {-(-most // 2)} best and {most // 2} worst of {total} classes"
    else:
        label += f": all {total} classes" if total > 1 else ": one class"
    shown = short_names(wide.columns, NAME)
    wide.columns = wide.columns.map(shown)
    if single:
        return _bars(wide.iloc[0], table, width, label)
    limit = float(np.nanmax(np.abs(wide.to_numpy()))) or 1.0
    return _cells(wide, table, width, "PuOr", (-limit, limit), label)


def _wide(table: pd.DataFrame) -> pd.DataFrame:
    """Learners by classes or pairs of them, in the order of the table; each label is a column, whatever its name."""
    keys = [name for name in ("label", "predicted_label") if name in table]
    columns = table.drop_duplicates(keys)
    wide = table.pivot(index="learner", columns=keys, values="value")
    wide = wide[list(columns[keys].itertuples(index=False, name=None)) if len(keys) > 1 else columns[keys[0]]]
    return wide.set_axis(columns["column"].tolist(), axis=1)


def _name_width(table: pd.DataFrame, width: float) -> tuple[dict[str, str], float]:
    learners = table.drop_duplicates("learner")
    shown = short_names(learners["name"], 72 * width * 0.32)
    of_learner = {learner: shown[name] for learner, name in zip(learners["learner"], learners["name"], strict=True)}
    return of_learner, max(map(width_of, of_learner.values()))


def _n_columns(table: pd.DataFrame, width: float) -> int:
    return max(1, int((72 * width - _name_width(table, width)[1] - 16) / CELL[0]))


def _cells(
    wide: pd.DataFrame, table: pd.DataFrame, width: float, colours: str, limits: tuple[float, float], label: str
) -> "Figure":
    shown, _ = _name_width(table, width)
    upright = wide.columns.tolist()
    n_rows, n_columns = wide.shape
    height = CELL[1] * n_rows + max(map(width_of, "\n".join(upright).split("\n"))) + 42
    figure = new_figure(width, height / 72)
    heading(figure, table.attrs["title"])
    panel = figure.subplots()
    values = wide.to_numpy(dtype=float)
    mesh = panel.pcolormesh(values, cmap=colours, vmin=limits[0], vmax=limits[1], edgecolor="white", linewidth=0.5)
    panel.set(ylim=(n_rows, 0), xlim=(0, n_columns), xlabel=_two_lines(label, width))
    panel.set_xticks(np.arange(n_columns) + 0.5, upright, rotation=90, linespacing=1.05)
    panel.set_yticks(np.arange(n_rows) + 0.5, [shown[learner] for learner in wide.index])
    panel.tick_params(length=0)
    panel.spines[:].set_visible(False)
    for (i, j), value in np.ndenumerate(values):
        text = f"{value:.0f}".replace("-0", "0").replace("-", "−") if np.isfinite(value) else "–"
        if width_of(text) <= CELL[0] - 1:
            dark = _luminance(mesh.cmap(mesh.norm(value))) < 0.52
            panel.text(j + 0.5, i + 0.5, text, ha="center", va="center_baseline", color="white" if dark else "black")
    return figure


def _luminance(colour: Any) -> float:
    return float(0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2])


def _two_lines(label: str, width: float) -> str:
    """A label that may be too wide for a column."""
    if width_of(label) <= 72 * width * 0.6 or ": " not in label:
        return label
    first, _, second = label.partition(": ")
    return f"{first}:\n{second}"


def _bars(gains: pd.Series, table: pd.DataFrame, width: float, label: str) -> "Figure":
    upright = gains.index.tolist()
    figure = new_figure(width, (120 + max(map(width_of, "\n".join(upright).split("\n"))) + 40) / 72)
    heading(figure, table.attrs["title"] and f"{table.attrs['title']}, {table['name'].iloc[0]}")
    panel = figure.subplots()
    colours = [MORE if gain >= 0 else LESS for gain in gains]
    hatches = ["" if gain >= 0 else "////" for gain in gains]
    panel.bar(range(len(gains)), gains, color=colours, hatch=hatches, edgecolor="black", linewidth=0.3, width=0.8)
    panel.axhline(0, color="black", linewidth=0.6)
    panel.set_xticks(range(len(gains)), upright, rotation=90)
    first, _, second = label.partition(": ")
    panel.set(ylabel=first if width_of(first) < 130 else f"{first.removesuffix(' (points)')}\n(points)", xlabel=second)
    panel.set_xlim(-0.7, len(gains) - 0.3)
    panel.tick_params(axis="x", length=0)
    panel.grid(axis="y")
    numbers_along(panel.yaxis, 120.0)
    return figure
