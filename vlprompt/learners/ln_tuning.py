"""LayerNorm tuning: the norms of the blocks, and nothing else."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from vlprompt.errors import UserError
from vlprompt.learners.base import Overridden
from vlprompt.learners.full_finetune import FullFinetune
from vlprompt.learners.head import HeadKind, HeadStart
from vlprompt.learners.sites import Towers
from vlprompt.towers import Clip


class LNTuning(FullFinetune):
    """LayerNorm tuning: gains and biases of the norms within blocks; those around these stay, as in the authors' code.

    Args:
        towers: "image", "text" or "both".
        first_image_layer, first_text_layer: the 0-based first block of each tower whose norms are trained.
        head, head_start: as in Learner.

    Source: Farina et al., CVPR 2025, https://arxiv.org/abs/2503.11609, section 3, the first stage by itself
    (`ln_only` in https://github.com/FarinaMatteo/rethinking_fewshot_vlms at 64ac143), whose numbers it reproduces.
    """

    words = False

    def __init__(
        self,
        clip: Clip,
        classes: Sequence[str],
        *,
        template: str = "a photo of a {}.",
        towers: Towers = "both",
        first_image_layer: int = 0,
        first_text_layer: int = 0,
        head: HeadKind = "text",
        head_start: HeadStart = "probe",
    ) -> None:
        self.first = {"image": first_image_layer, "text": first_text_layer}  # which the base class needs for `trains`
        super().__init__(clip, classes, template=template, towers=towers, head=head, head_start=head_start)
        for name in self.towers:
            tower = clip.image if name == "image" else self.text
            if name == "image":
                clip.image.require_blocks()
            if not 0 <= self.first[name] < tower.depth:
                allowed = f"allowed is 0 to {tower.depth - 1}, the blocks of this tower"
                raise UserError(f"method.first_{name}_layer is {self.first[name]}, {allowed}")

    @classmethod
    def overridden(cls, settings: Mapping[str, Any], *, val: bool, steps: bool) -> Overridden:
        frozen = {"image": "first_text_layer", "text": "first_image_layer"}.get(settings["towers"])
        return {frozen: ("method.towers", "so that this tower is not trained: drop it, or use both")} if frozen else {}

    def trains(self, name: str, tower: str) -> bool:
        return self.is_norm(name) and (layer := layer_of(name)) is not None and layer >= self.first[tower]

    def is_norm(self, name: str) -> bool:
        """Whether a weight is a LayerNorm's."""
        return isinstance(self.clip.weights.root.get_submodule(name.rpartition(".")[0]), nn.LayerNorm)


def layer_of(name: str) -> int | None:
    """The 0-based block that a weight stands in; None where it is in none."""
    block = re.search(r"blocks\.(\d+)\.", name)
    return int(block[1]) if block else None
