"""Intrinsic dimension: d numbers, mapped into all weights by a fixed random projection."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vlprompt.errors import UserError
from vlprompt.learners.head import HeadKind, HeadStart
from vlprompt.learners.sites import Towers
from vlprompt.learners.weights import WeightLearner
from vlprompt.towers import Clip

SHORTEST = 64  # rows of a block, at least


class IntrinsicDimension(WeightLearner):
    """Intrinsic dimension: the pre-trained weights move within a random subspace of d dimensions.

    W + P theta, with theta [d] learned from zero and P a Fastfood projection with columns of unit length. P is drawn
    from `projection_seed` and never stored: the checkpoint is d numbers. It takes about twice the memory of the
    weights, whatever d is. `fit.lr` is about the length of Adam's step among the weights: the rate is divided by the
    root of d, so that one setting does for a curve over d.

    Args:
        dimension: d.
        towers: "image", "text" or "both": whose weights. The word embeddings stay.
        projection_seed: of P.
        head, head_start: as in Learner.

    Source: Li et al., ICLR 2018, https://arxiv.org/abs/1804.08838, section 2 and S7; Aghajanyan et al., ACL 2021,
    https://arxiv.org/abs/2012.13255, section 3; the projection: Le et al., ICML 2013, https://arxiv.org/abs/1408.3060.
    """

    words = False

    def __init__(
        self,
        clip: Clip,
        classes: Sequence[str],
        *,
        template: str = "a photo of a {}.",
        towers: Towers = "both",
        dimension: int = 200,
        projection_seed: int = 0,
        head: HeadKind = "text",
        head_start: HeadStart = "probe",
    ) -> None:
        super().__init__(clip, classes, template=template, towers=towers, head=head, head_start=head_start)
        sizes = {tower: sum(t.numel() for t in self.frozen(tower).values()) for tower in self.towers}
        total = sum(sizes.values())
        if not 1 <= dimension <= total:
            raise UserError(f"method.dimension is {dimension}, allowed is 1 to {total:,}, the weights there are")
        self.theta = nn.Parameter(torch.zeros(dimension))
        generator = torch.Generator().manual_seed(projection_seed)
        self.projections = nn.ModuleDict(
            {tower: Fastfood(dimension, size, norm=size / total, generator=generator) for tower, size in sizes.items()}
        )

    def frozen(self, tower: Literal["image", "text"]) -> Mapping[str, Tensor]:
        """The weights that the projection leads into."""
        return {name: t for name, t in self.clip.tensors(tower).items() if "token_embedding" not in name}

    def changed(self, tower: Literal["image", "text"]) -> Mapping[str, Tensor]:
        frozen = self.frozen(tower)
        moves = self.projections[tower](self.theta).split([t.numel() for t in frozen.values()])
        return {name: t + move.view(t.shape).to(t.dtype) for (name, t), move in zip(frozen.items(), moves, strict=True)}

    def param_groups(self, fit: Any) -> list[dict[str, Any]]:
        return [{"params": [self.theta], "lr": fit.lr / math.sqrt(len(self.theta))}, *self.head_groups()]


class Fastfood(nn.Module):
    """theta [d] -> P theta [D]. Each n rows of P (n: the power of two from d on) are the first d columns of H G S H B,
    with Hadamard matrices H, a Gaussian diagonal G, a permutation S and random signs B.

    A column's squared length is expected to be `norm`.
    """

    def __init__(self, n_in: int, n_out: int, *, norm: float, generator: torch.Generator) -> None:
        super().__init__()
        self.n_in, self.n_out = n_in, n_out
        self.n = n = max(1 << (n_in - 1).bit_length(), SHORTEST)
        blocks = math.ceil(n_out / n)
        signs = torch.randint(0, 2, (blocks, n), generator=generator, dtype=torch.int8) * 2 - 1
        order = torch.rand(blocks, n, generator=generator).argsort(1)
        gains = torch.randn(blocks, n, generator=generator)
        gains *= math.sqrt(norm / n_out) / gains.norm(dim=1, keepdim=True)
        # not in the checkpoint: the seed says it all
        self.register_buffer("signs", signs, persistent=False)
        self.register_buffer("order", order.to(torch.int16 if n <= 2**15 else torch.int32), persistent=False)
        self.register_buffer("gains", gains, persistent=False)

    def forward(self, theta: Float[Tensor, " d"]) -> Float[Tensor, " D"]:
        with torch.autocast(theta.device.type, enabled=False):
            return _Project.apply(theta, self)


class _Project(torch.autograd.Function):
    """P theta; the gradient is P^T's. Nothing of the size of the weights is kept in between."""

    @staticmethod
    def forward(ctx: Any, theta: Tensor, p: Any) -> Tensor:
        ctx.p = p
        x = hadamard(p.signs * F.pad(theta, (0, p.n - p.n_in)))
        return hadamard(x.gather(1, p.order.long()) * p.gains).flatten()[: p.n_out]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        p = ctx.p
        y = F.pad(grad, (0, p.signs.numel() - p.n_out)).view(-1, p.n)
        y = hadamard(y) * p.gains
        x = torch.zeros_like(y).scatter_(1, p.order.long(), y)
        return (hadamard(x) * p.signs).sum(0)[: p.n_in], None


def hadamard(x: Float[Tensor, "blocks n"]) -> Float[Tensor, "blocks n"]:
    """x H, where H is the Hadamard matrix of a power of two: as two products with smaller ones, H = H_a x H_b."""
    n = x.shape[1].bit_length() - 1
    a, b = (_matrix(k, x) for k in (n // 2, n - n // 2))
    return (a @ x.view(-1, len(a), len(b)) @ b).reshape(x.shape)


def _matrix(k: int, like: Tensor) -> Float[Tensor, "n n"]:
    """The Hadamard matrix of 2^k."""
    h = torch.ones(1, 1, dtype=like.dtype, device=like.device)
    for _ in range(k):
        h = torch.cat([torch.cat([h, h], 1), torch.cat([h, -h], 1)])
    return h
