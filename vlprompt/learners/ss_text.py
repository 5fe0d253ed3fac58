"""SS-Text: class features in closed form between the text and the training images, for any number of images a class."""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from vlprompt.errors import UserError
from vlprompt.learners.base import Batches, Learner, at_least_single, normalize, scaled_cosine
from vlprompt.towers import PLAIN, Clip, expand_templates


class SSText(Learner):
    """Class features w_c = t_c + s / (N lambda_c) * sum of the class's image features, for the training classes only.

    N images in all, of length one; t_c: the mean of normalised texts, which a class without images has; s: the scale.

    Args:
        templates: one, a list, or a published one by name.
        penalty: lambda_c, at least 0.001: "shots", 1 / the class's images; "uniform", 1 / N; "performance", the mean
            zero-shot probability of the class on its images; or a number.
        repel: then w_c - r_c, r_c being 2 w_c less the mean over classes, made of length one (SS-Text+).

    Source: Silva-Rodríguez et al., MICCAI 2025, https://arxiv.org/abs/2506.17500; github.com/jusiro/SS-Text at 4ff4897.
    """

    class_bound = True
    closed_form = True
    neutral_settings = None

    def __init__(
        self,
        clip: Clip,
        classes: Sequence[str],
        *,
        templates: str | list[str] = PLAIN,
        penalty: Literal["shots", "uniform", "performance"] | float = "shots",
        repel: bool = True,
    ) -> None:
        super().__init__(clip, classes)
        if not isinstance(penalty, str) and penalty <= 0:
            raise UserError(f"method.penalty={penalty}: allowed is more than 0, shots, uniform or performance")
        self.templates, self.penalty, self.repel = expand_templates(templates), penalty, repel
        self.weight = nn.Buffer(torch.zeros(len(self.classes), clip.image.embed_dim))

    @torch.no_grad()
    def prepare(self, train: Batches, val: Batches | None) -> None:
        features, labels = self.collect_features(train)
        self.fit(normalize(features), labels)

    def fit(self, x: Float[Tensor, "N e"], labels: Int[Tensor, " N"]) -> None:
        text = at_least_single(self.zero_shot_features(self.templates))
        member = F.one_hot(labels, len(self.classes)).to(x.dtype)
        right = member * scaled_cosine(x, text, self.clip.scale).softmax(-1)
        self.weight.copy_(text + self.clip.scale * self.shares(member, right)[:, None] * (member.T @ x))
        if self.repel:
            self.weight.sub_(normalize(2 * self.weight - self.weight.mean(0)))

    def shares(self, member: Float[Tensor, "N C"], right: Float[Tensor, "N C"]) -> Float[Tensor, " C"]:
        n = member.sum(0)
        mean = right.sum(0) / n  # of the probabilities of the right class
        of = {"shots": 1 / n, "uniform": 1 / n.sum(), "performance": mean.where(n > 0, mean.nanmean())}
        penalty = of[self.penalty] if isinstance(self.penalty, str) else n.new_tensor(self.penalty)
        return (1 / (penalty.clamp(min=1e-3) * n.sum())).expand(len(n))

    def encode_classes(self) -> Float[Tensor, "C e"]:
        return self.select(self.weight)
