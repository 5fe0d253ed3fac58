"""Batches that a user brings, read as the loader of a run is."""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor

from vlprompt.data.dataset import Item, Split
from vlprompt.data.loader import Batch, Loader
from vlprompt.errors import UserError
from vlprompt.towers import Clip, Images

Given = Iterable[tuple[Tensor, Tensor]]
"""(pixels [B, 3, H, W] as the model's `preprocess` gives them, labels [B]), batch after batch, several times over."""


@dataclass(frozen=True)
class GivenBatches:
    """A user's batches as batches for a learner, on the device of its model.

    Raises: UserError, while it is read, for pixels of another shape, and labels that are no class.
    """

    batches: Given
    clip: Clip
    n_classes: int

    def __post_init__(self) -> None:
        once = isinstance(self.batches, Iterator)
        if once or not isinstance(self.batches, Iterable):
            why = "which cannot be read several times" if once else "which holds no batches"
            raise UserError(
                f"the batches are of type {type(self.batches).__name__}, {why}: give a DataLoader, or a list of "
                "(images, labels)"
            )

    def __iter__(self) -> Iterator[Batch]:
        size, empty = self.clip.preprocess.size, True
        for batch in self.batches:
            images, labels = self._pair(batch)
            if images.shape[1:] != (3, size, size) or not images.is_floating_point():
                raise UserError(
                    f"the images of a batch are {str(images.dtype).removeprefix('torch.')} {list(images.shape)}, "
                    f"{self.clip.name} reads floats [B, 3, {size}, {size}]: use the model's `preprocess`"
                )
            if labels.shape != images.shape[:1] or labels.is_floating_point():
                raise UserError(
                    f"labels are {str(labels.dtype)[6:]} {list(labels.shape)}, allowed are integers [{len(images)}]"
                )
            if wrong := [label for label in labels.tolist() if not 0 <= label < self.n_classes]:
                raise UserError(f"a label is {wrong[0]}, allowed are 0 to {self.n_classes - 1}, the classes")
            if not len(labels):
                continue
            empty = False
            yield Images(images.float().to(self.clip.device)), labels.long().to(self.clip.device)
        if empty:
            raise UserError("there are no batches: give some (images, labels)")

    def _pair(self, batch: Any) -> tuple[Tensor, Tensor]:
        if not isinstance(batch, list | tuple) or len(batch) != 2 or not isinstance(batch[0], Tensor):
            kind = type(batch).__name__
            if isinstance(batch, list | tuple):
                kind += f" of {', '.join(type(part).__name__ for part in batch[:3]) or 'nothing'}"
            raise UserError(f"a batch is of type {kind}, allowed is (images, labels), both tensors")
        try:
            return batch[0], torch.as_tensor(batch[1])
        except (TypeError, ValueError, RuntimeError):
            raise UserError(f"the labels of a batch are {batch[1]!r:.80}, allowed are integers, a tensor [B]") from None

    def __len__(self) -> int:
        """Batches in a pass."""
        try:
            return len(self.batches)  # type: ignore[arg-type]
        except TypeError:
            return sum(1 for _ in self.batches)


def refuse_to_open(image: str) -> Image.Image:
    raise AssertionError(f"{image} is of a user's batches, which are read as they come")


@dataclass(frozen=True)
class GivenLoader(Loader):
    """A loader whose splits are a user's batches, in the order and the views that these come in."""

    train: GivenBatches | None = None
    val: GivenBatches | None = None

    def split(self, part: Literal["train", "val"]) -> Split:
        """What stands for one of the two where a split is asked for."""
        return Split((Item(part, 0),), (), refuse_to_open, origin=part)

    def _of(self, split: Split) -> GivenBatches:
        batches = self.val if split.origin == "val" else self.train
        assert batches is not None
        return batches

    def n_batches(self, split: Split, batch_size: int, *, drop_last: bool) -> int:
        return len(self._of(split))

    def ordered(self, split: Split, *, augmented: bool | Literal["after_crop"] = False) -> Any:
        return self._of(split)

    def shuffled(self, split: Split, *, batch_size: int, per_epoch: int, total: int, first: int = 0) -> Iterator[Batch]:
        endless = itertools.chain.from_iterable(itertools.repeat(self._of(split)))
        return itertools.islice(endless, first, total)

    def read_views(self, split: Split, *, track: Any) -> None:
        """Views are the user's."""
