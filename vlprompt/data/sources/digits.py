"""Handwritten digits of real people, as scikit-learn ships them: 1797 pictures of 8x8 pixels. Needs no download."""

import random
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image

from vlprompt.data.dataset import Dataset, Item

CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SPLIT_SEED = 0
TRAIN, VAL = 0.5, 0.2  # shares of each class; the rest is the test
BRIGHTEST = 16


def load(name: str, *, root: object = None) -> Dataset:
    """All digits, split 50/20/30 within each class, always alike. `root` is not used: nothing is stored there."""
    rng = random.Random(SPLIT_SEED)
    by_class: dict[int, list[Item]] = {label: [] for label in range(len(CLASSES))}
    for index, label in enumerate(load_bunch().target.tolist()):
        by_class[label].append(Item(f"{index:04d}", label))
    train, val, test = [], [], []
    for items in by_class.values():
        rng.shuffle(items)
        first, second = round(TRAIN * len(items)), round((TRAIN + VAL) * len(items))
        train += items[:first]
        val += items[first:second]
        test += items[second:]
    return Dataset(name, CLASSES, tuple(train), tuple(val), tuple(test), open_digit)


def open_digit(image: str) -> Image.Image:
    """White strokes on black."""
    pixels = np.round(load_bunch().images[int(image)] * (255 / BRIGHTEST)).astype(np.uint8)
    return Image.fromarray(pixels).convert("RGB")


@lru_cache(maxsize=1)
def load_bunch() -> Any:
    """scikit-learn's data set, read once in each process."""
    from sklearn.datasets import load_digits

    return load_digits()
