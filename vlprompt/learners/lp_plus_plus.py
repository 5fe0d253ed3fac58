"""LP++: a linear probe that mixes in the class names, fitted without a learning rate."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vlprompt.errors import UserError
from vlprompt.learners.base import Batches, Learner, at_least_single, normalize
from vlprompt.towers import PLAIN, Clip, expand_templates


class LPPlusPlus(Learner):
    """Logits f (w + alpha t) for each class, with unit image features f and frozen text features t; w and one alpha a
    class are learned, by descent in turn with the steps that curvature allows. Works for the training classes only.

    Args:
        templates: one, a list, or a published one by name. Of several, normalised features are averaged.
        n_views: augmented views of each training image, all of them examples.
        iterations: steps of w and of alpha.
        start: alpha starts at this many times the mean cosine between images and their class's text.

    Source: Huang et al., CVPR 2024, https://arxiv.org/abs/2404.02285, section 3. Written from memory: not checked
    against the paper are the factor `start` and the number of views. Differs: steps are 1 / (largest eigenvalue of a
    bound on the curvature), with Boehning's bound of 1/2, so that the loss never rises; the authors relax it.
    """

    augmented = True
    class_bound = True
    closed_form = True

    def __init__(
        self,
        clip: Clip,
        classes: Sequence[str],
        *,
        templates: str | list[str] = PLAIN,
        n_views: int = 10,
        iterations: int = 300,
        start: float = 250.0,
    ) -> None:
        super().__init__(clip, classes)
        if n_views < 1 or iterations < 0:
            raise UserError(f"method.n_views={n_views}, iterations={iterations}: allowed are at least 1, and 0 or more")
        self.templates, self.n_views, self.iterations = expand_templates(templates), n_views, iterations
        self.start = start
        self.weight = nn.Parameter(torch.zeros(len(self.classes), clip.image.embed_dim))
        self.alpha = nn.Parameter(torch.full((len(self.classes),), clip.scale))

    def encode_classes(self) -> Float[Tensor, "C e"]:
        """w + alpha t, whose length counts."""
        texts = normalize(self.zero_shot_features(self.templates))
        return self.select(self.weight) + self.select(self.alpha)[:, None] * texts

    def compare(
        self, features: Float[Tensor, "B e"], class_features: Float[Tensor, "C e"] | None
    ) -> Float[Tensor, "B C"]:
        assert class_features is not None
        with torch.autocast(class_features.device.type, enabled=False):
            return normalize(features) @ at_least_single(class_features).T

    @torch.no_grad()
    def prepare(self, train: Batches, val: Batches | None) -> None:
        passes = [self.collect_features(train) for _ in range(self.n_views)]
        features = normalize(torch.cat([features for features, _ in passes]))
        labels = torch.cat([labels for _, labels in passes])
        texts = normalize(self.zero_shot_features(self.templates))
        wanted = F.one_hot(labels, len(self.weight)).to(features.dtype)
        self.weight.copy_(wanted.T @ features / wanted.sum(0).clamp(min=1)[:, None])
        self.alpha.fill_(self.start * float((features * texts[labels]).sum(-1).mean()))
        self.descend(features, wanted, texts)

    def descend(
        self, features: Float[Tensor, "N e"], wanted: Float[Tensor, "N C"], texts: Float[Tensor, "C e"]
    ) -> None:
        """Block coordinate descent on the mean cross-entropy, whose curvature in the logits is at most 1/2."""
        cosines = features @ texts.T
        step_w = 2 * len(features) / torch.linalg.eigvalsh(features.T @ features)[-1]
        step_alpha = 2 * len(features) / cosines.square().sum(0).max()
        for _ in range(self.iterations):
            self.weight.sub_(step_w * self.slope(features, wanted, cosines).T @ features)
            self.alpha.sub_(step_alpha * (self.slope(features, wanted, cosines) * cosines).sum(0))

    def slope(
        self, features: Float[Tensor, "N e"], wanted: Float[Tensor, "N C"], cosines: Float[Tensor, "N C"]
    ) -> Float[Tensor, "N C"]:
        """The mean cross-entropy's gradient in the logits."""
        logits = features @ self.weight.T + self.alpha * cosines
        return (logits.softmax(-1) - wanted) / len(features)
