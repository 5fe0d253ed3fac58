"""A data set of a few drawn pictures, so that a whole run takes a second. Named by `dataset.source._target_`."""

import random
from functools import partial

from PIL import Image

from vlprompt.data.dataset import Dataset, Item

CLASSES = ("zero", "one", "two", "three", "four")
PER_CLASS = {"train": 4, "val": 1, "test": 3}

RUN = [
    "dataset=digits",
    "dataset.source._target_=tiny_world.load",
    "backbone.weights=random",
    "method.ctx_init=''",
    "method.n_context=4",
    "fit.epochs=2",
    "fit.lr=0.002",
    "fit.schedule.warmup=none",
    "bank.views=2",
    "shots=2",
]
"""A run of CoOp on this world, from random values."""


def load(
    name: str,
    *,
    root: object = None,
    style: int = 0,
    small: int = PER_CLASS["train"],
    names: list[str] = list(CLASSES),  # noqa: B006
    keep: list[int] | None = None,
    sealed: str = "",
    turned: int = 0,
) -> Dataset:
    """Five classes; the first has only `small` training images. Two styles share all names, but no pixel.

    With `keep` it is a variant that has only test images, of these classes in this order. Images of the part `sealed`
    cannot be opened. Labels of test images are moved by `turned`.
    """
    parts = {
        part: tuple(
            Item(f"{part}/{label}/{i}", (label + turned * (part == "test")) % len(CLASSES))
            for label in range(len(CLASSES))
            for i in range(small if (part, label) == ("train", 0) else n)
        )
        for part, n in PER_CLASS.items()
    }
    open_image = partial(draw, style=style, sealed=sealed)
    if keep is None:
        return Dataset(name, tuple(names), parts["train"], parts["val"], parts["test"], open_image)
    test = tuple(Item(item.image, keep.index(item.label)) for item in parts["test"] if item.label in keep)
    return Dataset(name, tuple(names[label] for label in keep), (), (), test, open_image, rows=tuple(keep))


def draw(image: str, *, style: int, sealed: str) -> Image.Image:
    """16 x 20 pixels of noise that depend on the name and the style alone."""
    assert image.split("/")[0] != sealed, f"{image} was opened"
    return Image.frombytes("RGB", (16, 20), random.Random(f"{style} {image}").randbytes(16 * 20 * 3))
