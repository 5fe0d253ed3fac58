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

    `ctx_init` starts it from a phrase's first `n_context` tokens, whose rest stays as fixed words; otherwise it starts
    from N(0, 0.02^2). With `whole_phrase` a phrase sets the length: its words, separated by spaces or underscores. One
    of several tokens, or with a comma, thus leaves the phrase's last tokens before the name, as in the originals.

    Raises:
        UserError: a number of tokens that the phrase does not have, or none at all.
    """

    neutral_settings: ClassVar[Mapping[str, Any] | None] = WORDS
    whole_phrase: ClassVar[bool] = False  # whether a phrase sets the length of the context
    learned_template = "{}."  # the class name, and what stands around it after the context

    def __init__(self, clip: Clip, classes: Sequence[str], *, n_context: int | None, ctx_init: str) -> None:
        super().__init__(clip, classes)
        words = words_of(ctx_init)
        if self.whole_phrase and words:
            n_context = len(words)
        if n_context is None or n_context < 1:
            given = "null, and no method.ctx_init sets it" if n_context is None else n_context
            raise UserError(f"method.n_context is {given}: give a number of context tokens, at least 1")
        if words and n_context > len(words):
            raise UserError(
                f"method.ctx_init='{ctx_init}' has {len(words)} words for n_context={n_context} tokens: use "
                f"method.n_context={len(words)} or fewer, a longer phrase, or method.ctx_init='' for random values"
            )
        self.ctx_init, self.n_context = " ".join(words), n_context
        phrase = self.text.embed_phrase(self.ctx_init)[:n_context].float().clone() if words else None
        self.context = nn.Parameter(torch.randn(n_context, self.text.width) * 0.02 if phrase is None else phrase)

    @classmethod
    def resolved(cls, settings: Mapping[str, Any]) -> dict[str, Any]:
        """With the length that the phrase sets."""
        words = words_of(settings.get("ctx_init", ""))
        return {**settings, "n_context": len(words)} if cls.whole_phrase and words else dict(settings)

    @classmethod
    def overridden(cls, settings: Mapping[str, Any], *, val: bool, steps: bool) -> Overridden:
        n_words = len(words_of(settings.get("ctx_init", ""))) if cls.whole_phrase else 0
        do = "drop it, or start from random values with method.ctx_init=''"
        rule = {"n_context": ("method.ctx_init", f"whose words, {n_words}, are the context: {do}")}
        return rule if n_words and settings["n_context"] not in (None, n_words) else {}

    def make_prompts(self) -> Prompts:
        """Placeholders where the phrase is shorter than the context, the phrase, and the name with what follows it."""
        template, placeholders = f"{self.ctx_init} {self.learned_template}", self.n_context - len(self.ctx_init.split())
        return self.text.prompts(self.classes, template=template.strip(), n_context=max(0, placeholders))


def words_of(phrase: str) -> list[str]:
    """The words of a phrase, each of which starts one token of a context; underscores separate, too."""
    return phrase.replace("_", " ").split()
