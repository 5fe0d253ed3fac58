"""Fitting a learner, and evaluating it: the same few lines for every method."""

import itertools
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from vlprompt.checkpoints import Last, make_checkpoints
from vlprompt.data.cache import Bank
from vlprompt.data.dataset import Split
from vlprompt.data.image_cache import ImageCache
from vlprompt.data.images import PUBLISHED, Augment, Batches, Shuffled, Views
from vlprompt.errors import NonFiniteError, UserError
from vlprompt.learners.base import Learner
from vlprompt.metrics import Predictions
from vlprompt.optim import Fit, learning_rate, make_optimizer, n_steps, steps_per_epoch
from vlprompt.progress import Reporter
from vlprompt.protocols.base import Episode
from vlprompt.towers import Clip, Images, NeedsPixels

TEST_BATCH = 100
Batch = tuple[Images, Int[Tensor, " B"]]


@dataclass(frozen=True)
class Epoch:
    """One line of the training curve: mean loss and accuracy over the epoch's batches, and its first learning rate."""

    epoch: int
    loss: float
    accuracy: float
    lr: float


class Meter:
    """Mean loss and accuracy over the epoch so far, and the curve of the epochs before."""

    def __init__(self) -> None:
        self.curve: list[Epoch] = []
        self.loss = self.correct = self.images = 0.0
        self.rate: float | None = None  # of the epoch's first step
        self._logits = torch.empty(0)

    def see(self, module: torch.nn.Module, args: tuple[Any, ...], logits: Tensor) -> None:
        """A learner's forward hook: the logits of a training step."""
        self._logits = logits.detach()

    def add(self, loss: float, labels: Tensor, rate: float) -> None:
        self.loss += loss * len(labels)
        self.correct += (self._logits.argmax(-1) == labels).sum().item()
        self.images += len(labels)
        self.rate = rate if self.rate is None else self.rate

    def close(self, epoch: int) -> None:
        """End an epoch and start the next."""
        assert self.rate is not None
        self.curve.append(Epoch(epoch, self.loss / self.images, self.correct / self.images, self.rate))
        self.loss = self.correct = self.images = 0.0
        self.rate = None

    def __str__(self) -> str:
        return f"loss {self.loss / self.images:.3f}  accuracy {self.correct / self.images:.1%}"


@dataclass(frozen=True)
class Trainer:
    """Fits and evaluates learners over one frozen model.

    `bank` holds features of the unedited image tower; `bank_views` training views an image are taken from it, in
    turn, for learners that leave the tower alone (None: a fresh view every epoch, as published).
    """

    clip: Clip
    bank: Bank
    reporter: Reporter
    precision: str = "fp32"
    seed: int = 1
    workers: int = 0
    bank_views: int | None = None
    augment: Augment = PUBLISHED
    cache: ImageCache | None = None

    @property
    def device(self) -> torch.device:
        return self.clip.device

    def autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def reads_features(self, learner: Learner) -> bool:
        """Whether the learner leaves the image tower alone, found out by trying it without pixels."""
        features = torch.ones(1, self.clip.image.embed_dim, device=self.device)
        was_training = learner.training
        try:
            with torch.no_grad(), self.autocast():
                learner.eval().logits(Images(features=features), learner.encode_classes())
        except NeedsPixels:
            return False
        finally:
            learner.train(was_training)
        return True

    def fit(self, learner: Learner, episode: Episode, fit: Fit) -> list[Epoch]:
        """Train on the episode's images; -> the curve.

        Raises:
            NonFiniteError: the loss, or a trained parameter after a step, is no longer finite.
            UserError: the best epoch is asked for, and there is nothing to select it on.
        """
        train = episode.train
        assert train is not None
        per_epoch, total = steps_per_epoch(len(train), fit), n_steps(len(train), fit)
        reads = self.reads_features(learner)
        train_pass = Pass(self, train, reads, itertools.count() if learner.augmented else None)
        chosen_on = select_on(episode, fit)
        val_pass = Pass(self, chosen_on, reads) if chosen_on else None
        learner.prepare(train_pass, val_pass)
        curve: list[Epoch] = []
        if total:
            checkpoints = make_checkpoints(fit, math.ceil(total / per_epoch), lambda: self._count(learner, val_pass))
            curve = self._take_steps(learner, train, fit, checkpoints, banked=self.bank_views is not None and reads)
        learner.eval()
        learner.conclude(train_pass, val_pass)
        return curve

    def _take_steps(self, learner: Learner, train: Split, fit: Fit, checkpoints: Last, *, banked: bool) -> list[Epoch]:
        """The optimiser's steps; -> the curve."""
        per_epoch, total = steps_per_epoch(len(train), fit), n_steps(len(train), fit)
        if banked:
            self._fill_views(train)
        batches = self._train_batches(train, fit, per_epoch, banked)
        optimizer = make_optimizer(learner, fit)
        scales = [group["lr"] / fit.lr for group in optimizer.param_groups]  # groups may have rates of their own
        meter = Meter()
        hook = learner.register_forward_hook(meter.see)
        learner.train()
        with self.reporter.track("training", total) as track:
            for step, (images, labels) in enumerate(batches):
                rate = learning_rate(step, fit, per_epoch=per_epoch, total=total)
                for group, scale in zip(optimizer.param_groups, scales, strict=True):
                    group["lr"] = rate * scale
                optimizer.zero_grad(set_to_none=True)
                with self.autocast():
                    loss = learner.backward(images, labels)
                self._check_finite(loss, learner, step, rate)
                optimizer.step()
                meter.add(loss.item(), labels, rate)
                epoch = step // per_epoch
                track.advance(note=f"epoch {epoch + 1}/{math.ceil(total / per_epoch)}  {meter}")
                if (step + 1) % per_epoch == 0 or step + 1 == total:
                    self.reporter.log(f"epoch {epoch + 1}  {meter}  lr {meter.rate:.3g}")
                    meter.close(epoch)
                    checkpoints.see(learner, epoch + 1)
        hook.remove()
        self._check_finite(torch.zeros(()), learner, total - 1, rate, gradients=False)
        checkpoints.settle(learner)
        return meter.curve

    @torch.no_grad()
    def _count(self, learner: Learner, chosen_on: "Pass | None") -> int:
        """Right answers on the images that an epoch is selected on."""
        if chosen_on is None:
            raise UserError("fit.keep=best needs validation images, and this data set has none: use fit.keep=last")
        learner.eval()
        with self.autocast():
            classes = learner.encode_classes()
            right = sum(int((learner.logits(i, classes).argmax(-1) == y).sum()) for i, y in chosen_on)
        learner.train()
        return right

    @staticmethod
    def _check_finite(loss: Tensor, learner: Learner, step: int, rate: float, gradients: bool = True) -> None:
        wrong = [] if torch.isfinite(loss) else [f"the loss is {loss.item()}"]
        tensors = {f"the gradient of {n}" if gradients else n: p.grad if gradients else p
                   for n, p in learner.named_parameters()}  # fmt: skip
        wrong += [f"{n} is not finite" for n, t in tensors.items() if t is not None and not torch.isfinite(t).all()]
        if wrong:
            raise NonFiniteError(
                f"training stopped at step {step + 1} (learning rate {rate:.3g}): {', '.join(wrong[:3])}; lower fit.lr "
                "or use precision=fp32"
            )

    @torch.no_grad()
    def evaluate(self, learner: Learner, tests: Mapping[str, Split]) -> dict[str, Predictions]:
        """Predictions of the learner on each test split, bound to that split's classes."""
        learner.eval()
        banked = self.reads_features(learner)
        found = {}
        for name, split in tests.items():
            learner.bind(split.classes, split.rows)
            with self.autocast():
                classes = learner.encode_classes()
            rows = []
            with self.reporter.track(f"testing on {name}", len(split)) as track:
                if banked:
                    self.bank.fill(split, done=track.advance)
                for images, labels in Pass(self, split, banked):
                    with self.autocast():
                        rows.append(learner.logits(images, classes).float().cpu())
                    track.advance(0 if banked else len(labels))
            labels = torch.tensor([item.label for item in split.items])
            names = [item.image for item in split.items]
            found[name] = Predictions.from_logits(names, labels, torch.cat(rows))
        return found

    def _train_batches(self, split: Split, fit: Fit, per_epoch: int, banked: bool) -> Iterator[Batch]:
        """Batches for all steps of the training."""
        order = Shuffled(len(split), min(len(split), per_epoch * fit.batch_size), seed=self.seed)
        total = n_steps(len(split), fit)
        views = Views(split, self.clip.preprocess, seed=self.seed, augment=self.augment, cache=self.cache)
        pixels = None if banked else self.batches(views, order, fit.batch_size)
        labels = torch.tensor([item.label for item in split.items], device=self.device)
        for epoch in range(math.ceil(total / per_epoch)):
            order.epoch = epoch
            left = total - epoch * per_epoch
            if pixels is not None:
                for _, (batch, of_batch) in zip(range(left), pixels, strict=False):
                    yield Images(batch), of_batch
                continue
            assert self.bank_views is not None
            features = self.bank.features(split, epoch % self.bank_views, seed=self.seed, augment=self.augment)
            for _, chosen in zip(range(left), torch.tensor(order.indices()).split(fit.batch_size), strict=False):
                index = chosen.to(self.device)
                yield Images(features=features[index]), labels[index]

    def batches(self, views: Views, order: Iterable[tuple[int | None, int]], batch_size: int) -> Batches:
        return Batches(views, order, batch_size=batch_size, workers=self.workers, device=self.device)

    def _fill_views(self, split: Split) -> None:
        """Bank the training views before the first step, so that the time left is known."""
        assert self.bank_views is not None
        with self.reporter.track(f"reading {self.bank_views} views an image", len(split) * self.bank_views) as track:
            for view in range(self.bank_views):
                self.bank.fill(split, view, seed=self.seed, augment=self.augment, done=track.advance)


@dataclass(frozen=True)
class Pass:
    """One pass over a split's images, in order; can be repeated. Banked where features are enough.

    Centre crops, or with `views` its next view at each pass.
    """

    trainer: Trainer
    split: Split
    banked: bool
    views: Iterator[int] | None = None

    def __iter__(self) -> Iterator[Batch]:
        trainer, split, view = self.trainer, self.split, None if self.views is None else next(self.views)
        if self.banked:
            labels = torch.tensor([item.label for item in split.items], device=trainer.device)
            features = trainer.bank.features(split, view, seed=trainer.seed, augment=trainer.augment)
            for part, of_part in zip(features.split(TEST_BATCH), labels.split(TEST_BATCH), strict=True):
                yield Images(features=part), of_part
            return
        views = Views(split, trainer.clip.preprocess, seed=trainer.seed, augment=trainer.augment, cache=trainer.cache)
        order = [(view, index) for index in range(len(split))]
        for batch, of_batch in trainer.batches(views, order, TEST_BATCH):
            yield Images(batch), of_batch


def select_on(episode: Episode, fit: Fit) -> Split | None:
    """The images on which `fit` lets an epoch, or a method's own search, be selected; None where there are none.

    Raises:
        UserError: test images are asked for, and no test is of the classes trained on.
    """
    if fit.select_on == "val":
        return episode.val
    assert episode.train is not None
    alike = [s for s in episode.tests.values() if s.classes == episode.train.classes]
    if not alike:
        raise UserError("fit.select_on=test needs a test of the classes trained on: use another protocol, or val")
    return alike[0]


def measure(function: Any, *args: Any) -> tuple[Any, float]:
    """A call's result and its wall time in seconds."""
    start = time.perf_counter()
    result = function(*args)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return result, time.perf_counter() - start
