"""TCP: class-aware tokens, made of the frozen class features, in a later layer of the text tower."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from vlprompt.errors import UserError
from vlprompt.learners.base import Overridden, at_least_single, check_depth, normalize
from vlprompt.learners.context import WORDS
from vlprompt.learners.kgcoop import KgCoOp
from vlprompt.towers import PLAIN, Clip, Edit


class TCP(KgCoOp):
    """Textual-based class-aware prompt tuning: KgCoOp whose context is replaced at one layer by class-aware tokens.

    tokens of a class = W_up act(W_down t), with the class's frozen feature t

    Args:
        n_context, ctx_init, template, weight: as in KgCoOp.
        layer: of the text tower, counted from 0, before which the tokens are written; None: nowhere, which is KgCoOp.
        reduction: the network's hidden layer has 1/reduction of the embedding's width.

    Source: Yao et al., CVPR 2024, https://arxiv.org/abs/2311.18231, section 3.3. Written from memory: not checked
    against the paper are which layer is meant, that tokens replace the context's rather than being mixed with them, and
    the network's activation.
    """

    neutral_settings = WORDS | {"layer": None}

    def __init__(
        self,
        clip: Clip,
        classes: Sequence[str],
        *,
        n_context: int | None = 4,
        ctx_init: str = "a photo of a",
        template: str = PLAIN,
        weight: float = 8.0,
        layer: int | None = 8,
        reduction: int = 4,
    ) -> None:
        super().__init__(clip, classes, n_context=n_context, ctx_init=ctx_init, template=template, weight=weight)
        self.layer = layer
        if layer is None:
            return
        check_depth("method.layer + 1", layer + 1, self.text.depth)
        if layer < 1 or reduction < 1:
            raise UserError(f"method.layer={layer}, reduction={reduction}: at least 1 is needed of each")
        n_in, n_out = self.text.embed_dim, self.n_context * self.text.width
        self.down, self.up = nn.Linear(n_in, n_in // reduction), nn.Linear(n_in // reduction, n_out)

    @classmethod
    def overridden(cls, settings: Mapping[str, Any], *, val: bool, steps: bool) -> Overridden:
        overridden = super().overridden(settings, val=val, steps=steps)
        if settings["layer"] is None:
            overridden["reduction"] = ("method.layer", "so that there is no network: drop it, or give a layer")
        else:  # its tokens are made of the features of the template
            overridden.pop("template", None)
        return overridden

    def encode_classes(self) -> Float[Tensor, "C e"]:
        if self.layer is None:
            return super().encode_classes()
        hidden = self.down(normalize(self.zero_shot_features([self.template])))
        tokens = self.up(hidden * (1.702 * hidden).sigmoid())  # CLIP's QuickGELU
        tokens = at_least_single(tokens).unflatten(-1, (self.n_context, -1))  # [C, n, d]
        return self.text(self.prompts.with_context(self.context), {self.layer: Edit(tokens=tokens[None])})
