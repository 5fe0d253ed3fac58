"""CoCoOp: a learned context that each image shifts."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vlprompt.learners.base import Learner, scaled_cosine
from vlprompt.learners.context import ContextLearner
from vlprompt.towers import Clip

PROMPTS_AT_ONCE = 4096  # images x classes in one pass of the text tower, where no gradients are kept


class CoCoOp(ContextLearner):
    """Conditional context optimisation: a small network turns the image's feature into a shift of every context token.

    context(x) = [v_1 + h(f), ..., v_n + h(f)], with h(f) = W2 relu(W1 f)

    Args:
        n_context: context tokens; with `ctx_init` None or its number of words.
        ctx_init: a phrase whose word embeddings start the context; empty: N(0, 0.02^2).
        reduction: the network's hidden layer has 1/reduction of the embedding's width.

    Source: Zhou et al., CVPR 2022, https://arxiv.org/abs/2203.05557, section 3.2.
    """

    whole_phrase = True

    def __init__(
        self,
        clip: Clip,
        classes: Sequence[str],
        *,
        n_context: int | None = 4,
        ctx_init: str = "a photo of a",
        reduction: int = 16,
    ) -> None:
        super().__init__(clip, classes, n_context=n_context, ctx_init=ctx_init)
        embed_dim, hidden = clip.image.embed_dim, clip.image.embed_dim // reduction
        layers = [nn.Linear(embed_dim, hidden), nn.ReLU(), nn.Linear(hidden, self.text.width)]
        self.meta_net = nn.Sequential(OrderedDict(zip(("linear1", "relu", "linear2"), layers, strict=True)))

    @classmethod
    def neutral(cls, clip: Clip, classes: Sequence[str], **settings: Any) -> Learner | None:
        """The words of the template, not shifted: the network's output is zero."""
        learner: Any = super().neutral(clip, classes, **settings)
        for p in learner.meta_net.linear2.parameters():
            nn.init.zeros_(p)
        return learner

    def encode_classes(self) -> None:
        """They depend on the image."""

    def compare(self, features: Float[Tensor, "B e"], class_features: Tensor | None) -> Float[Tensor, "B C"]:
        if class_features is not None:  # of one context for all images
            return super().compare(features, class_features)
        parts = [features] if torch.is_grad_enabled() else features.split(max(1, PROMPTS_AT_ONCE // len(self.classes)))
        pairs = ((f, c) for part in parts for f, c in zip(part, self.classes_for(part), strict=True))
        return torch.cat([scaled_cosine(f[None], c, self.clip.scale) for f, c in pairs])

    def classes_for(self, features: Tensor, class_features: Tensor | None = None) -> Float[Tensor, "B C e"]:
        return self.text(self.prompts.with_context(self.context_for(features)))

    def context_for(self, features: Float[Tensor, "B e"]) -> Float[Tensor, "B n d"]:
        return self.context + self.meta_net(F.normalize(features.to(self.context.dtype), dim=-1))[:, None]
