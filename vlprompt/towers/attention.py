"""What the rows of an image tower take from each other: softmax weights, and their rollout over the layers."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from vlprompt.towers.block import KeysValues, heads_first
from vlprompt.towers.edits import NONE, Edits, overwrites


@dataclass(frozen=True)
class Weighed:
    """`attend_all` in steps, so that its weights can be kept: [B, h, queries, keys] of each call."""

    weights: list[Tensor] = field(default_factory=list)

    def __call__(
        self,
        q: Float[Tensor, "B Q h c"],
        k: Float[Tensor, "B N h c"],
        v: Float[Tensor, "B N h c"],
        more: KeysValues | None = None,
    ) -> Float[Tensor, "B Q h c"]:
        q, k, v = heads_first(q, k, v, more)
        weights = (q * q.shape[-1] ** -0.5 @ k.mT).softmax(-1)
        self.weights.append(weights)
        return (weights.to(v.dtype) @ v).transpose(1, 2)


def as_table(weights: Sequence[Tensor], edits: Edits, depth: int, n_prefix: int) -> Float[Tensor, "L B h N N"]:
    """The weights of all blocks in tables of one size, where layers have prompts and prefixes of different length.

    After the `n_prefix` leading tokens there are slots for prompt tokens, then for a prefix's keys, as many of each as
    the layer with the most has; then the patches. A slot that a layer does not use is a column of zeros. A row of
    zeros is a slot that does not look at anything: a key, an unused slot, or a prompt that the next layer overwrites.
    All other rows sum to one; to a prefix with a gate, to one and the gate in addition.
    """
    calls, layers, width = iter(weights), [], 0
    for layer in range(depth):
        edit = edits.get(layer, NONE)
        width = width if edit.tokens is None else edit.tokens.shape[-2]
        of_layer = next(calls)
        if edit.prefix is not None and edit.prefix.gate is not None:
            gated = edit.prefix.gate.to(of_layer)[:, None, None] * of_layer
            of_layer = torch.cat([gated, next(calls)], -1)
        layers.append((of_layer, width))
    n_prompts = max(width for _, width in layers)
    n_keys = max(w.shape[-1] - w.shape[-2] for w, _ in layers)
    tables = []
    for layer, (of_layer, width) in enumerate(layers):
        B, h, n_rows, n_columns = of_layer.shape
        first = n_prefix + n_prompts  # of the slots for keys
        rows = torch.arange(n_rows)
        rows[n_prefix + width :] += n_prompts - width + n_keys
        columns = torch.cat([first + torch.arange(n_columns - n_rows), rows])
        N = first + n_keys + n_rows - n_prefix - width
        table = of_layer.new_zeros(B, h, N, N)
        table[:, :, rows[:, None].to(table.device), columns.to(table.device)] = of_layer
        if overwrites(edits.get(layer + 1, NONE)):
            table[:, :, n_prefix : n_prefix + width] = 0
        tables.append(table)
    return torch.stack(tables)


def rollout(attention: Float[Tensor, "L B h N N"]) -> Float[Tensor, "B N N"]:
    """How much of what each row ends with came from each column, if values only ever mix: rows sum to one.

    The product over layers of (A + 1) / 2, with A the mean over heads. A row that does not look at anything (see
    `as_table`) holds only itself: what was learned, and nothing of the image. Weights to a prefix with a gate, which
    may be negative, count by their size.

    Source: Abnar and Zuidema, ACL 2020, https://arxiv.org/abs/2005.00928, section 3.
    """
    unit = torch.eye(attention.shape[-1], device=attention.device)
    flow = unit.expand(attention.shape[1], -1, -1)
    for layer in attention.float():
        mean = layer.abs().mean(1)
        total = mean.sum(-1, keepdim=True)
        looks = total > 0
        mixed = torch.where(looks, (mean / total.where(looks, 1.0) + unit) / 2, unit)
        flow = torch.where(looks, mixed @ flow, unit)
    return flow
