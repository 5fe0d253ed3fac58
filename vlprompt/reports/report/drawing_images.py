"""The traces of figures that come from predictions, each from its tidy table."""

from typing import Any

import pandas as pd

from vlprompt.reports.escapes import terminal
from vlprompt.reports.figures import images
from vlprompt.reports.figures.cells import Request, Runs
from vlprompt.reports.render import number
from vlprompt.reports.report.charts import (
    GREY,
    Styles,
    View,
    categories,
    guide,
    hover,
    layered,
    names_axis,
    text,
    trace,
)
from vlprompt.reports.report.tables import plain

MOST_CLASSES = 40
FEW = 4  # lines that may lie on each other
SLANTED = 26  # characters of a name below a column
DIVERGING = [[0, "#b2182b"], [0.25, "#ef8a62"], [0.5, "#f7f7f7"], [0.75, "#67a9cf"], [1, "#2166ac"]]
GROWING = [[0, "#fff7ec"], [0.5, "#fc8d59"], [1, "#7f0000"]]


def reliability(runs: Runs, request: Request, styles: Styles, notes: list[str]) -> View:
    table = images.reliability(runs, request, notes)
    title, traces = table.attrs["title"], [guide([0, 1], [0, 1])]
    for name, bins in table.groupby("name", sort=False):
        filled = bins[bins["share"] > 0]
        ece = f"ECE {100 * bins['ece'].iloc[0]:.2f} %"
        texts = [
            hover(str(name), f"confidence {c:.3f}, right {a:.3f}", f"{100 * s:.1f} % of the images", ece)
            for c, a, s in filled[["confidence", "accuracy", "share"]].to_numpy()
        ]
        points = {"x": filled["confidence"].round(4).tolist(), "y": filled["accuracy"].round(4).tolist()}
        traces.append(trace(str(name), styles, mode="lines+markers", hovertext=texts, **points))
    axes = {
        "xaxis": {"title": {"text": "confidence"}, "range": [0, 1]},
        "yaxis": {"title": {"text": "accuracy"}, "range": [0, 1]},
    }
    learners = table.drop_duplicates("name").sort_values("ece")
    coloured = learners["name"][learners["name"].isin(styles.known)].tolist()
    shown = [*coloured[:1], *coloured[-1:], *learners["name"][learners["method"] == "zero_shot"]]
    numbers = learners.assign(ece=100 * learners["ece"])[["name", "ece"]]
    numbers = numbers.rename(columns={"name": "learner", "ece": "ECE (%)"})
    return View(
        title,
        layered(traces, styles, FEW, {terminal(name) for name in shown}),
        axes,
        plain(f"Calibration errors, {title}", numbers, {"ECE (%)": ".2f"}),
    )


def confusion(runs: Runs, request: Request, styles: Styles, notes: list[str]) -> View:
    table = images.confusion(runs, request, notes)
    pairs = table["true"] + " → " + table["predicted"]
    wide = table.assign(pair=pairs).pivot_table(index="pair", columns="name", values="share", sort=False)
    return _heat(
        wide,
        table.attrs["title"],
        "Worst confusions (%)",
        "classes",
        ".1f",
        GROWING,
        (0.0, max(5.0, float(wide.max(axis=None)))),
    )


def class_gains(runs: Runs, request: Request, styles: Styles, notes: list[str]) -> View:
    table = images.class_gains(runs, request, notes)
    names = table["class_name"]
    repeated = table.groupby("class_name")["label"].transform("nunique") > 1
    names = names.where(~repeated, names + " (" + table["label"].astype(str) + ")")
    wide = table.assign(shown=names).pivot_table(index="shown", columns="name", values="gain", sort=False)
    order = wide.mean(axis=1).sort_values(ascending=False, kind="stable").index
    if len(order) > MOST_CLASSES:
        notes.append(f"The {MOST_CLASSES} of {len(order)} classes with the largest gains and losses.")
        order = order[: MOST_CLASSES // 2].append(order[-MOST_CLASSES // 2 :])
    largest = float(wide.abs().max(axis=None)) or 1.0
    words = f"Gains over {table.attrs['against']} (points)"
    return _heat(wide.loc[order], table.attrs["title"], words, "class", "+.1f", DIVERGING, (-largest, largest))


def _heat(
    wide: pd.DataFrame, title: str, words: str, rows: str, form: str, scale: list[Any], limits: tuple[float, float]
) -> View:
    texts = [
        [hover(str(column), str(row), number(value, form)) for column, value in values.items()]
        for row, values in wide.iterrows()
    ]
    y, x = ([text(name) for name in names] for names in (wide.index, wide.columns))
    z = [[None if pd.isna(v) else round(v, 2) for v in row] for row in wide.to_numpy().tolist()]
    low, high = limits
    cells = {"type": "heatmap", "x": x, "y": y, "z": z, "zmin": low, "zmax": high, "colorscale": scale,
             "hovertext": texts, "hoverinfo": "text", "colorbar": {"thickness": 12, "title": {"text": ""}}}  # fmt: skip
    layout = names_axis(wide.index[::-1].tolist()) | {
        "xaxis": {**categories(wide.columns.tolist(), SLANTED), "tickangle": -60}
    }
    layout["height"] += 120
    numbers = wide.rename_axis(rows).reset_index()
    return View(title, [cells], layout, plain(f"{words}, {title}", numbers, dict.fromkeys(wide.columns, form)))


def forest(runs: Runs, request: Request, styles: Styles, notes: list[str]) -> list[View]:
    table, views = images.forest(runs, request, notes), []
    for (dataset, split), rows in table.groupby(["dataset", "split"], sort=False):
        rows = rows.sort_values("difference", kind="stable")
        traces = []
        for row in rows.to_dict("records"):
            high, low = row["high"] - row["difference"], row["difference"] - row["low"]
            bars = {
                "type": "data",
                "symmetric": False,
                "array": [high],
                "arrayminus": [low],
                "thickness": 1.5,
                "width": 4,
            }
            words = f"{row['difference']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}]"
            texts = [hover(row["name"], words, f"{row['images']:,} images, seeds {row['seeds']}")]
            point = {"x": [row["difference"]], "y": [text(row["name"])]}
            traces.append(trace(row["name"], styles, mode="markers", error_x=bars, hovertext=texts, **point))
        shared = f"{dataset}, {table.attrs['title']}, {split}"
        words = f"difference to {text(table.attrs['against'])} (points)"
        zero = {
            "type": "line",
            "x0": 0,
            "x1": 0,
            "yref": "paper",
            "y0": 0,
            "y1": 1,
            "line": {"color": GREY, "dash": "dot"},
        }
        layout = {"xaxis": {"title": {"text": words}}, "shapes": [zero], **names_axis(rows["name"].tolist())}
        numbers = rows[::-1][["name", "difference", "low", "high", "seeds", "images"]].rename(
            columns={"name": "learner"}
        )
        forms = dict.fromkeys(("difference", "low", "high"), "+.2f") | {"seeds": ".0f", "images": ",.0f"}
        caption = f"Differences to {table.attrs['against']}, {shared}"
        views.append(View(shared, traces, layout, plain(caption, numbers, forms)))
    return views
