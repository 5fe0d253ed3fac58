"""Zero-shot CLIP."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor

from vlprompt.learners.base import Learner
from vlprompt.towers import Clip, expand_templates


class ZeroShot(Learner):
    """The frozen model with class names in one template or in an ensemble of them; nothing is trained.

    logits = scale * cosine(image feature, class feature)

    Args:
        templates: one template, a list of them, or a published list by name (`openai_80`, `openai_7`). Of several,
            the normalised features are averaged.

    Source: Radford et al., ICML 2021, https://arxiv.org/abs/2103.00020, section 3.1.4.
    """

    def __init__(self, clip: Clip, classes: Sequence[str], *, templates: str | list[str] = "a photo of a {}.") -> None:
        super().__init__(clip, classes)
        self.templates = expand_templates(templates)

    @classmethod
    def takes_steps(cls, settings: Mapping[str, Any]) -> bool:
        return False

    def encode_classes(self) -> Float[Tensor, "C e"]:
        return self.zero_shot_features(self.templates)


class OtherModel(ZeroShot):
    """A model in which class names classify and which may be another than the frozen one: nothing is trained."""

    @property
    def edits_image(self) -> bool:
        return not self.clip.image.frozen

    def encode_classes(self) -> Float[Tensor, "C e"]:
        return self.zero_shot_features(self.templates, normalize=len(self.templates) > 1)
