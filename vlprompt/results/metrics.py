"""Scores that are derived from the predictions on a test split."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float

from vlprompt.errors import Note, UserError, unknown
from vlprompt.results.predictions import PREDICTIONS, Predictions, load_predictions
from vlprompt.results.record import Record

N_BINS = 15  # equal-width bins of the expected calibration error


def score(predictions: Predictions) -> dict[str, float | int]:
    """Accuracy, top-5 accuracy, mean accuracy per class, macro-F1, ECE, negative log-likelihood (nats): fractions.

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
        torch.from_numpy(_confidence(predictions)), torch.from_numpy(correct).int(), n_bins=N_BINS
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
    }


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
    confidence = _confidence(predictions)
    bins = (confidence * n_bins).astype(int)  # below 1, so the last bin is n_bins - 1
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


def _confidence(predictions: Predictions) -> Float[np.ndarray, " N"]:
    """Below 1: torchmetrics takes values above 1 (rounding) for logits, and gives 1 itself a bin of its own."""
    return predictions.confidence.astype(np.float64).clip(max=np.nextafter(1.0, 0.0))


@dataclass(frozen=True)
class Metric:
    """How a metric is shown."""

    label: str
    factor: float = 100.0  # records hold fractions, tables percent
    decimals: int = 2
    higher_is_better: bool = True


METRICS = {
    "accuracy": Metric("accuracy (%)"),
    "top5": Metric("top-5 accuracy (%)"),
    "per_class": Metric("mean accuracy per class (%)"),
    "macro_f1": Metric("macro-F1 (%)"),
    "ece": Metric("expected calibration error (%)", higher_is_better=False),
    "nll": Metric("negative log-likelihood (nats)", 1.0, 3, higher_is_better=False),
    # of images out of distribution (ood.py)
    "mcm_auroc": Metric("AUROC of MCM (%)"),
    "mcm_fpr95": Metric("FPR95 of MCM (%)", higher_is_better=False),
    "max_logit_auroc": Metric("AUROC of the largest logit (%)"),
    "max_logit_fpr95": Metric("FPR95 of the largest logit (%)", higher_is_better=False),
    "energy_auroc": Metric("AUROC of the energy (%)"),
    "energy_fpr95": Metric("FPR95 of the energy (%)", higher_is_better=False),
    "msp_auroc": Metric("AUROC of the confidence (%)"),
    "msp_fpr95": Metric("FPR95 of the confidence (%)", higher_is_better=False),
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
    if all(metric in scores for scores in record.scores.values()) or not path.exists():
        return record
    computed = {split: score(predictions) for split, predictions in load_predictions(path).items()}
    scores = {split: computed.get(split, {}) | scores for split, scores in record.scores.items()}
    return record.model_copy(update={"scores": scores})
