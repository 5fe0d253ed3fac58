"""Results by data set and part, and averages over data sets: what papers' tables, figures and ranks are made of."""

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

import pandas as pd

from vlprompt.config.changes import words
from vlprompt.errors import Note
from vlprompt.reports.summary import (
    ALWAYS_TOLD,
    MEAN_OF_H,
    TOLD,
    UNTRAINED,
    WORDS,
    H,
    Interval,
    Spread,
    frame,
    headline,
    is_transfer,
    runs_in,
    says,
    sources,
    spread,
    summed_up,
    values_by,
)
from vlprompt.results.record import Record

CONTEXT = ["protocol", "source", "backbone", "weights", "shots"]  # what learners share that are compared
ELEVEN = (
    *("imagenet", "caltech101", "oxford_pets", "stanford_cars", "flowers102", "food101"),
    *("fgvc_aircraft", "sun397", "dtd", "eurosat", "ucf101"),
)  # in the order of the papers' tables
VARIANTS = ("imagenet_v2", "imagenet_sketch", "imagenet_a", "imagenet_r")
PARTS = ("base", "novel", H, MEAN_OF_H, "all", "test", "val")
STANDARD_AVERAGES = {"average_11": ELEVEN, "average_10_targets": ELEVEN[1:], "average_4_targets": VARIANTS}

Spreads = dict[tuple[str, str], Spread]  # by data set and part


def across_datasets(
    records: Sequence[Record], *, metric: str = "accuracy", interval: Interval = "none", columns: Sequence[str] = ()
) -> tuple[pd.DataFrame, list[str]]:
    """One row a learner, number of shots, data set tested and part (base, novel, H, test, ...); and notes on gaps.

    `source` is the data set of the training where others are tested. Averages over the data sets of a context are rows,
    too, under names of their own, of the learners that have all of them. `n` is 0 where runs have no value; `records`
    are the runs that a row comes from. Percent, as `summarise`.
    Raises: UserError: no run has such a column.
    """
    values = _tested(frame(records, metric=metric, columns=columns))
    learner = [
        name for name in values.columns[: list(values).index("run")] if name not in (*CONTEXT, "dataset", "changes")
    ]
    rows: dict[int, list[dict[str, Any]]] = {}  # by the first run of each learner
    notes: list[str] = []
    for context, members in values.groupby(CONTEXT, sort=False):
        shared: dict[str, Any] = dict(zip(CONTEXT, context, strict=True))
        sets = averaged_sets(members, shared["source"])
        for label, datasets in sets.items():
            if tuple(datasets) not in STANDARD_AVERAGES.values():
                notes.append(f"{label} is over {', '.join(datasets)}.")
        for key, group in members.groupby(learner, sort=False):
            row = shared | dict(zip(learner, key, strict=True))
            by_test = values_by(group, "dataset", "part").items()
            spreads: Spreads = {(str(d), str(part)): spread(v, interval) for (d, part), v in by_test}
            printed = {name for name, _ in spreads}
            for label, datasets in sets.items():
                if label not in printed:
                    averages, missing = _averages(group, datasets, interval)
                    spreads |= {(label, part): value for part, value in averages.items()}
                    notes += [Note(f"No {label} of {{}}, {lacking} missing.", row["learner"]) for lacking in missing]
            spreads |= _harmonic(spreads, row, sets)
            tests = summed_up(row["protocol"], [part for _, part in spreads])
            spreads = {key: s for key, s in spreads.items() if key[1] not in tests}
            rows[group["run"].iloc[0]] = _long(row, spreads, group)
    types = {"n": int, "mean": float, "deviation": float, "half_width": float}
    ordered = [row for run in sorted(rows) for row in rows[run]]
    return pd.DataFrame(ordered, dtype=object).astype(types), list(dict.fromkeys(notes))


def _tested(values: pd.DataFrame) -> pd.DataFrame:
    """The tidy frame by the data set that is tested, `source` being the one that is trained on where it is another."""
    transfer = values["protocol"].map(is_transfer).astype(bool)
    named = transfer & (values["split"] != "")
    return values.assign(
        source=values["dataset"].where(transfer, ""),
        dataset=values["split"].where(named, values["dataset"]),
        part=values["split"].mask(named, "test"),
    )


def _averages(group: pd.DataFrame, datasets: Sequence[str], interval: Interval) -> tuple[dict[str, Spread], list[str]]:
    """Of one learner over data sets, by part; and what is missing."""
    known, first = group.dropna(subset="value"), group.iloc[0]
    if not {*datasets} & {*known["dataset"]}:  # it has no result, or an average alone is printed
        return {}, []
    if missing := [name for name in datasets if name not in set(known["dataset"])]:
        shots = f", {first['shots']} shots" if first["given_shots"] != UNTRAINED else ""
        return {}, [f"{first['protocol']}{shots}: {', '.join(missing)}"]
    averages, lacking = {}, []
    values: dict[str, dict[str, dict[int, float]]] = {}  # by part, data set and seed
    for part, dataset, seed, value in known[["part", "dataset", "seed", "value"]].itertuples(index=False):
        values.setdefault(part, {}).setdefault(dataset, {})[seed] = value
    for part, of_part in values.items():
        if part == MEAN_OF_H:
            continue
        if missing := [name for name in datasets if name not in of_part]:
            lacking.append(f"{part}: {', '.join(missing)}")
        else:
            averages[part] = average([of_part[name] for name in datasets], interval)
    return averages, lacking


def average(by_seed: Sequence[Mapping[int, float]], interval: Interval = "none") -> Spread:
    """The mean over data sets of the means over their seeds; its deviation where all have the same seeds."""
    seeds = by_seed[0]
    if all(values.keys() == seeds.keys() for values in by_seed):
        return spread([fmean(values[seed] for values in by_seed) for seed in seeds], interval)
    return Spread(min(map(len, by_seed)), fmean(fmean(values.values()) for values in by_seed))


def _harmonic(spreads: Spreads, row: Mapping[str, Any], sets: Mapping[str, Sequence[str]]) -> Spreads:
    """H of the means, of each data set and of the averages, as published; and the mean over data sets."""
    harmonic: Spreads = {}
    for dataset in {name: None for name, _ in spreads if not row["source"]}:
        tests = {part: s for (name, part), s in spreads.items() if name == dataset and s.n and part != MEAN_OF_H}
        numbers = headline(row["protocol"], dataset, {part: s.mean for part, s in tests.items()}, row["metric"])
        n = min((s.n for s in tests.values()), default=0)
        harmonic |= {(dataset, part): Spread(n, value) for part, value in numbers.items() if part not in tests}
    for label, datasets in sets.items():
        of_datasets = [harmonic[name, H] for name in datasets if (name, H) in harmonic]
        if len(of_datasets) == len(datasets):
            mean = sum(s.mean for s in of_datasets) / len(of_datasets)
            harmonic[label, MEAN_OF_H] = Spread(min(s.n for s in of_datasets), mean)
    return harmonic


def _long(row: Mapping[str, Any], spreads: Spreads, group: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows of one learner, each with the finished runs that it comes from; empty ones of data sets without a value."""
    finished = [record for record in runs_in(group) if record.status == "finished"]
    filled = {dataset for (dataset, _), s in spreads.items() if s.n}
    return [
        {**row, "dataset": dataset, "part": part, **vars(s)}
        | {"records": (of_set := [r for r in finished if row["source"] or r.dataset == dataset] or finished)}
        | {name: of(of_set) for name, of in TOLD.items()}
        for (dataset, part), s in spreads.items()
        if s.n or dataset not in filled
    ]


def averaged(members: pd.DataFrame) -> list[str]:
    """The data sets that the learners of one context are averaged over: all that any of them has, except the source."""
    source = members["source"].iloc[0]
    return [name for name in in_papers_order(members["dataset"]) if name != source and not name.startswith("average_")]


def averaged_sets(members: pd.DataFrame, source: str) -> dict[str, list[str]]:
    """The data sets of each average, by its name: those of our runs, and those of papers, if these are others."""
    published = members["record"].map(lambda record: bool(sources([record]))).astype(bool)
    sets: dict[str, list[str]] = {}
    for part in (members[~published], members[published]):
        part = part.dropna(subset="value")
        datasets = averaged(part) if len(part) else []
        if len(datasets) > 1 and datasets not in sets.values():
            label = average_name(datasets, source)
            sets[f"{label}_published" if label in sets else label] = datasets
    return sets


def in_papers_order(datasets: Iterable[str], source: str = "") -> list[str]:
    """The source first, then in the papers' order, others by name, averages last."""
    order = {name: i for i, name in enumerate((source, *ELEVEN, *VARIANTS))}
    names = dict.fromkeys(datasets)
    return sorted(names, key=lambda name: (name.startswith("average_"), order.get(name, len(order)), name))


def in_parts_order(parts: Iterable[str]) -> list[str]:
    return sorted(set(parts), key=lambda part: (PARTS.index(part) if part in PARTS else len(PARTS), part))


def average_name(datasets: Sequence[str], source: str) -> str:
    """average_11, average_10_targets, ...: a name of its own, so that it is never averaged again.

    What is as long as a published average and over other data sets is called so.
    """
    name = f"average_{len(datasets)}" + ("_targets" if source else "")
    other = name in STANDARD_AVERAGES and tuple(datasets) != STANDARD_AVERAGES[name]
    return f"{name}_other" if other else name


def identity(results: pd.DataFrame) -> list[str]:
    """The columns in which the learners of one table may differ: precision, method, variant, that in words, and those
    asked for."""
    names = list(map(str, results))
    return names[names.index("precision") : names.index("given_shots")]


def numbers(results: pd.DataFrame) -> pd.DataFrame:
    """All values, one row a learner, number of shots, data set and part: for CSV."""
    low, high = (results["mean"] + sign * results["half_width"] for sign in (-1, 1))
    changes = [changes_in(records) for records in results["records"]]
    table = results.rename(columns={"source": "trained_on"})
    table = table.assign(low=low, high=high, changes=changes, source=results["records"].map(sources))
    told = [name for name in TOLD if name in ALWAYS_TOLD or says(results[name], name)]
    names = ["protocol", "trained_on", "backbone", "weights", *in_csv(identity(results)), "shots", *told, "metric"]
    names += ["dataset", "part", "n", "mean", "deviation", "low", "high", *["source"] * bool(table["source"].any())]
    return table.assign(n=table["n"].astype(object).mask(table["source"] != "", ""))[names]


def side_by_side(table: pd.DataFrame) -> pd.DataFrame:
    """`numbers` with a row for each learner and number of shots, as papers print them: next to one another what is
    tested, in base-to-novel the parts of a data set. `n` is the least of a row's numbers, `selection` all of its."""
    tall = table["protocol"] == "base_to_novel"
    heading = table["dataset"].where(table["part"] == "test", table["dataset"] + " (" + table["part"] + ")")
    table = table.assign(
        column=table["part"].where(tall, heading).replace(MEAN_OF_H, "mean_H"), dataset=table["dataset"].where(tall, "")
    )
    told = [name for name in TOLD if name in table]
    last = ["part", "n", "mean", "deviation", "low", "high", "column"]
    keys = [name for name in table if name not in (*last, *told)]
    rows = []
    for key, group in table.groupby(keys, sort=False, dropna=False):
        row = dict(zip(keys, key, strict=True)) | {"n": min(group["n"])}
        row |= {name: joined(group[name], name) for name in told}
        for name, mean, deviation, low, high in group[["column", *last[2:6]]].itertuples(index=False):
            row |= {name: mean, f"{name}_sd": deviation, f"{name}_ci95": (high - low) / 2}
        rows.append(row)
    return pd.DataFrame(rows).dropna(axis="columns", how="all")


def joined(texts: Iterable[str], name: str) -> str:
    """What a column of `TOLD` says of a row that stands for several."""
    said = {word for text in texts for word in text.split(", ")}
    return ", ".join(word for word in WORDS[name] if word in said)


def in_csv(names: Iterable[str]) -> list[str]:
    """The columns of a CSV file: the changes, whole, instead of the variant in words."""
    return ["changes" if name == "named" else name for name in names]


def changes_in(records: Iterable[Record]) -> str:
    """What differs from the default, of runs that share a row."""
    return "; ".join(dict.fromkeys(words(record.changes or {}, whole=True) for record in records))
