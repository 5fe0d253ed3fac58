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

    `ctx_init` starts it from the embeddings of a phrase's first `n_context` tokens, whose rest stays as fixed words;
    otherwise it starts from N(0, 0.02^2). With `whole_phrase` a phrase sets the length: its number of words, whatever
    `n_context` says. Words are what spaces and underscores separate; one of several tokens, or with a comma, therefore
    leaves the phrase's last tokens as fixed ones before the name, as in the originals.

    Raises:
        UserError: a number of tokens that the phrase does not have, or none at all.
    """

    neutral_settings: ClassVar[Mapping[str, Any] | None] = WORDS
    whole_phrase: ClassVar[bool] = False
    """Whether a phrase sets the length of the context."""
    learned_template = "{}."
    """The class name, and what stands around it after the context."""

    def __init__(self, clip: Clip, classes: Sequence[str], *, n_context: int | None, ctx_init: str) -> None:
        super().__init__(clip, classes)
        words = words_of(ctx_init)
        if self.whole_phrase and words:
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
        """Placeholders where the phrase is shorter than the context, the phrase, and the name with what follows it."""
        words = words_of(self.ctx_init)
        template = " ".join([*words, self.learned_template])
        return self.text.prompts(self.classes, template=template, n_context=max(0, self.n_context - len(words)))


def words_of(phrase: str) -> list[str]:
    """The words of a phrase, each of which starts one token of a context; underscores separate, too."""
    return phrase.replace("_", " ").split()
