"""What stays of a test split's logits."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Shaped

from vlprompt.errors import NonFiniteError, UserError
from vlprompt.results.record import checked, damaged

PREDICTIONS = "predictions.npz"  # next to the record
ROWS_AT_ONCE = 4096  # sorting 50,000 x 1,000 logits at once would take 400 MB of indices


@dataclass(frozen=True)
class Predictions:
    """What stays of the logits of one split: enough for every later metric that needs no full row of logits."""

    images: Shaped[np.ndarray, " N"]  # the image's name within its data set
    labels: Int[np.ndarray, " N"]
    top5: Int[np.ndarray, "N k"]  # class indices by falling logit, k = min(5, C); of equal ones the first class wins
    confidence: Float[np.ndarray, " N"]  # softmax probability of the predicted class
    label_logit: Float[np.ndarray, " N"]
    logsumexp: Float[np.ndarray, " N"]

    @classmethod
    def from_logits(cls, images: Sequence[str], labels: Int[Any, " N"], logits: Float[Any, "N C"]) -> "Predictions":
        """Of torch tensors. Raises: NonFiniteError where a logit is NaN or infinite."""
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
    return Predictions(**{name: np.concatenate([getattr(part, name) for part in predictions]) for name in names})


def save_predictions(path: Path, predictions: Mapping[str, Predictions]) -> None:
    """Write all splits of a run into one compressed file, as arrays `<split>/<field>`."""
    arrays = {f"{split}/{name}": a for split, p in predictions.items() for name, a in asdict(p).items()}
    np.savez_compressed(path, **arrays)


def load_predictions(path: Path) -> dict[str, Predictions]:
    """The splits of a run, by name. Raises: DamagedError where the file is missing or damaged."""
    try:
        with np.load(checked(path), allow_pickle=False) as file:
            splits = dict.fromkeys(key.rpartition("/")[0] for key in file.files)
            arrays = {
                split: {field.name: file[f"{split}/{field.name}"] for field in fields(Predictions)} for split in splits
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
    kinds = {"images": "U", "labels": "iu", "top5": "iu"}  # the others are floats
    n = len(arrays["labels"])
    for name, array in arrays.items():
        n_axes = 2 if name == "top5" else 1
        fits = array.ndim == n_axes and len(array) == n and (array.size or not n)
        if not fits or array.dtype.kind not in kinds.get(name, "f"):
            raise ValueError(
                f"{name} is {array.dtype.name} {list(array.shape)}, one row for each of {n} labels is needed"
            )
