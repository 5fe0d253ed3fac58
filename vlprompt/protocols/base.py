"""What a protocol is: a rule that turns a data set into episodes. It knows no method and imports no torch."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Final, Literal

from vlprompt.data.dataset import Dataset, Split
from vlprompt.data.sampling import Sampler, Shots, sample_few_shot
from vlprompt.errors import UserError

FEW_SHOT_VAL: Final = "few_shot_val"
Source = Literal["test", "val", "few_shot_val"]


@dataclass(frozen=True)
class Episode:
    """One training and its tests. A test whose classes differ from those of `train` needs names to predict from.

    `train` is None where nothing is trained, `val` where the data set has no validation images.
    """

    train: Split | None
    val: Split | None
    tests: Mapping[str, Split]


class Protocol(ABC):
    """Which images a method is trained on, which it is tested on, and which numbers sum that up.

    `part` is where the tests come from. Two are for choosing settings without a look at the test images: "val", all
    validation images of the data set, and "few_shot_val", those of the few-shot sample alone, which are of the classes
    that are trained on: the one test there is then.
    """

    name: ClassVar[str]  # as in the configuration and in the records
    transfer: ClassVar[bool] = False  # tests are data sets, the first of them the one that is trained on
    targets: tuple[str, ...] = ()  # data sets that are tested in addition to the one that is trained on

    def __init__(self, *, part: Source = "test") -> None:
        self.part = part

    @abstractmethod
    def episodes(
        self,
        dataset: Dataset,
        *,
        shots: Shots,
        seed: int,
        sample: Sampler = sample_few_shot,
        targets: Mapping[str, Dataset] = {},
    ) -> Iterator[Episode]:
        """The trainings that this protocol asks for; equal arguments give equal episodes.

        `targets` are the data sets that `self.targets` names, but for `dataset` itself.
        """

    def test_of(self, dataset: Dataset, val: Split | None) -> Split:
        """The images of `part`, all of them; `val` is the few-shot validation sample. Raises: UserError without any."""
        return validation(dataset, val) if self.part == FEW_SHOT_VAL else dataset.split(self.part)

    @classmethod
    def summary(cls, accuracies: Mapping[str, float]) -> dict[str, float]:
        """The headline numbers, in the order to show them, from the accuracy on each test. All are fractions."""
        return dict(accuracies)


def validation(dataset: Dataset, val: Split | None) -> Split:
    """The few-shot validation sample as a test. Raises: UserError where there is none."""
    if val is None:
        raise UserError(f"{dataset.name} has no validation images to choose settings on: choose another data set.")
    return val
