"""CoOp: a learned context before, around or after the class name."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vlprompt.errors import UserError
from vlprompt.learners.base import Overridden
from vlprompt.learners.context import WORDS, ContextLearner, words_of
from vlprompt.towers import Clip, Position


class CoOp(ContextLearner):
    """Context optimisation: `n_context` word vectors are learned, shared by all classes or one set for each.

    prompt of a class = [v_1, ..., v_n, name]

    Args:
        n_context: context tokens; with `ctx_init` None or its number of words.
        ctx_init: a phrase whose word embeddings start the context ("a photo of a"); empty: N(0, 0.02^2).
        class_specific: a context for each class, which then works for the training classes only.
        position: where the class name stands: at the "end", in the "middle" or at the "front" of the context.

    Source: Zhou et al., IJCV 2022, https://arxiv.org/abs/2109.01134, section 3.2.
    """

    whole_phrase = True
    neutral_settings = WORDS | {"class_specific": False, "position": "end"}

    def __init__(
        self,
        clip: Clip,
        classes: Sequence[str],
        *,
        n_context: int | None = 16,
        ctx_init: str = "",
        class_specific: bool = False,
        position: Position = "end",
    ) -> None:
        super().__init__(clip, classes, n_context=n_context, ctx_init=ctx_init)
        if self.ctx_init and class_specific:
            raise UserError(
                f"method.ctx_init='{ctx_init}' starts one context for all classes, method.class_specific=true asks for "
                "one each: use method.ctx_init='' and a number in method.n_context, or method.class_specific=false"
            )
        self.position, self.class_specific = position, class_specific
        if class_specific:
            context = torch.randn(len(self.classes), self.n_context, self.text.width) * 0.02
            self.context = nn.Parameter(context)  # [C, n, d]

    @classmethod
    def overridden(cls, settings: Mapping[str, Any], *, val: bool, steps: bool) -> Overridden:
        overridden = super().overridden(settings, val=val, steps=steps)
        if settings.get("class_specific") and words_of(settings.get("ctx_init", "")):
            why = "which starts one context for all classes: give method.ctx_init='' and method.n_context=16, too"
            overridden["class_specific"] = ("method.ctx_init", why)
        return overridden

    @property
    def class_bound(self) -> bool:
        return self.class_specific

    def encode_classes(self) -> Float[Tensor, "C e"]:
        if not self.class_specific:
            return self.text(self.prompts.with_context(self.context, self.position))
        return self.text(self.prompts.with_class_context(self.select(self.context), self.position))
