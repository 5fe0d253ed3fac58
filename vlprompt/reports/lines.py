"""A learner's results on all data sets of a protocol: the line that a paper's table gives to it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from vlprompt.protocols.base_to_novel import harmonic_mean
from vlprompt.reports.filters import check_key, value_of
from vlprompt.reports.statistics import Interval, Spread, spread
from vlprompt.reports.summaries import UNTRAINED, beside_every_shots
from vlprompt.results.metrics import measure
from vlprompt.results.record import Record

ELEVEN = (
    *("imagenet", "caltech101", "oxford_pets", "stanford_cars", "flowers102", "food101"),
    *("fgvc_aircraft", "sun397", "dtd", "eurosat", "ucf101"),
)  # in the order of the papers' tables
VARIANTS = ("imagenet_v2", "imagenet_sketch", "imagenet_a", "imagenet_r")
STANDARD = (ELEVEN, ELEVEN[1:], VARIANTS)  # what published averages are over
PUBLISHED_AVERAGES = ("average_11", "average_10_targets", "average_4_targets")
TRANSFER = ("cross_dataset", "domain_generalization")  # trained on one data set, tested on others
PARTS = ("base", "novel", "H", "mean of H", "all", "test", "val")
IDENTITY = ("protocol", "backbone", "weights", "precision", "method", "variant")
NAN = float("nan")

Seeds = dict[int, float]  # a value by seed


@dataclass
class Line:
    """One learner at one number of shots: its values by data set, part (base, novel, all, test, ...) and seed.

    `source` is the data set of the training where others are tested. `spreads` holds, once `add_averages` has run, the
    averages, too.
    """

    protocol: str
    source: str | None
    backbone: str
    weights: str | None
    precision: str | None
    method: str
    variant: str | None
    shots: int | str
    given_shots: int | str  # 0 for an untrained learner, beside whatever shots it is shown
    extra: dict[str, Any]  # further keys that tell lines apart
    values: dict[tuple[str, str], Seeds] = field(default_factory=dict)
    records: list[Record] = field(default_factory=list)
    spreads: dict[tuple[str, str], Spread] = field(default_factory=dict)

    @property
    def learner(self) -> str:
        return self.method if self.variant is None else f"{self.method}@{self.variant}"

    @property
    def context(self) -> tuple:
        """What lines share that are compared."""
        return self.protocol, self.source, self.backbone, self.weights, self.shots

    @property
    def datasets(self) -> list[str]:
        return list(dict.fromkeys(dataset for dataset, _ in self.values))

    def behind(self, dataset: str) -> list[Record]:
        """The finished runs that a value of this data set, or an average, comes from."""
        done = [record for record in self.records if record.status == "finished"]
        return [record for record in done if self.source or record.dataset == dataset] or done

    def add(self, record: Record, metric: str) -> None:
        self.records.append(record)
        found = {name: kept[metric] * measure(metric).factor for name, kept in record.scores.items() if metric in kept}
        if measure(metric).harmonic and {"base", "novel"} <= found.keys():
            found["mean of H"] = harmonic_mean(found["base"], found["novel"])
        for split, value in found.items():
            place = (split, "test") if self.source else (record.dataset, split)
            self.values.setdefault(place, {})[record.seed] = value


def lines_of(
    records: Sequence[Record],
    *,
    metric: str = "accuracy",
    interval: Interval = "none",
    columns: Sequence[str] = (),
) -> tuple[list[Line], list[str]]:
    """The lines of all learners, with averages, and notes on what is missing in them. Percent, as `summarise`.

    Learners whose runs differ in one of `columns` have lines of their own.
    Raises: UserError: no run has such a column.
    """
    for key in columns:
        check_key(key, records)
    lines: dict[tuple, Line] = {}
    for record, shots in beside_every_shots(records):
        fixed: dict[str, Any] = {name: getattr(record, name) for name in IDENTITY}
        fixed |= {"source": record.dataset if record.protocol in TRANSFER else None}
        fixed |= {"shots": shots, "given_shots": record.shots}
        extra = {key: value_of(record, key) for key in columns}
        line = lines.setdefault((*fixed.values(), str(extra)), Line(**fixed, extra=extra))
        line.add(record, metric)
    for line in lines.values():
        line.spreads = {place: spread(list(seeds.values()), interval) for place, seeds in line.values.items()}
        for dataset in line.datasets:
            _add_harmonic(line, dataset)
    return list(lines.values()), _add_averages(lines.values(), interval)


def _add_harmonic(line: Line, dataset: str) -> None:
    """H of the means, as published: it has no deviation."""
    base, novel = (line.spreads.get((dataset, part)) for part in ("base", "novel"))
    if base and novel and ((dataset, "mean of H") in line.spreads or dataset.startswith("average_")):
        h = harmonic_mean(base.mean, novel.mean)
        line.spreads[dataset, "H"] = Spread(min(base.n, novel.n), h, NAN, NAN)


def _add_averages(lines: Iterable[Line], interval: Interval) -> list[str]:
    """Averages over the data sets of each context, for the lines that have them all; notes on the others."""
    notes: list[str] = []
    contexts: dict[tuple, list[Line]] = {}
    for line in lines:
        contexts.setdefault(line.context, []).append(line)
    for members in contexts.values():
        expected = averaged(members)
        if len(expected) < 2:
            continue
        name = average_name(members)
        if expected not in map(list, STANDARD):
            notes.append(f"{name} is over {', '.join(expected)}.")
        for line in members:
            missing = [dataset for dataset in expected if dataset not in line.datasets]
            if missing:
                where = f"{line.learner}, {line.protocol}"
                where += f", {line.shots} shots" if line.given_shots != UNTRAINED else ""
                notes.append(f"No {name} of {where}: {', '.join(missing)} missing.")
            else:
                notes += _add_average(line, name, expected, interval)
    return list(dict.fromkeys(notes))


def _add_average(line: Line, name: str, datasets: Sequence[str], interval: Interval) -> list[str]:
    """The averages of each part that all data sets have; notes on parts that some lack."""
    notes = []
    for part in dict.fromkeys(part for _, part in line.values if part != "mean of H"):
        lacking = [dataset for dataset in datasets if (dataset, part) not in line.values]
        if lacking:
            notes.append(f"No {name} of {line.learner}, {part}: {', '.join(lacking)} missing.")
        else:
            line.spreads[name, part] = average([line.values[dataset, part] for dataset in datasets], interval)
    harmonic = [line.spreads[dataset, "H"] for dataset in datasets if (dataset, "H") in line.spreads]
    if len(harmonic) == len(datasets):
        _add_harmonic(line, name)
        mean = sum(h.mean for h in harmonic) / len(harmonic)
        line.spreads[name, "mean of H"] = Spread(min(h.n for h in harmonic), mean, NAN, NAN)
    return notes


def average(found: Sequence[Seeds], interval: Interval = "none") -> Spread:
    """The mean over data sets of the means over seeds; its deviation where all have the same seeds."""
    if len({frozenset(seeds) for seeds in found}) == 1:
        return spread([sum(seeds[seed] for seeds in found) / len(found) for seed in found[0]], interval)
    means = [sum(seeds.values()) / len(seeds) for seeds in found]
    return Spread(min(map(len, found)), sum(means) / len(means), NAN, NAN)


def averaged(members: Sequence[Line]) -> list[str]:
    """The data sets that the lines of one context are averaged over: all that any of them has, but for the source."""
    return [name for name in datasets_of(members) if name != members[0].source]


def datasets_of(members: Sequence[Line]) -> list[str]:
    """The data sets of some lines: the source first, then in the papers' order, others behind by name."""
    order = {name: i for i, name in enumerate((members[0].source, *ELEVEN, *VARIANTS))}
    failed = {record.dataset for line in members if not line.source for record in line.records}
    names = {dataset for line in members for dataset in line.datasets} | failed
    return sorted(names, key=lambda name: (order.get(name, len(order)), name))


def average_name(members: Sequence[Line]) -> str:
    """average_11, average_10_targets, ...: a name of its own, so that it is never averaged again.

    What is as long as a published average and over other data sets is called so.
    """
    name = f"average_{len(averaged(members))}" + ("_targets" if members[0].source else "")
    other = averaged(members) not in map(list, STANDARD) and name in PUBLISHED_AVERAGES
    return f"{name}_other" if other else name


def numbers(lines: Sequence[Line], metric: str) -> pd.DataFrame:
    """All values, one row a line, data set and part: for CSV."""
    rows = []
    for line in lines:
        fixed = {
            "protocol": line.protocol, "source": line.source, "backbone": line.backbone, "weights": line.weights,
            "precision": line.precision, "method": line.method, "variant": line.variant, **line.extra,
            "shots": line.shots, "metric": metric,
        }  # fmt: skip
        for (dataset, part), found in line.spreads.items():
            ends = {"low": found.mean - found.half_width, "high": found.mean + found.half_width}
            row = {"dataset": dataset, "part": part, "n": found.n, "mean": found.mean, "deviation": found.deviation}
            rows.append(fixed | row | ends)
        stopped = {record.dataset for record in line.records if record.status != "finished"}
        rows += [fixed | {"dataset": name, "n": 0} for name in sorted(stopped) if name not in line.datasets]
    return pd.DataFrame(rows)
