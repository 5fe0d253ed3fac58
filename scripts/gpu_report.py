"""The page of benchmark_gpu.py: its measurements as tables, and what a table of eleven data sets takes by them."""

from pathlib import Path
from typing import Any

import yaml
from compare_precisions import HEADER, Deviation

from vlprompt.config.schema import Fit
from vlprompt.training.optim import n_steps, steps_per_epoch

CONF = Path(__file__).resolve().parents[1] / "conf"
DATASETS = (
    *("imagenet", "caltech101", "oxford_pets", "stanford_cars", "flowers102", "food101", "fgvc_aircraft", "sun397"),
    *("dtd", "eurosat", "ucf101"),
)
SHOTS, SEEDS = 16, 3


def line(row: dict[str, Any]) -> str:
    """A measurement as a row of the table."""
    rate = row["steps_per_second"]
    speed = f"{rate:.3g}" if rate else f"not measured: {row['reason']}"
    peak = f"{row['peak_bytes'] / 2**20:,.0f} MiB" if row["peak_bytes"] else ""
    how = f"{row['algorithm']}, {row['precision']}" + (", compiled" if row["compiled"] else "")
    return f"| {row['method']} | {how} | {row['batch']} | {speed} | {peak} |"


def page(report: dict[str, Any]) -> str:
    head = f"{report['backbone']}, random weights, {report['classes']} classes, on {report['device']} "
    head += f"(torch {report['torch']}); {report['seconds']} seconds in all\n"
    rows = report["rows"]
    text = "# Steps a second\n\n" + head + "\n| method | how | batch | steps a second | peak memory |\n"
    text += "|---|---|---|---|---|\n" + "".join(f"{line(row)}\n" for row in rows)
    if reading := report.get("loading"):
        text += f"\n## Loading\n\n{reading['images_read']:,.0f} images of 500 x 375 pixels a second read and "
        text += f"augmented by {reading['workers']} processes; {reading['images_encoded']:,.0f} a second through the "
        text += "image tower in bf16\n"
    if "precisions" in report:
        text += f"\n## Precision: logits against fp32\n\n{HEADER}"
        text += "".join(f"{Deviation(**row)}\n" for row in report["precisions"])
    if reading and (lines := cells(rows, reading)):
        text += "\n## Base to novel on 11 data sets, 3 seeds, estimated from the steps above\n\n"
        text += "| method | cells | steps | hours | cells an hour |\n|---|---|---|---|---|\n"
        text += "".join(f"{row}\n" for row in lines)
    return text


def cells(rows: list[dict[str, Any]], reading: dict[str, float]) -> list[str]:
    """Of each method at its fastest: the steps of its recipe, and reading and encoding the test images.

    The steps are as long as those that were measured, whatever the classes of a data set.
    """
    lines = []
    for method in dict.fromkeys(row["method"] for row in rows):
        rates = [row["steps_per_second"] for row in rows if row["method"] == method and row["algorithm"] == "vlprompt"]
        if not (rates := [rate for rate in rates if rate]):
            continue
        sizes = [work(method, dataset) for dataset in DATASETS]
        steps, tests = SEEDS * sum(n for n, _ in sizes), SEEDS * sum(n for _, n in sizes)
        slowest = min(reading["images_read"], reading["images_encoded"])
        hours = (steps / max(rates) + tests / slowest) / 3600
        n_cells = SEEDS * len(DATASETS)
        lines.append(f"| {method} | {n_cells} | {steps:,} | {hours:.2g} | {n_cells / hours:.3g} |")
    return lines


def work(method: str, dataset: str) -> tuple[int, int]:
    """Steps and test images of one cell, by the method's settings and recipe, and the data set's counts."""
    counts = read(CONF / "dataset" / f"{dataset}.yaml")["dataset"]["about"]["counts"]
    recipe = CONF / "recipe" / method
    files = (
        CONF / "method" / f"{method}.yaml",
        recipe / "base_to_novel.yaml",
        recipe / f"base_to_novel_{dataset}.yaml",
    )
    settings: dict[str, Any] = {}
    for file in files:
        given = read(file).get("fit", {}) if file.exists() else {}
        lengths = {"epochs", "steps"} & given.keys()
        settings |= {**dict.fromkeys(("epochs", "steps") if lengths else ()), **given}
    fit = Fit.model_validate(settings)
    n_images = SHOTS * -(-counts["classes"] // 2)  # of the base classes
    return n_steps(steps_per_epoch(n_images, fit), fit), counts["test"]


def read(file: Path) -> Any:
    return yaml.safe_load(file.read_text(encoding="utf-8"))
