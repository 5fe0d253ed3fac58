"""Out-of-distribution detection: do a test's images score higher than those of other data sets?"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import fmean

import numpy as np
from jaxtyping import Float, Shaped
from torch import Tensor

from vlprompt.errors import NonFiniteError, UserError
from vlprompt.results.open_world import auroc, false_positive_rate
from vlprompt.results.predictions import ROWS_AT_ONCE
from vlprompt.results.record import checked, damaged

OOD = "ood.npz"  # next to the record
INSIDE = ""  # what a test's own images are called next to the names of data sets


@dataclass(frozen=True)
class OodScores:
    """Scores of images among the classes of one test, in float64; the higher, the more in distribution.

    The logits are those that the test judges by, after a calibration, if there is one: a temperature is then that of
    `mcm`, too.

    `mcm`: the largest softmax probability of the logits divided by the scale of cosines: of cosines, at temperature 1,
    where class features classify; of a head, a cache or a mixture their softmax at that temperature. Source: Ming et
    al., NeurIPS 2022, https://arxiv.org/abs/2211.13445, section 3. `max_logit`: the largest logit. Source: Hendrycks et
    al., ICML 2022, https://arxiv.org/abs/1911.11132, section 3. `energy`: the negative free energy, logsumexp of the
    logits (T = 1). Source: Liu et al., NeurIPS 2020, https://arxiv.org/abs/2010.03759, section 3. `msp`: the largest
    softmax probability of the logits. Source: Hendrycks and Gimpel, ICLR 2017, https://arxiv.org/abs/1610.02136,
    section 3.
    """

    images: Shaped[np.ndarray, " N"]  # the image's name within its data set
    mcm: Float[np.ndarray, " N"]
    max_logit: Float[np.ndarray, " N"]
    energy: Float[np.ndarray, " N"]
    msp: Float[np.ndarray, " N"]

    @classmethod
    def from_logits(cls, images: Sequence[str], logits: Float[Tensor, "N C"], *, scale: float) -> "OodScores":
        """`scale` is the temperature of `mcm`. Raises: NonFiniteError where a logit is NaN or infinite."""
        if not logits.isfinite().all():
            raise NonFiniteError("the logits of images out of distribution are NaN or infinite: use precision=fp32.")
        columns = [_scores(rows.double(), scale) for rows in logits.split(ROWS_AT_ONCE)]
        mcm, max_logit, energy, msp = (np.concatenate(parts) for parts in zip(*columns, strict=True))
        return cls(np.array(images, dtype=np.str_), mcm, max_logit, energy, msp)

    def __len__(self) -> int:
        return len(self.images)


SCORES = tuple(field.name for field in fields(OodScores) if field.name != "images")


def _scores(logits: Float[Tensor, "N C"], scale: float) -> list[Float[np.ndarray, " N"]]:
    mcm, msp = (x.softmax(dim=1).amax(dim=1) for x in (logits / scale, logits))
    return [x.cpu().numpy() for x in (mcm, logits.amax(dim=1), logits.logsumexp(dim=1), msp)]


def score_ood(scores: Mapping[str, OodScores]) -> dict[str, float]:
    """AUROC and FPR95 of each score, `mcm_auroc` and so on: fractions, means over the data sets out of distribution.

    `scores`: those of the test's own images as `INSIDE`, and those of each data set out of distribution. Where there
    are several, each has numbers of its own, too, as in `mcm_auroc/dtd`.
    """
    inside, outside = scores[INSIDE], {name: of_set for name, of_set in scores.items() if name != INSIDE}
    of_sets = {name: _compared(inside, of_set) for name, of_set in outside.items()}
    metrics = [f"{score}_{kind}" for score in SCORES for kind in ("auroc", "fpr95")] if of_sets else []
    means = {metric: fmean(of_set[metric] for of_set in of_sets.values()) for metric in metrics}
    if len(of_sets) < 2:
        return means
    return means | {f"{metric}/{name}": of_set[metric] for name, of_set in of_sets.items() for metric in metrics}


def _compared(inside: OodScores, outside: OodScores) -> dict[str, float]:
    values: dict[str, float] = {}
    for score in SCORES:
        positive, negative = getattr(inside, score), getattr(outside, score)
        values[f"{score}_auroc"] = auroc(positive, negative)
        values[f"{score}_fpr95"] = false_positive_rate(positive, negative)
    return values


def save_ood(path: Path, scores: Mapping[str, Mapping[str, OodScores]]) -> None:
    """Write the scores of all tests into one compressed file, as arrays `<test>/<data set>/<field>`."""
    arrays = {
        f"{test}/{name}/{field}": array
        for test, of_test in scores.items()
        for name, of_set in of_test.items()
        for field, array in asdict(of_set).items()
    }
    np.savez_compressed(path, **arrays)


def load_ood(path: Path) -> dict[str, dict[str, OodScores]]:
    """The scores of a run, by test and data set. Raises: DamagedError where the file is missing or damaged."""
    scores: dict[str, dict[str, OodScores]] = {}
    try:
        with np.load(checked(path), allow_pickle=False) as file:
            for key in dict.fromkeys(key.rpartition("/")[0] for key in file.files):
                test, _, name = key.rpartition("/")
                arrays = {field.name: file[f"{key}/{field.name}"] for field in fields(OodScores)}
                _check_arrays(arrays)
                scores.setdefault(test, {})[name] = OodScores(**arrays)
        if lacking := [test for test, of_test in scores.items() if INSIDE not in of_test]:
            raise ValueError(f"the test {lacking[0]} lacks the scores of its own images")
    except UserError:
        raise
    except Exception as error:  # numpy, zipfile and zlib raise a dozen kinds for a file that is damaged
        raise damaged(path, str(error) or type(error).__name__) from error
    return scores


def _check_arrays(arrays: Mapping[str, np.ndarray]) -> None:
    """Raises: ValueError where shapes or types are not those of scores."""
    n = len(arrays["images"])
    for name, array in arrays.items():
        if array.shape != (n,) or array.dtype.kind != ("U" if name == "images" else "f"):
            raise ValueError(f"{name} is {array.dtype.name} {list(array.shape)}, one for each of {n} images is needed")
