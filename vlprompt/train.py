"""The training loop, the one of all methods."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vlprompt.config.schema import Fit
from vlprompt.data.loader import Batch, Loader
from vlprompt.data.transforms import seed_of
from vlprompt.errors import NonFiniteError, UserError
from vlprompt.learners.base import Learner
from vlprompt.protocols.base import Episode
from vlprompt.towers.precision import autocast
from vlprompt.training.averaging import make_keeper
from vlprompt.training.optim import make_optimizer, n_epochs, n_steps, set_learning_rate, stage_of
from vlprompt.training.precision import Scaler, compiled
from vlprompt.training.progress import Reporter
from vlprompt.training.state import Part, State


@dataclass(frozen=True)
class Epoch:
    """One line of the training curve: mean loss and accuracy over the epoch's images, and its first learning rate."""

    epoch: int
    loss: float
    accuracy: float
    lr: float


def train(
    learner: Learner,
    episode: Episode,
    loader: Loader,
    fit: Fit,
    *,
    precision: str,
    reporter: Reporter,
    compile: bool = False,
    state: State | None = None,
) -> list[Epoch]:
    """Train on the episode's images, from where an earlier process was stopped if `state` has that; -> the curve.

    `compile`: each step goes through torch.compile.

    Raises:
        NonFiniteError: the loss, a gradient, or in the end a trained parameter is not finite.
        UserError: an epoch is to be selected and there are no images to select it on, or epochs of several stages are
            to be compared, or there is nothing to train.
        Stopped: a signal came, and what was reached is kept.
    """
    selection = episode.selection_split(fit.select_on)
    if fit.keep == "best" and not selection:
        raise UserError(
            "fit.keep=best needs validation images, and this data set has none: use fit.keep=last, or give "
            "vlprompt.fit a `val`"
        )
    if len(learner.stages) > 1 and (fit.keep == "best" or fit.average is not None):
        raise UserError(
            f"{type(learner).__name__} is trained in stages, whose epochs do not compare, and fit.keep={fit.keep}, "
            f"average={fit.average} asks for that: use fit.keep=last without fit.average"
        )
    train_batches = loader.ordered(episode.train, augmented=learner.augmented)
    selection_batches = loader.ordered(selection) if selection else None
    with torch.no_grad(), autocast(loader.clip.device, precision):
        learner.eval().encode_classes()  # cached class features have the precision of the run
    learner.prepare(train_batches, selection_batches)  # caches and closed forms

    meter = Meter()
    per_epoch = loader.n_batches(episode.train, fit.batch_size, drop_last=fit.drop_last)
    epochs, total = n_epochs(per_epoch, fit), n_steps(per_epoch, fit)
    if total and not list(learner.parameters()):
        raise UserError(f"{type(learner).__name__} has nothing to train: use fit.epochs=0")
    if total:
        loader.read_views(episode.train, track=reporter.track)
        keeper = make_keeper(fit, epochs, lambda: count_correct(learner, selection_batches or (), precision))
        optimizer, scaler = make_optimizer(learner, fit), Scaler(learner, precision)
        backward = compiled(scaler.backward, learner, say=reporter.say) if compile else scaler.backward
        learner.train()
        torch.manual_seed(seed_of("train", loader.seed))  # of dropout and the like
        state = state or State()
        parts: dict[str, Part] = {
            "learner": learner,
            "optimizer": optimizer,
            "scaler": scaler,
            "keeper": keeper,
            "meter": meter,
        }
        done = state.restore(total, parts)
        size = {"batch_size": fit.batch_size, "per_epoch": per_epoch, "total": total}
        batches = loader.shuffled(episode.train, **size, first=done)
        with reporter.track("training", total, done=done) as track:
            for step, (images, labels) in state.steps(batches, done):
                stage = stage_of(step, learner.stages, total)
                if stage.number and step == stage.first:
                    with torch.no_grad(), autocast(loader.clip.device, precision):
                        learner.begin(stage.number)
                    optimizer.state.clear()  # each stage has a new optimiser
                lr = set_learning_rate(optimizer, step - stage.first, fit, per_epoch=per_epoch, total=stage.n_steps)
                optimizer.zero_grad(set_to_none=True)
                with autocast(loader.clip.device, precision):
                    loss, logits = backward(images, labels)  # sets the gradients
                gradients = {f"the gradient of {name}": p.grad for name, p in learner.named_parameters()}
                check_finite({"the loss": loss}, step, lr)
                if scaler.unscale(optimizer):  # else they overflow float16 at this scale, which the next step lowers
                    check_finite(gradients, step, lr)
                    optimizer.step()
                meter.update(loss, logits, labels, lr)
                track.advance(note=f"epoch {step // per_epoch + 1}/{epochs}  {meter}")
                if (step + 1) % per_epoch == 0 or step + 1 == total:
                    reporter.log(f"epoch {len(meter.curve) + 1}  {meter}  lr {meter.lr:.3g}")
                    meter.close_epoch()
                    keeper.update(learner, len(meter.curve))
        check_finite(dict(learner.named_parameters()), total - 1, meter.lr)
        keeper.restore(learner)
    learner.eval()
    learner.conclude(train_batches, selection_batches)  # a search on these images
    return meter.curve


class Meter:
    """Mean loss and accuracy over the epoch so far, and its first learning rate; `curve` has the epochs before."""

    def __init__(self) -> None:
        self.loss = self.correct = self.images = self.lr = 0.0
        self.curve: list[Epoch] = []

    def update(
        self, loss: Float[Tensor, ""], logits: Float[Tensor, "B C"], labels: Int[Tensor, " B"], lr: float
    ) -> None:
        self.lr = self.lr if self.images else lr
        correct = (logits.argmax(-1) == labels).sum()
        mean, n_correct = torch.stack([loss, correct.to(loss.dtype)]).tolist()  # one wait for a GPU instead of two
        self.loss += mean * len(labels)
        self.correct += n_correct
        self.images += len(labels)

    def close_epoch(self) -> None:
        """The next one starts."""
        self.curve.append(Epoch(len(self.curve), self.loss / self.images, self.correct / self.images, self.lr))
        self.loss = self.correct = self.images = 0.0

    def state_dict(self) -> dict[str, Any]:
        return {**vars(self), "curve": [asdict(epoch) for epoch in self.curve]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state, curve=[Epoch(**epoch) for epoch in state["curve"]])

    def __str__(self) -> str:
        return f"loss {self.loss / self.images:.3f}  accuracy {self.correct / self.images:.1%}"


@torch.no_grad()
def count_correct(learner: Learner, batches: Iterable[Batch], precision: str) -> int:
    """Number of correct predictions of a learner in training, which it stays in."""
    learner.eval()
    with autocast(learner.clip.device, precision):
        classes = learner.encode_classes()
        correct = sum(int((learner.logits(x, classes).argmax(-1) == labels).sum()) for x, labels in batches)
    learner.train()
    return correct


def check_finite(tensors: Mapping[str, Tensor | None], step: int, lr: float) -> None:
    """Raises: NonFiniteError that names what is not finite, after a 0-based step."""
    given = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    finite = torch.stack([tensor.isfinite().all() for tensor in given.values()]).tolist() if given else []  # one wait
    wrong = [name for name, is_finite in zip(given, finite, strict=True) if not is_finite]
    if wrong:
        raise NonFiniteError(
            f"training stopped at step {step + 1} (learning rate {lr:.3g}): {', '.join(wrong[:3])} "
            f"{'is' if len(wrong) == 1 else 'are'} not finite; lower fit.lr or use precision=fp32"
        )
