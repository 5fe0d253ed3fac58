"""Batches of features, half of them images and half texts, and the rate of their training."""

import math
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vlprompt.errors import UserError

Samples = tuple[Float[Tensor, "_ e"], Int[Tensor, "_"]]
"""Features and their classes."""


def shares(size: int, n_kinds: int) -> list[int]:
    """How many of a batch are images and texts, or images alone."""
    return [size] if n_kinds == 1 else [size - size // 2, size // 2]


def fitting(sizes: Sequence[int], kinds: Sequence[Samples]) -> list[int]:
    """The batch sizes of which each share is smaller than what it is drawn from; if none is, the largest size that is.

    Raises: UserError for a single image.
    """
    there = [len(labels) for _, labels in kinds]

    def fits(size: int) -> bool:
        return all(a < b for a, b in zip(shares(size, len(there)), there, strict=True))

    fit = [size for size in sizes if fits(size)] or [size for size in range(1, min(sizes)) if fits(size)][-1:]
    if not fit:
        raise UserError(f"cross_modal draws batches from images and there are {there[0]}: give at least two")
    return fit


def half_batches(kinds: Sequence[Samples], size: int, *, seed: int) -> Iterator[Samples]:
    """Endless batches; each kind of samples has an order of its own."""
    parts = [
        shuffled(*samples, n, torch.Generator().manual_seed(seed + i))
        for i, (samples, n) in enumerate(zip(kinds, shares(size, len(kinds)), strict=True))
        if n
    ]
    for pieces in zip(*parts, strict=True):
        yield torch.cat([features for features, _ in pieces]), torch.cat([labels for _, labels in pieces])


def shuffled(
    features: Float[Tensor, "N e"], labels: Int[Tensor, " N"], size: int, generator: torch.Generator
) -> Iterator[Samples]:
    """Pass after pass; what is left of one is dropped."""
    while True:
        order = torch.randperm(len(labels), generator=generator).to(labels.device)
        for rows in order[: len(labels) // size * size].split(size):
            yield features[rows], labels[rows]


def warm_cosine(step: int, rate: float, *, warmup: int, first: float, period: int) -> float:
    """The rate of a 0-based step: `first`, then a line to `rate`, then a cosine to 0 of `period` steps."""
    if step < warmup:
        return rate * step / warmup if step else first
    return rate * (1 + math.cos(math.pi * (step - warmup) / period)) / 2
