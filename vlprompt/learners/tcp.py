"""TCP: class-aware tokens, made of the frozen class features, in a later layer of the text tower."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from vlprompt.errors import UserError
from vlprompt.learners.base import Overridden, at_least_single, check_depth, normalize
from vlprompt.learners.context import WORDS, words_of
from vlprompt.learners.kgcoop import KgCoOp
from vlprompt.towers import PLAIN, Clip, Edit


class TCP(KgCoOp):
    """Textual-based class-aware prompt tuning: KgCoOp whose context is replaced at one layer by class-aware tokens.

    tokens of a class = W_up act(W_down t), with the class's normalised frozen feature t and CLIP's QuickGELU

    Args:
        n_context, ctx_init, template, weight: as in KgCoOp.
        learned_template: the class name and what stands around it after the context: "{}, a type of pet.".
        layer: of the text tower, counted from 0, before which the tokens are written; None: nowhere, which is KgCoOp.
        n_tokens: class-aware tokens, the first ones of the text; None: as many as the context has.
        reduction: the network's hidden layer has 1/reduction of the embedding's width.

    Source: Yao et al., CVPR 2024, https://arxiv.org/abs/2311.18231, section 3.3; layer, network and texts as in the
    authors' code (htyao89/Textual-based_Class-aware_prompt_tuning, commit bd97bec, trainers/tcp.py).
    """

    neutral_settings = WORDS | {"learned_template": "{}.", "layer": None}

    def __init__(
        self,
        clip: Clip,
        classes: Sequence[str],
        *,
        n_context: int | None = 4,
        ctx_init: str = "",
        learned_template: str = "{}.",
        template: str = PLAIN,
        weight: float = 8.0,
        layer: int | None = 8,
        n_tokens: int | None = None,
        reduction: int = 4,
    ) -> None:
        super().__init__(clip, classes, n_context=n_context, ctx_init=ctx_init, template=template, weight=weight)
        self.learned_template, self.layer = learned_template, layer
        if layer is None:
            return
        check_depth("method.layer + 1", layer + 1, self.text.depth)
        if layer < 1 or reduction < 1:
            raise UserError(f"method.layer={layer}, reduction={reduction}: at least 1 is needed of each")
        room = self.n_context + len(words_of(learned_template.partition("{}")[0]))
        self.n_tokens = self.n_context if n_tokens is None else n_tokens
        if not 1 <= self.n_tokens <= room:
            raise UserError(f"method.n_tokens is {n_tokens}, allowed is 1 to {room}, the tokens before the class name")
        n_in, n_out = self.text.embed_dim, self.n_tokens * self.text.width
        self.down, self.up = nn.Linear(n_in, n_in // reduction), nn.Linear(n_in // reduction, n_out)

    @classmethod
    def overridden(cls, settings: Mapping[str, Any], *, val: bool, steps: bool) -> Overridden:
        overridden = super().overridden(settings, val=val, steps=steps)
        if settings["layer"] is None:
            why = "so that there is no network: drop it, or give a layer"
            overridden |= dict.fromkeys(("n_tokens", "reduction"), ("method.layer", why))
        else:  # its tokens are made of the features of the template
            overridden.pop("template", None)
        return overridden

    def class_tokens(self) -> Float[Tensor, "C n d"]:
        """What is written into the text of each class."""
        hidden = self.down(normalize(self.zero_shot_features([self.template])))
        tokens = at_least_single(self.up(hidden * (1.702 * hidden).sigmoid()))
        return tokens.unflatten(-1, (self.n_tokens, -1))

    def encode_classes(self) -> Float[Tensor, "C e"]:
        if self.layer is None:
            return super().encode_classes()
        edits = {self.layer: Edit(tokens=self.class_tokens()[None])}
        return self.text(self.prompts.with_context(self.context), edits)
