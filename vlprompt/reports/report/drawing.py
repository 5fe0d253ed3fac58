"""Each figure's traces, from its tidy table."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from vlprompt.reports.averages import in_papers_order
from vlprompt.reports.figures import data, images
from vlprompt.reports.figures.cells import Request, Runs
from vlprompt.reports.render import number, spread_text
from vlprompt.reports.report.charts import GREY, Styles, View, guide, hover, text, trace
from vlprompt.reports.report.tables import plain
from vlprompt.results.metrics import find_metric

MOST_POINTS = 100  # of a training curve
MOST_CLASSES = 40
LEVELS = 5.0  # points between lines of equal H
ROW = 22  # pixels of a line of text
LONGEST, SLANTED = 44, 26  # characters of a name at an axis
MOST_LINES = 12  # learners whose lines are shown at first
DIVERGING = [[0, "#b2182b"], [0.25, "#ef8a62"], [0.5, "#f7f7f7"], [0.75, "#67a9cf"], [1, "#2166ac"]]
GROWING = [[0, "#fff7ec"], [0.5, "#fc8d59"], [1, "#7f0000"]]


def layered(traces: list[dict[str, Any]], styles: Styles, *, lines: bool = False) -> list[dict[str, Any]]:
    """Coloured learners above grey ones; of many `lines` the grey ones are off at first."""
    ordered = sorted(traces, key=lambda trace: trace.get("meta") in styles.known)
    if lines and sum("meta" in trace for trace in traces) > MOST_LINES:
        return [t if t.get("meta") in styles.known or "meta" not in t else t | {"visible": False} for t in ordered]
    return ordered


def few_shot(runs: Runs, request: Request, styles: Styles, notes: list[str]) -> list[View]:
    table = data.few_shot(runs, request, notes)
    shown, views = find_metric(request.metric), []
    names = in_papers_order(table["dataset"])
    shots = sorted({*table["shots"]}, key=lambda value: float("inf") if value == "all" else value)
    for dataset in sorted(names, key=lambda name: not name.startswith("average_")):
        of_set, traces = table[table["dataset"] == dataset], []
        for name, line in of_set.groupby("name", sort=False):
            line = line.sort_values("shots", key=lambda column: column.map(shots.index))
            rows = line.to_dict("records")
            values = [spread_text(row["mean"], row["deviation"], decimals=shown.decimals) for row in rows]
            texts = [
                hover(str(name), f"{r['shots']} shots: {v}", f"n {r['n']}") for r, v in zip(rows, values, strict=True)
            ]
            errors = {"type": "data", "array": line["deviation"].fillna(0).tolist(), "thickness": 1, "width": 3}
            more = {"error_y": errors} if line["deviation"].notna().any() else {}
            x, y = line["shots"].map(str).tolist(), line["mean"].tolist()
            if len(shots) > 1 == len(x):  # dozens of single points hide each other
                more["visible"] = False
            traces.append(trace(str(name), styles, mode="lines+markers", x=x, y=y, hovertext=texts, **more))
        numbers = of_set.pivot_table(index="name", columns="shots", values="mean", sort=False).reset_index()
        numbers = numbers.rename(columns={"name": "learner"} | {n: f"{n} shots" for n in shots})
        forms = {name: f".{shown.decimals}f" for name in map(str, numbers) if name != "learner"}
        axis = {"type": "category", "categoryarray": [*map(str, shots)], "title": {"text": "labelled images a class"}}
        layout = {"xaxis": axis, "yaxis": {"title": {"text": shown.label}}}
        title = table.attrs["title"] if len(set(names)) == 1 else f"{dataset}, {table.attrs['title']}"
        views.append(
            View(title, layered(traces, styles), layout, plain(f"Few-shot, {title}: {shown.label}", numbers, forms))
        )
    return views


def base_novel(runs: Runs, request: Request, styles: Styles, notes: list[str]) -> View:
    table = data.base_novel(runs, request, notes)
    title = table.attrs["title"]
    traces = _equal_h(table)
    for row in table.to_dict("records"):
        texts = [hover(row["name"], *(f"{part} {row[part]:.2f}" for part in ("base", "novel", "H")))]
        more: dict[str, Any] = {}
        for axis, part in (("x", "base"), ("y", "novel")):
            if pd.notna(row[f"{part}_deviation"]):
                more[f"error_{axis}"] = {
                    "type": "data",
                    "array": [row[f"{part}_deviation"]],
                    "thickness": 1,
                    "width": 0,
                }
        point = {"x": [row["base"]], "y": [row["novel"]]}
        traces.append(trace(row["name"], styles, mode="markers", hovertext=texts, **point, **more))
    label = find_metric(request.metric).label
    layout = {
        "xaxis": {"title": {"text": f"base classes: {label}"}},
        "yaxis": {"title": {"text": f"novel classes: {label}"}},
    }
    numbers = table[["name", "base", "novel", "H"]].rename(columns={"name": "learner"})
    forms = dict.fromkeys(("base", "novel", "H"), ".2f")
    return View(title, layered(traces, styles), layout, plain(f"Base and novel classes, {title}", numbers, forms))


def _equal_h(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Lines of equal harmonic mean through the part of the plane where the learners are."""
    margin = 3.0
    left, right = table["base"].min() - margin, table["base"].max() + margin
    low, high = table["novel"].min() - margin, table["novel"].max() + margin
    lines = []
    means = 2 * left * low / max(left + low, 1e-9), 2 * right * high / (right + high)
    for h in np.arange(np.ceil(means[0] / LEVELS) * LEVELS, means[1], LEVELS):
        base = np.linspace(max(left, h / 2 + 0.5), right, 60)
        novel = h * base / (2 * base - h)
        inside = (novel >= low) & (novel <= high)
        if inside.sum() > 1:
            line = guide(base[inside].round(2).tolist(), novel[inside].round(2).tolist())
            line |= {"mode": "lines+text", "textposition": "top left", "textfont": {"color": GREY, "size": 11}}
            lines.append(line | {"text": [*[""] * (int(inside.sum()) - 1), f"H {h:.0f}"]})
    return lines


def cost(runs: Runs, request: Request, styles: Styles, notes: list[str]) -> list[View]:
    table, views = data.cost(runs, request, notes), []
    shown = find_metric(request.metric)
    for key, words in data.COSTS.items():
        known = table[table[key].notna()]
        positive = known[key][known[key] > 0]
        if positive.empty:
            continue
        nothing = positive.min() / 3  # where a logarithm puts no cost at all
        traces = []
        front = known[known[f"{key}_front"]].sort_values(key)
        stairs = guide(front[key].clip(lower=nothing).tolist(), front["mean"].tolist(), dash="solid", shape="hv")
        traces.append(stairs)
        for row in known.to_dict("records"):
            costs = f"{row[key]:,.4g}" if row[key] < 1e5 else f"{row[key]:,.0f}"
            on_front = ["nothing is better and costs less"] * bool(row[f"{key}_front"])
            texts = [
                hover(row["name"], f"{row['part']} {row['mean']:.{shown.decimals}f}", f"{words}: {costs}", *on_front)
            ]
            point = {"x": [max(row[key], nothing)], "y": [row["mean"]]}
            traces.append(trace(row["name"], styles, mode="markers", hovertext=texts, **point))
        zero = " (none: at the left end)" if (known[key] == 0).any() else ""
        axes = {
            "xaxis": {"type": "log", "nticks": 6, "title": {"text": words + zero}},
            "yaxis": {"title": {"text": shown.label}},
        }
        title = f"{table.attrs['title']}: {words}"
        numbers = known[["name", "mean", key]].assign(front=["yes" if on else "" for on in known[f"{key}_front"]])
        numbers = numbers.rename(columns={"name": "learner", "mean": shown.label, key: words, "front": "on the front"})
        forms = {shown.label: f".{shown.decimals}f", words: ",.4g" if positive.max() < 1e4 else ",.0f"}
        views.append(
            View(title, layered(traces, styles), axes, plain(f"Accuracy against cost, {title}", numbers, forms))
        )
    return views


def critical_difference(runs: Runs, request: Request, styles: Styles, notes: list[str]) -> View:
    table = data.critical_difference(runs, request, notes)
    width, title = table.attrs["critical_difference"], table.attrs["title"]
    rows = table.sort_values("rank", ascending=False)
    bars = {"type": "data", "array": [width / 2], "thickness": 1.5, "width": 4}
    traces = [
        trace(row["name"], styles, mode="markers", x=[row["rank"]], y=[text(row["name"])], error_x=bars,
              hovertext=[hover(row["name"], f"mean rank {row['rank']:.2f}", f"critical difference {width:.2f}")])
        for row in rows.to_dict("records")
    ]  # fmt: skip
    words = f"mean rank over {table.attrs['n_datasets']} data sets (1 is best); bars: half of {width:.2f} to each side"
    layout = {"xaxis": {"title": {"text": words}}, **_names_axis(rows["name"].tolist())}
    numbers = table[["name", "rank"]].rename(columns={"name": "learner", "rank": "mean rank"})
    caption = f"Mean ranks, {title}; critical difference {width:.2f}"
    return View(title, traces, layout, plain(caption, numbers, {"mean rank": ".2f"}))


def _names_axis(names: Sequence[str]) -> dict[str, Any]:
    """A line for each learner, from the bottom up, and the height that they need."""
    return {"yaxis": _categories(names), "height": 140 + ROW * len(names)}


def _categories(names: Sequence[str], longest: int = LONGEST) -> dict[str, Any]:
    """An axis of names, of which long ones are cut: the texts of its points say them whole."""
    order = [text(name) for name in names]
    cut = [text(name if len(name) <= longest else f"{name[: longest - 1]}…") for name in names]
    shared = {"type": "category", "categoryarray": order, "categoryorder": "array", "automargin": True}
    return {**shared, "tickmode": "array", "tickvals": order, "ticktext": cut}


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
    numbers = table.assign(ece=100 * table["ece"]).drop_duplicates("name")[["name", "ece"]]
    numbers = numbers.rename(columns={"name": "learner", "ece": "ECE (%)"})
    return View(
        title,
        layered(traces, styles, lines=True),
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
    layout = _names_axis(wide.index[::-1].tolist()) | {
        "xaxis": {**_categories(wide.columns.tolist(), SLANTED), "tickangle": -60}
    }
    layout["height"] += 120
    numbers = wide.rename_axis(rows).reset_index()
    return View(title, [cells], layout, plain(f"{words}, {title}", numbers, dict.fromkeys(wide.columns, form)))


def training(runs: Runs, request: Request, styles: Styles, notes: list[str]) -> list[View]:
    table, views = data.training(runs, request, notes), []
    for part, words in (("accuracy", "accuracy on training images (%)"), ("loss", "loss")):
        traces, last = [], []
        for name, line in table.dropna(subset=part).groupby("name", sort=False):
            line = line.iloc[:: max(1, len(line) // MOST_POINTS)]
            texts = [hover(str(name), f"epoch {e}: {v:.4g}") for e, v in zip(line["epoch"], line[part], strict=True)]
            points = {"x": line["epoch"].tolist(), "y": line[part].round(4).tolist()}
            traces.append(trace(str(name), styles, mode="lines", hovertext=texts, **points))
            last.append(
                {"learner": name, "epochs": line["epoch"].iloc[-1], "first": points["y"][0], "last": points["y"][-1]}
            )
        if traces:
            title = f"{table.attrs['title']}: {words.partition(' (')[0]}"
            axes = {"xaxis": {"title": {"text": "epoch"}}, "yaxis": {"title": {"text": words}}}
            forms = {"epochs": "d", "first": ".4g", "last": ".4g"}
            views.append(
                View(
                    title,
                    layered(traces, styles, lines=True),
                    axes,
                    plain(f"Training, {title}", pd.DataFrame(last), forms),
                )
            )
    return views


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
        layout = {"xaxis": {"title": {"text": words}}, "shapes": [zero], **_names_axis(rows["name"].tolist())}
        numbers = rows[::-1][["name", "difference", "low", "high", "seeds", "images"]].rename(
            columns={"name": "learner"}
        )
        forms = dict.fromkeys(("difference", "low", "high"), "+.2f") | {"seeds": ".0f", "images": ",.0f"}
        caption = f"Differences to {table.attrs['against']}, {shared}"
        views.append(View(shared, traces, layout, plain(caption, numbers, forms)))
    return views
