"""MTA: the mode of an image's views, by a mean shift that weighs them."""

from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from vlprompt.errors import UserError
from vlprompt.inference.base import Adaptation, Adapter, ImageViews
from vlprompt.inference.views import check_features
from vlprompt.learners.base import Learner, at_least_single, normalize

NEAREST, STEPS, TOLERANCE = 0.3, 5, 1e-6  # as in the authors' code


class MTA(Adaptation):
    """Classify the mode of the views' features, for which the inliers among the views count most.

    Args:
        lambda_y: weight of the entropy of the inlierness scores: the larger, the more alike they are.
        lambda_q: weight of the affinity of views whose predictions agree.
        iterations: how often scores and mode take turns.

    Source: Zanella and Ben Ayed, CVPR 2024, https://arxiv.org/abs/2405.02266, section 3; the authors' code.
    """

    name = "mta"

    def __init__(
        self,
        *,
        views: int = 64,
        augmix: bool = False,
        lambda_y: float = 0.2,
        lambda_q: float = 4.0,
        iterations: int = 5,
    ) -> None:
        super().__init__(views=views, augmix=augmix)
        if not lambda_y > 0 or not lambda_q >= 0 or iterations < 1:
            raise UserError(
                f"test_time.lambda_y={lambda_y}, lambda_q={lambda_q}, iterations={iterations}: allowed are above 0, at "
                "least 0, and at least 1"
            )
        self.shift = partial(mean_shift, lambda_y=lambda_y, lambda_q=lambda_q, iterations=iterations)

    @torch.no_grad()
    def check(self, learner: Learner) -> None:
        check_features(self.name, learner)
        width, generator = learner.clip.image.embed_dim, torch.Generator().manual_seed(0)
        some = torch.randn(1 + len(learner.classes), width, generator=generator).to(learner.clip.device)
        once, twice = (learner.compare(n * some[:1], some[1:]) for n in (1, 2))
        if learner.has_head or not torch.allclose(once, twice, rtol=1e-3, atol=1e-3):
            raise UserError(
                f"test_time={self.name} classifies a mean direction of features, and {type(learner).__name__}'s logits "
                "depend on their length, too: use test_time=zero, or a method that compares cosines"
            )

    def start(self, learner: Learner, class_features: Float[Tensor, "C *e"] | None) -> Adapter:
        def adapt(image: ImageViews) -> Float[Tensor, " C"]:
            assert image.logits is not None
            assert image.features is not None
            if len(image.logits) == 1:
                return at_least_single(image.logits[0])
            probabilities = at_least_single(image.logits).softmax(-1)
            with torch.autocast(probabilities.device.type, enabled=False):
                mode, _ = self.shift(normalize(image.features), probabilities @ probabilities.T)
            return at_least_single(learner.compare(mode[None], class_features)[0])

        return adapt


def mean_shift(
    x: Float[Tensor, "k e"], affinity: Float[Tensor, "k k"], *, lambda_y: float, lambda_q: float, iterations: int
) -> tuple[Float[Tensor, " e"], Float[Tensor, " k"]]:
    """The mode of normalised features, which starts at the first of them, and the views' inlierness scores."""
    h, mode, y = bandwidths(x), x[0], torch.full_like(x[:, 0], 1 / len(x))
    for _ in range(iterations):
        density = log_kernel(x, mode, h).exp()
        for _ in range(STEPS):
            old, log_y = y, ((density + lambda_q * affinity @ y) / lambda_y).log_softmax(0)
            y = log_y.exp()
            if (y - old).norm() < TOLERANCE:
                break
        for _ in range(STEPS):
            weights = (log_y + log_kernel(x, mode, h)).softmax(0)  # y * density over their sum, if all are tiny, too
            old, mode = mode, normalize(weights @ x)
            if (mode - old).norm() < TOLERANCE:
                break
    return mode, y


def bandwidths(x: Float[Tensor, "k e"]) -> Float[Tensor, " k"]:
    """Of each view's kernel: the root of half the mean squared distance to the nearest 30 % of the other views."""
    n_nearest = max(1, int(NEAREST * (len(x) - 1)))
    distances = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist").sort(dim=1).values
    squares = distances[:, 1 : 1 + n_nearest].square().mean(1)
    return (squares / 2).clamp_min(torch.finfo(x.dtype).eps).sqrt()  # above 0 where views are the same


def log_kernel(x: Float[Tensor, "k e"], mode: Float[Tensor, " e"], h: Float[Tensor, " k"]) -> Float[Tensor, " k"]:
    return -(x - mode).square().sum(1) / (2 * h.square())
