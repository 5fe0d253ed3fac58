"""What methods have in common that edit every block of a tower."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor, nn

from vlprompt.learners.base import Learner
from vlprompt.towers import Clip, Edit, Edits, ImageTower, TextTower

Towers = Literal["image", "text", "both"]


class BlockLearner(Learner):
    """A learner that edits every block of one tower or of both, and leaves the text as it is.

    `towers` holds the edited ones by name, "image" and "text"; next to a linear head that of images alone.
    """

    def __init__(self, clip: Clip, classes: Sequence[str], *, template: str, towers: Towers, **head: Any) -> None:
        super().__init__(clip, classes, template=template, **head)
        towers = "image" if self.has_head else towers
        self.towers: dict[str, ImageTower | TextTower] = {}
        if towers != "text":
            clip.image.require_blocks()
            self.towers["image"] = clip.image
        if towers != "image":
            self.towers["text"] = self.text

    @property
    def edits_image(self) -> bool:
        return "image" in self.towers

    def edits(self, tower: str) -> Edits:
        """The edits of one tower; none where it is not edited."""
        raise NotImplementedError

    def encode_classes(self) -> Float[Tensor, "C e"] | None:
        edits = self.edits("text") if "text" in self.towers else {}
        return self.text(self.prompts, edits) if edits else super().encode_classes()

    def image_edits(self) -> Edits:
        return self.edits("image")


class SiteLearner(BlockLearner):
    """A block learner with one module for each of some edit sites of each block, in `layers[tower][layer][site]`."""

    def fill(self, make: Callable[[ImageTower | TextTower, int], Mapping[str, nn.Module]]) -> None:
        """Make the modules: `make(tower, layer)` gives those of one block by site."""
        self.layers = nn.ModuleDict()
        for name, tower in self.towers.items():
            blocks = (nn.ModuleDict(dict(make(tower, layer))) for layer in range(tower.depth))
            self.layers[name] = nn.ModuleList(blocks)

    def edits(self, tower: str) -> Edits:
        layers: Any = self.layers[tower] if tower in self.towers else ()
        return {layer: Edit(**dict(sites.items())) for layer, sites in enumerate(layers)}
