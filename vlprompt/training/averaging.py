"""Which of a training's parameters remain: the last ones, a mean over the epochs, or the best epoch's."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vlprompt.config.schema import Average, Fit


class KeepLast:
    """The parameters after the last epoch."""

    def update(self, learner: nn.Module, epoch: int) -> None:
        """At the end of an epoch, which are counted from 1."""

    def restore(self, learner: nn.Module) -> None:
        """After the last one: put the parameters that remain into the learner."""

    def state_dict(self) -> dict[str, Any]:
        """What it remembers."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Remember that instead."""


class GaussianMean(KeepLast):
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
    def update(self, learner: nn.Module, epoch: int) -> None:
        for name, p in learner.named_parameters():
            earlier = self.sums.get(name, torch.zeros(())).to(p.device)  # a resumed run reads it to the CPU
            self.sums[name] = earlier + self.weights[epoch - 1] * p

    def restore(self, learner: nn.Module) -> None:
        set_parameters(learner, self.sums)

    def state_dict(self) -> dict[str, Any]:
        return {"sums": self.sums}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.sums = state["sums"]


class KeepBest(KeepLast):
    """The parameters after the epoch with most right answers; the first of equals."""

    def __init__(self, count_correct: Callable[[], int]) -> None:
        self.count_correct, self.most = count_correct, -1
        self.best: dict[str, Tensor] = {}

    def update(self, learner: nn.Module, epoch: int) -> None:
        correct = self.count_correct()
        if correct > self.most:
            self.most, self.best = correct, {name: p.detach().clone() for name, p in learner.named_parameters()}

    def restore(self, learner: nn.Module) -> None:
        set_parameters(learner, self.best)

    def state_dict(self) -> dict[str, Any]:
        return {"most": self.most, "best": self.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.most, self.best = state["most"], state["best"]


@torch.no_grad()
def set_parameters(learner: nn.Module, values: dict[str, Tensor]) -> None:
    """Set parameters by name."""
    for name, p in learner.named_parameters():
        p.copy_(values[name])


def make_keeper(fit: Fit, n_epochs: int, count_correct: Callable[[], int]) -> KeepLast:
    """What the settings ask for; `count_correct` counts the right answers on the images to select on."""
    if fit.average is not None:
        return GaussianMean(fit.average, n_epochs)
    return KeepBest(count_correct) if fit.keep == "best" else KeepLast()
