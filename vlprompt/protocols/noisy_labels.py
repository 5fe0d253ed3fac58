"""Few-shot learning with wrong labels."""

import random
from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

from vlprompt.data.dataset import Dataset, Split
from vlprompt.errors import UserError
from vlprompt.protocols.base import Episode, Protocol, Sample, Source, val_split
from vlprompt.protocols.base_to_novel import harmonic_mean

MISLABELLED = "mislabelled"


class NoisyLabels(Protocol):
    """Train with a share `noise` of wrong labels; test on the test images, and on the mislabelled with true labels.

    Which images, and which other class each is said to be of, is drawn alike everywhere (symmetric noise): the same of
    equal samples. Labels of validation images stay as they are. With another `part` than "test" there is no test of
    training images: settings are not chosen on what is trained on.

    Raises: UserError for a `noise` that mislabels no image, or is no share, and where there is one class.
    Source: Wu et al., "Why Is Prompt Tuning for Vision-Language Models Robust to Noisy Labels?" (ICCV 2023).
    Differs: the test on the mislabelled images is not in the paper.
    """

    name: ClassVar[str] = "noisy_labels"

    def __init__(self, *, noise: float = 0.5, part: Source = "test") -> None:
        super().__init__(part=part)
        if not 0 < noise < 1:
            raise UserError(f"protocol.noise={noise} is no share of wrong labels: give one between 0 and 1, as in 0.25")
        self.noise = noise

    def episode(self, dataset: Dataset, sample: Sample, *, targets: Mapping[str, Dataset] = {}) -> Episode:
        train, val = list(sample[0]), val_split(dataset, sample[1])
        if len(dataset.classes) < 2:
            raise UserError(f"{dataset.name} has one class, so that no label can be wrong: choose another protocol.")
        draw = random.Random(0)
        wrong = draw.sample(range(len(train)), round(self.noise * len(train)))
        if not wrong:
            raise UserError(
                f"protocol.noise={self.noise} mislabels none of {len(train)} training images: give more noise or shots"
            )
        tests: dict[str, Split] = {self.part: self.test_of(dataset, val)}
        if self.part == "test":
            tests[MISLABELLED] = dataset.split("train", [train[i] for i in wrong])
        for i in wrong:
            others = [label for label in range(len(dataset.classes)) if label != train[i].label]
            train[i] = replace(train[i], label=draw.choice(others))
        return Episode(train=dataset.split("train", train), val=val, tests=tests)

    @classmethod
    def summary(cls, accuracies: Mapping[str, float]) -> dict[str, float]:
        """Each test, and `robust`, the harmonic mean of both; as far as they are there."""
        both = [accuracies[name] for name in ("test", MISLABELLED) if name in accuracies]
        return {**accuracies, **({"robust": harmonic_mean(*both)} if len(both) == 2 else {})}
