"""Class prompts as one table of rows without padding: what they share once, then each class's own tokens."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vlprompt.towers.block import KeysValues, attend_all


@dataclass(frozen=True)
class Packing:
    """Where tokens stand: `n_shared` rows, then the classes by the number of their own tokens, read out at the last.

    Exact, because attention is causal: shared tokens see no class, and no token sees what follows it.
    """

    n_shared: int
    counts: tuple[int, ...]  # classes of each length
    lengths: tuple[int, ...]
    ranks: Int[Tensor, " C"]  # where each class stands among those by length
    source: Int[Tensor, " T"]  # rows of the suffixes in suffix.flatten(0, 1)
    depth: Int[Tensor, " T"]  # their position in the text
    last: Int[Tensor, " C"]  # rows that are read out

    def pack(
        self, shared: Float[Tensor, "B P d"], suffix: Float[Tensor, "C S d"], positions: Float[Tensor, "L d"]
    ) -> Float[Tensor, "B R d"]:
        """The table, positions added."""
        rows = suffix.flatten(0, 1).index_select(0, self.source) + positions.index_select(0, self.depth)
        return torch.cat([shared + positions[: self.n_shared], rows.expand(len(shared), -1, -1)], 1)

    def read(self, x: Float[Tensor, "B R d"]) -> Float[Tensor, "B C d"]:
        """The rows that are read out."""
        return x.index_select(1, self.last)

    def unpack(self, x: Float[Tensor, "B C d"]) -> Float[Tensor, "B C d"]:
        """What has been read out, in the order of the classes."""
        return x.index_select(1, self.ranks)

    def attend(
        self,
        q: Float[Tensor, "B Q h c"],
        k: Float[Tensor, "B R h c"],
        v: Float[Tensor, "B R h c"],
        more: KeysValues | None = None,
    ) -> Float[Tensor, "B Q h c"]:
        """Causal attention: shared rows among themselves, a class's rows to the shared ones and to its own.

        The queries are those of all rows, or of the rows that are read out.
        """
        P, whole = self.n_shared, q.shape[1] == k.shape[1]
        sizes = [count * length for count, length in zip(self.counts, self.lengths, strict=True)]
        qs = q.split([P, *sizes] if whole else [0, *self.counts], 1)
        ks, vs = k.split([P, *sizes], 1), v.split([P, *sizes], 1)
        parts = []
        if whole:
            causal = torch.ones(P, P, dtype=torch.bool, device=q.device).tril()
            parts.append(attend_all(qs[0], ks[0], vs[0], more, mask=causal))
        shared_k, shared_v = ks[0].transpose(1, 2), vs[0].transpose(1, 2)  # [B, h, P, c]
        if more is not None:
            shared_k, shared_v = (
                torch.cat([t.expand(len(q), -1, -1, -1), s], 2) for t, s in zip(more, (shared_k, shared_v), strict=True)
            )
        shared_k, shared_v = shared_k.contiguous(), shared_v.contiguous()
        for group in zip(qs[1:], ks[1:], vs[1:], self.counts, strict=True):
            parts.append(attend_shared_and_own(*group, shared_k, shared_v))
        return torch.cat(parts, 1)


def attend_shared_and_own(
    q: Float[Tensor, "B Q h c"],
    k: Float[Tensor, "B N h c"],
    v: Float[Tensor, "B N h c"],
    n_classes: int,
    shared_k: Float[Tensor, "B h p c"],
    shared_v: Float[Tensor, "B h p c"],
) -> Float[Tensor, "B Q h c"]:
    """Attention of equally long classes to keys that all see and, causally, to their own: one softmax over both.

    The shared keys are not repeated for each class. Queries are those of each class's last rows.
    """
    q, k, v = (
        t.unflatten(1, (n_classes, -1)).permute(0, 3, 1, 2, 4).contiguous() for t in (q, k, v)
    )  # [B, h, G, n, c]
    m, n, p = q.shape[3], k.shape[3], shared_k.shape[2]
    q = q * q.shape[-1] ** -0.5
    to_shared = (q.flatten(2, 3) @ shared_k.mT).unflatten(2, (n_classes, m))
    unseen = torch.ones(m, n, dtype=torch.bool, device=q.device).triu(n - m + 1)
    to_own = (q @ k.mT).masked_fill(unseen, -torch.inf)
    weights = torch.cat([to_shared, to_own], -1).softmax(-1)
    to_shared, to_own = weights.split([p, n], -1)
    a = (to_shared.flatten(2, 3) @ shared_v).unflatten(2, (n_classes, m)) + to_own @ v
    return a.permute(0, 2, 3, 1, 4).flatten(1, 2)


@lru_cache(maxsize=64)
def packing(n_own: tuple[int, ...], width: int, n_shared: int, device: torch.device) -> Packing:
    """The packing of classes with `n_own` tokens of their own, padded to `width`, after `n_shared` common ones."""
    order = sorted(range(len(n_own)), key=lambda c: n_own[c])
    lengths = sorted(set(n_own))
    inside = [(c, i) for c in order for i in range(n_own[c])]
    ends = torch.tensor([n_own[c] for c in order]).cumsum(0) + n_shared - 1

    def index(values: list[int]) -> Tensor:
        return torch.tensor(values, device=device)

    return Packing(
        n_shared=n_shared,
        counts=tuple(n_own.count(length) for length in lengths),
        lengths=tuple(lengths),
        ranks=torch.tensor(order).argsort().to(device),
        source=index([c * width + i for c, i in inside]),
        depth=index([n_shared + i for _, i in inside]),
        last=ends.to(device),
    )
