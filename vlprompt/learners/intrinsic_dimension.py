"""Intrinsic dimension: d numbers, mapped into all weights by a fixed random projection."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vlprompt.errors import UserError
from vlprompt.learners.base import Overridden
from vlprompt.learners.fastfood import Fastfood
from vlprompt.learners.head import HeadKind, HeadStart
from vlprompt.learners.sites import Towers
from vlprompt.learners.weights import WeightLearner
from vlprompt.towers import Clip


class IntrinsicDimension(WeightLearner):
    """Intrinsic dimension: the pre-trained weights move within a random subspace of d dimensions.

    W + P theta, with theta [d] learned from zero and P a Fastfood projection, drawn from `projection_seed` and never
    stored: the checkpoint is d numbers. `fit.lr` is about the length of Adam's step among the weights: the rate is
    divided by the root of d, and of the number of tensors where each of them moves by |theta|.

    Args:
        dimension: d.
        projection: "li": columns of unit length over all weights; takes about twice their memory, whatever d is.
            "aghajanyan" (their DID): a projection for each tensor, which moves by |theta| (by the first numbers of
            theta if it has fewer than d of its own); up to five times the memory. "said": the same, and the move of a
            layer has a learned scale that starts at 1; the m scales are of the d numbers, theta is the other d - m.
        scales: of "said": for each "layer" as in the paper (a block; one more for the rest of a tower), or "tensor"
            as in the public code.
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
        projection: Literal["li", "aghajanyan", "said"] = "li",
        scales: Literal["layer", "tensor"] = "layer",
        projection_seed: int = 0,
        head: HeadKind = "text",
        head_start: HeadStart = "probe",
    ) -> None:
        super().__init__(clip, classes, template=template, towers=towers, head=head, head_start=head_start)
        sizes = {tower: [t.numel() for t in self.frozen(tower).values()] for tower in self.towers}
        total = sum(map(sum, sizes.values()))
        units = {name: name if scales == "tensor" else layer_of(name) for t in self.towers for name in self.frozen(t)}
        layers = list(dict.fromkeys(units.values()))
        self.scale_of = {name: layers.index(unit) for name, unit in units.items()}
        self.n_moves = 1 if projection == "li" else len(units)
        m = len(layers) if projection == "said" else 0
        if not m < dimension <= total:
            why = f" (the scales of projection=said are {m} of them)" if m else ""
            raise UserError(
                f"method.dimension is {dimension}{why}, allowed is {m + 1} to {total:,}, the weights there are"
            )
        self.theta = nn.Parameter(torch.zeros(dimension - m))
        self.scales = nn.Parameter(torch.ones(m)) if m else None
        g, d = torch.Generator().manual_seed(projection_seed), dimension - m
        self.projections = nn.ModuleDict()
        for tower, numels in sizes.items():
            if projection == "li":
                self.projections[tower] = Fastfood(d, sum(numels), norm=sum(numels) / total, generator=g)
            else:
                each = (Fastfood(d, n, norm=1.0, generator=g, rows=n) for n in numels)
                self.projections[tower] = nn.ModuleList(each)

    @classmethod
    def overridden(cls, settings: Mapping[str, Any], *, val: bool, steps: bool) -> Overridden:
        if settings["projection"] == "said":
            return {}
        return {"scales": ("method.projection", "which has none: drop it, or use method.projection=said")}

    def frozen(self, tower: Literal["image", "text"]) -> Mapping[str, Tensor]:
        """The weights that the projection leads into."""
        return {name: t for name, t in self.clip.tensors(tower).items() if "token_embedding" not in name}

    def changed(self, tower: Literal["image", "text"]) -> Mapping[str, Tensor]:
        frozen, projection = self.frozen(tower), self.projections[tower]
        if isinstance(projection, Fastfood):
            moves: Sequence[Tensor] = projection(self.theta).split([t.numel() for t in frozen.values()])
        else:
            assert isinstance(projection, nn.ModuleList)
            moves = [p(self.scaled(name)) for name, p in zip(frozen, projection, strict=True)]
        return {name: t + move.view(t.shape).to(t.dtype) for (name, t), move in zip(frozen.items(), moves, strict=True)}

    def scaled(self, name: str) -> Float[Tensor, " d"]:
        """theta times the scale of a tensor's layer, which is the same as to scale what it is mapped to."""
        return self.theta if self.scales is None else self.scales[self.scale_of[name]] * self.theta

    def param_groups(self, fit: Any) -> list[dict[str, Any]]:
        length = math.sqrt(len(self.theta) * self.n_moves)  # that of a step of one in each number, among the weights
        numbers = [self.theta] if self.scales is None else [self.theta, self.scales]
        return [{"params": numbers, "lr": fit.lr / length}, *self.head_groups()]


def layer_of(name: str) -> str:
    """The block that a tensor is of; of those outside of all blocks, the tower."""
    block = re.match(r".*?\.\d+\.|visual\.", name)
    return block[0] if block else ""
