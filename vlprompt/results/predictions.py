"""What stays of a test split's logits."""

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from vlprompt.errors import NonFiniteError, UserError
from vlprompt.results.record import checked, damaged

PREDICTIONS = "predictions.npz"  # next to the record
ROWS_AT_ONCE = 4096  # sorting 50,000 x 1,000 logits at once would take 400 MB of indices
N_BINS = 15  # of every calibration error
OPEN_WORLD = ("known", "side_logsumexp", "side_logit", "side_class")  # fields that only come all four


@dataclass(frozen=True)
class Predictions:
    """What stays of the logits of one split: enough for every later metric that needs no full row of logits.

    A test of trained classes and others is an open world: it has the fields from `known` on, whose two columns are the
    classes that were trained on and the others. Files of earlier versions have none of the fields that may be None.
    """

    images: Shaped[np.ndarray, " N"]  # the image's name within its data set
    labels: Int[np.ndarray, " N"]
    top5: Int[np.ndarray, "N k"]  # class indices by falling logit, k = min(5, C); of equal ones the first class wins
    confidence: Float[np.ndarray, " N"]  # softmax probability of the predicted class
    label_logit: Float[np.ndarray, " N"]
    logsumexp: Float[np.ndarray, " N"]
    square_sum: Float[np.ndarray, " N"] | None = None  # of all the image's probabilities
    classwise_ece: Float[np.ndarray, ""] | None = None  # of the split: it needs whole rows (`classwise_error`)
    known: Bool[np.ndarray, " N"] | None = None  # whether the image's class was trained on
    side_logsumexp: Float[np.ndarray, "N 2"] | None = None  # in float64: scores are differences to `side_logit`
    side_logit: Float[np.ndarray, "N 2"] | None = None  # the largest
    side_class: Int[np.ndarray, "N 2"] | None = None  # the class that has it, among all of the test

    @classmethod
    def from_logits(
        cls,
        images: Sequence[str],
        labels: Int[Any, " N"],
        logits: Float[Any, "N C"],
        known: Sequence[int] | None = None,
    ) -> "Predictions":
        """Of torch tensors. In an open world `known` are the columns of the classes that were trained on.

        Raises: NonFiniteError where a logit is NaN or infinite; ValueError where `known` are not some of the columns.
        """
        import torch  # not at the top: tables are made without it

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
            square_sum=torch.cat(
                [rows.softmax(dim=1).square().sum(dim=1) for rows in logits.split(ROWS_AT_ONCE)]
            ).numpy(),
            classwise_ece=np.array(classwise_error(labels, logits)) if len(labels) else None,
            **_sides(labels, logits, known),
        )

    @property
    def predicted(self) -> Int[np.ndarray, " N"]:
        """The class with the largest logit."""
        return self.top5[:, 0]

    def __len__(self) -> int:
        return len(self.labels)


def classwise_error(labels: Int[Any, " N"], logits: Float[Any, "N C"], *, n_bins: int = N_BINS) -> float:
    """Static class-wise calibration error: the mean over classes of the calibration error of that class's probability.

    (1/C) sum_c sum_b n_bc/N |share of class c in the bin - mean probability of c in the bin|, in `n_bins` equal-width
    bins [low, high) for each class. Sources: Kull et al., NeurIPS 2019, https://arxiv.org/abs/1910.12656, section 2;
    Nixon et al., CVPR Workshops 2019, https://arxiv.org/abs/1904.01685, where it is the static calibration error.
    """
    import torch

    n, n_classes = logits.shape
    gaps = torch.zeros(n_classes * n_bins, dtype=torch.float64)
    for rows, of_rows in zip(logits.split(ROWS_AT_ONCE), labels.split(ROWS_AT_ONCE), strict=True):
        probabilities = rows.softmax(dim=1)
        bins = (probabilities * n_bins).long().clamp(max=n_bins - 1) + torch.arange(n_classes) * n_bins
        probabilities[torch.arange(len(rows)), of_rows] -= 1
        gaps += torch.bincount(bins.flatten(), probabilities.flatten().double(), minlength=len(gaps))
    return gaps.abs().sum().item() / (n * n_classes)


def _sides(
    labels: Int[Any, " N"], logits: Float[Any, "N C"], known: Sequence[int] | None
) -> dict[str, Shaped[np.ndarray, "N *sides"]]:
    """The fields of an open world, of the columns that are known and of the others."""
    import torch

    if known is None:
        return {}
    n_classes = logits.shape[1]
    others = sorted(set(range(n_classes)) - set(known))
    if len(set(known)) != len(known) or not known or not others or len(known) + len(others) != n_classes:
        raise ValueError(f"known are the columns {list(known)} of {n_classes}: some are needed, not all, each once")
    sides = [logits[:, torch.tensor(columns)] for columns in (sorted(known), others)]
    top = [side.max(dim=1) for side in sides]  # of equal ones the first class wins
    classes = [torch.tensor(columns)[of.indices] for columns, of in zip((sorted(known), others), top, strict=True)]
    return {
        "known": torch.isin(labels, torch.tensor(known)).numpy(),
        "side_logsumexp": torch.stack([side.double().logsumexp(dim=1) for side in sides], dim=1).numpy(),
        "side_logit": torch.stack([of.values for of in top], dim=1).numpy(),
        "side_class": torch.stack(classes, dim=1).int().numpy(),
    }


def select(predictions: Predictions, chosen: Int[np.ndarray, " n"]) -> Predictions:
    """Those of some images, by index; an image may come more than once."""
    arrays = {name: array[chosen] for name, array in vars(predictions).items() if array is not None and array.ndim}
    return Predictions(**arrays)


def pool(predictions: Sequence[Predictions]) -> Predictions:
    """Several runs' predictions of one split as one: what is counted over all of them.

    What one of them lacks is absent, and so is the class-wise error, which is that of a whole split.
    """
    arrays = {name: [getattr(part, name) for part in predictions] for name in vars(predictions[0])}
    arrays = {name: of for name, of in arrays.items() if all(array is not None and array.ndim for array in of)}
    return Predictions(**{name: np.concatenate(of) for name, of in arrays.items()})


def save_predictions(path: Path, predictions: Mapping[str, Predictions]) -> None:
    """Write all splits of a run into one compressed file, as arrays `<split>/<field>`; what is None is left out."""
    arrays = {
        f"{split}/{name}": a for split, p in predictions.items() for name, a in asdict(p).items() if a is not None
    }
    np.savez_compressed(path, **arrays)


def load_predictions(path: Path) -> dict[str, Predictions]:
    """The splits of a run, by name. Raises: DamagedError where the file is missing or damaged."""
    try:
        with np.load(checked(path), allow_pickle=False) as file:
            splits = dict.fromkeys(key.rpartition("/")[0] for key in file.files)
            arrays = {
                split: {
                    field.name: file[f"{split}/{field.name}"]
                    for field in fields(Predictions)
                    if field.default is MISSING or f"{split}/{field.name}" in file
                }
                for split in splits
            }
        for of_split in arrays.values():
            _check_arrays(of_split)
    except UserError:
        raise
    except Exception as error:  # numpy, zipfile and zlib raise a dozen kinds for a file that is damaged
        raise damaged(path, str(error) or type(error).__name__) from error
    return {split: Predictions(**of_split) for split, of_split in arrays.items()}


def _check_arrays(arrays: Mapping[str, np.ndarray]) -> None:
    """Raises: ValueError where shapes or types are not those of predictions."""
    kinds = {"images": "U", "labels": "iu", "top5": "iu", "side_class": "iu", "known": "b"}  # the others are floats
    n = len(arrays["labels"])
    for name, array in arrays.items():
        if name == "classwise_ece":
            fits, needed = array.ndim == 0, "one number is"
        elif name.startswith("side_"):
            fits, needed = array.shape == (n, 2), f"two columns for each of {n} labels are"
        else:
            n_axes = 2 if name == "top5" else 1
            fits = array.ndim == n_axes and len(array) == n and bool(array.size or not n)
            needed = f"one row for each of {n} labels is"
        if not fits or array.dtype.kind not in kinds.get(name, "f"):
            raise ValueError(f"{name} is {array.dtype.name} {list(array.shape)}, {needed} needed")
    if missing := [name for name in OPEN_WORLD if name not in arrays and set(OPEN_WORLD) & set(arrays)]:
        raise ValueError(f"it lacks {', '.join(missing)}")
