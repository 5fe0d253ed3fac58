"""Scores that are derived from the predictions on a test split."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from vlprompt.errors import Note, UserError, unknown
from vlprompt.results.calibration import ERRORS, calibration_scores, confidence_below_1, equal_width, per_bin
from vlprompt.results.open_world import SCORES, open_world_scores
from vlprompt.results.predictions import N_BINS, PREDICTIONS, Predictions, load_predictions, select
from vlprompt.results.record import Record


def score(predictions: Predictions) -> dict[str, float | int]:
    """Accuracy, top-5 accuracy, mean accuracy per class, macro-F1, ECE, negative log-likelihood (nats): fractions.

    And the scores of `calibration.py`, and of an open world those of `open_world.py`, as far as the predictions have
    what they need.

    Macro-F1 and the mean per class are plain means over the classes that have test images. With five classes or fewer
    top-5 is 1. ECE has 15 equal-width bins over the confidence of the predicted class. Source: Guo et al., ICML 2017,
    https://arxiv.org/abs/1706.04599, section 2.
    """
    import torch
    from sklearn.metrics import f1_score
    from torchmetrics.functional.classification import binary_calibration_error

    if not len(predictions):
        raise UserError("a test split holds no images: nothing can be scored.")
    labels, predicted = predictions.labels, predictions.predicted
    correct = predicted == labels
    ece = binary_calibration_error(
        torch.from_numpy(confidence_below_1(predictions)), torch.from_numpy(correct).int(), n_bins=N_BINS
    )
    nll = predictions.logsumexp.astype(np.float64) - predictions.label_logit
    return {
        "accuracy": float(correct.mean()),
        "correct": int(correct.sum()),
        "total": len(predictions),
        "top5": float((predictions.top5 == labels[:, None]).any(axis=1).mean()),
        "per_class": float(per_class_accuracy(predictions)["accuracy"].mean()),
        "macro_f1": float(f1_score(labels, predicted, labels=np.unique(labels), average="macro", zero_division=0)),
        "ece": float(ece),
        "nll": float(nll.mean()),
        **calibration_scores(predictions),
        **open_world_scores(predictions),
    }


def accuracy(predictions: Predictions) -> float:
    return float((predictions.predicted == predictions.labels).mean())


def ece(predictions: Predictions) -> float:
    share, confidence, accuracy = per_bin(predictions)
    return float(share @ abs(accuracy - confidence))


def nll(predictions: Predictions) -> float:
    return float((predictions.logsumexp.astype(np.float64) - predictions.label_logit).mean())


OF_IMAGES: Mapping[str, Callable[[Predictions], float]] = {
    "accuracy": accuracy,
    "ece": ece,
    "nll": nll,
    **ERRORS,
    **SCORES,
}
"""What can be computed of any sample of images."""


def interval(
    predictions: Predictions, metric: str, *, n: int = 1000, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap over images: `n` samples as large as the test, drawn with replacement.

    Samples that lack one kind of image of an open world count nowhere. Calibration errors are biased upwards in small
    samples, and the more so in samples of samples: their interval may lie above the value itself. Source: Efron &
    Tibshirani, An Introduction to the Bootstrap (1993), section 13.3.

    Raises: UserError for a metric that needs more than these predictions, or more than a sample of them.
    """
    if metric not in OF_IMAGES:
        raise unknown("metric with a bootstrap interval", metric, OF_IMAGES)
    if metric not in score(predictions):
        raise UserError(f"the predictions lack what {metric} is computed from: choose a test that has it.")
    generator, values = np.random.default_rng(seed), []
    predictions = replace(predictions, images=np.zeros(len(predictions), "U1"))  # names would be most of a sample
    for _ in range(n):
        sample = select(predictions, generator.integers(len(predictions), size=len(predictions)))
        if sample.known is None or metric not in SCORES or 0 < sample.known.sum() < len(sample):
            values.append(OF_IMAGES[metric](sample))
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def per_class_accuracy(predictions: Predictions) -> pd.DataFrame:
    """Of each label that has test images: the share of them that is right, and their number."""
    correct = pd.Series(predictions.predicted == predictions.labels)
    classes = correct.groupby(predictions.labels).agg(["mean", "size"])
    return classes.set_axis(["accuracy", "images"], axis=1).rename_axis("label")


def reliability(predictions: Predictions, *, n_bins: int = N_BINS) -> pd.DataFrame:
    """How often predictions of about equal confidence are right: `low`, `high`, `confidence`, `accuracy`, `images`.

    One row a bin of equal width; an empty one has no confidence and no accuracy. The mean of the gaps
    between the two, weighted by images, is the calibration error.
    """
    confidence = confidence_below_1(predictions)
    bins = equal_width(confidence, n_bins)
    images = pd.DataFrame({"confidence": confidence, "accuracy": predictions.predicted == predictions.labels})
    curve = images.groupby(bins).mean().reindex(range(n_bins))
    curve["images"] = np.bincount(bins, minlength=n_bins)
    curve.insert(0, "low", np.arange(n_bins) / n_bins)
    curve.insert(1, "high", np.arange(1, n_bins + 1) / n_bins)
    return curve


def calibration_error(curve: pd.DataFrame) -> float:
    """The expected calibration error of a reliability curve, a fraction."""
    gaps = (curve["accuracy"] - curve["confidence"]).abs() * curve["images"]
    return float(gaps.sum() / curve["images"].sum())


@dataclass(frozen=True)
class Metric:
    """How a metric is shown."""

    label: str
    factor: float = 100.0  # records hold fractions, tables percent
    decimals: int = 2
    higher_is_better: bool = True
    of_some_tests: bool = False  # other tests never have it
    has_best: bool = True  # else none is marked as the best


METRICS = {
    "accuracy": Metric("accuracy (%)"),
    "top5": Metric("top-5 accuracy (%)"),
    "per_class": Metric("mean accuracy per class (%)"),
    "macro_f1": Metric("macro-F1 (%)"),
    "ece": Metric("expected calibration error, 15 equal-width bins (%)", higher_is_better=False),
    "nll": Metric("negative log-likelihood (nats)", 1.0, 3, higher_is_better=False),
    "ace": Metric("adaptive calibration error, 15 equal-mass bins (%)", higher_is_better=False),
    "classwise_ece": Metric(
        "class-wise calibration error, 15 equal-width bins (%)", decimals=3, higher_is_better=False
    ),
    "mce": Metric("maximum calibration error, 15 equal-width bins (%)", higher_is_better=False),
    "brier": Metric("Brier score", 1.0, 3, higher_is_better=False),
    "refinement": Metric("refinement, 15 equal-width bins", 1.0, 4, higher_is_better=False),
    "confidence": Metric("mean confidence (%)", has_best=False),
    "overconfidence": Metric("mean confidence less accuracy (points)", higher_is_better=False, has_best=False),
    "open_auroc": Metric("AUROC of base against novel images (%)", of_some_tests=True),
    "openworld_auc": Metric("OpenworldAUC (%)", of_some_tests=True),
    "open_base": Metric("accuracy of base images among all classes (%)", of_some_tests=True),
    "open_novel": Metric("accuracy of novel images among all classes (%)", of_some_tests=True),
    "open_H": Metric("harmonic mean of base and novel among all classes (%)", of_some_tests=True),
    "open_fpr95": Metric("novel images accepted with 95 % of base (%)", higher_is_better=False, of_some_tests=True),
    # of images out of distribution (ood.py)
    "mcm_auroc": Metric("AUROC of MCM (%)", of_some_tests=True),
    "mcm_fpr95": Metric("FPR95 of MCM (%)", higher_is_better=False, of_some_tests=True),
    "max_logit_auroc": Metric("AUROC of the largest logit (%)", of_some_tests=True),
    "max_logit_fpr95": Metric("FPR95 of the largest logit (%)", higher_is_better=False, of_some_tests=True),
    "energy_auroc": Metric("AUROC of the energy (%)", of_some_tests=True),
    "energy_fpr95": Metric("FPR95 of the energy (%)", higher_is_better=False, of_some_tests=True),
    "msp_auroc": Metric("AUROC of the confidence (%)", of_some_tests=True),
    "msp_fpr95": Metric("FPR95 of the confidence (%)", higher_is_better=False, of_some_tests=True),
}


def find_metric(name: str) -> Metric:
    """A metric, or as NAME/DATASET its value for one data set. Raises: UserError for a metric that is not known."""
    metric, _, dataset = name.partition("/")
    if metric not in METRICS or name.endswith("/"):
        raise unknown("metric", name, METRICS)
    return replace(METRICS[metric], label=f"{dataset}: {METRICS[metric].label}") if dataset else METRICS[metric]


def complete(runs: Mapping[Path, Record], metric: str, notes: list[str]) -> list[Record]:
    """The records of these folders, with the metric in the scores of every split that has predictions.

    What a record has stays; what it lacks comes from the `predictions.npz` next to it. Without that it stays absent;
    `notes` name predictions that are damaged.
    """
    find_metric(metric)
    records = []
    for folder, record in runs.items():
        try:
            records.append(_completed(record, folder / PREDICTIONS, metric))
        except UserError as error:
            records.append(record)
            notes.append(Note(str(error).replace(str(folder), "{}", 1), folder))
    return records


def _completed(record: Record, path: Path, metric: str) -> Record:
    complete = find_metric(metric).of_some_tests and any("brier" in scores for scores in record.scores.values())
    if complete or all(metric in scores for scores in record.scores.values()) or not path.exists():
        return record
    computed = {split: score(predictions) for split, predictions in load_predictions(path).items()}
    scores = {split: computed.get(split, {}) | scores for split, scores in record.scores.items()}
    return record.model_copy(update={"scores": scores})
