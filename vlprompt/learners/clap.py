"""CLAP: a linear probe from the zero-shot classifier, held near it where that is good."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from vlprompt.errors import UserError
from vlprompt.learners.base import Batches, Overridden
from vlprompt.learners.zs_lp import ZSLP
from vlprompt.towers import PLAIN, Clip, Images


class CLAP(ZSLP):
    """ZS-LP with a class-adaptive constraint. Works for the training classes only.

    loss = cross-entropy + mean over classes of lambda * distance(w, t), where t are the zero-shot weights and lambda is
    the mean zero-shot probability of the right class over the class's training views.

    Args:
        templates: as of ZSLP.
        constraint: the distance: "l2" (squared, summed over dimensions) or "cosine" (1 - cosine).
        multipliers: lambda: "class" (as above), "corrected" (the same, scaled to a mean of one), "constant" (its mean,
            for all classes) or "balanced" (one).
        adaptive: after each epoch lambda grows by rho * |w - t|^2, and rho, which starts at 0, becomes |w - t|^2.
        strength: factor of lambda at the start; with 0 this is ZS-LP.
        n_views: augmented views of each training image for lambda.

    Raises:
        UserError: a negative strength, or no views.

    Source: Silva-Rodríguez et al., CVPR 2024, https://arxiv.org/abs/2312.12730, section 4, and the authors' code
    (https://github.com/jusiro/CLAP at dbdf409), whose numbers it reproduces.
    Differs: as ZSLP; lambda of a class without an image is 1.
    """

    augmented = True

    def __init__(
        self,
        clip: Clip,
        classes: Sequence[str],
        *,
        templates: str | list[str] = PLAIN,
        constraint: Literal["l2", "cosine"] = "l2",
        multipliers: Literal["class", "corrected", "constant", "balanced"] = "class",
        adaptive: bool = False,
        strength: float = 1.0,
        n_views: int = 20,
    ) -> None:
        super().__init__(clip, classes, templates=templates)
        if strength < 0 or n_views < 1:
            raise UserError(
                f"method.strength={strength}, n_views={n_views}: allowed are 0 or more, and at least 1: change it"
            )
        self.constraint, self.multipliers, self.adaptive = constraint, multipliers, adaptive
        self.strength, self.n_views = strength, n_views
        self.lambdas = nn.Buffer(torch.zeros(len(self.classes)))
        self.rho = nn.Buffer(torch.zeros(len(self.classes)))

    @classmethod
    def overridden(cls, settings: Mapping[str, Any], *, val: bool, steps: bool) -> Overridden:
        rules: Overridden = {}
        if settings["multipliers"] == "balanced":
            rules["n_views"] = ("method.multipliers", "for which no image is looked at: drop it")
        if not settings["strength"]:
            why = "which multiplies them by nothing: drop it, or use another strength"
            rules |= dict.fromkeys(("multipliers", "n_views"), ("method.strength", why))
            if not settings["adaptive"]:
                rules["constraint"] = ("method.strength", "which leaves it out: drop it, or use another strength")
        return rules

    def prepare(self, train: Batches, val: Batches | None) -> None:
        super().prepare(train, val)
        self.rho.zero_()
        self.lambdas.copy_(self.strength * self.start_of_multipliers(train))

    @torch.no_grad()
    def start_of_multipliers(self, train: Batches) -> Float[Tensor, " C"]:
        if self.multipliers == "balanced":
            return torch.ones_like(self.lambdas)
        right, count = torch.zeros_like(self.lambdas), torch.zeros_like(self.lambdas)
        for _ in range(self.n_views):
            for images, labels in train:
                of_class = F.one_hot(labels, len(self.classes))
                right += (of_class * self.logits(images, self.encode_classes()).softmax(-1)).sum(0)
                count += of_class.sum(0)
        chances = torch.where(count > 0, right / count.clamp(min=1), 1.0)
        if self.multipliers == "constant":
            return chances.mean().expand_as(chances)
        return chances / chances.mean() if self.multipliers == "corrected" else chances

    def loss(self, images: Images, labels: Int[Tensor, " B"]) -> tuple[Float[Tensor, ""], Float[Tensor, "B C"]]:
        loss, logits = super().loss(images, labels)
        return loss + self.penalty(), logits

    def penalty(self) -> Float[Tensor, ""]:
        near = F.cosine_similarity(self.weight, self.zero_shot) if self.constraint == "cosine" else None
        return (self.lambdas * (self.squared_distances() if near is None else 1 - near)).mean()

    def squared_distances(self) -> Float[Tensor, " C"]:
        return (self.weight - self.zero_shot).square().sum(-1)

    @torch.no_grad()
    def end_epoch(self) -> None:
        """The outer step of the augmented Lagrangian, in squared distances whatever the constraint."""
        if self.adaptive:
            distances = self.squared_distances()
            self.lambdas.copy_((self.lambdas + self.rho * distances).clamp(min=0))
            self.rho.copy_(distances)
