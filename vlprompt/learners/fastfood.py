"""Fastfood: random projections that take no matrix. Source: Le et al., ICML 2013, https://arxiv.org/abs/1408.3060."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

SHORTEST = 64  # rows of a block, at least


class Fastfood(nn.Module):
    """theta [d] -> P theta [D]. Each n rows of P (n: the power of two from `rows` on, else from d on) are the first d
    columns of H G S H B, with Hadamard matrices H, a Gaussian diagonal G, a permutation S and random signs B. Of more
    than n numbers the first n are mapped.

    A column's squared length is expected to be `norm`.
    """

    def __init__(
        self, n_in: int, n_out: int, *, norm: float, generator: torch.Generator, rows: int | None = None
    ) -> None:
        super().__init__()
        self.n_in, self.n_out = n_in, n_out
        self.n = n = 1 << ((rows or max(n_in, SHORTEST)) - 1).bit_length()
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
        return F.pad((hadamard(x) * p.signs).sum(0), (0, p.n_in - p.n)), None


def hadamard(x: Float[Tensor, "blocks n"]) -> Float[Tensor, "blocks n"]:
    """x H, where H is the Hadamard matrix of a power of two: as two products with smaller ones, H = H_a x H_b."""
    n = x.shape[1].bit_length() - 1
    if n > 16:  # these in turn
        x = hadamard(x.view(-1, 2**11)).view(len(x), -1, 2**11).transpose(1, 2)
        return hadamard(x.reshape(-1, x.shape[2])).view(x.shape).transpose(1, 2).reshape(len(x), -1)
    a, b = (_matrix(k, x) for k in (n // 2, n - n // 2))
    return (a @ x.view(-1, len(a), len(b)) @ b).reshape(x.shape)


def _matrix(k: int, like: Tensor) -> Float[Tensor, "n n"]:
    """The Hadamard matrix of 2^k."""
    h = torch.ones(1, 1, dtype=like.dtype, device=like.device)
    for _ in range(k):
        h = torch.cat([torch.cat([h, h], 1), torch.cat([h, -h], 1)])
    return h
