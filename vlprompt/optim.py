"""How a learner is fitted: the settings, the optimiser and the learning rate in force at each moment."""

import math
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, NonNegativeInt, PositiveInt, model_validator

from vlprompt.errors import UserError
from vlprompt.learners.base import Learner

_STRICT = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)
Momentum = Annotated[float, Field(ge=0, lt=1)]


class Schedule(BaseModel):
    """The learning rate over time.

    `every`: the rate changes at the end of an epoch, or of a step. The cosine starts after the warm-up. Its half
    period is the whole `training`, so that the last epoch does not reach `floor` (CoOp and its kin), or only the
    `rest` of it (VPT).
    """

    model_config = _STRICT

    shape: Literal["cosine", "constant"] = "cosine"
    every: Literal["epoch", "step"] = "epoch"
    warmup: Literal["none", "constant", "linear"] = "constant"
    warmup_epochs: NonNegativeInt = 1
    warmup_lr: NonNegativeFloat = 1e-5  # the constant warm-up's rate; the first rate of a linear one
    period: Literal["training", "rest"] = "training"
    floor: NonNegativeFloat = 0.0


class Average(BaseModel):
    """Weights of the epochs 1, 2, ... in a mean of the parameters: a Gaussian's, made to sum to one."""

    model_config = _STRICT

    mu: float  # the epoch that counts most
    sigma: Annotated[float, Field(gt=0)]


class Fit(BaseModel):
    """Everything about fitting that a paper states. Either `epochs` or `steps`."""

    model_config = _STRICT

    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: Annotated[float, Field(gt=0)]
    momentum: Momentum = 0.9  # SGD only
    betas: Annotated[tuple[Momentum, Momentum], Field(strict=False)] = (0.9, 0.999)  # Adam only
    eps: Annotated[float, Field(gt=0)] = 1e-8  # Adam only
    weight_decay: NonNegativeFloat = 5e-4
    batch_size: PositiveInt = 32
    drop_last: bool = True  # leave out the last, smaller batch of an epoch, unless it is the only one
    epochs: NonNegativeInt | None = None  # 0: all is done before and after the steps of an optimiser
    steps: PositiveInt | None = None
    schedule: Schedule = Schedule()
    average: Average | None = None  # end with this mean of the parameters over the epochs
    keep: Literal["last", "best"] = "last"  # end with the last epoch, or the one most accurate on `select_on`
    select_on: Literal["val", "test"] = "val"  # what the best epoch and a method's own search are chosen on

    @model_validator(mode="after")
    def _either(self) -> "Fit":
        if (self.epochs is None) == (self.steps is None):
            raise UserError(f"fit takes either epochs or steps, got epochs={self.epochs} and steps={self.steps}")
        if self.average and self.keep == "best":
            raise UserError("fit.average is a mean over all epochs, fit.keep=best one of them: choose one of the two")
        return self

    def identity(self) -> dict[str, Any]:
        """The settings, without younger ones at their defaults, so that results from before them are found again."""
        settings, younger = self.model_dump(), ("average", "keep", "select_on")
        return {k: v for k, v in settings.items() if k not in younger or v != type(self).model_fields[k].default}


def steps_per_epoch(n_images: int, fit: Fit) -> int:
    """Batches in one pass: the last smaller one is left out where `drop_last` says so and another remains."""
    if fit.drop_last and n_images >= fit.batch_size:
        return n_images // fit.batch_size
    return math.ceil(n_images / fit.batch_size)


def n_steps(n_images: int, fit: Fit) -> int:
    """Steps of the whole training."""
    if fit.steps is not None:
        return fit.steps
    assert fit.epochs is not None
    return fit.epochs * steps_per_epoch(n_images, fit)


def learning_rate(step: int, fit: Fit, *, per_epoch: int, total: int) -> float:
    """The rate of a 0-based step, with `per_epoch` steps in an epoch and `total` in all."""
    schedule, unit = fit.schedule, per_epoch if fit.schedule.every == "epoch" else 1
    warm = 0 if schedule.warmup == "none" else schedule.warmup_epochs * per_epoch // unit
    now, end = step // unit, math.ceil(total / unit)
    if now < warm:
        linear = schedule.warmup == "linear" and now > 0
        return fit.lr * now / warm if linear else schedule.warmup_lr
    if schedule.shape == "constant":
        return fit.lr
    period = end if schedule.period == "training" else max(end - warm, 1)
    return schedule.floor + (fit.lr - schedule.floor) * (1 + math.cos(math.pi * (now - warm) / period)) / 2


def make_optimizer(learner: Learner, fit: Fit) -> torch.optim.Optimizer:
    """The optimiser over the learner's parameter groups; groups keep the rates and decays that they bring."""
    groups: list[dict[str, Any]] = learner.param_groups(fit)
    if fit.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=fit.lr, momentum=fit.momentum, weight_decay=fit.weight_decay)
    kind = torch.optim.Adam if fit.optimizer == "adam" else torch.optim.AdamW
    return kind(groups, lr=fit.lr, betas=fit.betas, eps=fit.eps, weight_decay=fit.weight_decay)
