"""Optimal transport between two sets of features."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor


@torch.no_grad()
def sinkhorn(
    cosines: Float[Tensor, "B C M N"],
    *,
    epsilon: float = 0.1,
    iterations: int = 100,
    threshold: float = 0.01,
    stop: Literal["image", "batch"] = "image",
) -> Float[Tensor, "B C M N"]:
    """Plans of least cost, 1 - cosine, and entropy: what goes from each of M features, 1/M, to each of N, 1/N in all.

    Args:
        epsilon: weight of the entropy.
        iterations: at most so many.
        threshold: they end when the scaling of the rows changes by less in the mean.
        stop: over the classes of each "image", or over the whole "batch", as in PLOT's code: plans then depend on it.

    Source: Cuturi, NeurIPS 2013, https://arxiv.org/abs/1306.0895, algorithm 1.
    """
    m, n = cosines.shape[2:]
    if 1 in (m, n):
        return uniform(cosines)  # the only plan there is
    kernel = ((cosines - 1) / epsilon).exp()
    rows, columns = torch.ones_like(kernel[..., :1]), torch.ones_like(kernel[..., :1, :])
    going = torch.ones_like(kernel[:, :1, :1, :1], dtype=torch.bool)  # images whose plans still change
    for _ in range(iterations):
        new = 1 / m / (kernel * columns).sum(-1, keepdim=True)
        change = (new - rows).abs().mean((1, 2, 3), keepdim=True)
        rows = torch.where(going, new, rows)
        columns = torch.where(going, 1 / n / (kernel * rows).sum(-2, keepdim=True), columns)
        going = going & ((change.mean() if stop == "batch" else change) >= threshold)
        if not going.any():
            break
    return rows * kernel * columns


def uniform(cosines: Float[Tensor, "B C M N"]) -> Float[Tensor, "B C M N"]:
    """The plan in which all pairs count the same."""
    return torch.full_like(cosines, 1 / cosines.shape[2:].numel())
