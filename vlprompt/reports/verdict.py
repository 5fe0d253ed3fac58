"""Published numbers compared with runs of one's own: inside the noise of seeds, or outside."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Literal, NamedTuple

from vlprompt.protocols.base_to_novel import harmonic_mean
from vlprompt.reports.averages import STANDARD_AVERAGES, VARIANTS
from vlprompt.reports.published import TRAINED_ON, load
from vlprompt.reports.summary import is_transfer
from vlprompt.results.record import Record

N_PUBLISHED = 3  # seeds of a published mean
FLOORS = {"base": 1.0, "accuracy": 1.0, "novel": 2.0, "H": 1.5}
"""Points that two honest implementations may differ by on one data set, whatever the seeds of one of them say."""
NOISY = {("eurosat", "novel"): 5.0, ("eurosat", "H"): 4.0, ("dtd", "novel"): 3.0, ("dtd", "H"): 2.0}
"""Few classes, or names that say little: there seeds differ by more."""
FEW_SHOTS, FLOOR_FEW_SHOTS = 2, 2.0  # up to so many shots, the accuracy hangs on the images drawn
FLOOR_UNTRAINED, FLOOR_AVERAGE = 0.5, 0.5
AVERAGES = {**STANDARD_AVERAGES, "average_5": ("imagenet", *VARIANTS)}

Scores = Mapping[str, float]  # of one run: percent, by test


class RunRequest(NamedTuple):
    """What one seed's run is asked for, in addition to its method."""

    protocol: str
    backbone: str
    dataset: str
    shots: int | str
    recipe: str


@dataclass(frozen=True)
class Published:
    """One number that a paper prints."""

    source: str
    protocol: str
    dataset: str
    method: str
    backbone: str
    shots: int | str
    metric: str
    value: float  # percent
    recipe: str = ""  # our settings that are the source's; empty: unknown
    of: tuple[str, ...] = ()  # the data sets of an average that is ours to take

    @property
    def members(self) -> tuple[str, ...]:
        """The data sets that the number is of."""
        return self.of or AVERAGES.get(self.dataset, (self.dataset,))

    def key(self, member: str) -> RunRequest:
        dataset = TRAINED_ON if is_transfer(self.protocol) else member  # there rows name the data set tested
        return RunRequest(self.protocol, self.backbone, dataset, self.shots, self.recipe)


@dataclass(frozen=True)
class Verdict:
    """One published number, and ours. Percent."""

    row: Published
    verdict: Literal["inside", "outside", "not run", "not judged"]
    reason: str = ""
    mean: float | None = None
    deviation: float | None = None  # over seeds; None for one
    n: int = 0  # seeds
    tolerance: float | None = None
    decided_by: Literal["floor", "seeds"] | None = None


def read_published(paths: Sequence[Path] = ()) -> list[Published]:
    """The rows of files, by default the package's. Raises: UserError where there are none, or one cannot be read."""
    names = [field.name for field in fields(Published) if field.name != "of"]
    return [Published(**row) for row in load(paths)[names].to_dict("records")]


def scores_of(record: Record) -> Scores:
    return {name: 100 * scores["accuracy"] for name, scores in record.scores.items()}


def judge(row: Published, runs: Mapping[RunRequest, Sequence[Scores]]) -> Verdict:
    """The verdict on one published number, given the scores of each run's seeds (none: not run)."""
    tables = [runs.get(row.key(member), ()) for member in row.members]
    if missing := sum(not table for table in tables):
        part = f"no result on {missing} of {len(tables)} data sets" if len(tables) > 1 else ""
        return Verdict(row, "not run", part)
    n = min(map(len, tables))  # seeds that all have
    try:
        seeds = [_average(row, [table[seed] for table in tables]) for seed in range(n)]
    except KeyError as error:
        return Verdict(row, "not judged", f"runs have no score {error}")
    ours = _headline(row.metric, {name: mean(seed[name] for seed in seeds) for name in seeds[0]})
    values = [_headline(row.metric, seed) for seed in seeds]
    tolerance, decided_by = allowed(row, values)
    inside = abs(ours - row.value) <= tolerance + 1e-9
    deviation = stdev(values) if n > 1 else None
    return Verdict(row, "inside" if inside else "outside", "", ours, deviation, n, tolerance, decided_by)


def unprinted_averages(verdicts: Sequence[Verdict]) -> list[Published]:
    """Averages over the data sets that have a verdict, where no printed average has one: a part of all, say."""
    groups: dict[tuple[Any, ...], dict[str, list[Published]]] = {}
    printed: set[tuple[Any, ...]] = set()
    for row in (verdict.row for verdict in verdicts if verdict.n):
        group = (row.source, row.protocol, row.backbone, row.shots, row.recipe)
        if len(row.members) > 1:
            printed.add((*group, row.metric))
        elif not (is_transfer(row.protocol) and row.dataset == TRAINED_ON):
            groups.setdefault(group, {}).setdefault(row.metric, []).append(row)
    averages = []
    for group, by_metric in groups.items():
        for metric, rows in by_metric.items():
            names = tuple(row.dataset for row in rows)
            needed = ("base", "novel") if metric == "H" else (metric,)
            alike = all(tuple(row.dataset for row in by_metric.get(name, ())) == names for name in needed)
            if len(names) > 1 and alike and (*group, metric) not in printed:
                value = _headline(metric, {name: mean(row.value for row in by_metric[name]) for name in needed})
                averages.append(replace(rows[0], dataset=f"average of {len(names)}", of=names, value=value))
    return averages


def _average(row: Published, scores: Sequence[Scores]) -> dict[str, float]:
    """What a metric needs, averaged over data sets within one seed. Raises: KeyError."""

    def find(name: str, member: str, of: Scores) -> float:
        return of[name] if name != "accuracy" else of[member] if member in of else of["test"]

    needed = ("base", "novel") if row.metric == "H" else (row.metric,)
    pairs = list(zip(row.members, scores, strict=True))
    return {name: mean(find(name, member, of) for member, of in pairs) for name in needed}


def _headline(metric: str, averages: Mapping[str, float]) -> float:
    """H is the harmonic mean of averages, as published, and no average itself."""
    return harmonic_mean(averages["base"], averages["novel"]) if metric == "H" else averages[metric]


def allowed(row: Published, values: Sequence[float]) -> tuple[float, Literal["floor", "seeds"]]:
    """How far our mean may be from the published one, and what decided that.

    The larger of a stated floor and the two-sided 95 % interval of the difference of two means, ours over n seeds and
    theirs over three, with our deviation for both: t(n-1) sd sqrt(1/n + 1/3). Published means come without deviations.
    """
    floor, n = floor_of(row), len(values)
    if n < 2:
        return floor, "floor"
    from scipy.stats import t

    spread = float(t.ppf(0.975, n - 1)) * stdev(values) * math.sqrt(1 / n + 1 / N_PUBLISHED)
    return (spread, "seeds") if spread > floor else (floor, "floor")


def floor_of(row: Published) -> float:
    """Of an average: that of its data sets as if they were independent, and at least 0.5."""
    floors = [_floor(row, member) for member in row.members]
    if len(floors) == 1:
        return floors[0]
    return max(FLOOR_AVERAGE, math.sqrt(sum(floor**2 for floor in floors)) / len(floors))


def _floor(row: Published, member: str) -> float:
    if row.shots == 0:
        return FLOOR_UNTRAINED
    floor = NOISY.get((member, row.metric), FLOORS.get(row.metric, max(FLOORS.values())))
    few = isinstance(row.shots, int) and row.shots <= FEW_SHOTS
    return max(floor, FLOOR_FEW_SHOTS) if few else floor
