"""MaPLe: text prompts in several layers, and image prompts that are linear functions of them."""

import copy
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vlprompt.learners.base import check_depth
from vlprompt.learners.context import ContextLearner
from vlprompt.towers import Clip, Edit, Edits


class MaPLe(ContextLearner):
    """Multi-modal prompt learning: text tokens in each of the first `depth` layers, and image tokens made of them.

    image tokens of layer l = W_l (text tokens of layer l) + b_l

    Args:
        n_context: tokens a layer, in both towers.
        ctx_init: a phrase whose first `n_context` words start the first layer; the rest of it stays as fixed words.
        depth: layers with learned tokens; those of later layers start from N(0, 0.02^2).

    Source: Khattak et al., CVPR 2023, https://arxiv.org/abs/2210.03117, section 3.2.
    Differs: prompts are not rounded through float16.
    """

    needs = frozenset({"text", "vit"})
    edits_image = True
    context_names = ("context", "deep", "coupling")
    neutral_settings = None  # its tokens are attended to whatever they hold

    def __init__(
        self,
        clip: Clip,
        classes: Sequence[str],
        *,
        n_context: int = 2,
        ctx_init: str = "a photo of a",
        depth: int = 9,
    ) -> None:
        super().__init__(clip, classes, n_context=n_context, ctx_init=ctx_init)
        check_depth("method.depth", depth, min(clip.image.depth, self.text.depth))
        d_text, d_image = self.text.width, clip.image.width
        self.deep = nn.ParameterList(torch.randn(n_context, d_text) * 0.02 for _ in range(depth - 1))
        later = nn.Linear(d_text, d_image)  # the couplings of later layers start alike, as in the original
        copies = (copy.deepcopy(later) for _ in range(depth - 1))
        self.coupling = nn.ModuleList([nn.Linear(d_text, d_image), *copies])

    def encode_classes(self) -> Float[Tensor, "C e"]:
        edits = {layer: Edit(tokens=tokens) for layer, tokens in enumerate(self.deep, start=1)}
        return self.text(self.prompts.with_context(self.context), edits)

    def image_edits(self) -> Edits:
        prompts = enumerate(zip((self.context, *self.deep), self.coupling, strict=True))
        return {layer: Edit(tokens=couple(t)) for layer, (t, couple) in prompts}
