"""FLYP: full fine-tuning by the loss that CLIP was pre-trained with."""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from vlprompt.learners.base import scaled_cosine
from vlprompt.learners.full_finetune import FullFinetune
from vlprompt.towers import PLAIN, Clip, Images, expand_templates


class FLYP(FullFinetune):
    """Fine-tune like you pre-train: the contrastive loss of images and their classes' captions, all weights trained.

    Each image's caption is its class in a template drawn anew; all other captions of the batch are negatives, those of
    the same class, too. The scale of the cosine is trained. Class names in `template` classify.

    Args:
        captions: templates of the captions: one, a list, or a published list by name; None: `template`.

    Source: Goyal et al., CVPR 2023, https://arxiv.org/abs/2212.00638, section 3, and the authors' code
    (https://github.com/locuslab/FLYP at 215d5bb).
    """

    def __init__(
        self,
        clip: Clip,
        classes: Sequence[str],
        *,
        template: str = PLAIN,
        captions: str | list[str] | None = None,
    ) -> None:
        super().__init__(clip, classes, template=template)
        self.captions = expand_templates(captions or template)
        self.log_scale = nn.Parameter(torch.tensor(math.log(clip.scale)))

    @property
    def cosine_scale(self) -> float:
        return float(self.log_scale.detach().exp())

    def compare(
        self, features: Float[Tensor, "B e"], class_features: Float[Tensor, "C e"] | None
    ) -> Float[Tensor, "B C"]:
        assert class_features is not None
        return self.log_scale.exp() * scaled_cosine(features, class_features, 1.0)

    def loss(self, images: Images, labels: Int[Tensor, " B"]) -> tuple[Float[Tensor, ""], Float[Tensor, "B C"]]:
        features, texts = self.encode_images(images), self.encode_texts(self.captions_of(labels))
        with torch.no_grad():
            logits = self.compare(features, self.encode_classes())
        return contrast(self.compare(features, texts)), logits

    def captions_of(self, labels: Int[Tensor, " B"]) -> list[str]:
        """Each class in a template that is drawn anew."""
        drawn = torch.randint(len(self.captions), (len(labels),)).tolist()
        pairs = zip(drawn, labels.tolist(), strict=True)
        return [self.captions[i].replace("{}", self.classes[label]) for i, label in pairs]

    def encode_texts(self, texts: Sequence[str]) -> Float[Tensor, "B e"]:
        """Features of whole texts."""
        text = self.adapted("text").text
        assert text is not None
        return text(text.prompts(texts, template="{}"))

    def merge(self) -> Clip:
        scale = self.log_scale.detach()
        frozen = self.clip.weights.tensor("logit_scale")
        merged = super().merge().with_weights({"logit_scale": scale.reshape(frozen.shape)})
        return replace(merged, scale=math.exp(scale))


def contrast(logits: Float[Tensor, "B B"]) -> Float[Tensor, ""]:
    """Mean of the cross-entropies of each image among the captions and of each caption among the images."""
    pairs = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, pairs) + F.cross_entropy(logits.T, pairs)) / 2
