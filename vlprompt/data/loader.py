"""From a split to batches of images for a learner: their features where these are enough, else pixels."""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vlprompt.data.cache.features import FeatureCache
from vlprompt.data.cache.images import ImageCache
from vlprompt.data.dataset import Split
from vlprompt.data.transforms import PUBLISHED, Augment
from vlprompt.data.views import Batches, Shuffled, Views
from vlprompt.towers import Clip, Images

Batch = tuple[Images, Int[Tensor, " B"]]
TEST_BATCH = 100
IMAGES_AT_ONCE = 1000  # whose views are in memory: 64 of 512 numbers each take 131 MB
EPOCHS_AHEAD = 4  # whose views are read at once, where each epoch has its own


@dataclass(frozen=True)
class Loader:
    """Reads images for one learner, as features or as pixels: callers cannot tell.

    `features` are those of the unedited image tower, for a learner that leaves it alone; None: pixels are read. A
    training image has a view of its own for each epoch, as published, or `n_views` in turn. `pooled`: an epoch draws
    from these views of all images as if each were an image, in as many batches as one view of them makes.
    """

    clip: Clip
    features: FeatureCache | None = None
    images: ImageCache | None = None
    seed: int = 1
    workers: int = 0
    n_views: int | None = None
    augment: Augment = PUBLISHED
    pooled: bool = False

    def n_batches(self, split: Split, batch_size: int, *, drop_last: bool) -> int:
        """Steps of an epoch on a split."""
        return count_batches(len(split), batch_size, drop_last=drop_last)

    def ordered(self, split: Split, *, augmented: bool | Literal["after_crop"] = False) -> "Passes":
        """Passes over a split in its order: centre crops, or with `augmented` another random view at each pass.

        "after_crop": first centre crops, then these.
        """
        first = [None] if augmented == "after_crop" else []
        return Passes(self, split, itertools.chain(first, itertools.count()) if augmented else None)

    def shuffled(self, split: Split, *, batch_size: int, per_epoch: int, total: int, first: int = 0) -> Iterator[Batch]:
        """Random views of a split in random order: `total` batches, of which `per_epoch` make an epoch.

        They start with the 0-based `first`: order and views are functions of seed and epoch, so nothing is drawn again.
        """
        n_pooled = (self.n_views or 1) if self.pooled else 1
        n_used = min(len(split) * n_pooled, per_epoch * batch_size)
        order = Shuffled(len(split), n_used, seed=self.seed, n_views=self.n_views, pooled=self.pooled)
        pixels = self._pixels(split, order, batch_size) if self.features is None else None
        n_epochs = math.ceil(total / per_epoch)
        labels = torch.tensor([item.label for item in split.items] * n_pooled, device=self.clip.device)
        pool = torch.cat([self._features(split, view, n_epochs=n_epochs, starts=False) for view in range(n_pooled)]
                         ) if self.features is not None and self.pooled else None  # fmt: skip
        for epoch in range(first // per_epoch, n_epochs if first < total else 0):
            done, left = max(first - epoch * per_epoch, 0), total - epoch * per_epoch
            order.epoch, order.n_done = epoch, done * batch_size
            if pixels is not None:
                yield from as_images(itertools.islice(pixels, left - done))
                continue
            starts = epoch == first // per_epoch
            features = self._features(split, epoch, n_epochs=n_epochs, starts=starts) if pool is None else pool
            whole = torch.tensor(order.indices(), device=self.clip.device)  # one copy an epoch, not one a step
            for index in itertools.islice(whole.split(batch_size), done, left):
                yield Images(features=features[index]), labels[index]

    def views(self, split: Split, n_views: int, order: Sequence[int], *, augmix: bool = False) -> Iterator[Images]:
        """Of each image in an order: its centre crop and `n_views - 1` random views, functions of seed, image and view.

        These are crops of any size and flips, whatever training images are.
        """
        augment, views = Augment(augmix=augmix), [None, *range(n_views - 1)]
        drawn: Any = {"seed": self.seed, "augment": augment}
        if self.features is None:
            whole = Views(split, self.clip.preprocess, **drawn, cache=self.images)
            pairs = [(view, index) for index in order for view in views]
            batches = Batches(whole, pairs, batch_size=n_views, workers=self.workers, device=self.clip.device)
            yield from (Images(pixels) for pixels, _ in batches)
            return
        for start in range(0, len(order), IMAGES_AT_ONCE):
            some = replace(split, items=tuple(split.items[i] for i in order[start : start + IMAGES_AT_ONCE]))
            self.features.fill(some, views, **drawn)
            of_views = torch.stack([self.features.features(some, view, **drawn) for view in views], dim=1)
            if len(order) > IMAGES_AT_ONCE:  # a small test's views stay for other tests of the same images
                self.features.forget(range(n_views - 1), **drawn)
            yield from (Images(features=of_image) for of_image in of_views)

    def read_views(self, split: Split, *, track: Callable[[str, int], AbstractContextManager[Any]]) -> None:
        """Before the first step, compute the features of views that recur, so that the time left is known."""
        if self.features is not None and self.n_views is not None:
            with track(f"reading {self.n_views} views an image", len(split) * self.n_views) as bar:
                views = range(self.n_views)
                self.features.fill(split, views, seed=self.seed, augment=self.augment, done=bar.advance)

    def _features(self, split: Split, epoch: int, *, n_epochs: int, starts: bool) -> Float[Tensor, "N e"]:
        """Features of the epoch's view of all images. A few epochs ahead are computed at once: workers start rarely.

        A training that `starts` in the middle of them computes all, as the batches of the tower change the last bit.
        """
        assert self.features is not None
        drawn: Any = {"seed": self.seed, "augment": self.augment}
        if self.n_views is None and (starts or epoch % EPOCHS_AHEAD == 0):
            now = epoch - epoch % EPOCHS_AHEAD
            self.features.forget(range(max(now - EPOCHS_AHEAD, 0), now), **drawn)
            self.features.fill(split, range(now, min(now + EPOCHS_AHEAD, n_epochs)), **drawn)
        return self.features.features(split, epoch % (self.n_views or n_epochs), **drawn)

    def _pixels(self, split: Split, order: Any, batch_size: int) -> Batches:
        """Batches of pixels, as often as one iterates over them; the workers persist from one epoch to the next."""
        views = Views(split, self.clip.preprocess, seed=self.seed, augment=self.augment, cache=self.images)
        return Batches(views, order, batch_size=batch_size, workers=self.workers, device=self.clip.device)


def count_batches(n_images: int, batch_size: int, *, drop_last: bool) -> int:
    """Batches in one pass: the last smaller one is left out where `drop_last` says so and another remains."""
    if drop_last and n_images >= batch_size:
        return n_images // batch_size
    return math.ceil(n_images / batch_size)


def as_images(batches: Iterable[tuple[Tensor, Tensor]]) -> Iterator[Batch]:
    """(pixels [B, 3, H, W], labels [B]) as batches for a learner."""
    return ((Images(pixels), labels) for pixels, labels in batches)


@dataclass(frozen=True)
class Passes:
    """A split's images and labels in order, as often as one iterates over them."""

    loader: Loader
    split: Split
    views: Iterator[int | None] | None = None

    def __iter__(self) -> Iterator[Batch]:
        loader, split, view = self.loader, self.split, None if self.views is None else next(self.views)
        if loader.features is None:
            yield from as_images(loader._pixels(split, [(view, i) for i in range(len(split))], TEST_BATCH))
            return
        labels = torch.tensor([item.label for item in split.items], device=loader.clip.device)
        features = loader.features.features(split, view, seed=loader.seed, augment=loader.augment)
        for batch in zip(features.split(TEST_BATCH), labels.split(TEST_BATCH), strict=True):
            yield Images(features=batch[0]), batch[1]
