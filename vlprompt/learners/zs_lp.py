"""ZS-LP: a linear probe that starts as the zero-shot classifier."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from vlprompt.learners.base import Batches, Learner
from vlprompt.towers import PLAIN, Clip, Images, expand_templates


class ZSLP(Learner):
    """A linear probe that starts as the zero-shot classifier. Works for the training classes only.

    logits = scale * cos(f, w), where the class weights w start as the texts' features and are learned without decay.

    Args:
        templates: one, a list, or a published one by name. Of several, un-normalised features are averaged.
        texts: half of each batch gives way to features of texts, of classes and templates at random (cross-modal
            linear probing as this paper has it).

    Source: Silva-Rodríguez et al., CVPR 2024, https://arxiv.org/abs/2312.12730, section 3.2, and the authors' code
    (https://github.com/jusiro/CLAP at dbdf409), whose numbers it reproduces.
    Differs: underscores in class names become spaces; text features are not rounded to float16.
    """

    class_bound = True

    def __init__(
        self, clip: Clip, classes: Sequence[str], *, templates: str | list[str] = PLAIN, texts: bool = False
    ) -> None:
        super().__init__(clip, classes)
        self.templates, self.texts = expand_templates(templates), texts
        self.weight = nn.Parameter(torch.zeros(len(self.classes), clip.image.embed_dim))

    @classmethod
    def neutral(cls, clip: Clip, classes: Sequence[str], **settings: Any) -> Learner | None:
        learner = super().neutral(clip, classes, **settings)
        if isinstance(learner, ZSLP):
            learner.weight.data.copy_(learner.zero_shot)
        return learner

    @property
    def zero_shot(self) -> Float[Tensor, "C e"]:
        """The start."""
        return self.zero_shot_features(self.templates, normalize=False)

    def prepare(self, train: Batches, val: Batches | None) -> None:
        self.weight.data.copy_(self.zero_shot)

    def encode_classes(self) -> Float[Tensor, "C e"]:
        return self.select(self.weight)

    def loss(self, images: Images, labels: Int[Tensor, " B"]) -> tuple[Float[Tensor, ""], Float[Tensor, "B C"]]:
        """Mean cross-entropy, and the images' logits."""
        loss, logits = super().loss(images, labels)
        if not self.texts or not self.training:
            return loss, logits
        half, n_texts = len(labels) // 2, len(self.classes) * len(self.templates)
        drawn = torch.randint(n_texts, (len(labels) - half,), device=labels.device)
        features = torch.cat([self.zero_shot_features([template], normalize=False) for template in self.templates])
        of_texts = self.compare(features[drawn], self.encode_classes())
        targets = torch.cat([labels[:half], drawn % len(self.classes)])
        return F.cross_entropy(torch.cat([logits[:half], of_texts]), targets), logits
