"""What methods have in common that change the weights of the frozen model itself."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from vlprompt.learners.base import Learner
from vlprompt.learners.sites import Towers
from vlprompt.towers import Clip, ImageTower


class WeightLearner(Learner):
    """A learner that runs the towers with other tensors instead of some of their own (`Clip.with_weights`).

    Next to a linear head `towers` is that of images alone.
    """

    mergeable = True
    words: ClassVar[bool] = True
    """Whether the word embeddings may be among the tensors, so that prompts are embedded anew each time."""

    def __init__(self, clip: Clip, classes: Sequence[str], *, template: str, towers: Towers, **head: Any) -> None:
        super().__init__(clip, classes, template=template, **head)
        pair: tuple[Literal["image", "text"], ...] = ("image", "text")
        self.towers = tuple(tower for tower in pair if ("image" if self.has_head else towers) in (tower, "both"))
        self._adapted: dict[str, tuple[list[tuple[int, int]], Clip]] = {}

    @property
    def edits_image(self) -> bool:
        return "image" in self.towers

    def changed(self, tower: Literal["image", "text"]) -> Mapping[str, Tensor]:
        """The tensors that replace some of one tower's own, by their names in the model's state dict."""
        raise NotImplementedError

    def adapted(self, tower: Literal["image", "text"]) -> Clip:
        """The model with the tensors of one tower changed; without gradients the same until a parameter changes."""
        if torch.is_grad_enabled():
            self._adapted.clear()
            return self.clip.with_weights(self.changed(tower))
        state = [(p.data_ptr(), p._version) for p in self.parameters()]
        if tower not in self._adapted or self._adapted[tower][0] != state:
            self._adapted[tower] = state, self.clip.with_weights(self.changed(tower))
        return self._adapted[tower][1]

    def encode_classes(self) -> Float[Tensor, "C e"] | None:
        if "text" not in self.towers:
            return super().encode_classes()
        text = self.adapted("text").text
        assert text is not None
        return text(text.prompts(self.classes, template=self.template) if self.words else self.prompts)

    def image_tower(self) -> ImageTower:
        return self.adapted("image").image if "image" in self.towers else self.clip.image

    def merge(self) -> Clip:
        return self.clip.with_weights({name: t for tower in self.towers for name, t in self.changed(tower).items()})
