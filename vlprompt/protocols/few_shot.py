"""Few-shot learning: train on all classes, test on all classes."""

from collections.abc import Iterator, Mapping
from typing import ClassVar

from vlprompt.data.dataset import Dataset, Split
from vlprompt.data.sampling import Sampler, Shots, sample_few_shot
from vlprompt.protocols.base import Episode, Protocol


class FewShot(Protocol):
    """One training on a few images of every class, and one test.

    Source: Zhou et al., "Learning to Prompt for Vision-Language Models" (IJCV 2022), section 4.1.
    Differs: "all" is not in the paper.
    """

    name: ClassVar[str] = "few_shot"

    def episodes(
        self,
        dataset: Dataset,
        *,
        shots: Shots,
        seed: int,
        sample: Sampler = sample_few_shot,
        targets: Mapping[str, Dataset] = {},
    ) -> Iterator[Episode]:
        """One episode."""
        train, val = sample(dataset, shots=shots, seed=seed)
        drawn = dataset.split("val", val) or None  # an empty split is false
        tests: dict[str, Split] = {self.part: self.test_of(dataset, drawn)}
        yield Episode(train=dataset.split("train", train), val=drawn, tests=tests)
