"""Prefix tuning: learned keys and values that every token attends to."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vlprompt.errors import UserError
from vlprompt.learners.base import Overridden
from vlprompt.learners.head import HeadKind, HeadStart
from vlprompt.learners.sites import BlockLearner, Towers
from vlprompt.towers import Clip, Edit, Edits, ImageTower, Prefix, TextTower


class PrefixTuning(BlockLearner):
    """Prefix tuning: `n_tokens` learned keys and values in every block of a tower.

    softmax(q [K_prefix, K]) [V_prefix, V]

    Args:
        towers: "image", "text" or "both".
        n_tokens: keys and values a layer.
        reparameterise: learn an embedding and a two-layer network (tanh) that makes keys and values of it, as in the
            paper; otherwise learn these themselves.
        hidden: width of the network's hidden layer.
        std: deviation of the initial keys and values, or of the embedding.
        head, head_start: as in Learner.

    Source: Li and Liang, ACL 2021, https://arxiv.org/abs/2101.00190, section 4.
    Differs: bidirectional image tower.
    """

    neutral_settings = None  # its keys are attended to whatever they hold

    def __init__(
        self,
        clip: Clip,
        classes: Sequence[str],
        *,
        template: str = "a photo of a {}.",
        towers: Towers = "both",
        n_tokens: int = 4,
        reparameterise: bool = False,
        hidden: int = 128,
        std: float = 0.02,
        head: HeadKind = "text",
        head_start: HeadStart = "probe",
    ) -> None:
        super().__init__(clip, classes, template=template, towers=towers, head=head, head_start=head_start)
        if n_tokens < 1 or hidden < 1 or std <= 0:
            raise UserError(f"method.n_tokens={n_tokens}, hidden={hidden}, std={std}: all have to be positive")
        kind = Reparameterised if reparameterise else Direct
        self.prefixes = nn.ModuleDict({name: kind(t, n_tokens, hidden, std) for name, t in self.towers.items()})

    @classmethod
    def overridden(cls, settings: Mapping[str, Any], *, val: bool, steps: bool) -> Overridden:
        if settings["reparameterise"]:
            return {}
        return {"hidden": ("method.reparameterise", "which has no network: drop it, or use true")}

    def edits(self, tower: str) -> Edits:
        if tower not in self.towers:
            return {}
        pairs = self.prefixes[tower]()  # [layer, 2, h, p, c]
        return {layer: Edit(prefix=Prefix(key=key, value=value)) for layer, (key, value) in enumerate(pairs)}


class Direct(nn.Module):
    """Keys and values that are learned themselves."""

    def __init__(self, tower: ImageTower | TextTower, n_tokens: int, hidden: int, std: float) -> None:
        super().__init__()
        shape = (tower.depth, 2, tower.heads, n_tokens, tower.width // tower.heads)
        self.pairs = nn.Parameter(torch.randn(shape) * std)

    def forward(self) -> Float[Tensor, "layers 2 h p c"]:
        return self.pairs


class Reparameterised(nn.Module):
    """Keys and values made by a network from one learned embedding."""

    def __init__(self, tower: ImageTower | TextTower, n_tokens: int, hidden: int, std: float) -> None:
        super().__init__()
        self.shape = (tower.depth, 2, tower.heads, tower.width // tower.heads)
        self.embedding = nn.Parameter(torch.randn(n_tokens, tower.width) * std)
        self.network = nn.Sequential(
            nn.Linear(tower.width, hidden), nn.Tanh(), nn.Linear(hidden, tower.depth * 2 * tower.width)
        )

    def forward(self) -> Float[Tensor, "layers 2 h p c"]:
        return self.network(self.embedding).unflatten(-1, self.shape).permute(1, 2, 3, 0, 4)
