"""Statistics: against what the originals' script prints, textbook numbers, and slower ways to the same result."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from vlprompt.errors import UserError
from vlprompt.reports.significance import (
    critical_difference,
    friedman,
    holm,
    mcnemar,
    mean_ranks,
    paired_bootstrap,
    wilcoxon_pairs,
)
from vlprompt.reports.summary import spread

PARSED = json.loads((Path(__file__).parent / "fixtures" / "data" / "parse_expected.json").read_text())["numbers"]


@pytest.mark.parametrize("name", [name for name, case in PARSED.items() if "values" in case])
def test_the_originals_deviation_and_interval(name: str) -> None:
    expected = PARSED[name]
    got = spread(expected["values"], "normal")
    assert (got.n, got.mean) == (3, pytest.approx(expected["mean"]))
    assert got.deviation == pytest.approx(expected["std_population"])
    assert got.half_width == pytest.approx(expected["ci95"])


def test_students_interval_is_that_of_a_textbook() -> None:
    values = [87.6, 80.2, 83.9]
    got = spread(values, "t")
    assert got.deviation == pytest.approx(3.7)
    assert got.half_width == pytest.approx(4.302653 * 3.7 / 3**0.5, rel=1e-6)  # t of 2 degrees of freedom
    assert np.isnan(spread(values).half_width)
    assert spread(values).deviation == got.deviation


@pytest.mark.parametrize("interval", ["t", "normal", "none"])
def test_one_value_has_no_deviation(interval: str) -> None:
    one = spread([5.0, np.nan], interval)
    assert (one.n, one.mean) == (1, 5.0)
    assert np.isnan([one.deviation, one.half_width]).all()
    none = spread([], interval)
    assert none.n == 0
    assert np.isnan(none.mean)


def test_mcnemar_by_hand() -> None:
    first = np.array([True] * 9 + [False] * 1 + [True] * 20 + [False] * 5)
    second = np.array([False] * 9 + [True] * 1 + [True] * 20 + [False] * 5)
    got = mcnemar(first, second)
    assert (got["only_first"], got["only_second"]) == (9, 1)
    assert got["p"] == pytest.approx(2 * (1 + 10) / 2**10)  # nine or more heads of ten, or of tails
    assert mcnemar(second, first)["p"] == got["p"]
    assert mcnemar(first, first)["p"] == 1.0


def test_bootstrap_equals_the_library_s() -> None:
    random = np.random.default_rng(1)
    differences = random.choice([-1.0, -1 / 3, 0.0, 2 / 3, 1.0], size=400)
    low, high = paired_bootstrap(differences)
    slow = scipy.stats.bootstrap((differences,), np.mean, method="percentile", rng=random).confidence_interval
    assert (low, high) == (pytest.approx(slow.low, abs=0.01), pytest.approx(slow.high, abs=0.01))
    assert paired_bootstrap(differences) == (low, high)
    assert paired_bootstrap(np.full(7, 0.25)) == (0.25, 0.25)


def test_ranks_share_ties() -> None:
    scores = pd.DataFrame({"a": [90.0, 80.0], "b": [70.0, 80.0], "c": [60.0, 60.0]})
    assert mean_ranks(scores).to_dict() == {"a": 1.25, "b": 1.75, "c": 3.0}


def test_critical_difference_of_demsar() -> None:
    # JMLR 2006, section 3.2.2: four classifiers on fourteen data sets; table 5: q of 2.569
    assert critical_difference(4, 14) == pytest.approx(2.569 * (4 * 5 / (6 * 14)) ** 0.5, abs=1e-3)
    assert critical_difference(2, 10) == pytest.approx(1.960 * (2 * 3 / (6 * 10)) ** 0.5, abs=1e-3)


def test_friedman_needs_three_methods() -> None:
    scores = pd.DataFrame({"a": [3.0, 3, 3, 3, 3], "b": [2.0, 2, 2, 2, 2], "c": [1.0, 1, 1, 1, 1]})
    assert friedman(scores) < 0.01
    assert np.isnan(friedman(scores[["a", "b"]]))


def test_wilcoxon_with_holm() -> None:
    base = np.linspace(50, 90, 8)
    scores = pd.DataFrame({"a": base + np.arange(1, 9), "b": base, "c": base})
    pairs = wilcoxon_pairs(scores).set_index(["first", "second"])
    assert pairs.loc[("a", "b"), "p"] == pytest.approx(2 / 2**8)  # all eight signs alike
    assert pairs.loc[("a", "b"), ["n", "wins", "losses"]].tolist() == [8, 8, 0]
    assert pairs.loc[("a", "b"), "p_holm"] == pytest.approx(3 * 2 / 2**8)
    assert pairs.loc[("b", "c"), "p"] == 1.0  # no difference at all
    with pytest.raises(UserError, match="two methods"):
        wilcoxon_pairs(scores[["a"]])


def test_holm_by_hand() -> None:
    assert holm(pd.Series([0.01, 0.04, 0.03, 0.5])).tolist() == pytest.approx([0.04, 0.09, 0.09, 0.5])
    assert holm(pd.Series([0.6, 0.9])).tolist() == [1.0, 1.0]
