"""Few-shot learning: train on all classes, test on all classes."""

from collections.abc import Mapping
from typing import ClassVar

from vlprompt.data.dataset import Dataset
from vlprompt.protocols.base import Episode, Protocol, Sample, val_split


class FewShot(Protocol):
    """One training on a few images of every class, and one test.

    Source: Zhou et al., "Learning to Prompt for Vision-Language Models" (IJCV 2022), section 4.1.
    """

    name: ClassVar[str] = "few_shot"

    def episode(self, dataset: Dataset, sample: Sample, *, targets: Mapping[str, Dataset] = {}) -> Episode:
        val = val_split(dataset, sample[1])
        return Episode(train=dataset.split("train", sample[0]), val=val, tests={self.part: self.test_of(dataset, val)})
