"""Which of a training's parameters remain: the last ones, a mean over the epochs, or the best epoch's."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from vlprompt.config.schema import Average, Fit


class Last:
    """The parameters after the last epoch; what others do at the end of each is added below."""

    def see(self, learner: nn.Module, epoch: int) -> None:
        """At the end of an epoch, which are counted from 1."""

    def settle(self, learner: nn.Module) -> None:
        """After the last one."""


class GaussianMean(Last):
    """The mean of the parameters over the epochs, weighted by a Gaussian.

    Source: Khattak et al., ICCV 2023 (PromptSRC), https://arxiv.org/abs/2307.06948, section 3.2.2.
    """

    def __init__(self, average: Average, n_epochs: int) -> None:
        # relative to the largest, so that a distant mean does not make all of them zero
        powers = [-((epoch - average.mu) ** 2) / (2 * average.sigma**2) for epoch in range(1, n_epochs + 1)]
        weights = [math.exp(power - max(powers)) for power in powers]
        self.weights = [weight / sum(weights) for weight in weights]
        self.sums: dict[str, Tensor] = {}

    @torch.no_grad()
    def see(self, learner: nn.Module, epoch: int) -> None:
        for name, p in learner.named_parameters():
            self.sums[name] = self.sums.get(name, 0) + self.weights[epoch - 1] * p

    def settle(self, learner: nn.Module) -> None:
        put(learner, self.sums)


class Best(Last):
    """The parameters after the epoch with most right answers; the first of equals."""

    def __init__(self, count: Callable[[], int]) -> None:
        self.count, self.most = count, -1
        self.kept: dict[str, Tensor] = {}

    def see(self, learner: nn.Module, epoch: int) -> None:
        right = self.count()
        if right > self.most:
            self.most, self.kept = right, {name: p.detach().clone() for name, p in learner.named_parameters()}

    def settle(self, learner: nn.Module) -> None:
        put(learner, self.kept)


@torch.no_grad()
def put(learner: nn.Module, values: dict[str, Tensor]) -> None:
    """Set parameters by name."""
    for name, p in learner.named_parameters():
        p.copy_(values[name])


def make_checkpoints(fit: Fit, n_epochs: int, count: Callable[[], int]) -> Last:
    """What the settings ask for; `count` counts the right answers on the images to select on."""
    if fit.average is not None:
        return GaussianMean(fit.average, n_epochs)
    return Best(count) if fit.keep == "best" else Last()
