"""Independent prompts in both towers, or in the text tower alone."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vlprompt.errors import UserError
from vlprompt.learners.base import Overridden, check_depth
from vlprompt.learners.context import WORDS, ContextLearner
from vlprompt.towers import Clip, Edit, Edits


class IVLP(ContextLearner):
    """Independent vision-language prompting: learned tokens in the first layers of each tower, without coupling.

    Args:
        n_context: text tokens a layer.
        ctx_init: a phrase whose first `n_context` words start the first text layer.
        n_tokens: image tokens a layer.
        depth, image_depth: text and image layers with learned tokens; 0 image layers leave the image tower alone.

    Source: Khattak et al., CVPR 2023, https://arxiv.org/abs/2210.03117, section 4.2 and Table 1; Rasheed et al., CVPR
    2023, https://arxiv.org/abs/2212.03640.
    """

    neutral_settings = WORDS | {"depth": 1, "image_depth": 0}
    context_names = ("context", "deep")

    def __init__(
        self,
        clip: Clip,
        classes: Sequence[str],
        *,
        n_context: int = 2,
        ctx_init: str = "a photo of a",
        depth: int = 12,
        n_tokens: int = 2,
        image_depth: int = 12,
    ) -> None:
        super().__init__(clip, classes, n_context=n_context, ctx_init=ctx_init)
        check_depth("method.depth", depth, self.text.depth)
        self.deep = nn.ParameterList(torch.randn(n_context, self.text.width) * 0.02 for _ in range(depth - 1))
        if image_depth:
            clip.image.require_blocks()
            check_depth("method.image_depth", image_depth, clip.image.depth)
            if n_tokens < 1:
                raise UserError(f"method.n_tokens is {n_tokens}: at least 1 is needed, or method.image_depth=0")
        self.image_tokens = nn.ParameterList(torch.randn(n_tokens, clip.image.width) * 0.02 for _ in range(image_depth))

    @classmethod
    def overridden(cls, settings: Mapping[str, Any], *, val: bool, steps: bool) -> Overridden:
        overridden = super().overridden(settings, val=val, steps=steps)
        if not settings["image_depth"]:
            why = "which leaves the image tower alone: drop it, or give image layers"
            overridden["n_tokens"] = ("method.image_depth", why)
        return overridden

    @property
    def edits_image(self) -> bool:
        return len(self.image_tokens) > 0

    def encode_classes(self) -> Float[Tensor, "C e"]:
        edits = {layer: Edit(tokens=tokens) for layer, tokens in enumerate(self.deep, start=1)}
        return self.text(self.prompts.with_context(self.context), edits)

    def image_edits(self) -> Edits:
        return {layer: Edit(tokens=tokens) for layer, tokens in enumerate(self.image_tokens)}
