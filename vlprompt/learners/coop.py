"""CoOp: a learned context in front of, around or behind the class name."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vlprompt.errors import UserError
from vlprompt.learners.base import Learner
from vlprompt.learners.context import ContextLearner
from vlprompt.towers import Clip, Position


class CoOp(ContextLearner):
    """Context optimisation: `n_context` word vectors are learned, shared by all classes or one set for each.

    Args:
        n_context: context tokens; not used with `ctx_init`, which sets it to its number of words.
        ctx_init: a phrase whose word embeddings start the context ("a photo of a"); empty: N(0, 0.02^2).
        class_specific: a context for each class, which then works for the training classes only.
        position: where the class name stands: "end", "middle" or "front" of the context.

    Source: Zhou et al., IJCV 2022, https://arxiv.org/abs/2109.01134, section 3.2.
    """

    def __init__(
        self,
        clip: Clip,
        classes: Sequence[str],
        *,
        n_context: int = 16,
        ctx_init: str = "",
        class_specific: bool = False,
        position: Position = "end",
    ) -> None:
        if ctx_init and class_specific:
            raise UserError("method.ctx_init starts one context for all classes: drop it or method.class_specific")
        n_words = len(ctx_init.replace("_", " ").split())
        super().__init__(clip, classes, n_context=n_words or n_context, ctx_init=ctx_init)
        self.position, self.class_specific = position, class_specific
        if class_specific:
            context = torch.randn(len(self.classes), n_context, self.text.width) * 0.02
            self.context = nn.Parameter(context)  # [C, n, d]

    @classmethod
    def neutral(cls, clip: Clip, classes: Sequence[str], **settings: Any) -> Learner | None:
        settings = {name: value for name, value in settings.items() if name not in ("class_specific", "position")}
        return super().neutral(clip, classes, **settings)

    @property
    def class_bound(self) -> bool:
        return self.class_specific

    def encode_classes(self) -> Float[Tensor, "C e"]:
        if not self.class_specific:
            return self.text(self.prompts.with_context(self.context, self.position))
        return self.text(self.prompts.with_class_context(self.select(self.context), self.position))
