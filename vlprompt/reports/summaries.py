"""One row a learner and number of shots: what its seeds come to."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from vlprompt.errors import UserError
from vlprompt.protocols.base_to_novel import harmonic_mean
from vlprompt.protocols.cross_dataset import CrossDataset
from vlprompt.protocols.domain_generalization import DomainGeneralization
from vlprompt.reports.filters import check_key, value_of
from vlprompt.reports.statistics import Interval, spread
from vlprompt.results.metrics import measure
from vlprompt.results.record import Record

CONTEXT = ["protocol", "dataset", "backbone", "weights", "precision"]  # what a table's rows often share
KEYS = [*CONTEXT, "method", "variant", "shots"]
COSTS = {"parameters": "trained_parameters", "train_s": "train_seconds", "test_s": "test_seconds",
         "peak_bytes": "peak_memory_bytes", "stored_bytes": "stored_bytes", "backbone_bytes": "backbone_bytes",
         "step_s": "seconds_per_step", "image_s": "seconds_per_image", "image_flops": "flops_per_image",
         "frozen_image_flops": "flops_per_image_frozen", "classes_flops": "flops_classes",
         "frozen_classes_flops": "flops_classes_frozen", "mergeable": "mergeable"}  # fmt: skip
TRANSFER = (CrossDataset.name, DomainGeneralization.name)
UNTRAINED = 0  # shots and seed of a learner that is not trained
NO_RUNS = "there are no runs to show: `python run.py` makes the first one, on the demo, without any download."


def frame(records: Sequence[Record], *, metric: str = "accuracy", columns: Sequence[str] = ()) -> pd.DataFrame:
    """One row a run: its cell, weights, precision, status and cost, and the metric on each test split.

    `columns` are further keys of the record or of its configuration. Percent, but for what is no share.
    """
    factor, rows = measure(metric).factor, []
    for record in records:
        row = {name: getattr(record, name) for name in KEYS} | {key: value_of(record, key) for key in columns}
        row |= {"seed": record.seed, "status": record.status}
        row |= {split: factor * scores.get(metric, float("nan")) for split, scores in record.scores.items()}
        costs = {name: record.cost.get(source) for name, source in COSTS.items()}
        rows.append(row | {name: float("nan") if value is None else float(value) for name, value in costs.items()})
    return pd.DataFrame(rows)


def summarise(
    records: Sequence[Record],
    *,
    metric: str = "accuracy",
    interval: Interval = "none",
    columns: Sequence[str] = (),
) -> pd.DataFrame:
    """One row a learner and number of shots: over its seeds, n and for each split the mean and the deviation.

    Percent, but for what is no share. `H` is the harmonic mean of the means of base and novel, as published, `mean_H`
    the mean of each seed's, `average` the plain mean over the targets of a transfer. With an interval, `<split>_ci95`
    is half its width. Costs are means. `failed` counts the seeds without a result (failed or not applicable),
    `missing` those that other learners of the same context and shots have. A learner that is not trained appears beside
    every number of shots. Learners that differ in one of `columns` have rows of their own.
    Raises: UserError where there are no runs, or no run has such a column.
    """
    if not records:
        raise UserError(NO_RUNS)
    extra = [key for key in columns if key not in KEYS]
    for key in columns:
        check_key(key, records)
    found = dict.fromkeys(split for record in records for split in record.scores)
    splits = sorted(found, key=lambda split: split != "base")  # an imported record may have novel alone
    shown = [record.model_copy(update={"shots": k}) for record, k in beside_every_shots(records)]
    names = [*KEYS, *extra, "seed", "status", *splits, *COSTS]
    runs = frame(shown, metric=metric, columns=extra).reindex(columns=names)
    for key in extra:  # a list is no key of a group
        runs[key] = [
            value if value is None or isinstance(value, (str, int, float)) else str(value) for value in runs[key]
        ]
    seeds = runs[runs["seed"] != UNTRAINED].groupby([*CONTEXT[:3], "shots"], dropna=False)["seed"].agg(set).to_dict()
    rows: list[dict[str, Any]] = []
    for keys, group in runs.groupby([*KEYS, *extra], dropna=False, sort=False):
        row: dict[str, Any] = {
            name: None if pd.isna(key) else key for name, key in zip([*KEYS, *extra], keys, strict=True)
        }
        row |= _over_seeds(group, splits, interval, harmonic=measure(metric).harmonic)
        if row["protocol"] in TRANSFER:
            means = [row[split] for split in splits if pd.notna(row[split]) and split != row["dataset"]]
            row["average"] = sum(means) / len(means) if means else float("nan")
        expected = seeds.get((*keys[:3], row["shots"]), set()) if UNTRAINED not in set(group["seed"]) else set()
        failed = int((group["status"] != "finished").sum())
        rows.append(row | {"failed": failed, "missing": len(expected - set(group["seed"]))})
    rows.sort(key=place)
    table = pd.DataFrame(rows)
    table.attrs |= {"metric": metric, "interval": interval}
    return table


def _over_seeds(group: pd.DataFrame, splits: Sequence[str], interval: Interval, *, harmonic: bool) -> dict[str, Any]:
    finished = group[group["status"] == "finished"]
    row: dict[str, Any] = {"n": len(finished)}
    for split in splits:
        found = spread(finished[split], interval)
        row |= {split: found.mean, f"{split}_sd": found.deviation}
        if interval != "none":
            row[f"{split}_ci95"] = found.half_width
        if split == "novel" and "base" in splits and harmonic:
            each = [harmonic_mean(b, n) for b, n in zip(finished["base"], finished["novel"], strict=True)]
            row |= {"H": harmonic_mean(row["base"], row["novel"]), "mean_H": spread(each).mean}
    return row | {name: finished[name].mean() for name in COSTS}


def beside_every_shots(records: Sequence[Record]) -> list[tuple[Record, int | str]]:
    """Each record with its shots; an untrained learner's once for every number that others of its context have."""

    def context(record: Record) -> tuple[str | None, ...]:
        return record.protocol, record.dataset, record.backbone, record.weights

    shots: dict[tuple[str | None, ...], dict[int | str, None]] = {}  # the inner one is an ordered set
    for record in records:
        if record.shots != UNTRAINED:
            shots.setdefault(context(record), {})[record.shots] = None
    return [
        (record, k)
        for record in records
        for k in ([record.shots] if record.shots != UNTRAINED else shots.get(context(record), [UNTRAINED]))
    ]


def place(row: dict[str, Any]) -> tuple:
    """Sorts by context and shots ("all" last), then zero-shot first, then by name."""
    context = [str(row.get(name)) for name in ("protocol", "dataset", "backbone", "weights")]
    shots = float("inf") if row["shots"] == "all" else row["shots"]
    return (
        *context,
        shots,
        row["method"] != "zero_shot",
        row["method"],
        row["variant"] or "",
        str(row["precision"]),
    )
