"""A small data set that is drawn, not stored: patterned, coloured shapes in three styles.

A class is a combination such as "striped red star". The backbone that comes with it has seen every word, and
none of these combinations.
"""

import hashlib
from functools import lru_cache, partial

import numpy as np
from PIL import Image

from vlprompt.data.dataset import Dataset, Item
from vlprompt.demo.drawing import COLOURS, PATTERNS, draw
from vlprompt.demo.looks import STYLES
from vlprompt.demo.outlines import SHAPES
from vlprompt.errors import unknown

Combination = tuple[str, str, str]  # pattern, colour, shape

PER_CLASS = {"train": 32, "val": 16, "test": 50}
N_CLASSES = 40
COMBINATIONS: tuple[Combination, ...] = tuple((p, c, s) for p in PATTERNS for c in COLOURS for s in SHAPES)


def generator(*parts: object) -> np.random.Generator:
    """Random numbers that depend on these words alone, on every machine."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "big"))


def _held_out() -> tuple[Combination, ...]:
    """40 combinations in a fixed order: each half holds every pattern, every colour and every shape."""
    for attempt in range(10_000):
        order = generator("held-out", attempt).permutation(len(COMBINATIONS))[:N_CLASSES]
        chosen = tuple(COMBINATIONS[i] for i in order)
        halves = chosen[: N_CLASSES // 2], chosen[N_CLASSES // 2 :]
        if all(set(words) == set(column) for half in halves for words, column in zip(
            (PATTERNS, COLOURS, SHAPES), zip(*half, strict=True), strict=True
        )):  # fmt: skip
            return chosen
    raise RuntimeError("no such choice of classes")


HELD_OUT = _held_out()


@lru_cache(maxsize=8192)  # 27 kB each, all tests of the three styles; drawing takes milliseconds
def open_image(name: str, *, style: str) -> Image.Image:
    """Draws "train/striped_red_star/003": the same picture for the same style and name, always."""
    pattern, colour, shape = name.split("/")[1].split("_")
    return draw(generator("shapes", style, name), pattern, colour, shape, STYLES[style])[0]


def load(style: str = "scene", *, name: str | None = None, root: object = None) -> Dataset:
    """The 40 classes: 32 pictures each to train on, 16 to validate, 50 to test.

    The styles share class names and numbers of pictures, so they stand to each other as ImageNet to its variants.

    Raises:
        UserError: no such style.
    """
    if style not in STYLES:
        raise unknown("style of the shapes", style, STYLES)
    parts = {
        part: tuple(Item(f"{part}/{'_'.join(c)}/{i:03d}", label) for label, c in enumerate(HELD_OUT) for i in range(n))
        for part, n in PER_CLASS.items()
    }
    name = name or ("shapes" if style == "scene" else f"shapes_{style}")
    classes = tuple(" ".join(c) for c in HELD_OUT)
    return Dataset(name, classes, parts["train"], parts["val"], parts["test"], partial(open_image, style=style))
