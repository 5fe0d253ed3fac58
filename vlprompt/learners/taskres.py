"""TaskRes: a learned vector added to the frozen feature of each class."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vlprompt.errors import UserError
from vlprompt.learners.base import Learner
from vlprompt.towers import PLAIN, Clip, expand_templates


class TaskRes(Learner):
    """Task residual tuning: a learned vector is added to the frozen feature of each class, for the training ones only.

    class feature = t + scale * x, with t frozen and x learned from zero

    Args:
        templates: one, a list, or a published one by name. Of several, un-normalised features are averaged.
        scale: of the residual (alpha).

    Source: Yu et al., CVPR 2023, https://arxiv.org/abs/2211.10277, section 3.3; "regular base".
    Differs: underscores in class names become spaces.
    """

    class_bound = True

    def __init__(
        self,
        clip: Clip,
        classes: Sequence[str],
        *,
        templates: str | list[str] = PLAIN,
        scale: float = 0.5,
    ) -> None:
        super().__init__(clip, classes)
        if not scale:
            raise UserError("method.scale is 0, which makes every residual zero: give another number")
        self.templates, self.scale = expand_templates(templates), scale
        self.residual = nn.Parameter(torch.zeros(len(self.classes), clip.image.embed_dim))

    def encode_classes(self) -> Float[Tensor, "C e"]:
        return self.zero_shot_features(self.templates, normalize=False) + self.scale * self.select(self.residual)
