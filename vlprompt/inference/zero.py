"""ZERO: the most confident views of an image vote."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vlprompt.inference.base import Adaptation, Adapter, ImageViews
from vlprompt.inference.views import by_confidence, check_selection
from vlprompt.learners.base import Learner, at_least_single


class Zero(Adaptation):
    """Softmax at temperature zero, summed over the views that are surest: a vote of their predictions.

    The logits are those of smoothed shares of the votes, log((votes + 1/C) / (all votes + 1)), as one more vote that
    all classes divide keeps each of them possible: their softmax is a confidence. Their logsumexp is 0 whatever the
    image is. With one view there is nothing to vote on, and the logits are the learner's.

    Args:
        selection: share of the views, `int(views * selection)` but at least one vote: those with the lowest entropy.

    Source: Farina et al., NeurIPS 2024, https://arxiv.org/abs/2405.18330, section 3; the authors' code.
    Differs: votes are whole in half precision, too; a tie that no view decides goes to the first class of it, where the
    authors' code strikes out other classes than it means to.
    """

    name = "zero"

    def __init__(self, *, views: int = 64, augmix: bool = False, selection: float = 0.3) -> None:
        super().__init__(views=views, augmix=augmix)
        check_selection(selection)
        self.selection = selection

    def start(self, learner: Learner, class_features: Float[Tensor, "C *e"] | None) -> Adapter:
        return self.adapt

    def adapt(self, image: ImageViews) -> Float[Tensor, " C"]:
        assert image.logits is not None
        if len(image.logits) == 1:
            return at_least_single(image.logits[0])
        counts = votes(image.logits, self.selection)
        return torch.log((counts + 1 / len(counts)) / (counts.sum() + 1))


def votes(logits: Float[Tensor, "k C"], selection: float) -> Float[Tensor, " C"]:
    """How many of the surest views predict each class; in a tie the winner has one more.

    The winner is the class that the surest of the other views predicts, among those that predict one of the tied.
    """
    n_classes, predicted = logits.shape[1], logits.argmax(-1)
    voters, others = by_confidence(logits, selection)
    counts = F.one_hot(predicted[voters], n_classes).sum(0)
    tied = counts == counts.max()
    if tied.sum() > 1:
        deciding = torch.cat([predicted[others], torch.arange(n_classes, device=logits.device)])
        counts[deciding[tied[deciding]][0]] += 1
    return counts.float()
