"""What several runs and several data sets say: spreads over seeds, paired tests, ranks. scipy is loaded when needed."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from numpy.typing import ArrayLike

from vlprompt.errors import UserError

Interval = Literal["t", "normal", "none"]
LEVEL = 0.95
RESAMPLES = 10_000


@dataclass(frozen=True)
class Spread:
    """Some values' number, mean and deviation, and half the width of the interval around the mean; nan where undefined.

    One value has no deviation and no interval.
    """

    n: int
    mean: float
    deviation: float
    half_width: float


def spread(values: ArrayLike, interval: Interval = "none") -> Spread:
    """Of the values that are numbers.

    "t": sample deviation (n - 1) and the 95 % interval by Student's t. "none": the same without an interval. "normal":
    population deviation (n) and 1.96 standard errors of it, as the scripts of CoOp and its kin print them; for a few
    seeds that interval is far too narrow.
    """
    kept = np.asarray(values, dtype=np.float64)
    kept = kept[~np.isnan(kept)]
    n, mean = len(kept), kept.mean() if len(kept) else np.nan
    if n < 2:
        return Spread(n, float(mean), np.nan, np.nan)
    deviation = float(kept.std(ddof=0 if interval == "normal" else 1))
    return Spread(n, float(mean), deviation, _quantile(n, interval) * deviation / n**0.5)


def _quantile(n: int, interval: Interval) -> float:
    if interval == "none":
        return np.nan
    if interval == "normal":
        return 1.96
    from scipy.stats import t

    return float(t.ppf((1 + LEVEL) / 2, n - 1))


@dataclass(frozen=True)
class McNemar:
    """Images that only one of two classifiers gets right, and the chance of so uneven a split or a more uneven one."""

    only_first: int
    only_second: int
    p: float


def mcnemar(first: Bool[np.ndarray, " N"], second: Bool[np.ndarray, " N"]) -> McNemar:
    """The exact test, two-sided, from what is right on the same images. Source: McNemar, Psychometrika 1947."""
    from scipy.stats import binomtest

    a, b = int((first & ~second).sum()), int((second & ~first).sum())
    return McNemar(a, b, float(binomtest(a, a + b).pvalue) if a + b else 1.0)


def paired_bootstrap(differences: Float[np.ndarray, " N"], *, seed: int = 0) -> tuple[float, float]:
    """The 95 % percentile interval of the mean difference, images drawn anew with replacement 10,000 times.

    Equal differences are exchangeable, so how often each value is drawn is drawn, not every image: exact, and quick.
    Source: Efron, Annals of Statistics 1979.
    """
    values, counts = np.unique(differences, return_counts=True)
    n = len(differences)
    drawn = np.random.default_rng(seed).multinomial(n, counts / n, size=RESAMPLES) @ values / n
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def mean_ranks(scores: pd.DataFrame) -> pd.Series:
    """The mean rank of each column over the rows (data sets): 1 for the highest score; equal scores share a rank."""
    ranks = (-scores).rank(axis=1, method="average")
    return ranks.mean().sort_values(kind="stable")


def friedman(scores: pd.DataFrame) -> float:
    """The chance of mean ranks as different as these, were all methods alike; nan for fewer than three methods."""
    from scipy.stats import friedmanchisquare

    if scores.shape[1] < 3 or len(scores) < 2:
        return np.nan
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
        p = float(wilcoxon(difference).pvalue) if difference.any() else 1.0
        rows.append(
            {
                "first": first,
                "second": second,
                "n": len(difference),
                "median_difference": float(np.median(difference)),
                "wins": int((difference > 0).sum()),
                "losses": int((difference < 0).sum()),
                "p": p,
            }
        )
    if not rows:
        raise UserError("a comparison across data sets needs at least two methods.")
    return pd.DataFrame(rows).assign(p_holm=lambda table: holm(table["p"].tolist()))


def holm(p: Sequence[float]) -> list[float]:
    """p-values corrected for their number. Source: Holm, Scandinavian Journal of Statistics 1979."""
    order = np.argsort(p, kind="stable")
    stepped = np.asarray(p)[order] * np.arange(len(p), 0, -1)
    corrected = np.empty(len(p))
    corrected[order] = np.maximum.accumulate(stepped).clip(max=1)
    return corrected.tolist()
