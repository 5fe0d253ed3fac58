"""A linear classifier on the frozen image tower's features."""

import math
from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from vlprompt.learners.base import Learner
from vlprompt.towers import Clip


class LinearHead(Learner):
    """Linear probing by gradient descent: the baseline of visual prompt tuning. Works for the training classes only.

    Source: Jia et al., ECCV 2022, https://arxiv.org/abs/2203.12119, section 4.1 ("Linear").
    """

    needs = frozenset()
    class_bound = True

    def __init__(self, clip: Clip, classes: Sequence[str]) -> None:
        super().__init__(clip, classes)
        self.head = make_head(clip.image.embed_dim, len(self.classes))

    @classmethod
    def neutral(cls, clip: Clip, classes: Sequence[str], **settings: Any) -> None:
        """Nowhere: its head knows no names."""

    def encode_classes(self) -> None:
        """The head holds them."""

    def compare(
        self, features: Float[Tensor, "B e"], class_features: Float[Tensor, "C e"] | None
    ) -> Float[Tensor, "B C"]:
        return self.select(self.head(features).to(self.head.weight.dtype), 1)

    def param_groups(self, fit: Any) -> list[dict[str, Any]]:
        return without_decay_on_bias(self)


def make_head(width: int, n_classes: int) -> nn.Linear:
    """VPT's head: weights N(0, 2 / n_classes), biases -log(99), so that every class starts at 1 % (under a sigmoid)."""
    head = nn.Linear(width, n_classes)
    nn.init.kaiming_normal_(head.weight, mode="fan_out")
    nn.init.constant_(head.bias, -math.log(99))
    return head


def without_decay_on_bias(learner: nn.Module) -> list[dict[str, Any]]:
    """Two groups: the head's bias is not decayed."""
    bias = [p for name, p in learner.named_parameters() if name == "head.bias"]
    others = [p for name, p in learner.named_parameters() if name != "head.bias"]
    return [{"params": others}, {"params": bias, "weight_decay": 0.0}]
