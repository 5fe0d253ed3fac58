"""Which of several learners is better: two on the same images, all across data sets. scipy is loaded when needed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from vlprompt.errors import Note, UserError, first_names, unknown
from vlprompt.reports.averages import CONTEXT, averaged
from vlprompt.reports.filters import MOST_NAMES
from vlprompt.reports.summary import LEVEL, H
from vlprompt.reports.variants import labels
from vlprompt.results.metrics import find_metric
from vlprompt.results.predictions import PREDICTIONS, Predictions, load_predictions
from vlprompt.results.record import Record, shots_order

RESAMPLES, AT_ONCE, FEW = 10_000, 100, 100
CELL = ["protocol", "dataset", "shots", "split"]  # what the rows of one comparison share, but for the seed


def mcnemar(first: Bool[np.ndarray, " N"], second: Bool[np.ndarray, " N"]) -> dict[str, int | float]:
    """Images that only one of two classifiers gets right, and the chance `p` of so uneven a split or a more uneven one.

    The exact test, two-sided, from what is right on the same images. Source: McNemar, Psychometrika 1947.
    """
    from scipy.stats import binomtest

    a, b = int((first & ~second).sum()), int((second & ~first).sum())
    return {"only_first": a, "only_second": b, "p": float(binomtest(a, a + b).pvalue) if a + b else 1.0}


def paired_bootstrap(differences: Float[np.ndarray, " N"], *, seed: int = 0) -> tuple[float, float]:
    """The 95 % percentile interval of the mean difference, images drawn anew with replacement 10,000 times; 1,000 times
    where there are more than 100 values, as of probabilities.

    Equal differences are exchangeable, so how often each value is drawn is drawn, not every image: exact, and at 50,000
    images a millisecond, where scipy.stats.bootstrap takes a quarter of a minute. Source: Efron, Annals of Statistics
    1979.
    """
    values, counts = np.unique(differences, return_counts=True)
    n = len(differences)
    generator, resamples = np.random.default_rng(seed), RESAMPLES if len(values) <= FEW else RESAMPLES // 10
    sizes = [min(AT_ONCE, resamples - done) for done in range(0, resamples, AT_ONCE)]
    means = np.concatenate([generator.multinomial(n, counts / n, size=size) @ values / n for size in sizes])
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def mean_ranks(scores: pd.DataFrame) -> pd.Series:
    """The mean rank of each column over the rows (data sets): 1 for the highest score; equal scores share a rank."""
    return scores.rank(axis=1, ascending=False).mean().sort_values(kind="stable")


def friedman(scores: pd.DataFrame) -> float:
    """The chance of mean ranks as different as these, were all methods alike; nan for fewer than three methods."""
    from scipy.stats import friedmanchisquare

    if scores.shape[1] < 3 or len(scores) < 2:
        return np.nan
    with np.errstate(invalid="ignore"):  # nan where all are equal everywhere
        return float(friedmanchisquare(*(scores[name] for name in scores)).pvalue)


def critical_difference(n_methods: int, n_datasets: int) -> float:
    """Mean ranks that differ by less do not differ at the 5 % level. Source: Nemenyi 1963, in Demšar, JMLR 2006."""
    from scipy.stats import studentized_range

    q = studentized_range.ppf(LEVEL, n_methods, np.inf) / 2**0.5
    return float(q * (n_methods * (n_methods + 1) / (6 * n_datasets)) ** 0.5)


def wilcoxon_pairs(scores: pd.DataFrame) -> pd.DataFrame:
    """Each pair of columns over the rows (data sets): median difference, wins, Wilcoxon's p and Holm's correction.

    Signed-rank test, two-sided; data sets without a difference are left out, as Wilcoxon did. Source: Biometrics
    Bulletin 1945; recommended by Demšar, JMLR 2006, section 3.1.3.
    """
    from scipy.stats import wilcoxon

    rows = []
    for first, second in combinations(scores, 2):
        difference = (scores[first] - scores[second]).to_numpy()
        counts = {"n": len(difference), "median_difference": float(np.median(difference))}
        counts |= {"wins": int((difference > 0).sum()), "losses": int((difference < 0).sum())}
        p = float(wilcoxon(difference).pvalue) if difference.any() else 1.0
        rows.append({"first": first, "second": second, **counts, "p": p})
    if not rows:
        raise UserError("a comparison across data sets needs at least two methods.")
    return pd.DataFrame(rows).assign(p_holm=lambda table: holm(table["p"]))


def holm(p: pd.Series) -> pd.Series:
    """p-values corrected for their number. Source: Holm, Scandinavian Journal of Statistics 1979."""
    stepped = p.sort_values(kind="stable") * np.arange(len(p), 0, -1)
    return stepped.cummax().clip(upper=1).reindex(p.index)


def runs_of(runs: Mapping[Path, Record], name: str) -> dict[Path, Record]:
    """The finished runs of a learner (`coop`, `coop@NAME`, `coop@fit.lr=0.01`), or the one in a folder.

    Raises: UserError where there are none.
    """
    if record := Record.read(Path(name)):
        return {Path(name): record}
    names = dict(zip(runs, labels(list(runs.values())), strict=True))
    finished = {folder: record for folder, record in runs.items() if record.status == "finished"}
    wanted = name.replace(" ", "")
    of_learner = {
        folder: record
        for folder, record in finished.items()
        if wanted in (record.learner, names[folder].replace(" ", ""))
    }
    if not of_learner:
        do = "All: vlprompt table."
        raise unknown("learner", name, {names[folder] for folder in finished}, most=MOST_NAMES, do=do)
    return of_learner


def of_images(metric: str) -> Callable[[Predictions], Float[np.ndarray, " N"]]:
    """What each image adds to a metric that is a mean over images. Raises: UserError for one that is none."""
    find_metric(metric)
    if metric not in OF_EACH_IMAGE:
        raise UserError(
            f"{metric} is no mean over images, so that two learners have no differences on the same images: choose "
            f"{', '.join(OF_EACH_IMAGE)}, or compare all learners across data sets (vlprompt compare --metric {metric})"
        )
    return OF_EACH_IMAGE[metric]


def _brier(predictions: Predictions) -> Float[np.ndarray, " N"]:
    if predictions.square_sum is None:
        raise UserError("predictions of an earlier version lack what the Brier score is made of")
    of_label = np.exp(predictions.label_logit.astype(np.float64) - predictions.logsumexp)
    return predictions.square_sum.astype(np.float64) - 2 * of_label + 1


OF_EACH_IMAGE: Mapping[str, Callable[[Predictions], Float[np.ndarray, " N"]]] = {
    "accuracy": lambda p: (p.predicted == p.labels).astype(float),
    "top5": lambda p: (p.top5 == p.labels[:, None]).any(axis=1).astype(float),
    "nll": lambda p: p.logsumexp.astype(np.float64) - p.label_logit,
    "brier": _brier,
    "confidence": lambda p: p.confidence.astype(np.float64),
    "overconfidence": lambda p: p.confidence.astype(np.float64) - (p.predicted == p.labels),
}
RIGHT_OR_WRONG = ("accuracy", "top5")  # which McNemar's test is for


def paired(
    first: Mapping[Path, Record], second: Mapping[Path, Record], metric: str = "accuracy"
) -> tuple[pd.DataFrame, list[str]]:
    """Two learners on the same images: one row a cell, test split and seed, and one over the seeds.

    Percent, except what is no fraction. The metric is a mean over images. `low` and `high`: the 95 % interval of the
    difference by a paired bootstrap over images; over seeds, of the mean of the seeds' differences. `p` is McNemar's,
    exact, of one seed, where images are right or wrong: seeds share their images, so that they cannot be pooled. A
    learner that is not trained is paired with every seed and number of shots of the other.
    Raises: UserError where no two runs meet, or both are the same; a metric that is no mean over images.
    """
    if first.keys() == second.keys():
        raise UserError("both learners are the same runs: name two that differ, as vlprompt table shows them")
    values, factor = of_images(metric), find_metric(metric).factor
    rows: dict[tuple, list[dict[str, Any]]] = {}
    differences: dict[tuple, list[pd.Series]] = {}
    pairs = _pairs(first, second)
    reasons: list[str] = []
    for (a_folder, a), (b_folder, b) in pairs:
        try:
            splits = _of_both(a_folder, b_folder, values)
        except UserError as error:
            reasons.append(f"Not compared: {a.dataset}, seed {a.seed}: {error}")
            continue
        shots, seed = a.shots or b.shots, a.seed or b.seed  # 0 of what is not trained
        for split, both in splits.items():
            cell = a.protocol, a.dataset, shots, split
            difference = both["first"] - both["second"]
            tested = (
                mcnemar(*(both[name].to_numpy() > 0 for name in ("first", "second")))
                if metric in RIGHT_OR_WRONG
                else {}
            )
            rows.setdefault(cell, []).append({"seed": str(seed)} | _compare(both, difference, factor) | tested)
            differences.setdefault(cell, []).append(difference)
    if not rows:
        reason = reasons[0] if reasons else "they have no protocol, data set, backbone, shots and seed in common"
        raise UserError(f"there is nothing to compare on the same images: {reason}")
    for cell, of_seeds in differences.items():
        if len(of_seeds) > 1:
            mean = pd.concat(of_seeds, axis=1).mean(axis=1)
            rows[cell].append({"seed": f"mean of {len(of_seeds)}", "images": len(mean), **_interval(mean, factor)})
    ordered = sorted(rows, key=lambda cell: (*cell[:2], shots_order(cell[2])))
    table = [dict(zip(CELL, cell, strict=True)) | row for cell in ordered for row in rows[cell]]
    return pd.DataFrame(table), list(dict.fromkeys([*reasons, *_without_partner(first, second, pairs)]))


def _pairs(first: Mapping[Path, Record], second: Mapping[Path, Record]) -> list[tuple]:
    single = len(first) == len(second) == 1  # two folders: whatever their seeds and shots

    def meet(a: Record, b: Record) -> bool:
        names = ["protocol", "dataset", *([] if single else ["backbone", "weights"])]
        names += [name for name in ("shots", "seed") if not single and getattr(a, name) and getattr(b, name)]
        return all(getattr(a, name) == getattr(b, name) for name in names)  # 0: not trained, any of them

    return [(a, b) for a in first.items() for b in second.items() if meet(a[1], b[1])]


def _without_partner(first: Mapping[Path, Record], second: Mapping[Path, Record], pairs: Sequence[tuple]) -> list[str]:
    """Which runs of each learner are compared with none of the other's."""
    met = {folder for pair in pairs for folder, _ in pair}
    notes = []
    for runs, other in ((first, second), (second, first)):
        lonely = [record for folder, record in runs.items() if folder not in met]
        names = [f"{r.protocol} on {r.dataset}, {r.shots} shots, seed {r.seed}" for r in lonely]
        if lonely and len(lonely) < len(runs):
            whose = f"{lonely[0].learner}: {next(iter(other.values())).learner} has no run of"
            notes.append(f"Not compared, {whose} {first_names(names)}.")
    return notes


def _of_both(
    first: Path, second: Path, values: Callable[[Predictions], Float[np.ndarray, " N"]]
) -> dict[str, pd.DataFrame]:
    """By split, what each run has on each image. Raises: UserError where images or labels differ."""
    a, b = load_predictions(first / PREDICTIONS), load_predictions(second / PREDICTIONS)
    common = [split for split in a if split in b]
    if not common:
        raise UserError(f"{first} and {second} have no test split in common")
    splits = {}
    for split in common:
        one, other = (pd.DataFrame({"value": values(p), "label": p.labels}, p.images) for p in (a[split], b[split]))
        if not one.index.is_unique or set(one.index) != set(other.index):
            raise UserError(f"{first} and {second} were not tested on the same images of '{split}'")
        other = other.loc[one.index]
        if (one["label"] != other["label"]).any():
            raise UserError(f"{first} and {second} have other labels for the images of '{split}'")
        splits[split] = pd.DataFrame({"first": one["value"], "second": other["value"]})
    return splits


def _compare(both: pd.DataFrame, difference: pd.Series, factor: float) -> dict[str, Any]:
    means = {name: factor * both[name].mean() for name in ("first", "second")}
    return {"images": len(both), **means, **_interval(difference, factor)}


def _interval(difference: pd.Series, factor: float) -> dict[str, float]:
    low, high = paired_bootstrap(difference.to_numpy(dtype=float))
    return {"difference": factor * difference.mean(), "low": factor * low, "high": factor * high}


@dataclass(frozen=True)
class Ranking:
    """Learners across data sets: their scores, mean ranks (1 is best), Friedman's p, and Wilcoxon's of each pair."""

    title: str
    scores: pd.DataFrame  # data sets by learners; higher is better
    ranks: pd.Series
    friedman: float
    pairs: pd.DataFrame
    notes: list[str]
    part: str  # what counts of a data set
    cell: dict[str, Any]  # protocol, backbone and shots of the runs


def rankings(results: pd.DataFrame, metric: str, part: str | None = None) -> list[Ranking]:
    """One for each protocol, source, backbone, weights and number of shots with two learners on two data sets or more.

    `part` is what counts of a data set: by default the first of H, all and test that there is. A learner that lacks a
    data set of the others is left out and named.
    """
    of_contexts = [_ranking(members, metric, part) for _, members in results.groupby(CONTEXT, sort=False)]
    return [ranking for ranking in of_contexts if ranking is not None]


def _ranking(members: pd.DataFrame, metric: str, part: str | None) -> Ranking | None:
    shown, datasets = find_metric(metric), averaged(members)
    filled = members[members["n"] > 0]
    part = part or next((name for name in (H, "all", "test", *filled["part"]) if name in set(filled["part"])), "test")
    scores, notes = {}, list[str]()
    for (learner, precision, _), rows in members.groupby(["learner", "precision", "given_shots"], sort=False):
        means = rows[(rows["n"] > 0) & (rows["part"] == part)].set_index("dataset")["mean"]
        if lacking := [dataset for dataset in datasets if dataset not in means]:
            notes.append(Note(f"Left out: {{}} has no {part} on {', '.join(lacking)}.", learner))
        else:
            scores[learner if learner not in scores else f"{learner} ({precision})"] = means[datasets].to_numpy()
    if len(scores) < 2 or len(datasets) < 2:
        return None
    table = pd.DataFrame(scores, index=datasets) * (1 if shown.higher_is_better else -1)
    cell = {name: members[name].iloc[0] for name in ("protocol", "backbone", "shots")}
    title = f"{cell['protocol']}, backbone {cell['backbone']}, {cell['shots']} shots, {part}: {shown.label}"
    return Ranking(title, table, mean_ranks(table), friedman(table), wilcoxon_pairs(table), notes, part, cell)
