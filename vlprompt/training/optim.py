"""The optimiser, and the learning rate in force at each moment."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from vlprompt.config.schema import Fit
from vlprompt.data.loader import count_batches
from vlprompt.learners.base import Learner


def steps_per_epoch(n_images: int, fit: Fit) -> int:
    """Batches in one pass over so many images."""
    return count_batches(n_images, fit.batch_size, drop_last=fit.drop_last)


def n_steps(per_epoch: int, fit: Fit) -> int:
    """Steps of the whole training, with `per_epoch` of them in an epoch."""
    if fit.steps is not None:
        return fit.steps
    assert fit.epochs is not None
    return fit.epochs * per_epoch


def n_epochs(per_epoch: int, fit: Fit) -> int:
    """Epochs of the whole training, of which the last may be a part."""
    return math.ceil(n_steps(per_epoch, fit) / per_epoch)


class Stage(NamedTuple):
    """One of a training's stages: its number, its first step, both from 0, and how many steps it has."""

    number: int
    first: int
    n_steps: int


def stage_of(step: int, shares: Sequence[float], total: int) -> Stage:
    """The stage that a 0-based step of `total` is in; each takes its share of the steps, the last one what remains."""
    ends = [*(int(total * sum(shares[:n])) for n in range(1, len(shares))), total]
    number = next(n for n, end in enumerate(ends) if step < end)
    first = ends[number - 1] if number else 0
    return Stage(number, first, ends[number] - first)


def learning_rate(step: int, fit: Fit, *, per_epoch: int, total: int) -> float:
    """The rate of a 0-based step, with `per_epoch` steps in an epoch and `total` in all."""
    assert fit.lr is not None  # only fits without steps have none
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
    assert fit.lr is not None
    groups: list[dict[str, Any]] = learner.param_groups(fit)
    if fit.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=fit.lr, momentum=fit.momentum, weight_decay=fit.weight_decay)
    kind = torch.optim.Adam if fit.optimizer == "adam" else torch.optim.AdamW
    return kind(groups, lr=fit.lr, betas=fit.betas, eps=fit.eps, weight_decay=fit.weight_decay)


def set_learning_rate(optimizer: torch.optim.Optimizer, step: int, fit: Fit, *, per_epoch: int, total: int) -> float:
    """Put the rate of a 0-based step in force; a group that brought another rate keeps its ratio to `fit.lr`.

    One with `same_warmup` has the rate of all others during a constant warm-up.
    """
    lr, schedule = learning_rate(step, fit, per_epoch=per_epoch, total=total), fit.schedule
    warming = schedule.warmup == "constant" and step < schedule.warmup_epochs * per_epoch
    for group in optimizer.param_groups:
        ratio = group.setdefault("ratio", group["lr"] / fit.lr)
        group["lr"] = lr if warming and group.get("same_warmup") else lr * ratio
    return lr
