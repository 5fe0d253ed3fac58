"""Errors of calibration as two repositories compute them, to meet the tables of their papers; fractions.

They differ from those of `calibration.py`, which are the usual ones. `confidence`: float64, at most 1; `right`: whether
the predicted class is right.

Sources: https://github.com/ml-stat-Sustech/CLIP_Calibration (tools/metrics.py), of Wang et al., ICML 2024,
https://arxiv.org/abs/2402.04655; `ece_c_tpt`: https://github.com/hee-suk-yoon/C-TPT (tpt_classification.py), of Yoon et
al., ICLR 2024, https://arxiv.org/abs/2403.14119.
"""

import numpy as np
from jaxtyping import Bool, Float, Int

NARROWEST = 1e-8  # of quantile bins; a narrower one is joined with the next
Confidence = Float[np.ndarray, " N"]
Right = Bool[np.ndarray, " N"]


def ece_clip_calibration(confidence: Confidence, right: Right, n_bins: int = 10) -> float:
    """Bins [low, high): a confidence of exactly 1 is in none, and yet counts in the weight of the last."""
    edges = np.linspace(0, 1, n_bins + 1)
    below_1 = confidence < 1
    _, gaps = weighted_gaps(np.digitize(confidence[below_1], edges) - 1, confidence[below_1], right[below_1], n_bins)
    return float(gaps @ np.histogram(confidence, edges)[0] / len(confidence))


def mce_clip_calibration(confidence: Confidence, right: Right, n_bins: int = 10) -> float:
    """The largest gap TIMES the share of its bin; 1 is in the last bin."""
    share, gaps = weighted_gaps(inner_bins(confidence, n_bins), confidence, right, n_bins)
    return float((share * gaps).max())


def ace_clip_calibration(confidence: Confidence, right: Right, n_bins: int = 10) -> float:
    """Quantile bins [low, high)."""
    share, gaps = weighted_gaps(quantile_bins(confidence, n_bins), confidence, right, n_bins)
    return float(share @ gaps)


def piece(
    confidence: Confidence, right: Right, proximity: Float[np.ndarray, " N"], n_bins: int = 10, n_proximity: int = 10
) -> float:
    """Proximity-informed error: over quantile bins of an image's proximity times bins of confidence.

    Source of the definition: Xiong et al., NeurIPS 2023, https://arxiv.org/abs/2306.04590.
    """
    cells = quantile_bins(proximity, n_proximity) * n_bins + inner_bins(confidence, n_bins)
    share, gaps = weighted_gaps(cells, confidence, right, n_proximity * n_bins)
    return float(share @ gaps)


def ece_c_tpt(confidence: Confidence, right: Right, n_bins: int = 20) -> float:
    """Bins (low, high]; the edges are those of float32."""
    edges = np.linspace(0, 1, n_bins + 1, dtype=np.float32).astype(np.float64)
    share, gaps = weighted_gaps(np.digitize(confidence, edges[1:-1], right=True), confidence, right, n_bins)
    return float(share @ gaps)


def inner_bins(confidence: Confidence, n_bins: int) -> Int[np.ndarray, " N"]:
    return np.digitize(confidence, np.linspace(0, 1, n_bins + 1)[1:-1])


def quantile_bins(values: Float[np.ndarray, " N"], n_bins: int) -> Int[np.ndarray, " N"]:
    """scikit-learn's KBinsDiscretizer(strategy="quantile", quantile_method="linear")."""
    edges = np.percentile(values, np.linspace(0, 100, n_bins + 1))
    edges = edges[np.ediff1d(edges, to_begin=np.inf) > NARROWEST]
    return np.searchsorted(edges[1:-1], values, side="right")


def weighted_gaps(
    bins: Int[np.ndarray, " N"], confidence: Confidence, right: Right, n_bins: int
) -> tuple[Float[np.ndarray, " B"], Float[np.ndarray, " B"]]:
    """The share of the images and |accuracy - mean confidence| of each bin, both 0 where it is empty."""
    images = np.bincount(bins, minlength=n_bins)
    gaps = abs(np.bincount(bins, right - confidence, minlength=n_bins)) / images.clip(1)
    return images / max(len(bins), 1), gaps
