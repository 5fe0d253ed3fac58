"""ProGrad: CoOp whose updates never oppose what the frozen model knows."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from vlprompt.errors import UserError
from vlprompt.learners.base import Overridden, scaled_cosine
from vlprompt.learners.context import words_of
from vlprompt.learners.coop import CoOp
from vlprompt.towers import PLAIN, Clip, Images, Position


class ProGrad(CoOp):
    """Prompt-aligned gradient: CoOp's gradient without the part that opposes the zero-shot predictions.

    g - strength * (g . u) u where g . u < 0, with the cross-entropy's gradient g and the direction u of the gradient of
    the divergence from the zero-shot predictions

    Args:
        n_context: context tokens.
        init: "template": the last tokens start as the template's words before the class name, one token a word, the
            others as zeros; "random": all from N(0, 0.02^2).
        template: the text of the zero-shot predictions; with `init` "template" also the first words of the context.
        strength: how much of the opposing part is removed (lambda), 0 to 1.
        temperature: of both predictions in the divergence.
        class_specific, position: as in CoOp; contexts of their own for classes start random.

    Source: Zhu et al., ICCV 2023, https://arxiv.org/abs/2205.14865, section 3.2; start and texts as in the authors'
    code (BeierZhu/Prompt-align, commit 1b76203, trainers/prograd.py). There and here a comma in the template is a token
    but no word, so that the last token before the name stays fixed: in OxfordPets, "a type of pet, a photo of a".
    """

    revision = 2
    neutral_settings: ClassVar = {"n_context": 4, "init": "template", "class_specific": False, "position": "end"}

    def __init__(
        self,
        clip: Clip,
        classes: Sequence[str],
        *,
        n_context: int = 16,
        init: Literal["template", "random"] = "template",
        template: str = PLAIN,
        strength: float = 1.0,
        temperature: float = 1.0,
        class_specific: bool = False,
        position: Position = "end",
    ) -> None:
        super().__init__(clip, classes, n_context=n_context, class_specific=class_specific, position=position)
        self.template, self.strength, self.temperature = template, strength, temperature
        if init == "random":
            return
        if class_specific:
            raise UserError(
                "method.init=template starts one context for all classes, method.class_specific=true asks for one "
                "each: use method.init=random, or method.class_specific=false"
            )
        self.ctx_init = " ".join(words_of(template.partition("{}")[0]))
        words = self.text.embed_phrase(self.ctx_init).float()
        if len(words) > n_context:
            raise UserError(
                f"method.n_context is {n_context}, and method.template='{template}' has {len(words)} words before the "
                f"name, which start it: use at least {len(words)}, or method.init=random"
            )
        self.context = nn.Parameter(F.pad(words, (0, 0, n_context - len(words), 0)))

    @classmethod
    def overridden(cls, settings: Mapping[str, Any], *, val: bool, steps: bool) -> Overridden:
        overridden = super().overridden(settings, val=val, steps=steps)
        if not settings["strength"]:
            why = "so that nothing is removed from the gradient: drop it, or give another strength"
            overridden["temperature"] = ("method.strength", why)
            if settings["init"] == "random":
                overridden["template"] = ("method.strength", why)
        if settings["init"] == "template" and settings["class_specific"]:
            why = "which starts one context for all classes: give method.init=random, too"
            overridden["class_specific"] = ("method.init", why)
        return overridden

    def backward(self, images: Images, labels: Int[Tensor, " B"]) -> tuple[Float[Tensor, ""], Float[Tensor, "B C"]]:
        features, classes = self.encode_images(images), self.encode_classes()
        logits = self.compare(features, classes)
        domain, general = F.cross_entropy(logits, labels), self.divergence(logits, features)
        losses = [self.scale_loss(loss) if self.scale_loss else loss for loss in (domain, general)]
        parameters = list(self.parameters())
        towards = torch.autograd.grad(losses[1], parameters, retain_graph=True)
        for p, g, known in zip(parameters, torch.autograd.grad(losses[0], parameters), towards, strict=True):
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
