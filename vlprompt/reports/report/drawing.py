"""The traces of figures of scores, each from its tidy table."""

from typing import Any

import numpy as np
import pandas as pd

from vlprompt.reports.averages import in_papers_order
from vlprompt.reports.figures import data
from vlprompt.reports.figures.cells import Request, Runs, dataset_name
from vlprompt.reports.render import spread_text
from vlprompt.reports.report.charts import (
    GREY,
    MOST_LINES,
    Styles,
    View,
    guide,
    hover,
    layered,
    names_axis,
    text,
    trace,
)
from vlprompt.reports.report.tables import plain
from vlprompt.results.metrics import find_metric
from vlprompt.results.record import shots_order

MOST_POINTS = 100  # of a training curve
LEVELS = 5.0  # points between lines of equal H


def few_shot(runs: Runs, request: Request, styles: Styles, notes: list[str]) -> list[View]:
    table = data.few_shot(runs, request, notes)
    shown, views = find_metric(request.metric), []
    names = in_papers_order(table["dataset"])
    for dataset in sorted(names, key=lambda name: not name.startswith("average_")):
        of_set, traces = table[table["dataset"] == dataset], []
        shots = sorted({*of_set["shots"]}, key=shots_order)
        for name, line in of_set.groupby("name", sort=False):
            line = line.sort_values("shots", key=lambda column: column.map(shots.index))
            rows = line.to_dict("records")
            values = [spread_text(row["mean"], row["deviation"], decimals=shown.decimals) for row in rows]
            texts = [
                hover(str(name), f"{r['shots']} shot{'s' * (r['shots'] != 1)}: {v}", f"n {r['n']}")
                for r, v in zip(rows, values, strict=True)
            ]
            errors = {"type": "data", "array": line["deviation"].fillna(0).tolist(), "thickness": 1, "width": 3}
            more: dict[str, Any] = {"error_y": errors} if line["deviation"].notna().any() else {}
            x, y = line["shots"].map(str).tolist(), line["mean"].tolist()
            if len(shots) > 1 == len(x):  # dozens of single points hide each other
                more["visible"] = False
            traces.append(trace(str(name), styles, mode="lines+markers", x=x, y=y, hovertext=texts, **more))
        numbers = of_set.pivot_table(index="name", columns="shots", values="mean", sort=False)[shots].reset_index()
        numbers = numbers.rename(columns={"name": "learner"} | {n: f"{n} shot{'s' * (n != 1)}" for n in shots})
        forms = {name: f".{shown.decimals}f" for name in map(str, numbers) if name != "learner"}
        axis = {"type": "category", "categoryarray": [*map(str, shots)], "title": {"text": "labelled images a class"}}
        layout = {"xaxis": axis, "yaxis": {"title": {"text": shown.label}}}
        of = [dataset_name(dataset)] if len(set(names)) > 1 else []
        title = ", ".join([*of, table.attrs["title"]])
        views.append(View(title, layered(traces, styles), layout, plain(f"{title}: {shown.label}", numbers, forms)))
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
            "xaxis": {"type": "log", **_ticks(nothing, positive.max()), "title": {"text": words + zero}},
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


def _ticks(low: float, high: float) -> dict[str, Any]:
    """Of a logarithmic axis: powers of ten, and 2 and 5 times these where the powers are few."""
    first, last = int(np.floor(np.log10(low))), int(np.ceil(np.log10(high)))
    factors = (1, 2, 5) if last - first <= 2 else (1,)
    values = [factor * 10.0**power for power in range(first, last + 1) for factor in factors]
    return {"tickmode": "array", "tickvals": values, "ticktext": [_short(value) for value in values]}


def _short(value: float) -> str:
    unit, word = next(((unit, word) for unit, word in ((1e9, "G"), (1e6, "M"), (1e3, "k")) if value >= unit), (1, ""))
    return f"{value / unit:g}{word}"


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
    layout = {"xaxis": {"title": {"text": words}}, **names_axis(rows["name"].tolist())}
    numbers = table[["name", "rank"]].rename(columns={"name": "learner", "rank": "mean rank"})
    caption = f"Mean ranks, {title}; critical difference {width:.2f}"
    return View(title, traces, layout, plain(caption, numbers, {"mean rank": ".2f"}))


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
                    layered(traces, styles, MOST_LINES),
                    axes,
                    plain(f"Training, {title}", pd.DataFrame(last), forms),
                )
            )
    return views
