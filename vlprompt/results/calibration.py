"""How well confidences fit: errors of calibration, from the confidence of the predicted class.

Equal-width bins are [low, high) and end at 1. Adaptive bins hold equally many images: their edges are quantiles of the
confidences, so that equal confidences share a bin. An empty bin counts nowhere.
"""

from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Float, Int

from vlprompt.results.predictions import N_BINS, Predictions


def confidence_below_1(predictions: Predictions) -> Float[np.ndarray, " N"]:
    """Below 1: torchmetrics takes values above 1 (rounding) for logits, and gives 1 itself a bin of its own."""
    return predictions.confidence.astype(np.float64).clip(max=np.nextafter(1.0, 0.0))


def equal_width(confidence: Float[np.ndarray, " N"], n_bins: int = N_BINS) -> Int[np.ndarray, " N"]:
    """The bin of each confidence below 1."""
    return (confidence * n_bins).astype(int)


def equal_mass(confidence: Float[np.ndarray, " N"], n_bins: int = N_BINS) -> Int[np.ndarray, " N"]:
    """The adaptive bin of each confidence; the edges are quantiles, interpolated linearly, and belong to the lower bin.

    scikit-learn's `calibration_curve(strategy="quantile")` has the same.
    """
    edges = np.quantile(confidence, np.arange(1, n_bins) / n_bins)
    return np.searchsorted(edges, confidence)


def per_bin(
    predictions: Predictions, binning: Callable[[Float[np.ndarray, " N"]], Int[np.ndarray, " N"]] = equal_width
) -> tuple[Float[np.ndarray, " B"], Float[np.ndarray, " B"], Float[np.ndarray, " B"]]:
    """Share of the images, mean confidence and accuracy of each bin that is not empty."""
    confidence, right = confidence_below_1(predictions), predictions.predicted == predictions.labels
    bins = binning(confidence)
    images = np.bincount(bins)
    sums = [np.bincount(bins, values)[images > 0] for values in (confidence, right)]
    images = images[images > 0]
    return images / len(predictions), sums[0] / images, sums[1] / images


def ace(predictions: Predictions) -> float:
    """Adaptive calibration error: sum_b n_b/N |accuracy_b - confidence_b| over 15 adaptive bins.

    Source: Nixon et al., CVPR Workshops 2019, https://arxiv.org/abs/1904.01685, whose bins here hold the confidences
    of the predicted class alone, as those of the expected calibration error do.
    """
    share, confidence, accuracy = per_bin(predictions, equal_mass)
    return float(share @ abs(accuracy - confidence))


def mce(predictions: Predictions) -> float:
    """Maximum calibration error: max_b |accuracy_b - confidence_b| over 15 equal-width bins, whatever their size.

    Source: Naeini et al., AAAI 2015; Guo et al., ICML 2017, https://arxiv.org/abs/1706.04599, section 2.
    """
    _, confidence, accuracy = per_bin(predictions)
    return float(abs(accuracy - confidence).max())


def brier(predictions: Predictions) -> float:
    """Brier score of all classes: the mean over images of sum_c (p_c - [c is right])^2, from 0 to 2.

    Source: Brier, Monthly Weather Review 78 (1950). Two classes: twice what scikit-learn's `brier_score_loss` gives for
    one of them.
    """
    assert predictions.square_sum is not None
    of_label = np.exp(predictions.label_logit.astype(np.float64) - predictions.logsumexp)
    return float((predictions.square_sum - 2 * of_label + 1).mean())


def refinement(predictions: Predictions) -> float:
    """sum_b n_b/N accuracy_b (1 - accuracy_b) over 15 equal-width bins: what no recalibration mends.

    With the calibration term, sum_b n_b/N (accuracy_b - confidence_b)^2, it adds up to the Brier score of whether the
    predicted class is right, each confidence replaced by its bin's mean. Sources: DeGroot & Fienberg, The Statistician
    32 (1983); Murphy, Journal of Applied Meteorology 12 (1973).
    """
    share, _, accuracy = per_bin(predictions)
    return float(share @ (accuracy * (1 - accuracy)))


def confidence(predictions: Predictions) -> float:
    """The mean probability of the predicted class."""
    return float(predictions.confidence.astype(np.float64).mean())


def overconfidence(predictions: Predictions) -> float:
    """Mean confidence less accuracy: above 0 the learner is over-confident, below 0 under-confident."""
    return confidence(predictions) - float((predictions.predicted == predictions.labels).mean())


ERRORS: Mapping[str, Callable[[Predictions], float]] = {
    function.__name__: function for function in (ace, mce, brier, refinement, confidence, overconfidence)
}


def calibration_scores(predictions: Predictions) -> dict[str, float]:
    """All of them, and the class-wise error; without those whose fields the predictions of an earlier version lack."""
    of_rows = predictions.square_sum is not None
    scores = {name: of(predictions) for name, of in ERRORS.items() if of_rows or name != "brier"}
    if predictions.classwise_ece is not None:
        scores["classwise_ece"] = float(predictions.classwise_ece)
    return scores
