"""What methods ask of the views of an image and of their features."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vlprompt.errors import UserError
from vlprompt.learners.base import Learner, at_least_single


def entropy(probabilities: Float[Tensor, "*n C"]) -> Float[Tensor, "*n"]:
    """In nats; a probability of zero counts nothing."""
    return torch.special.entr(probabilities).sum(-1)


def by_confidence(logits: Float[Tensor, "k C"], selection: float) -> tuple[Int[Tensor, " s"], Int[Tensor, " r"]]:
    """The views of lowest entropy, `int(k * selection)` of k but at least one, and the others; the surest first.

    Of equally sure ones the first comes first. Source: Shu et al., NeurIPS 2022, https://arxiv.org/abs/2209.07511.
    """
    order = entropy(at_least_single(logits).softmax(-1)).argsort(stable=True)
    n = max(1, int(len(order) * selection))
    return order[:n], order[n:]


def check_selection(selection: float) -> None:
    """Raises: UserError for what is no share of the views."""
    if not 0 < selection <= 1:
        raise UserError(f"test_time.selection is {selection}, allowed is a share of the views, above 0 and at most 1")


def check_features(name: str, learner: Learner) -> None:
    """Raises: UserError where logits need more of an image than features to compare with classes'."""
    if type(learner).logits is not Learner.logits:
        raise UserError(
            f"test_time={name} works on the features of an image, and the logits of {type(learner).__name__} need more "
            "than these: use test_time=zero, which works on logits, or another method"
        )
