"""Zero-shot CLIP."""

from collections.abc import Sequence

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vlprompt.errors import UserError
from vlprompt.learners.base import Learner
from vlprompt.towers import Clip, ensemble


class ZeroShot(Learner):
    """The frozen model with class names in one template or in an ensemble of them; nothing is trained.

    Args:
        templates: one template, a list of them, or a published list by name (`openai_80`, `openai_7`). Of several,
            the normalised features are averaged.

    Source: Radford et al., ICML 2021, https://arxiv.org/abs/2103.00020, section 3.1.4.
    """

    def __init__(self, clip: Clip, classes: Sequence[str], *, templates: str | list[str] = "a photo of a {}.") -> None:
        super().__init__(clip, classes)
        if isinstance(templates, str):
            templates = [templates] if "{}" in templates else list(ensemble(templates))
        if not templates:
            raise UserError("method.templates is empty: give one template with {} for the class name, or several")
        self.templates = templates

    def encode_classes(self) -> Float[Tensor, "C e"]:
        prompts = (self.text.prompts(self.classes, template=template) for template in self.templates)
        features = [F.normalize(self.text(p), dim=-1) for p in prompts]
        return sum(features[1:], features[0]) / len(features)
