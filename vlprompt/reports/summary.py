"""The one aggregation of all tables, figures and comparisons: a tidy frame of values, grouped over seeds."""

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from vlprompt.config.changes import words
from vlprompt.errors import Note, UserError
from vlprompt.protocols import PROTOCOLS
from vlprompt.reports.filters import check_key
from vlprompt.reports.variants import labels, shared_changes, shown_value, variant_texts
from vlprompt.results.metrics import find_metric
from vlprompt.results.record import INFERENCES, SELECTIONS, Record, shots_order

SHARED = ["protocol", "dataset", "backbone", "weights", "precision"]  # what the rows of a table often share
KEYS = [*SHARED, "method", "variant", "named", "shots"]  # named: the variant in words
COSTS = {"parameters": "trained_parameters", "train_s": "train_seconds", "test_s": "test_seconds",
         "peak_bytes": "peak_memory_bytes", "stored_bytes": "stored_bytes", "backbone_bytes": "backbone_bytes",
         "step_s": "seconds_per_step", "views": "views", "image_s": "seconds_per_image",
         "image_flops": "flops_per_image", "frozen_image_flops": "flops_per_image_frozen",
         "classes_flops": "flops_classes", "frozen_classes_flops": "flops_classes_frozen",
         "mergeable": "mergeable"}  # fmt: skip
H, MEAN_OF_H = "H", "mean of H"  # of the means over seeds; the mean of each seed's
UNTRAINED = 0  # shots and seed of a learner that is not trained
NO_RUNS = "there are no runs to show: `python run.py` makes the first one, on the demo, without any download."
LEVEL = 0.95
NAN = float("nan")

Interval = Literal["t", "normal", "none"]


@dataclass(frozen=True)
class Spread:
    """Some values' number, mean and deviation, and half the width of the interval around the mean; nan where undefined.

    One value has no deviation and no interval.
    """

    n: int
    mean: float
    deviation: float = NAN
    half_width: float = NAN


def spread(values: ArrayLike, interval: Interval = "none") -> Spread:
    """Of the values that are numbers.

    "t": sample deviation (n - 1) and the 95 % interval by Student's t. "none": the same without an interval. "normal":
    population deviation (n) and 1.96 standard errors of it, as the scripts of CoOp and its kin print them; for a few
    seeds that interval is far too narrow.
    """
    numbers = np.asarray(values, dtype=np.float64)
    numbers = numbers[~np.isnan(numbers)]
    n = len(numbers)
    if n < 2:
        return Spread(n, float(numbers[0]) if n else NAN)
    deviation = float(numbers.std(ddof=0 if interval == "normal" else 1))
    return Spread(n, float(numbers.mean()), deviation, _quantile(n, interval) * deviation / n**0.5)


def _quantile(n: int, interval: Interval) -> float:
    if interval != "t":
        return 1.96 if interval == "normal" else NAN
    from scipy.stats import t

    return float(t.ppf((1 + LEVEL) / 2, n - 1))


def frame(records: Sequence[Record], *, metric: str = "accuracy", columns: Sequence[str] = ()) -> pd.DataFrame:
    """The tidy frame: one row a run and test with its `value`; a run without any has one row without `split`.

    Percent, except what is no fraction. `columns` are further keys of the record or of its configuration; "" is none.
    A learner that is not trained appears at every number of shots of its context, `given_shots` staying 0. A protocol's
    own numbers are rows, too: the harmonic mean of each seed, and the headline that records of other protocols keep.
    Raises: UserError where no run has such a column.
    """
    extra = [key for key in columns if key not in KEYS]
    changed = {key for record in records for key in record.changes or {}}
    for key in columns:
        if key not in changed:
            check_key(key, records)
    rows: list[dict[str, Any]] = []
    in_words = zip(records, variant_texts(records, extra), labels(records), shared_changes(records), strict=True)
    texts = {
        id(record): {"named": named, "learner": label, "changes": words(changes or {}, whole=True)}
        for record, named, label, changes in in_words
    }
    for run, (record, shots) in enumerate(_at_every_shots(records)):
        row = {name: getattr(record, name) for name in KEYS if name != "named"}
        row |= {key: shown_value(record, key) for key in extra}
        row = {name: _groupable(value) for name, value in row.items()} | texts[id(record)]
        row |= {"shots": shots, "given_shots": record.shots, "metric": metric, "run": run, "record": record}
        row |= {"seed": record.seed, "status": record.status}
        values = _values(record, metric) or {"": NAN}
        rows += [row | {"split": split, "value": value} for split, value in values.items()]
    names = [*KEYS, *extra, "given_shots", "changes", "learner", "metric", "run", "record", "seed", "status"]
    names += ["split", "value"]
    return pd.DataFrame(rows, columns=list(dict.fromkeys(names)), dtype=object).astype({"value": float})


def _groupable(value: Any) -> Any:
    return "" if value is None else value if isinstance(value, (str, int, float)) else str(value)


def _values(record: Record, metric: str) -> dict[str, float]:
    factor = find_metric(metric).factor
    values = {split: scores.get(metric, NAN) * factor for split, scores in record.scores.items()}
    if record.protocol in PROTOCOLS:
        numbers = headline(record.protocol, record.dataset, values, metric)
        of_seed = H in numbers and not sources([record])  # of a paper's seeds nothing is known
        return values | ({MEAN_OF_H: numbers[H]} if of_seed else {})
    of_run = record.headline if metric == "accuracy" else {}
    return values | {name: 100 * value for name, value in of_run.items() if name not in values}


def is_transfer(protocol: str) -> bool:
    """Whether tests are data sets; what the package does not have is taken for none."""
    return protocol in PROTOCOLS and PROTOCOLS[protocol].transfer


def headline(protocol: str, dataset: str, values: Mapping[str, float], metric: str) -> dict[str, float]:
    """What a protocol of the package makes of the numbers of its tests, in its order; those of others as they are."""
    if protocol not in PROTOCOLS or not values:
        return dict(values)
    source = {dataset: values.get(dataset, NAN)} if is_transfer(protocol) else {}
    numbers = PROTOCOLS[protocol].summary({**source, **values})
    hidden = {*source} - {*values}
    shown = find_metric(metric)
    if not (shown.higher_is_better and shown.has_best) or shown.of_some_tests:  # H is of accuracies and their kin
        hidden.add(H)
    return {name: value for name, value in numbers.items() if name not in hidden}


def summed_up(protocol: str, tests: Iterable[str]) -> set[str]:
    """The tests that a protocol shows by other numbers alone: a table has no column of each."""
    values = dict.fromkeys({*tests} - {"", MEAN_OF_H}, NAN)
    return {*values} - {*headline(protocol, "", values, "accuracy")}


def _at_every_shots(records: Sequence[Record]) -> list[tuple[Record, int | str]]:
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


def learner_order(row: Mapping[Any, Any], columns: Sequence[str] = ()) -> tuple:
    """Sorts by shots ("all" last), then zero-shot first, then by name, by the settings in `columns` and in words."""
    shots = shots_order(row["shots"])
    settings = [_natural(row[name]) for name in columns]
    variant = _natural(row["named"]), row["variant"]
    return shots, row["method"] != "zero_shot", row["method"], *settings, variant, row["precision"]


def _natural(value: Any) -> list[tuple[bool, float, str]]:
    """Sorts numbers by size, those in a text, too, and before words."""
    if isinstance(value, int | float):
        return [(False, float(value), "")]
    parts = re.split(r"(\d+(?:\.\d+)?(?:e-?\d+)?)", value)
    return [(False, float(part), "") if i % 2 else (True, 0.0, part) for i, part in enumerate(parts) if part]


def summarise(
    records: Sequence[Record], *, metric: str = "accuracy", interval: Interval = "none", columns: Sequence[str] = ()
) -> pd.DataFrame:
    """One row a learner, data set and number of shots: over its seeds, n and for each split the mean and the deviation.

    Percent, except what is no fraction. A headline number of a protocol of the package (`H`, `average`) is made of the
    means, as published, and has no deviation; `mean_H` is the mean of each seed's. What relates a learner to zero-shot
    (`mCE`) is there where zero-shot has a run on the same images. With an interval, `<split>_ci95` is
    half its width. Costs are means. `failed` counts the seeds without a result (failed or not applicable), `missing`
    those that other learners of the same context and shots have. Learners that differ in one of `columns` have rows of
    their own.
    Raises: UserError where there are no runs, or no run has such a column.
    """
    if not records:
        raise UserError(NO_RUNS)
    values = frame(records, metric=metric, columns=columns)
    keys = list(values.columns[: list(values).index("given_shots")])
    context = [*SHARED[:3], "shots"]
    seeds = values[values["seed"] != UNTRAINED].groupby(context)["seed"].agg(set).to_dict()
    rows, numbers, first = [], [], []
    for key, group in values.groupby(keys, sort=False):
        row = dict(zip(keys, key, strict=True)) | {"changes": group["changes"].iloc[0]}
        ran = set(group["seed"])
        expected = seeds.get(tuple(row[name] for name in context), set()) if UNTRAINED not in ran else set()
        numbers.append(_numbers(group, interval))
        first.append(next((record for record in group["record"] if record.scores), group["record"].iloc[0]))
        row |= numbers[-1] | _costs(runs_in(group)) | {"missing": len(expected - ran)}
        row |= {name: of(group["record"]) for name, of in TOLD.items()}
        rows.append(row | {"source": sources(group["record"])})
    if metric == "accuracy":
        for row, of_row, more in zip(rows, numbers, _against_zero_shot(first, numbers), strict=True):
            row |= more
            of_row |= more
    rows.sort(key=lambda row: (*(row[name] for name in SHARED[:4]), *learner_order(row, keys[len(KEYS) :])))
    names = merged(sorted(numbers, key=lambda of_row: "base" not in of_row))
    shown = [name for key in keys for name in (key, *["changes"] * (key == "named"))]
    shown += [
        name for name in TOLD if name not in keys and (name in ALWAYS_TOLD or says((row[name] for row in rows), name))
    ]
    last = ["source"] * any(row["source"] for row in rows)
    table = pd.DataFrame(rows, columns=[*shown, "n", *names, *COSTS, "failed", "missing", *last])
    table.attrs |= {"metric": metric, "interval": interval, "columns": tuple(columns)}
    return table


def without_result(records: Sequence[Record]) -> list[Note]:
    """A note on each run that failed or does not apply, with its reason."""
    notes = {}
    for run, label in zip(records, labels(records), strict=True):
        if run.status != "finished":
            name = f"{label} on {run.dataset}, {run.protocol}, {run.shots} shots, seed {run.seed}"
            why = " ".join((run.reason or "no reason kept").split())
            notes[run.key] = Note(f"Without a result: {{}}: {run.status.replace('_', ' ')}, {why}", name)
    return list(notes.values())


def sources(records: Iterable[Record]) -> str:
    """Where published numbers were read; "" of our own runs."""
    return "; ".join(dict.fromkeys(source for record in records if (source := getattr(record, "source", ""))))


def selections(records: Iterable[Record]) -> str:
    """How the settings of our finished runs were chosen; "" of others."""
    chosen = {r.selection for r in records if r.status == "finished" and not getattr(r, "source", "")}
    return ", ".join(name for name in SELECTIONS if name in chosen)


def inferences(records: Iterable[Record]) -> str:
    """What else of the test the predictions of our finished runs saw; "" of others."""
    seen = {r.inference for r in records if r.status == "finished" and not getattr(r, "source", "")}
    return ", ".join(name for name in INFERENCES if name in seen)


TOLD: Mapping[str, Callable[[Iterable[Record]], str]] = {"selection": selections, "inference": inferences}
"""What a table tells of runs where any of them differs from the usual."""
USUAL = {"selection": "fixed", "inference": "inductive"}
WORDS: Mapping[str, Mapping[Any, str]] = {"selection": SELECTIONS, "inference": INFERENCES}
"""What each may say, and what that means."""
ALWAYS_TOLD = ("selection",)  # in raw numbers


def says(values: Iterable[str], name: str) -> bool:
    """Whether a column of `TOLD` has something other than the usual."""
    return bool({*values} - {"", USUAL[name]})


def without_usual(table: pd.DataFrame, columns: Sequence[str] = ()) -> pd.DataFrame:
    """A table without the columns of `TOLD` that have only the usual and that `columns` do not ask for."""
    usual = [name for name in TOLD if name in table and name not in columns and not says(table[name], name)]
    return table.drop(columns=usual)


def missing_metric(records: Sequence[Record], metric: str) -> list[str]:
    """A note on runs that have results but not this metric, where it is one of all tests in one of them."""
    enough = any if find_metric(metric).of_some_tests else all
    lack = [bool(r.scores) and not enough(metric in scores for scores in r.scores.values()) for r in records]
    lacking = {label for label, lacks in zip(labels(records), lack, strict=True) if lacks}
    n = sum(lack)
    learners = ", ".join(sorted(lacking))
    what = "neither this metric nor predictions that give it"
    return [f"{n} runs have {what}: their cells are empty ({learners})."] if n else []


def runs_in(group: pd.DataFrame) -> list[Record]:
    """The records of rows of the tidy frame, each once."""
    return list(dict(zip(group["run"], group["record"], strict=True)).values())


def values_by(group: pd.DataFrame, *names: str) -> dict[tuple[Any, ...], list[float]]:
    """The values of rows of the tidy frame by what they have in some columns: `groupby` costs more than it groups."""
    values: dict[tuple[Any, ...], list[float]] = {}
    for *key, value in zip(*(group[name].tolist() for name in (*names, "value")), strict=True):
        values.setdefault(tuple(key), []).append(value)
    return values


def _numbers(group: pd.DataFrame, interval: Interval) -> dict[str, float]:
    """What the seeds of one learner come to, by column."""
    first, columns = group.iloc[0], {}
    spreads = {str(split): spread(v, interval) for (split,), v in values_by(group, "split").items() if split}
    mean_of_h = spreads.pop(MEAN_OF_H, None)
    means = {split: s.mean for split, s in spreads.items()}
    for name, value in headline(first["protocol"], first["dataset"], means, first["metric"]).items():
        columns[name] = value
        if name in spreads:
            columns[f"{name}_sd"] = spreads[name].deviation
            if interval != "none":
                columns[f"{name}_ci95"] = spreads[name].half_width
        elif name == H and mean_of_h:
            columns["mean_H"] = mean_of_h.mean
    return columns


def _against_zero_shot(records: Sequence[Record], numbers: Sequence[Mapping[str, float]]) -> list[dict[str, float]]:
    """What protocols make of learners and zero-shot without further settings; each learner is given by one record."""

    def images(record: Record) -> tuple[object, ...]:
        part, debug = record.config.get("protocol", {}).get("part"), record.config.get("debug")
        tests = part, (debug or {}).get("images"), *sorted(record.scores)
        return record.protocol, record.dataset, record.backbone, record.weights, record.split_hash, *tests

    def fractions(values: Mapping[str, float]) -> dict[str, float]:
        return {name: value / 100 for name, value in values.items()}

    zero_shot = {
        images(record): fractions(of_record)
        for record, of_record in zip(records, numbers, strict=True)
        if record.method == "zero_shot" and all(key.startswith(("protocol.", "debug.")) for key in record.changes or {})
    }
    more: list[dict[str, float]] = []
    for record, of_record in zip(records, numbers, strict=True):
        reference, protocol = zero_shot.get(images(record)), PROTOCOLS.get(record.protocol)
        related = protocol.against_zero_shot(fractions(of_record), reference) if protocol and reference else {}
        more.append({name: 100 * value for name, value in related.items()})
    return more


def _costs(runs: Sequence[Record]) -> dict[str, int | float]:
    """Means over the runs that finished, and how many did."""
    finished = [record.cost for record in runs if record.status == "finished"]
    costs = {name: [v for c in finished if (v := c.get(key)) is not None] for name, key in COSTS.items()}
    means = {name: fmean(values) if values else NAN for name, values in costs.items()}
    return {"n": len(finished), "failed": len(runs) - len(finished), **means}


def merged(orders: Iterable[Collection[str]]) -> list[str]:
    """All names in one order that keeps to each of these as far as they agree."""
    names: list[str] = []
    for order in orders:
        known = [name for name in order if name in names]
        position = names.index(known[0]) if known else len(names)
        for name in order:
            if name not in names:
                names.insert(position, name)
            position = names.index(name) + 1
    return names
