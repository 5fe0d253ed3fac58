"""Data sets as plain lists: no tensors here, so that protocols and samplers stay free of torch."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, get_args

from PIL import Image

OpenImage = Callable[[str], Image.Image]
Part = Literal["train", "val", "test"]
PARTS: tuple[Part, ...] = get_args(Part)


@dataclass(frozen=True)
class Item:
    """One labelled image. `image` names it within its data set (a path below the image folder, or what is drawn)."""

    image: str
    label: int  # index into the classes of whatever holds this item


def same_prompts(classes: Sequence[str]) -> list[list[str]]:
    """Groups of class names that are the same words to a model: underscores are spaces, and case does not count."""
    groups: dict[str, list[str]] = {}
    for name in classes:
        groups.setdefault(" ".join(name.replace("_", " ").lower().split()), []).append(name)
    return [names for names in groups.values() if len(names) > 1]


@dataclass(frozen=True)
class Split:
    """Labelled images of a list of classes, and how to open them.

    `rows[i]` is the index of class i among the classes that were trained on, where these differ only by some being
    left out (ImageNet-A has 200 of ImageNet's 1000). None: no such relation. `transfer` says that these are images of
    another data set than the one that was trained on.
    """

    items: tuple[Item, ...]
    classes: tuple[str, ...]  # names by label; names may repeat (ImageNet has two cranes), so never key by them
    open_image: OpenImage  # -> RGB; must be picklable for worker processes
    rows: tuple[int, ...] | None = None
    origin: str = ""  # stands for the images that the items name; see `Dataset`
    transfer: bool = False

    def __len__(self) -> int:
        return len(self.items)

    def select(self, labels: Sequence[int]) -> "Split":
        """The items of these classes, relabelled 0, 1, ... in the order of `labels`."""
        new = {label: index for index, label in enumerate(labels)}
        items = tuple(Item(item.image, new[item.label]) for item in self.items if item.label in new)
        return replace(self, items=items, classes=tuple(self.classes[label] for label in labels), rows=None)


@dataclass(frozen=True)
class Dataset:
    """A data set with its three parts. `classes` are the final names, underscores kept; labels index them.

    `rows[i]` is the index of class i among the classes of the data set that this one is a variant of (ImageNet-A has
    200 of ImageNet's 1000). `origin` stands for the images: those of two data sets may share their names, but are the
    same only where the origins are equal; whoever loads a data set fills it in.
    """

    name: str
    classes: tuple[str, ...]
    train: tuple[Item, ...]
    val: tuple[Item, ...]
    test: tuple[Item, ...]
    open_image: OpenImage
    rows: tuple[int, ...] | None = None
    origin: str = ""

    def split(self, part: Part, items: Iterable[Item] | None = None) -> Split:
        """One part whole, or the given items of it."""
        items = tuple(getattr(self, part) if items is None else items)
        return Split(items, self.classes, self.open_image, origin=self.origin)

    def first(self, n: int) -> "Dataset":
        """The same with the first `n` validation and test images of each class."""

        def cut(items: tuple[Item, ...]) -> tuple[Item, ...]:
            seen: Counter[int] = Counter()
            return tuple(item for item in items if seen.update([item.label]) or seen[item.label] <= n)

        return replace(self, val=cut(self.val), test=cut(self.test))

    def fingerprint(self) -> str:
        """sha256 over class names and the three lists: equal where the data set is split alike."""
        return self._fingerprint

    @cached_property  # seconds for a million images
    def _fingerprint(self) -> str:
        parts = {part: [[i.image, i.label] for i in getattr(self, part)] for part in PARTS}
        text = json.dumps({"classes": self.classes, **parts}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()
