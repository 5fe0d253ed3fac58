"""The published few-shot samplers. No torch here."""

import logging
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from vlprompt.data.dataset import Dataset, Item
from vlprompt.errors import UserError, first_names, printable

logger = logging.getLogger(__name__)

Shots = int | Literal["all"]
MAX_VAL_SHOTS = 4
ALL = -1  # "no sub-sampling" inside this module only: users write "all"


@runtime_checkable
class Sampler(Protocol):
    """A rule that draws (training images, validation images) from a data set."""

    def __call__(self, dataset: Dataset, *, shots: Shots, seed: int) -> tuple[list[Item], list[Item]]: ...


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


def sample_clip_lora(dataset: Dataset, *, shots: Shots, seed: int) -> tuple[list[Item], list[Item]]:
    """As CLIP-LoRA: the validation images are drawn first, and a class with too few images repeats some.

    Where the data set has no validation images (ImageNet), both come from the training images of a class in one draw.

    Source: Zanella and Ben Ayed, "Low-Rank Few-Shot Adaptation of Vision-Language Models" (CVPR Workshops 2024), the
    published implementation.
    """
    k = check_shots(dataset, shots, repeat=True)
    rng = random.Random(seed)
    k_val = min(k, MAX_VAL_SHOTS)
    if dataset.val or k == ALL:
        val = draw(dataset.val, k_val, rng, repeat=True)
        return draw(dataset.train, k, rng, repeat=True), val
    drawn = group_by_label(draw(dataset.train, k + k_val, rng, repeat=True)).values()
    return [item for group in drawn for item in group[:k]], [item for group in drawn for item in group[k:]]


def sample_tip_adapter(dataset: Dataset, *, shots: Shots, seed: int) -> tuple[list[Item], list[Item]]:
    """As Tip-Adapter: training images alone are drawn, with repetition in small classes; validation images stay whole.

    Source: Zhang et al., "Tip-Adapter" (ECCV 2022), the published implementation, which always uses seed 1.
    """
    k = check_shots(dataset, shots, repeat=True)
    return draw(dataset.train, k, random.Random(seed), repeat=True), list(dataset.val)


def sample_lp_plus_plus(dataset: Dataset, *, shots: Shots, seed: int) -> tuple[list[Item], list[Item]]:
    """As LP++: as many validation as training images of each class, drawn after them; small classes repeat some.

    Where the data set has no validation images (ImageNet), both come from the training images of a class in one draw.

    Source: Huang et al., "LP++: A Surprisingly Strong Linear Probe for Few-Shot CLIP" (CVPR 2024), the published
    implementation, which runs seeds 1 to 10.
    """
    k = check_shots(dataset, shots, repeat=True)
    rng = random.Random(seed)
    if dataset.val or k == ALL:
        return draw(dataset.train, k, rng, repeat=True), draw(dataset.val, k, rng, repeat=True)
    drawn = group_by_label(draw(dataset.train, 2 * k, rng, repeat=True)).values()
    return [item for group in drawn for item in group[:k]], [item for group in drawn for item in group[k:]]


@dataclass(frozen=True)
class ImbalancedSampler:
    """Training images as frequent as their classes are: round(`total` * share) of each class, whatever `shots`.

    Classes may end up without any, unless `every_class` asks for one image at least. What is too many then, or by
    rounding, the largest classes lose; what is less than `total` stays so. After them min(images, 4) validation images
    of each class are drawn.

    Source: Silva-Rodríguez et al., MICCAI 2025, https://arxiv.org/abs/2506.17500, section 4 ("realistic", "relaxed"),
    and the authors' code, data/utils.py, for how many; which images they draw depends on the order of their features.
    """

    total: int
    every_class: bool = False

    def __call__(self, dataset: Dataset, *, shots: Shots, seed: int) -> tuple[list[Item], list[Item]]:
        """Raises: UserError where there are fewer images than `total`, or more classes if each has to have one."""
        check_shots(dataset, "all")
        groups, n = group_by_label(dataset.train), len(dataset.train)
        least = len(groups) if self.every_class else 1
        if not least <= self.total <= n:
            raise UserError(
                f"sampler.total={self.total}: allowed are {least} to {n}, the training images of {dataset.name}"
                f"{' from one a class on (sampler.every_class)' * self.every_class}."
            )
        counts = {label: round(self.total * len(group) / n) for label, group in groups.items()}
        counts = {label: max(count, int(self.every_class)) for label, count in counts.items()}
        for _ in range(sum(counts.values()) - self.total):
            counts[max(sorted(counts), key=counts.__getitem__)] -= 1
        rng, val = random.Random(seed), group_by_label(dataset.val)
        train = [item for label, group in groups.items() for item in rng.sample(group, counts[label])]
        few = {label: min(counts.get(label, 0), MAX_VAL_SHOTS, len(group)) for label, group in val.items()}
        return train, [item for label, group in val.items() for item in rng.sample(group, few[label])]


SAMPLERS: Mapping[str, Sampler] = {
    "coop": sample_few_shot,
    "clip_lora": sample_clip_lora,
    "tip_adapter": sample_tip_adapter,
    "lp_plus_plus": sample_lp_plus_plus,
}


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


def check_shots(dataset: Dataset, shots: Shots, *, repeat: bool = False) -> int:
    """`shots` as a number (ALL for "all"), after a warning that names the classes with fewer images."""
    if shots != "all" and (type(shots) is not int or shots < 1):  # True is an int too
        raise UserError(f"shots={shots}: allowed is a positive whole number or 'all'.")
    sizes = {label: len(group) for label, group in group_by_label(dataset.train).items()}
    largest = max(sizes.values(), default=0)
    if not largest:
        raise UserError(
            f"{dataset.name} has no training images, it is a test set: train on another one "
            "(protocol=domain_generalization), or use method=zero_shot."
        )
    if shots == "all":
        return ALL
    if shots > largest:
        raise UserError(
            f"shots={shots}, but the largest class of {dataset.name} has {largest} training images: "
            f"choose at most {largest}, or shots=all."
        )
    small = [f"{dataset.classes[label]} ({size})" for label, size in sizes.items() if size < shots]
    if small:
        what = "repeat some" if repeat else "are taken whole"
        logger.warning(
            "Classes of %s with fewer than %d training images %s: %s.",
            dataset.name,
            shots,
            what,
            printable(first_names(small)),
        )
    return shots
