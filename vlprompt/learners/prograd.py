"""ProGrad: CoOp whose updates never oppose what the frozen model knows."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from vlprompt.learners.base import Overridden, scaled_cosine
from vlprompt.learners.coop import CoOp
from vlprompt.towers import PLAIN, Clip, Images, Position


class ProGrad(CoOp):
    """Prompt-aligned gradient: CoOp's gradient without the part that opposes the zero-shot predictions.

    g - strength * (g . u) u where g . u < 0, with the cross-entropy's gradient g and the direction u of the gradient of
    the divergence from the zero-shot predictions

    Args:
        n_context: context tokens. The last ones start as the template's words before the class name, the others as
            zeros.
        template: also the text of the zero-shot predictions.
        strength: how much of the opposing part is removed (lambda), 0 to 1.
        temperature: of both predictions in the divergence.
        position: where the class name stands.

    Source: Zhu et al., ICCV 2023, https://arxiv.org/abs/2205.14865, section 3.2.
    """

    neutral_settings: ClassVar = {"n_context": 4, "position": "end"}  # it starts from the template's words

    def __init__(
        self,
        clip: Clip,
        classes: Sequence[str],
        *,
        n_context: int = 16,
        template: str = PLAIN,
        strength: float = 1.0,
        temperature: float = 1.0,
        position: Position = "end",
    ) -> None:
        super().__init__(clip, classes, n_context=n_context, position=position)
        self.template, self.strength, self.temperature = template, strength, temperature
        words = self.text.embed_phrase(template.partition("{}")[0].strip())[-n_context:].float()
        self.context = nn.Parameter(F.pad(words, (0, 0, n_context - len(words), 0)))

    @classmethod
    def overridden(cls, settings: Mapping[str, Any], *, val: bool, steps: bool) -> Overridden:
        overridden = super().overridden(settings, val=val, steps=steps)
        if not settings["strength"]:
            why = "so that nothing is removed from the gradient: drop it, or give another strength"
            overridden["temperature"] = ("method.strength", why)
        return overridden

    def backward(self, images: Images, labels: Int[Tensor, " B"]) -> tuple[Float[Tensor, ""], Float[Tensor, "B C"]]:
        features, classes = self.encode_images(images), self.encode_classes()
        logits = self.compare(features, classes)
        domain, general = F.cross_entropy(logits, labels), self.divergence(logits, features)
        parameters = list(self.parameters())
        towards = torch.autograd.grad(general, parameters, retain_graph=True)
        for p, g, known in zip(parameters, torch.autograd.grad(domain, parameters), towards, strict=True):
            p.grad = align(g, known, self.strength)
        return domain.detach(), logits.detach()

    def divergence(self, logits: Float[Tensor, "B C"], features: Float[Tensor, "B e"]) -> Float[Tensor, ""]:
        """Cross-entropy from the zero-shot predictions, whose gradient is that of the Kullback-Leibler divergence."""
        frozen = scaled_cosine(features, self.zero_shot_features([self.template]), self.clip.scale)
        expected, ours = (frozen / self.temperature).softmax(-1), (logits / self.temperature).log_softmax(-1)
        return -(expected * ours).sum(-1).mean() * self.temperature**2


def align(g: Float[Tensor, "*n"], known: Float[Tensor, "*n"], strength: float) -> Float[Tensor, "*n"]:
    """A gradient without (`strength` of) its part against a known direction."""
    direction = known / known.norm()
    along: Any = (g * direction).sum()
    return torch.where(along < 0, g - strength * along * direction, g)
