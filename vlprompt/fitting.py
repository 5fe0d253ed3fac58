"""Fitting a learner, or several at once: the same few lines for every method."""

import itertools
import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from vlprompt.config.fit import Fit
from vlprompt.data.dataset import Split
from vlprompt.data.transforms import seed_of
from vlprompt.data.views import Shuffled, Views
from vlprompt.errors import NonFiniteError, UserError
from vlprompt.learners.base import Batch, Learner
from vlprompt.protocols.base import Episode
from vlprompt.towers import Images
from vlprompt.trainer import Pass, Trainer
from vlprompt.training.averaging import make_checkpoints
from vlprompt.training.optim import learning_rate, make_optimizer, n_steps, steps_per_epoch

EPOCHS_AHEAD = 4  # whose views are read at once, where each epoch has its own


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

    def add(self, loss: float, logits: Tensor, labels: Tensor, rate: float) -> None:
        self.loss += loss * len(labels)
        self.correct += (logits.argmax(-1) == labels).sum().item()
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


class Fitting:
    """A training under way: a learner, its optimiser, and the batches that it still has to see."""

    def __init__(self, trainer: Trainer, learner: Learner, episode: Episode, fit: Fit) -> None:
        assert episode.train is not None
        self.trainer, self.learner, self.split, self.fit = trainer, learner, episode.train, fit
        n_images = len(self.split)
        self.per_epoch, self.total = steps_per_epoch(n_images, fit), n_steps(n_images, fit)
        self.n_epochs = math.ceil(self.total / self.per_epoch)
        self.banked = trainer.reads_features(learner)
        if self.banked:  # what `prepare` reads of frozen class features is in the run's precision
            with torch.no_grad(), trainer.autocast():
                learner.encode_classes()
        self.views = range(trainer.bank_views or self.n_epochs)  # of each training image
        chosen_on = select_on(episode, fit)
        if fit.keep == "best" and not chosen_on:
            raise UserError("fit.keep=best needs validation images, and this data set has none: use fit.keep=last")
        self.select_pass = Pass(trainer, chosen_on, self.banked) if chosen_on else None
        train_views = itertools.count() if learner.augmented else None
        self.passes = (Pass(trainer, self.split, self.banked, train_views), self.select_pass)
        self.meter = Meter()
        self.step, self.rate, self.note = 0, 0.0, ""  # steps done, the rate in force, where it stands
        self.error: NonFiniteError | None = None
        self._batch: Batch | None = None
        self.together = 1  # how many were trained on one pass of the towers

    def start(self) -> None:
        """Everything before the first step."""
        self.learner.prepare(*self.passes)
        if not self.total:
            return
        if self.banked and self.trainer.bank_views is not None:
            self._fill_views()
        self.checkpoints = make_checkpoints(self.fit, self.n_epochs, self._count_right)
        self.optimizer = make_optimizer(self.learner, self.fit)
        # groups may have rates of their own
        self.scales = [group["lr"] / self.fit.lr for group in self.optimizer.param_groups]
        self.batches = self._batches()
        self.learner.train()

    @property
    def under_way(self) -> bool:
        return self.error is None and self.step < self.total

    def take_steps(self) -> None:
        """The steps that are left, with random numbers (dropout) of the seed's own."""
        if not self.under_way:
            return
        torch.manual_seed(seed_of("train", self.trainer.seed))
        with self.trainer.reporter.track("training", self.total, done=self.step) as track:
            while self.under_way:
                self.get_ready()
                with self.trainer.autocast():
                    loss, logits = self.learner.backward(*self.batch)
                self.update(loss, logits)
                track.advance(note=self.note)

    @property
    def batch(self) -> Batch:
        """The batch of this step."""
        if self._batch is None:
            self._batch = next(self.batches)
        return self._batch

    def get_ready(self) -> None:
        """Make the optimiser ready for this step."""
        self.rate = learning_rate(self.step, self.fit, per_epoch=self.per_epoch, total=self.total)
        for group, scale in zip(self.optimizer.param_groups, self.scales, strict=True):
            group["lr"] = self.rate * scale
        self.optimizer.zero_grad(set_to_none=True)

    def update(self, loss: Tensor, logits: Tensor) -> None:
        """A step of the optimiser with the gradients that are there; what is not finite ends the training."""
        (_, labels), self._batch = self.batch, None
        self.error = self._not_finite(loss, {n: p.grad for n, p in self.learner.named_parameters()}, "the gradient of ")
        if self.error:
            return
        self.optimizer.step()
        self.meter.add(loss.item(), logits, labels, self.rate)
        self.note = f"epoch {self.step // self.per_epoch + 1}/{self.n_epochs}  {self.meter}"
        self.step += 1
        if self.step % self.per_epoch == 0 or self.step == self.total:
            epoch = (self.step - 1) // self.per_epoch
            self.trainer.reporter.log(f"epoch {epoch + 1}  {self.meter}  lr {self.meter.rate:.3g}")
            self.meter.close(epoch)
            self.checkpoints.see(self.learner, epoch + 1)

    def end(self) -> None:
        """Everything after the last step."""
        if self.total:
            self.batches.close()
            self.error = self.error or self._not_finite(torch.zeros(()), dict(self.learner.named_parameters()))
            self.checkpoints.settle(self.learner)
        self.learner.eval()
        if not self.error:
            self.learner.conclude(*self.passes)

    @torch.no_grad()
    def _count_right(self) -> int:
        """Right answers on the images that an epoch is selected on."""
        assert self.select_pass is not None
        learner = self.learner.eval()
        with self.trainer.autocast():
            classes = learner.encode_classes()
            right = sum(int((learner.logits(i, classes).argmax(-1) == y).sum()) for i, y in self.select_pass)
        learner.train()
        return right

    def _not_finite(self, loss: Tensor, tensors: Mapping[str, Tensor | None], what: str = "") -> NonFiniteError | None:
        wrong = [] if torch.isfinite(loss) else [f"the loss is {loss.item()}"]
        wrong += [f"{what}{n} is not finite" for n, t in tensors.items() if t is not None and not t.isfinite().all()]
        if not wrong:
            return None
        return NonFiniteError(
            f"training stopped at step {min(self.step + 1, self.total)} (learning rate {self.rate:.3g}): "
            f"{', '.join(wrong[:3])}; lower fit.lr or use precision=fp32"
        )

    def _fill_views(self) -> None:
        """Bank the training views before the first step, so that the time left is known."""
        trainer, n_views = self.trainer, len(self.views)
        assert trainer.bank is not None
        title = f"reading {n_views} views an image"
        with trainer.reporter.track(title, len(self.split) * n_views) as track:
            trainer.bank.fill(self.split, self.views, seed=trainer.seed, augment=trainer.augment, done=track.advance)

    def _batches(self) -> Generator[Batch, None, None]:
        """Batches for all steps of the training."""
        trainer, split, size = self.trainer, self.split, self.fit.batch_size
        order = Shuffled(len(split), min(len(split), self.per_epoch * size), seed=trainer.seed)
        views = Views(split, trainer.clip.preprocess, seed=trainer.seed, augment=trainer.augment, cache=trainer.cache)
        pixels = None if self.banked else trainer.batches(views, order, size)
        labels = torch.tensor([item.label for item in split.items], device=trainer.device)
        for epoch in range(self.n_epochs):
            order.epoch = epoch
            left = self.total - epoch * self.per_epoch
            if pixels is not None:
                for _, (batch, of_batch) in zip(range(left), pixels, strict=False):
                    yield Images(batch), of_batch
                continue
            features = self._features(epoch)
            for _, chosen in zip(range(left), torch.tensor(order.indices()).split(size), strict=False):
                index = chosen.to(trainer.device)
                yield Images(features=features[index]), labels[index]

    def _features(self, epoch: int) -> Tensor:
        """Features of the epoch's view of all images. A few epochs ahead are computed at once: workers start rarely."""
        trainer, bank = self.trainer, self.trainer.bank
        assert bank is not None
        drawn: Any = {"seed": trainer.seed, "augment": trainer.augment}
        if trainer.bank_views is None and epoch % EPOCHS_AHEAD == 0:
            bank.forget(range(max(epoch - EPOCHS_AHEAD, 0), epoch), **drawn)
            bank.fill(self.split, self.views[epoch : epoch + EPOCHS_AHEAD], **drawn)
        return bank.features(self.split, self.views[epoch % len(self.views)], **drawn)


def selection(learner: Learner, episode: Episode, fit: Fit) -> Literal["last", "val", "test"]:
    """What the record says that the result was selected on: the best epoch, or what a method searches by itself."""
    chosen = fit.keep == "best" or learner.uses_validation
    return fit.select_on if chosen and select_on(episode, fit) is not None else "last"


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


def fit(trainer: Trainer, learner: Learner, episode: Episode, settings: Fit) -> list[Epoch]:
    """Train on the episode's images; -> the curve.

    Raises:
        NonFiniteError: the loss, or a trained parameter after a step, is no longer finite.
    """
    fitting = Fitting(trainer, learner, episode, settings)
    fit_together([fitting])
    if fitting.error:
        raise fitting.error
    return fitting.meter.curve


def fit_together(fittings: Sequence[Fitting]) -> None:
    """Train one learner, or several, one after the other. One whose numbers are not finite ends alone."""
    for fitting in fittings:
        fitting.start()
    for fitting in fittings:
        fitting.take_steps()
        fitting.end()  # before the next one starts to read: it holds processes and memory
