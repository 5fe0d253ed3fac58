"""Base-to-novel generalisation: train on half of the classes, test on both halves."""

from collections.abc import Mapping
from typing import ClassVar

from vlprompt.data.dataset import Dataset
from vlprompt.errors import UserError
from vlprompt.protocols.base import FEW_SHOT_VAL, Episode, Protocol, Sample, require_val


class BaseToNovel(Protocol):
    """One training on the base half; tests on the base half, the novel half, and both over all class names.

    The base half is the first ceil(n/2) labels. Images are sampled from all classes and filtered afterwards: the
    images of a base class do not depend on the protocol. Labels count from 0 within each half.

    Source: Zhou et al., "Conditional Prompt Learning for Vision-Language Models" (CVPR 2022), section 4.1.
    Differs: "all" is not in the paper.
    """

    name: ClassVar[str] = "base_to_novel"

    def episode(self, dataset: Dataset, sample: Sample, *, targets: Mapping[str, Dataset] = {}) -> Episode:
        base, novel = halves(dataset)
        train, val = (dataset.split("train", sample[0]), dataset.split("val", sample[1]))
        base_val = val.select(base) or None  # an empty split is false
        if self.part == FEW_SHOT_VAL:  # no look at a novel label either
            tests = {"base": require_val(dataset, base_val)}
        else:
            test = self.test_of(dataset, base_val)
            tests = {"base": test.select(base), "novel": test.select(novel), "all": test}
        return Episode(train=train.select(base), val=base_val, tests=tests)

    @classmethod
    def summary(cls, accuracies: Mapping[str, float]) -> dict[str, float]:
        """base, novel, their harmonic mean H, all; as far as they are there."""
        headline = {name: accuracies[name] for name in ("base", "novel") if name in accuracies}
        if len(headline) == 2:
            headline["H"] = harmonic_mean(headline["base"], headline["novel"])
        return headline | {name: value for name, value in accuracies.items() if name not in headline}


def halves(dataset: Dataset) -> tuple[list[int], list[int]]:
    """Base and novel labels. An odd class belongs to base."""
    labels = sorted({item.label for item in dataset.train})
    if len(labels) < 2:
        raise UserError(
            f"{dataset.name} has {len(labels)} class with training images, but base_to_novel needs at least 2: "
            "choose another protocol or data set."
        )
    middle = (len(labels) + 1) // 2
    return labels[:middle], labels[middle:]


def harmonic_mean(a: float, b: float) -> float:
    """2ab / (a + b), and 0 where both are 0."""
    return 2 * a * b / (a + b) if a + b else 0.0
