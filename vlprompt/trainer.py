"""Evaluating learners over one frozen model, and reading images for them: as features where these are enough."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vlprompt.data.cache.features import FeatureCache
from vlprompt.data.cache.images import ImageCache
from vlprompt.data.dataset import Split
from vlprompt.data.transforms import PUBLISHED, Augment
from vlprompt.data.views import Batches, Views
from vlprompt.learners.base import Learner
from vlprompt.results.predictions import Predictions
from vlprompt.stacking import Batch
from vlprompt.towers import Clip, Images, NeedsPixels
from vlprompt.training.progress import Reporter

TEST_BATCH = 100


@dataclass(frozen=True)
class Trainer:
    """What learners over one frozen model are fitted and evaluated with.

    `bank` holds features of the unedited image tower, for learners that leave it alone: of test images, and of
    training views, one for each epoch as published, or `bank_views` an image in turn. Without a bank all learners read
    pixels.
    """

    clip: Clip
    bank: FeatureCache | None
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
        """Whether there is a bank, and the learner leaves the image tower alone: tried without pixels."""
        if self.bank is None:
            return False
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

    @torch.no_grad()
    def evaluate(self, learner: Learner, tests: Mapping[str, Split]) -> dict[str, Predictions]:
        """Predictions of the learner on each test split, bound to that split's classes.

        Images that several tests share (base classes' among all classes') pass the image tower once.
        """
        learner.eval()
        banked = self.reads_features(learner)
        reading = Reading(self, learner, tests, banked)
        found = {}
        for name, split in tests.items():
            learner.bind(split.classes, split.rows)
            with self.autocast():
                classes = learner.encode_classes()
            with self.reporter.track(f"testing on {name}", len(split)) as track:
                if banked and self.bank is not None:
                    self.bank.fill(split, done=track.advance)
                logits = reading.logits(split, classes, done=(lambda _: None) if banked else track.advance)
            labels = torch.tensor([item.label for item in split.items])
            names = [item.image for item in split.items]
            found[name] = Predictions.from_logits(names, labels, logits)
        return found

    def batches(self, views: Views, order: Iterable[tuple[int | None, int]], batch_size: int) -> Batches:
        return Batches(views, order, batch_size=batch_size, workers=self.workers, device=self.device)


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
            assert trainer.bank is not None
            labels = torch.tensor([item.label for item in split.items], device=trainer.device)
            features = trainer.bank.features(split, view, seed=trainer.seed, augment=trainer.augment)
            for part, of_part in zip(features.split(TEST_BATCH), labels.split(TEST_BATCH), strict=True):
                yield Images(features=part), of_part
            return
        views = Views(split, trainer.clip.preprocess, seed=trainer.seed, augment=trainer.augment, cache=trainer.cache)
        order = [(view, index) for index in range(len(split))]
        for batch, of_batch in trainer.batches(views, order, TEST_BATCH):
            yield Images(batch), of_batch


class Reading:
    """Test images as one learner sees them: features of those that another test has, too, are kept for it."""

    def __init__(self, trainer: Trainer, learner: Learner, tests: Mapping[str, Split], banked: bool) -> None:
        self.trainer, self.learner, self.banked = trainer, learner, banked
        counts = Counter((split.origin, item.image) for split in tests.values() for item in split.items)
        apart = banked or type(learner).logits is not Learner.logits
        self.shared = set() if apart else {key for key, n in counts.items() if n > 1}
        self.known: dict[tuple[str, str], Float[Tensor, " e"]] = {}

    def logits(
        self, split: Split, classes: Float[Tensor, "C e"] | None, *, done: Callable[[int], object]
    ) -> Float[Tensor, "N C"]:
        """In the order of the split, whose classes are bound; `done` is told of images as they are finished."""
        keys = [(split.origin, item.image) for item in split.items]
        old = [i for i, key in enumerate(keys) if key in self.known]
        new = [i for i, key in enumerate(keys) if key not in self.known]
        rows = []
        for start in range(0, len(old), TEST_BATCH):
            part = [self.known[keys[i]] for i in old[start : start + TEST_BATCH]]
            rows.append(self._compare(torch.stack(part), classes))
            done(len(part))
        places = iter(new)
        for images, labels in Pass(self.trainer, replace(split, items=tuple(split.items[i] for i in new)), self.banked):
            rows.append(self._read(images, [keys[next(places)] for _ in labels], classes))
            done(len(labels))
        order = torch.tensor([*old, *new])
        return torch.cat(rows)[order.argsort()]

    def _read(self, images: Images, keys: Sequence[tuple[str, str]], classes: Tensor | None) -> Tensor:
        if not self.shared:
            with self.trainer.autocast():
                return self.learner.logits(images, classes).float().cpu()
        with self.trainer.autocast():
            features = self.learner.encode_images(images)
        self.known |= {key: row for key, row in zip(keys, features, strict=True) if key in self.shared}
        return self._compare(features, classes)

    def _compare(self, features: Tensor, classes: Tensor | None) -> Tensor:
        with self.trainer.autocast():
            return self.learner.compare(features, classes).float().cpu()


def measure(function: Any, *args: Any) -> tuple[Any, float]:
    """A call's result and its wall time in seconds."""
    start = time.perf_counter()
    result = function(*args)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return result, time.perf_counter() - start
