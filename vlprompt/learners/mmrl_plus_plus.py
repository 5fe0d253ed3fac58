"""MMRL++: MMRL with shared maps and tokens that flow from layer to layer."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vlprompt.errors import UserError
from vlprompt.learners.base import at_least_single
from vlprompt.learners.mmrl import MMRL
from vlprompt.towers import PLAIN, Clip, Edit, Edits


class MMRLPlusPlus(MMRL):
    """MMRL whose maps are one for all layers, with low-rank residuals, and whose tokens stay in part in their slot.

    Layer l maps the tokens by W + A_l B_l and a bias of its own, and writes beta * tokens + (1 - beta) * (what the
    block before left); the second projection is the frozen one + A B. B starts at zero, biases equal.

    Args:
        n_tokens, space, first_layer, alpha, weight, std: as in MMRL.
        beta: share of a layer's own tokens.
        target_beta: the same where images are of another data set than the one trained on; None: beta.
        rank, projection_rank: of the maps' residuals, and of the projection's.

    Source: Guo and Gu, IJCV 2026, https://arxiv.org/abs/2505.10088, section 3, and the authors' code
    (https://github.com/yunncheng/MMRL at 27d8821), whose numbers it reproduces.
    Differs: the model's own scale instead of 100.
    """

    revision = 1

    def __init__(
        self,
        clip: Clip,
        classes: Sequence[str],
        *,
        template: str = PLAIN,
        n_tokens: int = 5,
        space: int = 512,
        first_layer: int = 5,
        alpha: float = 0.7,
        beta: float = 0.9,
        target_beta: float | None = None,
        weight: float = 1.0,
        rank: int = 4,
        projection_rank: int = 64,
        std: float = 0.02,
    ) -> None:
        super().__init__(
            clip, classes, template=template, n_tokens=n_tokens, space=space, first_layer=first_layer, alpha=alpha,
            weight=weight, std=std,
        )  # fmt: skip
        self.beta, self.target_beta = beta, beta if target_beta is None else target_beta
        if not 0 <= min(self.beta, self.target_beta) <= max(self.beta, self.target_beta) <= 1:
            raise UserError(f"method.beta={beta}, target_beta={target_beta}: allowed are 0 to 1")
        if min(rank, projection_rank) < 1:
            raise UserError(f"method.rank={rank}, projection_rank={projection_rank}: allowed are 1 and more")
        self.maps = nn.ModuleDict({tower: Aligner(maps[0], len(maps), rank) for tower, maps in self.maps.items()})  # type: ignore[arg-type, index]
        assert clip.image.projection is not None
        del self.projection
        d, e = clip.image.projection.shape
        self.residual = LowRankPair(d, e, projection_rank)

    def edits(self, tower: str) -> Edits:
        written = at_least_single(self.maps[tower](self.tokens))
        share = self.target_beta if self.transfer else self.beta
        return {layer: Edit(tokens=tokens, share=share) for layer, tokens in enumerate(written, self.first_layer)}

    def token_projection(self) -> Float[Tensor, "d e"]:
        frozen: Any = self.clip.image.projection
        return frozen + self.residual()


class LowRankPair(nn.Module):
    """A B, of one matrix or of several: A uniform within 1 / sqrt(rank), B zero."""

    def __init__(self, n_in: int, n_out: int, rank: int, *many: int) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.empty(*many, n_in, rank).uniform_(-1, 1) / math.sqrt(rank))
        self.b = nn.Parameter(torch.zeros(*many, rank, n_out))

    def forward(self) -> Float[Tensor, "*many n_in n_out"]:
        return self.a @ self.b


class Aligner(nn.Module):
    """(W + A_l B_l) x + bias_l for each layer l."""

    def __init__(self, first: nn.Linear, layers: int, rank: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(first.weight.detach())
        self.residual = LowRankPair(first.out_features, first.in_features, rank, layers)
        self.bias = nn.Parameter(first.bias.detach().repeat(layers, 1))

    def forward(self, x: Float[Tensor, "n space"]) -> Float[Tensor, "l n d"]:
        return x @ (self.weight + self.residual()).mT + self.bias[:, None]
