"""PromptSRC: prompts in both towers, held near the frozen model in three ways."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from vlprompt.learners.base import Overridden, normalize, scaled_cosine
from vlprompt.learners.ivlp import IVLP
from vlprompt.towers import Clip, Images, expand_templates


class PromptSRC(IVLP):
    """Self-regulating prompts: IVLP that stays near the frozen model.

    loss = cross-entropy + distances to the frozen features of texts and of images + divergence from the frozen
    predictions; the mean of the prompts over the epochs is `fit.average`.

    Args:
        n_context, ctx_init, depth, n_tokens, image_depth: as in IVLP.
        templates: of the frozen text features, which are averaged before they are normalised: one, a list, or a
            published one by name.
        text_weight, image_weight, logit_weight: of the mean absolute difference of text and of image features, and of
            the Kullback-Leibler divergence, a mean over images and classes.

    Source: Khattak et al., ICCV 2023, https://arxiv.org/abs/2307.06948, section 3.2.
    Differs: prompts are not rounded through float16, and nothing but prompts is averaged.
    """

    def __init__(
        self,
        clip: Clip,
        classes: Sequence[str],
        *,
        n_context: int = 4,
        ctx_init: str = "a photo of a",
        depth: int = 9,
        n_tokens: int = 4,
        image_depth: int = 9,
        templates: str | list[str] = "promptsrc_60",
        text_weight: float = 25.0,
        image_weight: float = 10.0,
        logit_weight: float = 1.0,
    ) -> None:
        shape = {"n_context": n_context, "depth": depth, "n_tokens": n_tokens, "image_depth": image_depth}
        super().__init__(clip, classes, ctx_init=ctx_init, **shape)
        self.templates = expand_templates(templates)
        self.text_weight, self.image_weight, self.logit_weight = text_weight, image_weight, logit_weight

    @classmethod
    def overridden(cls, settings: Mapping[str, Any], *, val: bool, steps: bool) -> Overridden:
        overridden = super().overridden(settings, val=val, steps=steps)
        if not settings["image_depth"]:
            why = "which leaves image features as they are: drop it, or give image layers"
            overridden["image_weight"] = ("method.image_depth", why)
        if not settings["text_weight"] and not settings["logit_weight"]:
            why = "as is method.logit_weight, so that nothing is held near the frozen text: drop it"
            overridden["templates"] = ("method.text_weight", why)
        return overridden

    def loss(self, images: Images, labels: Int[Tensor, " B"]) -> tuple[Float[Tensor, ""], Float[Tensor, "B C"]]:
        features, classes = self.encode_images(images), self.encode_classes()
        logits = self.compare(features, classes)
        with torch.no_grad():
            frozen, zero_shot = self.clip.image(images), self.zero_shot_features(self.templates, normalize=False)
            expected = scaled_cosine(frozen, zero_shot, self.clip.scale).log_softmax(-1)
        divergence = F.kl_div(logits.log_softmax(-1), expected, reduction="sum", log_target=True) / logits.numel()
        loss = (
            F.cross_entropy(logits, labels)
            + self.text_weight * F.l1_loss(normalize(classes), normalize(zero_shot))
            + self.image_weight * F.l1_loss(normalize(features), normalize(frozen))
            + self.logit_weight * divergence
        )
        return loss, logits
