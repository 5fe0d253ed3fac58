"""Errors of calibration: against plain loops, scikit-learn and torchmetrics."""

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss
from torchmetrics.functional.classification import binary_calibration_error

from vlprompt.errors import UserError
from vlprompt.reports.marks import best_and_second
from vlprompt.results import calibration, clip_calibration
from vlprompt.results.calibration import equal_mass, per_bin
from vlprompt.results.metrics import METRICS, OF_IMAGES, interval, score
from vlprompt.results.predictions import Predictions, classwise_error, select


def drawn(n: int, n_classes: int, scale: float = 2.0, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, Predictions]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(n_classes, (n,), generator=generator)
    logits = scale * (torch.randn(n, n_classes, generator=generator) + torch.nn.functional.one_hot(labels, n_classes))
    return labels, logits, Predictions.from_logits([""] * n, labels, logits)


CASES = pytest.mark.parametrize(("n", "n_classes", "scale"), [(300, 2, 1.0), (299, 5, 2.0), (41, 40, 3.0), (7, 3, 0.2)])


@CASES
def test_errors_of_equal_width_bins(n: int, n_classes: int, scale: float) -> None:
    labels, logits, predicted = drawn(n, n_classes, scale)
    probabilities = logits.double().softmax(dim=1)
    confidence, right = probabilities.amax(dim=1), logits.argmax(dim=1) == labels
    gaps, weights, refined, term, binned = [], [], 0.0, 0.0, 0.0
    for k in range(15):
        chosen = (confidence >= k / 15) & (confidence < (k + 1) / 15)
        if not chosen.any():
            continue
        share, accuracy, mean = chosen.double().mean(), right[chosen].double().mean(), confidence[chosen].mean()
        gaps.append(float(abs(accuracy - mean)))
        weights.append(float(share))
        refined += float(share * accuracy * (1 - accuracy))
        term += float(share * (accuracy - mean) ** 2)
        binned += float(((right[chosen].double() - mean) ** 2).sum()) / n
    got = score(predicted)
    assert got["mce"] == pytest.approx(max(gaps), abs=1e-6)
    assert got["ece"] == pytest.approx(np.dot(gaps, weights), abs=1e-6)
    assert got["refinement"] == pytest.approx(refined)
    assert got["refinement"] + term == pytest.approx(binned, abs=1e-6)
    theirs = binary_calibration_error(confidence.float(), right.int(), n_bins=15, norm="max")
    assert got["mce"] == pytest.approx(float(theirs), abs=1e-6)
    assert got["confidence"] - got["accuracy"] == pytest.approx(got["overconfidence"])
    assert got["confidence"] == pytest.approx(float(confidence.mean()), abs=1e-6)


@CASES
def test_brier_score_and_class_wise_error(n: int, n_classes: int, scale: float) -> None:
    labels, logits, predicted = drawn(n, n_classes, scale)
    probabilities = logits.double().softmax(dim=1).numpy()
    truth = np.eye(n_classes)[labels.numpy()]
    got = score(predicted)
    assert got["brier"] == pytest.approx(((probabilities - truth) ** 2).sum(axis=1).mean(), abs=1e-6)
    if n_classes == 2:
        assert got["brier"] == pytest.approx(2 * brier_score_loss(labels, probabilities[:, 1]), abs=1e-6)
    for n_bins in (15, 4):
        errors = []
        for c in range(n_classes):
            bins = np.minimum((probabilities[:, c] * n_bins).astype(int), n_bins - 1)
            errors.append(sum((bins == b).mean() * abs(truth[bins == b, c].mean() - probabilities[bins == b, c].mean())
                              for b in np.unique(bins)))  # fmt: skip
        assert classwise_error(labels, logits, n_bins=n_bins) == pytest.approx(np.mean(errors), abs=1e-6)
        if n_bins == 15:
            assert got["classwise_ece"] == pytest.approx(np.mean(errors), abs=1e-6)
    binary = [float(binary_calibration_error(torch.tensor(probabilities[:, c]).float(), (labels == c).int(), n_bins=15))
              for c in range(n_classes)]  # fmt: skip
    assert got["classwise_ece"] == pytest.approx(np.mean(binary), abs=1e-6)


@CASES
def test_adaptive_bins_are_those_of_scikit_learn(n: int, n_classes: int, scale: float) -> None:
    predicted = drawn(n, n_classes, scale)[2]
    confidence, right = predicted.confidence.astype(float), predicted.predicted == predicted.labels
    share, means, accuracies = per_bin(predicted, equal_mass)
    theirs = calibration_curve(right, confidence, n_bins=15, strategy="quantile")
    np.testing.assert_allclose(accuracies, theirs[0])
    np.testing.assert_allclose(means, theirs[1])
    assert share.sum() == pytest.approx(1)
    assert max(share) - min(share) <= 1.001 / n
    assert score(predicted)["ace"] == pytest.approx(share @ abs(theirs[0] - theirs[1]))
    shuffled = select(predicted, np.random.default_rng(0).permutation(n))
    assert score(shuffled)["ace"] == pytest.approx(score(predicted)["ace"])


def test_equal_confidences_share_an_adaptive_bin() -> None:
    logits = torch.tensor([[3.0, 0.0]]).repeat(20, 1)
    predicted = Predictions.from_logits([""] * 20, torch.arange(20) % 2, logits)
    assert len(per_bin(predicted, equal_mass)[0]) == 1
    assert score(predicted)["ace"] == pytest.approx(score(predicted)["ece"], abs=1e-6)


def test_perfect_and_wrong_calibration() -> None:
    """Labels drawn from the probabilities: every error comes near 0; a sharper softmax is over-confident."""
    generator = torch.Generator().manual_seed(0)
    logits = 1.5 * torch.randn(8_000, 4, generator=generator)
    labels = torch.multinomial(logits.softmax(dim=1), 1, generator=generator)[:, 0]
    got, sharp, flat = (score(Predictions.from_logits([""] * len(labels), labels, f * logits)) for f in (1, 3, 0.3))
    for name in ("ece", "ace", "classwise_ece"):
        assert got[name] < 0.02
        assert sharp[name] > 5 * got[name]
    assert abs(got["overconfidence"]) < 0.02
    assert sharp["overconfidence"] > 0.1
    assert flat["overconfidence"] < -0.1
    assert got["brier"] < min(sharp["brier"], flat["brier"])


@pytest.mark.parametrize("metric", ["accuracy", "brier", "overconfidence", "ece"])
@pytest.mark.slow
def test_intervals_are_those_of_a_bootstrap(metric: str) -> None:
    predicted = drawn(200, 3)[2]
    low, high = interval(predicted, metric, n=200)
    assert (low, high) == interval(predicted, metric, n=200)
    assert low < high
    wider = interval(predicted, metric, n=200, level=0.99)
    assert wider[0] <= low < high <= wider[1]
    if metric == "accuracy":
        p = score(predicted)["accuracy"]
        deviation = (p * (1 - p) / 200) ** 0.5
        assert high - low == pytest.approx(2 * 1.96 * deviation, rel=0.3)
    if metric != "ece":
        assert low < score(predicted)[metric] < high


def test_intervals_need_what_the_metric_needs() -> None:
    predicted = drawn(50, 3)[2]
    for metric in ("classwise_ece", "per_class", "open_H"):
        with pytest.raises(UserError, match=metric):
            interval(predicted, metric)
    assert set(METRICS) >= set(OF_IMAGES)
    assert set(calibration.ERRORS) | {"classwise_ece"} <= set(score(predicted))


@pytest.mark.parametrize("n_bins", [5, 10, 20])
def test_published_variants(n_bins: int) -> None:
    """Where no confidence is 1 or on an edge they are the usual errors, but for MCE's weight."""
    generator = np.random.default_rng(n_bins)
    confidence, proximity = generator.uniform(0.2, 0.999, 400), generator.random(400)
    right = generator.random(400) < confidence**2
    bins = (confidence * n_bins).astype(int)
    gaps = [abs((right - confidence)[bins == b].sum()) / 400 for b in range(n_bins)]
    assert clip_calibration.ece_clip_calibration(confidence, right, n_bins) == pytest.approx(sum(gaps))
    assert clip_calibration.ece_c_tpt(confidence, right, n_bins) == pytest.approx(sum(gaps))
    assert clip_calibration.mce_clip_calibration(confidence, right, n_bins) == pytest.approx(max(gaps))
    accuracy, mean = calibration_curve(right, confidence, n_bins=n_bins, strategy="quantile")
    ace = clip_calibration.ace_clip_calibration(confidence, right, n_bins)
    assert ace == pytest.approx(np.mean(abs(accuracy - mean)))
    assert clip_calibration.piece(confidence, right, proximity, n_bins, 1) == pytest.approx(sum(gaps))
    assert clip_calibration.piece(confidence, right, proximity, 1, n_bins) >= abs((right - confidence).mean())


def test_a_confidence_of_1_counts_in_the_weight_alone() -> None:
    confidence, right = np.array([0.97, 1.0, 0.5]), np.array([False, True, True])
    assert clip_calibration.ece_clip_calibration(confidence, right) == pytest.approx((2 * 0.97 + 0.5) / 3)
    assert clip_calibration.ece_c_tpt(confidence, right) == pytest.approx((abs(1 - 1.97) + 0.5) / 3)


@pytest.mark.parametrize("name", ["confidence", "overconfidence"])
def test_no_confidence_is_the_best(name: str) -> None:
    means = pd.DataFrame({"base": [1.0, 2.0]})
    assert best_and_second(means, ["", ""], METRICS["ece"])
    assert not best_and_second(means, ["", ""], METRICS[name])
