"""What methods have in common that learn a context in front of the class names."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from vlprompt.errors import UserError
from vlprompt.learners.base import Learner
from vlprompt.towers import Clip, Prompts


class ContextLearner(Learner):
    """A learner of a context [n, d] in front of the class names.

    `ctx_init` starts it from the embeddings of a phrase's first `n_context` tokens, whose rest stays as fixed words;
    otherwise it starts from N(0, 0.02^2).
    """

    def __init__(self, clip: Clip, classes: Sequence[str], *, n_context: int, ctx_init: str) -> None:
        super().__init__(clip, classes)
        n_words = len(ctx_init.replace("_", " ").split())
        if n_context < 1:
            raise UserError(f"method.n_context is {n_context}: at least 1 is needed")
        if ctx_init and n_context > n_words:
            raise UserError(
                f"method.ctx_init='{ctx_init}' has {n_words} words for n_context={n_context} tokens: "
                f"use method.n_context={n_words} or fewer, or a longer phrase"
            )
        self.ctx_init, self.n_context = " ".join(ctx_init.replace("_", " ").split()), n_context
        if ctx_init:
            context = self.text.embed_phrase(ctx_init)[:n_context].float().clone()
        else:
            context = torch.randn(n_context, self.text.width) * 0.02
        self.context = nn.Parameter(context)

    @classmethod
    def neutral(cls, clip: Clip, classes: Sequence[str], **settings: Any) -> Learner | None:
        """The context is the template's own words."""
        return super().neutral(clip, classes, **settings | {"n_context": 4, "ctx_init": "a photo of a"})

    def make_prompts(self) -> Prompts:
        if self.ctx_init:
            return self.text.prompts(self.classes, template=self.ctx_init + " {}.")
        return self.text.prompts(self.classes, n_context=self.n_context)
