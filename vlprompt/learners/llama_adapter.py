"""LLaMA-Adapter: learned prompts with a gate that is closed at the start."""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vlprompt.errors import UserError
from vlprompt.learners.base import check_depth
from vlprompt.learners.head import HeadKind, HeadStart
from vlprompt.learners.sites import BlockLearner, Towers
from vlprompt.towers import Clip, Edit, Edits, ImageTower, Prefix, TextTower


class LlamaAdapter(BlockLearner):
    """Zero-initialised attention: in the topmost `depth` blocks every token attends to `n_tokens` learned prompts, too.

    attention + gate * softmax(q k_prompts) v_prompts, with a gate for each head that starts at zero: the learner
    starts as the frozen model. Keys and values of the prompts come from the block's frozen projections.

    Args:
        towers: "image", "text" or "both".
        n_tokens: prompts a block.
        depth: how many blocks, counted from the output.
        gate: "tanh" of the learned number, as in the original's training code, or the number itself ("linear").
        std: deviation of the initial prompts.
        head, head_start: as in Learner.

    Source: Zhang et al., ICLR 2024, https://arxiv.org/abs/2303.16199, section 3.
    """

    def __init__(
        self,
        clip: Clip,
        classes: Sequence[str],
        *,
        template: str = "a photo of a {}.",
        towers: Towers = "both",
        n_tokens: int = 10,
        depth: int = 10,
        gate: Literal["tanh", "linear"] = "tanh",
        std: float = 1.0,
        head: HeadKind = "text",
        head_start: HeadStart = "probe",
    ) -> None:
        super().__init__(clip, classes, template=template, towers=towers, head=head, head_start=head_start)
        if n_tokens < 1 or std <= 0:
            raise UserError(f"method.n_tokens={n_tokens}, std={std}: both have to be positive")
        check_depth("method.depth", depth, min(tower.depth for tower in self.towers.values()))
        prompted = {name: GatedPrompts(tower, n_tokens, depth, gate, std) for name, tower in self.towers.items()}
        self.prompted = nn.ModuleDict(prompted)

    def edits(self, tower: str) -> Edits:
        if tower not in self.towers:
            return {}
        prefixes = self.prompted[tower]()
        first = self.towers[tower].depth - len(prefixes)
        return {layer: Edit(prefix=prefix) for layer, prefix in enumerate(prefixes, start=first)}


class GatedPrompts(nn.Module):
    """Prompts and gates of one tower's topmost blocks."""

    def __init__(self, tower: ImageTower | TextTower, n_tokens: int, depth: int, gate: str, std: float) -> None:
        super().__init__()
        self.tokens: Float[Tensor, "L p d"] = nn.Parameter(torch.randn(depth, n_tokens, tower.width) * std)
        self.gates: Float[Tensor, "L h"] = nn.Parameter(torch.zeros(depth, tower.heads))
        self.tanh = gate == "tanh"

    def forward(self) -> list[Prefix]:
        pairs = zip(self.tokens, self.gates.tanh() if self.tanh else self.gates, strict=True)
        return [Prefix(tokens=tokens, gate=gate) for tokens, gate in pairs]
