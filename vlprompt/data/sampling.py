"""The published few-shot sampler. No torch here."""

import logging
import random
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

from vlprompt.data.dataset import Dataset, Item
from vlprompt.errors import UserError

logger = logging.getLogger(__name__)

Shots = int | Literal["all"]
Sampler = Callable[..., tuple[list[Item], list[Item]]]  # (dataset, *, shots, seed) -> (train, val)
MAX_VAL_SHOTS = 4
ALL = -1  # "no sub-sampling" inside this module only: users write "all"
N_NAMED = 10  # classes that the warning names before it counts the rest


def sample_few_shot(dataset: Dataset, *, shots: Shots, seed: int) -> tuple[list[Item], list[Item]]:
    """`shots` training and min(shots, 4) validation images of each class, drawn from one random stream.

    A class with fewer images is taken whole, with one warning. "all" keeps both lists as they are.

    Raises: UserError where `shots` is no such number or exceeds the largest training class.
    Source: Zhou et al., "Learning to Prompt for Vision-Language Models" (IJCV 2022), the published implementation;
    the same images in the same order.
    """
    k = check_shots(dataset, shots)
    rng = random.Random(seed)
    train = draw(dataset.train, k, rng)
    val = draw(dataset.val, min(k, MAX_VAL_SHOTS), rng)  # after train: it continues the stream
    return train, val


def draw(items: Sequence[Item], k: int, rng: random.Random, *, repeat: bool = False) -> list[Item]:
    """k items of each class. With `repeat`, a class with fewer is drawn from k times instead of taken whole."""
    if k == ALL:
        return list(items)
    picked = []
    for group in group_by_label(items).values():
        if len(group) >= k:
            picked += rng.sample(group, k)
        else:
            picked += rng.choices(group, k=k) if repeat else group
    return picked


def group_by_label(items: Iterable[Item]) -> dict[int, list[Item]]:
    """Items by class, classes in order of first appearance: sorted ones would draw other images."""
    groups: dict[int, list[Item]] = {}
    for item in items:
        groups.setdefault(item.label, []).append(item)
    return groups


def check_shots(dataset: Dataset, shots: Shots) -> int:
    """`shots` as a number (ALL for "all"), after a warning that names the classes with fewer images."""
    if shots == "all":
        return ALL
    if type(shots) is not int or shots < 1:  # True is an int too
        raise UserError(f"shots={shots}: allowed is a positive whole number or 'all'.")
    sizes = {label: len(group) for label, group in group_by_label(dataset.train).items()}
    largest = max(sizes.values(), default=0)
    if shots > largest:
        raise UserError(
            f"shots={shots}, but the largest class of {dataset.name} has {largest} training images: "
            f"choose at most {largest}, or shots=all."
        )
    small = [f"{dataset.classes[label]} ({size})" for label, size in sizes.items() if size < shots]
    if small:
        rest = f" and {len(small) - N_NAMED} more" if len(small) > N_NAMED else ""
        logger.warning(
            "Classes of %s with fewer than %d training images are taken whole: %s%s.",
            *(dataset.name, shots, ", ".join(small[:N_NAMED]), rest),
        )
    return shots
