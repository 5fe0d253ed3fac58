"""Scores of a test whose classes are the trained ones and others, where nobody says which kind an image is.

An image is known where its class was trained on, else new. All scores come from one softmax over all classes.
"""

from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Bool, Float, Shaped

from vlprompt.results.predictions import Predictions

ACCEPTED = 95  # percent of the known images, for the false positive rate


def auroc(known: Float[np.ndarray, " K"], new: Float[np.ndarray, " M"]) -> float:
    """How often a known image has the larger score of a pair of both kinds, ties half; an image of each is needed."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(np.arange(len(known) + len(new)) < len(known), np.concatenate([known, new])))


def false_positive_rate(
    known: Float[np.ndarray, " K"], new: Float[np.ndarray, " M"], accepted: int = ACCEPTED
) -> float:
    """The share of new images that score at least the threshold: the largest that `accepted` % of the known reach.

    scikit-learn's `roc_curve` has it as the first rate whose true positive rate is at least `accepted` %. Differs: the
    code of MCM takes the threshold whose share of accepted images is closest to 95 %, be it above or below.
    """
    n_accepted = -(-accepted * len(known) // 100)
    threshold = np.sort(known)[len(known) - n_accepted]
    return float((new >= threshold).mean())


def openworld_auc_of(
    known: Float[np.ndarray, " K"],
    new: Float[np.ndarray, " M"],
    known_right: Bool[np.ndarray, " K"],
    new_right: Bool[np.ndarray, " M"],
) -> float:
    """The share of (known, new) pairs with both images right and the known one's score larger, ties half.

    AUROC among the images that are right, times the share of pairs they make: O(n log n). Where nothing of one kind is
    right it is 0.
    """
    pairs = known_right.mean() * new_right.mean()
    return float(pairs * auroc(known[known_right], new[new_right])) if pairs else 0.0


def log_odds(predictions: Predictions) -> Float[np.ndarray, " N"]:
    """log(P(trained classes) / P(others)), the logsumexp of one side less that of the other.

    It orders images as the probability of all trained classes does, and has no ties where that rounds to 1.
    """
    assert predictions.side_logsumexp is not None
    sides = predictions.side_logsumexp.astype(np.float64)
    return sides[:, 0] - sides[:, 1]


def largest_known(predictions: Predictions) -> Float[np.ndarray, " N"]:
    """The logarithm of the largest probability of a trained class, softmax over all classes: OpenworldAUC's score."""
    assert predictions.side_logsumexp is not None
    assert predictions.side_logit is not None
    sides = predictions.side_logsumexp.astype(np.float64)
    return predictions.side_logit[:, 0] - sides[:, 0] - np.logaddexp(0, sides[:, 1] - sides[:, 0])


def by_side(predictions: Predictions, values: np.ndarray) -> tuple[Shaped[np.ndarray, " K"], Shaped[np.ndarray, " M"]]:
    """Of the known images, and of the new ones."""
    assert predictions.known is not None
    return values[predictions.known], values[~predictions.known]


def open_auroc(predictions: Predictions) -> float:
    """AUROC of known against new images by the probability of all trained classes (`log_odds`)."""
    return auroc(*by_side(predictions, log_odds(predictions)))


def open_fpr95(predictions: Predictions) -> float:
    """The share of new images taken for known at the threshold that accepts 95 % of the known ones (`log_odds`)."""
    return false_positive_rate(*by_side(predictions, log_odds(predictions)))


def openworld_auc(predictions: Predictions) -> float:
    """OpenworldAUC: the share of (known, new) pairs in which each image has its class among those of its own side, and
    the largest probability of a trained class is larger for the known one; ties half.

    Source: Hua et al., "OpenworldAUC", ICML 2025, https://arxiv.org/abs/2505.05180, with the first stage's score of its
    repository (huacong/OpenworldAUC). Where all new images score above all known ones the repository counts pairs with
    both images wrong; the definition does not.
    """
    assert predictions.known is not None
    assert predictions.side_class is not None
    in_side = np.where(predictions.known, *predictions.side_class.T)
    return openworld_auc_of(
        *by_side(predictions, largest_known(predictions)), *by_side(predictions, np.equal(in_side, predictions.labels))
    )


def open_base(predictions: Predictions) -> float:
    """Accuracy of the known images among all classes."""
    return float(by_side(predictions, predictions.predicted == predictions.labels)[0].mean())


def open_novel(predictions: Predictions) -> float:
    """Accuracy of the new images among all classes."""
    return float(by_side(predictions, predictions.predicted == predictions.labels)[1].mean())


def open_H(predictions: Predictions) -> float:  # noqa: N802  # the field's name
    """Harmonic mean of both accuracies among all classes, 0 where both are 0 (as in generalised zero-shot learning).

    Source: Xian et al., TPAMI 2018, https://arxiv.org/abs/1707.00600, section 4.
    """
    base, novel = open_base(predictions), open_novel(predictions)
    return 2 * base * novel / (base + novel) if base + novel else 0.0


SCORES: Mapping[str, Callable[[Predictions], float]] = {
    function.__name__: function for function in (open_auroc, openworld_auc, open_base, open_novel, open_H, open_fpr95)
}


def open_world_scores(predictions: Predictions) -> dict[str, float]:
    """All of them; none of a test that is no open world, or whose images are all of one kind."""
    known = predictions.known
    if known is None or known.all() or not known.any():
        return {}
    return {name: of(predictions) for name, of in SCORES.items()}
