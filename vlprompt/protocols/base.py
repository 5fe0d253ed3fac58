"""What a protocol is: a rule that turns a data set and a few-shot sample of it into one training and its tests.

It knows no method and imports no torch.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Final, Literal

from vlprompt.data.dataset import Dataset, Item, Split
from vlprompt.errors import UserError, first_names

FEW_SHOT_VAL: Final = "few_shot_val"
Source = Literal["test", "val", "few_shot_val"]
Sample = tuple[list[Item], list[Item]]
"""Few-shot training and validation images of all classes of a data set, as a sampler draws them."""


@dataclass(frozen=True)
class Episode:
    """One training and its tests. A test whose classes differ from those of `train` needs names to predict from.

    `val` is None where there are no validation images.
    """

    train: Split
    val: Split | None
    tests: Mapping[str, Split]

    def selection_split(self, select_on: Literal["val", "test"]) -> Split | None:
        """The images on which an epoch, or a method's own search, is selected; None where there are none.

        Raises:
            UserError: test images are asked for, and no test is of the classes trained on.
        """
        if select_on == "val":
            return self.val
        alike = [split for split in self.tests.values() if split.classes == self.train.classes]
        if not alike:
            raise UserError("fit.select_on=test needs a test of the classes trained on: use another protocol, or val")
        return alike[0]


def check_images(dataset: Dataset, episode: Episode, *, trained: bool, may_lack: bool = False) -> None:
    """Raises: UserError where there is nothing to test on, or a class to be trained on has no training images.

    `may_lack`: classes may, if there are any training images.
    """
    for name, split in episode.tests.items():
        if not split.items:
            classes = first_names([f"'{name}'" for name in split.classes], 4)
            raise UserError(
                f"{dataset.name} has no images for the test '{name}' ({len(split.classes)} classes: {classes}): "
                "add test images of these classes, or choose another protocol."
            )
    lacking = set(range(len(episode.train.classes))) - {item.label for item in episode.train.items}
    if trained and lacking and not (may_lack and episode.train.items):
        names = first_names([f"'{episode.train.classes[label]}'" for label in sorted(lacking)], 4)
        raise UserError(
            f"the training images chosen from {dataset.name} lack {len(lacking)} of the classes ({names}): "
            "add some (to sampler.file, where that chooses them; by more shots or less protocol.noise, where labels "
            "are wrong), or leave these classes out."
        )


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
    def episode(self, dataset: Dataset, sample: Sample, *, targets: Mapping[str, Dataset] = {}) -> Episode:
        """The training and the tests; equal arguments give equal episodes.

        `targets` are the data sets that `self.targets` names, except `dataset` itself.
        """

    def has_validation(self, dataset: Dataset) -> bool:
        """Whether the episode has validation images to select on."""
        return bool(dataset.val)

    def test_of(self, dataset: Dataset, val: Split | None) -> Split:
        """The images of `part`, all of them; `val` is the few-shot validation sample. Raises: UserError without any."""
        images = val if self.part == FEW_SHOT_VAL else dataset.split(self.part)
        return require_val(dataset, images if images else None) if self.part != "test" else dataset.split("test")

    @classmethod
    def summary(cls, accuracies: Mapping[str, float]) -> dict[str, float]:
        """The headline numbers, in the order to show them, from the accuracy on each test. All are fractions."""
        return dict(accuracies)

    @classmethod
    def against_zero_shot(cls, numbers: Mapping[str, float], zero_shot: Mapping[str, float]) -> dict[str, float]:
        """More headline numbers for the tables, from those of a learner and of zero-shot on the same images."""
        return {}


def val_split(dataset: Dataset, items: list[Item]) -> Split | None:
    """The few-shot validation sample; None where it is empty."""
    return dataset.split("val", items) if items else None


def require_val(dataset: Dataset, val: Split | None) -> Split:
    """The few-shot validation sample as a test. Raises: UserError where there is none."""
    if val is None:
        raise UserError(f"{dataset.name} has no validation images to choose settings on: choose another data set.")
    return val
