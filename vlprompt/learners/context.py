"""What methods have in common that learn a context in front of the class names."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import nn

from vlprompt.errors import UserError
from vlprompt.learners.base import Learner, Overridden
from vlprompt.towers import Clip, Prompts

WORDS: dict[str, Any] = {"n_context": 4, "ctx_init": "a photo of a"}
"""Settings with which a context is the template's own words."""


class ContextLearner(Learner):
    """A learner of a context [n, d] in front of the class names.

    `ctx_init` starts it from the embeddings of a phrase's first `n_context` words, whose rest stays as fixed words;
    otherwise it starts from N(0, 0.02^2). With `whole_phrase` all words are learned, and `n_context` is their number or
    None.

    Raises:
        UserError: a number of tokens that the phrase does not have, or none at all.
    """

    neutral_settings: ClassVar[Mapping[str, Any] | None] = WORDS
    whole_phrase: ClassVar[bool] = False
    """Whether a phrase sets the length of the context."""

    def __init__(self, clip: Clip, classes: Sequence[str], *, n_context: int | None, ctx_init: str) -> None:
        super().__init__(clip, classes)
        words = words_of(ctx_init)
        if self.whole_phrase and words:
            if n_context not in (None, len(words)):
                raise UserError(
                    f"method.n_context is {n_context}, and the {len(words)} words of method.ctx_init='{ctx_init}' are "
                    "the context: use method.n_context=null, or method.ctx_init='' to start from random values"
                )
            n_context = len(words)
        if n_context is None:
            raise UserError("method.n_context is null, and no method.ctx_init sets it: give a number of context tokens")
        if n_context < 1:
            raise UserError(f"method.n_context is {n_context}: at least 1 is needed")
        if words and n_context > len(words):
            raise UserError(
                f"method.ctx_init='{ctx_init}' has {len(words)} words for n_context={n_context} tokens: use "
                f"method.n_context={len(words)} or fewer, a longer phrase, or method.ctx_init='' for random values"
            )
        self.ctx_init, self.n_context = " ".join(words), n_context
        if words:
            context = self.text.embed_phrase(self.ctx_init)[:n_context].float().clone()
        else:
            context = torch.randn(n_context, self.text.width) * 0.02
        self.context = nn.Parameter(context)

    @classmethod
    def resolved(cls, settings: Mapping[str, Any]) -> dict[str, Any]:
        """With the length that the phrase sets."""
        words = words_of(settings.get("ctx_init", ""))
        return {**settings, "n_context": len(words)} if cls.whole_phrase and words else dict(settings)

    @classmethod
    def overridden(cls, settings: Mapping[str, Any], *, val: bool, steps: bool) -> Overridden:
        n_words = len(words_of(settings.get("ctx_init", ""))) if cls.whole_phrase else 0
        if not n_words or settings["n_context"] in (None, n_words):
            return {}
        do = "drop it, or start from random values with method.ctx_init=''"
        return {"n_context": ("method.ctx_init", f"whose words, {n_words}, are the context: {do}")}

    def make_prompts(self) -> Prompts:
        if self.ctx_init:
            return self.text.prompts(self.classes, template=self.ctx_init + " {}.")
        return self.text.prompts(self.classes, n_context=self.n_context)


def words_of(phrase: str) -> list[str]:
    """The words of a phrase, each of which starts one token of a context; underscores separate, too."""
    return phrase.replace("_", " ").split()
