"""KgCoOp: CoOp whose classes stay near those of the frozen model."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from vlprompt.learners.base import Overridden, at_least_single
from vlprompt.learners.context import WORDS
from vlprompt.learners.coop import CoOp
from vlprompt.towers import PLAIN, Clip, Images


class KgCoOp(CoOp):
    """Knowledge-guided context optimisation: CoOp whose class features stay near those of the frozen model.

    loss = cross-entropy + weight * (1 - mean cosine to the frozen class features)

    Args:
        n_context, ctx_init: as in CoOp.
        template: the text that the frozen class features come from.
        weight: of the second term (lambda).

    Source: Yao et al., CVPR 2023, https://arxiv.org/abs/2303.13283, section 3.2.
    """

    neutral_settings = WORDS

    def __init__(
        self,
        clip: Clip,
        classes: Sequence[str],
        *,
        n_context: int | None = 4,
        ctx_init: str = "a photo of a",
        template: str = PLAIN,
        weight: float = 8.0,
    ) -> None:
        super().__init__(clip, classes, n_context=n_context, ctx_init=ctx_init)
        self.template, self.weight = template, weight

    @classmethod
    def overridden(cls, settings: Mapping[str, Any], *, val: bool, steps: bool) -> Overridden:
        overridden = super().overridden(settings, val=val, steps=steps)
        if not settings["weight"]:
            why = "so that nothing is held near the frozen features: drop it, or give another weight"
            overridden["template"] = ("method.weight", why)
        return overridden

    def loss(self, images: Images, labels: Int[Tensor, " B"]) -> tuple[Float[Tensor, ""], Float[Tensor, "B C"]]:
        classes = self.encode_classes()
        logits = self.logits(images, classes)
        return F.cross_entropy(logits, labels) + self.weight * self.distance(classes), logits

    def distance(self, classes: Float[Tensor, "C e"]) -> Float[Tensor, ""]:
        """1 - mean cosine between class features and the frozen ones."""
        frozen = self.zero_shot_features([self.template])
        return 1 - F.cosine_similarity(at_least_single(classes), at_least_single(frozen), eps=1e-7).mean()
