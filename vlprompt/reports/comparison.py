"""Which of several learners is better: two on the same images, all across data sets."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from vlprompt.errors import UserError, unknown
from vlprompt.reports.lines import Line, averaged
from vlprompt.reports.statistics import friedman, mcnemar, mean_ranks, paired_bootstrap, wilcoxon_pairs
from vlprompt.reports.summaries import UNTRAINED
from vlprompt.results.metrics import PREDICTIONS, measure
from vlprompt.results.record import Record

PLACE = ("protocol", "dataset", "backbone", "weights", "shots", "seed")


def runs_of(runs: Mapping[Path, Record], name: str) -> dict[Path, Record]:
    """The finished runs of a learner (`coop`, `coop@VARIANT`), or the one in a folder.

    Raises: UserError where there are none.
    """
    finished = {folder: record for folder, record in runs.items() if record.status == "finished"}
    if record := Record.read(Path(name)):
        return {Path(name): record}
    found = {folder: record for folder, record in finished.items() if record.learner == name}
    if not found:
        raise unknown("learner", name, {record.learner for record in finished.values()})
    return found


def paired(first: Mapping[Path, Record], second: Mapping[Path, Record]) -> tuple[pd.DataFrame, list[str]]:
    """Two learners on the same images: one row a cell, test split and seed, and one over the seeds.

    Percent. `low` and `high`: the 95 % interval of the difference by a paired bootstrap over images; over seeds, of the
    mean of the seeds' differences. `p` is McNemar's, exact, of one seed: seeds share their images, so that they cannot
    be pooled. A learner that is not trained is paired with every seed and number of shots of the other.
    Raises: UserError where no two runs meet.
    """
    rows: list[dict[str, Any]] = []
    notes: list[str] = []
    differences: dict[tuple, list[pd.Series]] = {}
    for (a_folder, a), (b_folder, b) in _pairs(first, second):
        try:
            splits = _correct_of_both(a_folder, b_folder)
        except UserError as error:
            notes.append(f"Not compared: {a.dataset}, seed {a.seed}: {error}")
            continue
        trained = a if a.shots != UNTRAINED else b
        for split, both in splits.items():
            place = {"protocol": a.protocol, "dataset": a.dataset, "shots": trained.shots, "split": split}
            rows.append(place | {"seed": str(trained.seed)} | _compare(both))
            difference = both["first"].astype(float) - both["second"]
            differences.setdefault(tuple(place.values()), []).append(difference)
    if not rows:
        reason = notes[0] if notes else "they have no protocol, data set, backbone, shots and seed in common"
        raise UserError(f"there is nothing to compare on the same images: {reason}")
    for key, found in differences.items():
        if len(found) > 1:
            rows.append(dict(zip(("protocol", "dataset", "shots", "split"), key, strict=True)) | _over_seeds(found))
    table = pd.DataFrame(rows)
    order = list(differences)
    keys = [order.index(tuple(row)) for row in table[["protocol", "dataset", "shots", "split"]].itertuples(index=False)]
    return table.iloc[np.argsort(keys, kind="stable")].reset_index(drop=True), list(dict.fromkeys(notes))


def _pairs(first: Mapping[Path, Record], second: Mapping[Path, Record]) -> list[tuple]:
    found = []
    for a in first.items():
        for b in second.items():
            names = PLACE if UNTRAINED not in (a[1].shots, b[1].shots) else PLACE[:4]
            single = len(first) == len(second) == 1  # two folders: whatever their seeds and shots
            if all(getattr(a[1], name) == getattr(b[1], name) for name in (PLACE[:2] if single else names)):
                found.append((a, b))
    return found


def _correct_of_both(first: Path, second: Path) -> dict[str, pd.DataFrame]:
    """By split, what each run has right on each image. Raises: UserError where images or labels differ."""
    from vlprompt.results.predictions import load_predictions

    a, b = load_predictions(first / PREDICTIONS), load_predictions(second / PREDICTIONS)
    common = [split for split in a if split in b]
    if not common:
        raise UserError(f"{first} and {second} have no test split in common")
    found = {}
    for split in common:
        sides = [
            pd.DataFrame({"right": p.predicted == p.labels, "label": p.labels}, p.images) for p in (a[split], b[split])
        ]
        if not sides[0].index.is_unique or set(sides[0].index) != set(sides[1].index):
            raise UserError(f"{first} and {second} were not tested on the same images of '{split}'")
        sides[1] = sides[1].loc[sides[0].index]
        if (sides[0]["label"] != sides[1]["label"]).any():
            raise UserError(f"{first} and {second} have other labels for the images of '{split}'")
        found[split] = pd.DataFrame({"first": sides[0]["right"], "second": sides[1]["right"]})
    return found


def _compare(both: pd.DataFrame) -> dict[str, Any]:
    test = mcnemar(both["first"].to_numpy(), both["second"].to_numpy())
    only = {"only_first": test.only_first, "only_second": test.only_second}
    means = {"first": 100 * both["first"].mean(), "second": 100 * both["second"].mean()}
    return {
        "images": len(both),
        **means,
        **_interval(both["first"].astype(float) - both["second"]),
        **only,
        "p": test.p,
    }


def _over_seeds(found: Sequence[pd.Series]) -> dict[str, Any]:
    mean = pd.concat(found, axis=1).mean(axis=1)
    return {"seed": f"mean of {len(found)}", "images": len(mean), **_interval(mean)}


def _interval(difference: pd.Series) -> dict[str, float]:
    low, high = paired_bootstrap(difference.to_numpy(dtype=float))
    return {"difference": 100 * difference.mean(), "low": 100 * low, "high": 100 * high}


@dataclass(frozen=True)
class Ranking:
    """Learners across data sets: their scores, mean ranks (1 is best), Friedman's p, and Wilcoxon's of each pair."""

    title: str
    scores: pd.DataFrame  # data sets by learners; higher is better
    ranks: pd.Series
    friedman: float
    pairs: pd.DataFrame
    notes: list[str]


def rankings(lines: Sequence[Line], metric: str, part: str | None = None) -> list[Ranking]:
    """One for each protocol, source, backbone, weights and number of shots with two learners on two data sets or more.

    `part` is what counts of a data set: by default H (base-to-novel), all where H makes no sense, else test. A learner
    that lacks a data set of the others is left out and named.
    """
    contexts: dict[tuple, list[Line]] = {}
    for line in lines:
        contexts.setdefault(line.context, []).append(line)
    found = [_ranking(members, metric, part) for members in contexts.values()]
    return [ranking for ranking in found if ranking is not None]


def _ranking(members: Sequence[Line], metric: str, part: str | None) -> Ranking | None:
    first, shown = members[0], measure(metric)
    if part is None:
        part = "test" if first.protocol != "base_to_novel" else "H" if shown.harmonic else "all"
    datasets = averaged(members)
    scores, notes = {}, []
    for line in members:
        name = line.learner if line.learner not in scores else f"{line.learner} ({line.precision})"
        values = [line.spreads[dataset, part].mean for dataset in datasets if (dataset, part) in line.spreads]
        if len(values) == len(datasets):
            scores[name] = values
        else:
            lacking = [dataset for dataset in datasets if (dataset, part) not in line.spreads]
            notes.append(f"Left out: {line.learner} has no {part} on {', '.join(lacking)}.")
    if len(scores) < 2 or len(datasets) < 2:
        return None
    table = pd.DataFrame(scores, index=datasets) * (1 if shown.higher_is_better else -1)
    context = [f"{first.protocol}", f"backbone {first.backbone}", f"{first.shots} shots", f"{part}: {shown.label}"]
    return Ranking(", ".join(context), table, mean_ranks(table), friedman(table), wilcoxon_pairs(table), notes)
