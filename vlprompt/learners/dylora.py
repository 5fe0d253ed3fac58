"""DyLoRA: LoRA of all ranks at once."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vlprompt.errors import UserError
from vlprompt.learners.base import Overridden
from vlprompt.learners.head import HeadKind, HeadStart
from vlprompt.learners.lora import LoRA, LowRank
from vlprompt.learners.sites import Towers
from vlprompt.towers import Clip, Images


class NestedLowRank(LowRank):
    """The first `active` of all ranks, times alpha / active. `alone`: only the last of these is trained."""

    active: int
    alone = False

    def in_use(self) -> tuple[Float[Tensor, "r n_in"], Float[Tensor, "n_out r"], float]:
        a, b, n = self.a[: self.active], self.b[:, : self.active], self.active
        if self.alone and self.training:
            a, b = torch.cat([a[: n - 1].detach(), a[n - 1 :]]), torch.cat([b[:, : n - 1].detach(), b[:, n - 1 :]], 1)
        return a, b, self.factor * len(self.a) / n


class DyLoRA(LoRA):
    """Dynamic LoRA: each step trains the first b rows of A and columns of B, b drawn from `min_rank` to `rank`.

    W x + (alpha / b) B[:, :b] A[:b] x; every rank in between works at test time without further training.

    Args:
        rank, min_rank: the largest and the smallest rank that is trained; both equal: LoRA.
        alpha: updates are scaled by alpha / b.
        frozen: only the b-th row and column get a gradient in each step (momentum and weight decay move others, too).
        test_rank: the rank in use while not training; None: the largest.
        head, head_start: as in Learner.

    Source: Valipour et al., EACL 2023, https://arxiv.org/abs/2210.07558, section 4 and Algorithm 1; b is uniform.
    """

    update = NestedLowRank

    def __init__(
        self,
        clip: Clip,
        classes: Sequence[str],
        *,
        template: str = "a photo of a {}.",
        towers: Towers = "both",
        sites: list[str] | None = None,
        rank: int = 8,
        min_rank: int = 1,
        alpha: float = 8.0,
        dropout: float = 0.0,
        frozen: bool = False,
        test_rank: int | None = None,
        head: HeadKind = "text",
        head_start: HeadStart = "probe",
    ) -> None:
        super().__init__(
            clip, classes, template=template, towers=towers, sites=sites, rank=rank, alpha=alpha, dropout=dropout,
            head=head, head_start=head_start,
        )  # fmt: skip
        if not 1 <= min_rank <= rank:
            raise UserError(f"method.min_rank is {min_rank}, allowed is 1 to method.rank={rank}")
        self.rank, self.min_rank = rank, min_rank
        for update in self.updates():
            update.alone = frozen
        self.use_rank(rank if test_rank is None else test_rank)

    @classmethod
    def overridden(cls, settings: Mapping[str, Any], *, val: bool, steps: bool) -> Overridden:
        if settings["rank"] != 1:
            return {}
        return {"frozen": ("method.rank", "whose only rank is the last one: drop it, or use a higher rank")}

    def updates(self) -> list[NestedLowRank]:
        return [module for module in self.modules() if isinstance(module, NestedLowRank)]

    def use_rank(self, rank: int) -> None:
        """Test with the first `rank` ranks from now on.

        Raises:
            UserError: a rank that there is not.
        """
        if not 1 <= rank <= self.rank:
            raise UserError(f"method.test_rank is {rank}, allowed is 1 to method.rank={self.rank}")
        self.test_rank = rank
        self._activate(rank)

    def _activate(self, rank: int) -> None:
        for update in self.updates():
            update.active = rank

    def train(self, mode: bool = True) -> "DyLoRA":
        super().train(mode)
        self._activate(self.rank if mode else self.test_rank)
        return self

    def loss(self, images: Images, labels: Int[Tensor, " B"]) -> tuple[Float[Tensor, ""], Float[Tensor, "B C"]]:
        """Cross-entropy at a rank that is drawn anew while training."""
        if self.training:
            self._activate(int(torch.randint(self.min_rank, self.rank + 1, ())))
        return super().loss(images, labels)
