"""LoRA: low-rank updates of the frozen linear maps."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vlprompt.errors import UserError
from vlprompt.learners.base import Overridden
from vlprompt.learners.head import HeadKind, HeadStart
from vlprompt.learners.sites import SiteLearner, Towers
from vlprompt.towers import Clip, ImageTower, TextTower

MAPS = ("q", "k", "v", "o", "fc1", "fc2")


class LowRank(nn.Module):
    """factor * B A dropout(x)."""

    def __init__(self, n_in: int, n_out: int, rank: int, factor: float, dropout: float) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.empty(rank, n_in))
        self.b = nn.Parameter(torch.zeros(n_out, rank))
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))
        self.factor, self.dropout = factor, nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "*rows n_in"]) -> Float[Tensor, "*rows n_out"]:
        a, b, factor = self.in_use()
        return self.dropout(x) @ a.T @ b.T * factor

    def matrix(self) -> Float[Tensor, "n_out n_in"]:
        a, b, factor = self.in_use()
        return b @ a * factor

    def in_use(self) -> tuple[Float[Tensor, "r n_in"], Float[Tensor, "n_out r"], float]:
        """A, B and the factor."""
        return self.a, self.b, self.factor


class LoRA(SiteLearner):
    """Low-rank adaptation of some linear maps of every block.

    W x + (alpha / r) B A dropout(x); B starts at zero, the learner as the frozen model.

    Args:
        towers: "image", "text" or "both".
        head, head_start: as in Learner.
        sites: which maps: any of q, k, v, o, fc1, fc2.
        rank, alpha: r and alpha above.
        scaling: "alpha/r", or "alpha/sqrt(r)" (rank-stabilised; CLIP-LoRA).
        dropout: on the input of each update, drawn for each map, while training.

    Source: Hu et al., ICLR 2022, https://arxiv.org/abs/2106.09685, section 4.1; Kalajdzievski, 2023,
    https://arxiv.org/abs/2312.03732; Zanella and Ben Ayed, CVPR Workshops 2024, https://arxiv.org/abs/2405.18541.
    """

    mergeable = True
    update: ClassVar[type[LowRank]] = LowRank

    def __init__(
        self,
        clip: Clip,
        classes: Sequence[str],
        *,
        template: str = "a photo of a {}.",
        towers: Towers = "both",
        sites: list[str] | None = None,
        rank: int = 2,
        alpha: float = 1.0,
        scaling: Literal["alpha/r", "alpha/sqrt(r)"] = "alpha/r",
        dropout: float = 0.0,
        head: HeadKind = "text",
        head_start: HeadStart = "probe",
    ) -> None:
        super().__init__(clip, classes, template=template, towers=towers, head=head, head_start=head_start)
        sites = ["q", "k", "v"] if sites is None else list(sites)
        if not sites or not set(sites) <= set(MAPS):
            raise UserError(f"method.sites is {sites}, allowed are one or more of {', '.join(MAPS)}")
        if not alpha:
            raise UserError("method.alpha is 0, which makes every update zero: give another number")
        if rank < 1 or not 0 <= dropout < 1:
            raise UserError(f"method.rank={rank}, dropout={dropout}: allowed are at least 1, and 0 to below 1")
        factor = alpha / (rank if scaling == "alpha/r" else math.sqrt(rank))

        def make(tower: ImageTower | TextTower, layer: int) -> dict[str, nn.Module]:
            matrices = {site: tower.blocks[layer].matrices[site] for site in sites}
            return {site: self.update(m.n_in, m.n_out, rank, factor, dropout) for site, m in matrices.items()}

        self.fill(make)

    @classmethod
    def overridden(cls, settings: Mapping[str, Any], *, val: bool, steps: bool) -> Overridden:
        if settings["rank"] != 1:
            return {}
        return {"scaling": ("method.rank", "whose root is 1, too: drop it, or use a higher rank")}

    def updates_by_site(self) -> dict[tuple[str, int, str], LowRank]:
        """The updates by tower, layer and site."""
        return {
            (tower, layer, site): update
            for tower in self.towers
            for layer, edit in self.edits(tower).items()
            for site in MAPS
            if isinstance(update := getattr(edit, site), LowRank)
        }

    def merge(self) -> Clip:
        """The model with the updates added to its weights: the same function without any edit."""
        return self.clip.merge({site: update.matrix() for site, update in self.updates_by_site().items()})
