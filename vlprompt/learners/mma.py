"""MMA: adapters next to whole blocks of both towers, which share a small layer."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vlprompt.errors import UserError
from vlprompt.learners.base import Learner, check_depth
from vlprompt.towers import Clip, Edit, Edits


class MMA(Learner):
    """Multi-modal adapters: block(x) + alpha * up(relu(shared(relu(down(norm1(x)))))), in the upper blocks.

    Down and up are the tower's own, shared is both towers'. The gradients of their weights are those without alpha;
    what flows on to lower blocks is the true gradient.

    Args:
        first_layer, last_layer: counted from 0, in both towers; None: the last that both have.
        dim: width of the shared layer.
        alpha: above 0.

    Source: Yang et al., CVPR 2024, section 3, and the authors' code (https://github.com/ZjjConan/VLM-MultiModalAdapter
    at c3d0bc2), whose numbers it reproduces.
    """

    needs = frozenset({"text", "vit"})
    edits_image = True
    neutral_settings = None  # up does not start at zero

    def __init__(
        self,
        clip: Clip,
        classes: Sequence[str],
        *,
        template: str = "a photo of a {}.",
        first_layer: int = 4,
        last_layer: int | None = None,
        dim: int = 32,
        alpha: float = 0.001,
    ) -> None:
        super().__init__(clip, classes, template=template)
        depth = min(clip.image.depth, self.text.depth)
        last = depth - 1 if last_layer is None else last_layer
        check_depth("method.last_layer + 1", last + 1, depth)
        if not 0 <= first_layer <= last or dim < 1 or alpha <= 0:
            raise UserError(
                f"method.first_layer={first_layer}, dim={dim}, alpha={alpha}: allowed are 0 to {last} (the last layer "
                "with an adapter), at least 1, and above 0"
            )
        self.alpha, self.layers = alpha, range(first_layer, last + 1)
        widths = {"text": self.text.width, "image": clip.image.width}
        self.down = nn.ModuleDict({tower: self.maps(width, dim) for tower, width in widths.items()})
        self.up = nn.ModuleDict({tower: self.maps(dim, width) for tower, width in widths.items()})
        self.shared = self.maps(dim, dim)

    def maps(self, n_in: int, n_out: int) -> nn.ModuleDict:
        """A map for each layer, by its number, as He et al. start what a ReLU follows (by the number of outputs)."""
        maps = {str(layer): nn.Linear(n_in, n_out) for layer in self.layers}
        for linear in maps.values():
            nn.init.kaiming_normal_(linear.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(linear.bias)
        return nn.ModuleDict(maps)

    def edits(self, tower: str) -> Edits:
        parts: Any = (self.down[tower], self.shared, self.up[tower])
        return {layer: Edit(skip=partial(self.adapt, *(part[str(layer)] for part in parts))) for layer in self.layers}

    def adapt(self, down: nn.Linear, shared: nn.Linear, up: nn.Linear, u: Tensor) -> Tensor:
        """[*rows, d] -> [*rows, d], next to a block that reads u."""
        y = up(F.relu(shared(F.relu(down(scale_gradient(u, self.alpha))))))
        return scale_gradient(self.alpha * y, 1 / self.alpha)

    def encode_classes(self) -> Float[Tensor, "C e"]:
        return self.text(self.prompts, self.edits("text"))

    def image_edits(self) -> Edits:
        return self.edits("image")


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """The same numbers, whose gradient is multiplied by a factor."""
    return torch.lerp(x.detach(), x, factor)
