"""A linear classifier instead of class names."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

HeadKind = Literal["auto", "text", "linear"]
"""What classifies: class names, a linear head, or what the model allows: names, else a head."""
HeadStart = Literal["zero", "probe", "published"]
"""How a linear head starts: at zero or as a linear probe, both on centred and scaled features, or as VPT's."""


class Head(nn.Linear):
    """VPT's head: weights N(0, 2 / n_classes), biases -log(99), so that every class starts at 1 % (under a sigmoid).

    Source: Jia et al., ECCV 2022, https://arxiv.org/abs/2203.12119, their code.
    """

    def __init__(self, width: int, n_classes: int) -> None:
        super().__init__(width, n_classes)
        nn.init.kaiming_normal_(self.weight, mode="fan_out")
        nn.init.constant_(self.bias, -math.log(99))

    def forward(self, features: Float[Tensor, "B e"]) -> Float[Tensor, "B C"]:
        """Logits, in the head's precision whatever the towers use."""
        with torch.autocast(features.device.type, enabled=False):
            return super().forward(self.seen(features.to(self.weight.dtype)))

    def seen(self, features: Float[Tensor, "B e"]) -> Float[Tensor, "B e"]:
        return features

    def start(self, features: Float[Tensor, "N e"], labels: Int[Tensor, " N"]) -> None:
        """Make the start fit the training images' features."""


class StandardHead(Head):
    """A head at zero, on features that are centred and scaled to a mean variance of one, both as of its `start`.

    So a learning rate means the same whatever the model's features are: those of ViTs have lengths from 1 to 60.

    Args:
        probe: start as a logistic regression on the training images (LP-FT), with scikit-learn's C of 1. Features are
            then scaled to a length of about one, so that the head, which fits already, takes smaller steps.

    Source: Kumar et al., ICLR 2022, https://arxiv.org/abs/2202.10054, section 4 (LP-FT).
    """

    mean: Tensor  # [e]
    scale: Tensor

    def __init__(self, width: int, n_classes: int, *, probe: bool) -> None:
        super().__init__(width, n_classes)
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(()))
        self.probe = probe

    def seen(self, features: Float[Tensor, "B e"]) -> Float[Tensor, "B e"]:
        return (features - self.mean) * self.scale

    @torch.no_grad()
    def start(self, features: Float[Tensor, "N e"], labels: Int[Tensor, " N"]) -> None:
        self.mean.copy_(features.mean(0))
        variance = features.var(0, correction=0).mean()
        self.scale.fill_(variance.rsqrt() if variance > 0 else 1.0)  # zero of one image
        if self.probe:
            self.fit(features, labels)
            length = math.sqrt(self.in_features)
            self.scale /= length
            self.weight *= length  # the logits stay

    @torch.enable_grad()
    def fit(self, features: Float[Tensor, "N e"], labels: Int[Tensor, " N"]) -> None:
        """Minimise the mean cross-entropy + |W|^2 / 2N."""
        optimizer = torch.optim.LBFGS(self.parameters(), max_iter=200, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            optimizer.zero_grad()
            value = F.cross_entropy(self(features), labels) + self.weight.square().sum() / (2 * len(labels))
            value.backward()
            return value

        optimizer.step(loss)
        optimizer.zero_grad()


def make_head(width: int, n_classes: int, start: HeadStart) -> Head:
    return Head(width, n_classes) if start == "published" else StandardHead(width, n_classes, probe=start == "probe")
