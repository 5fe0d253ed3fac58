"""What a test split's logits come to: predictions that are kept, and the scores derived from them."""

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from vlprompt.errors import NonFiniteError, UserError

N_BINS = 15  # equal-width bins of the expected calibration error
ROWS_AT_ONCE = 4096  # sorting 50,000 x 1,000 logits at once would take 400 MB of indices


@dataclass(frozen=True)
class Predictions:
    """What is kept of the logits of one split: enough for every later metric that needs no full row of logits."""

    images: Shaped[np.ndarray, " N"]  # the image's name within its data set
    labels: Int[np.ndarray, " N"]
    top5: Int[np.ndarray, "N k"]  # class indices by falling logit, k = min(5, C); of equal ones the first class wins
    confidence: Float[np.ndarray, " N"]  # softmax probability of the predicted class
    label_logit: Float[np.ndarray, " N"]
    logsumexp: Float[np.ndarray, " N"]

    @classmethod
    def from_logits(
        cls, images: Sequence[str], labels: Int[Tensor, " N"], logits: Float[Tensor, "N C"]
    ) -> "Predictions":
        """Raises: NonFiniteError where a logit is NaN or infinite."""
        logits, labels = logits.detach().float().cpu(), labels.cpu().long()
        if not logits.isfinite().all():
            raise NonFiniteError(
                "the learner gave logits that are NaN or infinite: lower fit.lr or use precision=fp32."
            )
        order = [rows.argsort(dim=1, descending=True, stable=True)[:, :5] for rows in logits.split(ROWS_AT_ONCE)]
        top5, logsumexp = torch.cat(order), logits.logsumexp(dim=1)
        return cls(
            images=np.array(images, dtype=np.str_),
            labels=labels.numpy(),
            top5=top5.int().numpy(),
            confidence=(logits.amax(dim=1) - logsumexp).exp().numpy(),
            label_logit=logits.gather(1, labels[:, None])[:, 0].numpy(),
            logsumexp=logsumexp.numpy(),
        )

    @property
    def predicted(self) -> Int[np.ndarray, " N"]:
        """The class with the largest logit."""
        return self.top5[:, 0]

    def __len__(self) -> int:
        return len(self.labels)


def pool(predictions: Sequence[Predictions]) -> Predictions:
    """Several runs' predictions of one split as one: what is counted over all of them."""
    names = [field.name for field in fields(Predictions)]
    return Predictions(**{name: np.concatenate([getattr(kept, name) for kept in predictions]) for name in names})


def save_predictions(path: Path, predictions: Mapping[str, Predictions]) -> None:
    """Write all splits of a run into one compressed file, as arrays `<split>/<field>`."""
    arrays = {f"{split}/{name}": a for split, kept in predictions.items() for name, a in asdict(kept).items()}
    np.savez_compressed(path, **arrays)


def load_predictions(path: Path) -> dict[str, Predictions]:
    """The splits of a run, by name. Raises: UserError where the file is missing or damaged."""
    try:
        with np.load(path, allow_pickle=False) as file:
            splits = dict.fromkeys(key.rpartition("/")[0] for key in file.files)
            return {
                split: Predictions(**{field.name: file[f"{split}/{field.name}"] for field in fields(Predictions)})
                for split in splits
            }
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(
            f"cannot read the predictions '{path}' ({error}): run this cell again with force=true."
        ) from error


def score(predictions: Predictions) -> dict[str, float | int]:
    """Accuracy, top-5 accuracy, mean accuracy per class, macro-F1, ECE, negative log-likelihood (nats): fractions.

    Macro-F1 and the mean per class are plain means over the classes that have test images. With five classes or fewer
    top-5 is 1. ECE has 15 equal-width bins over the confidence of the predicted class. Source: Guo et al., ICML 2017,
    https://arxiv.org/abs/1706.04599, section 2.
    """
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
    kept = pd.DataFrame({"confidence": confidence, "accuracy": predictions.predicted == predictions.labels})
    curve = kept.groupby(bins).mean().reindex(range(n_bins))
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
