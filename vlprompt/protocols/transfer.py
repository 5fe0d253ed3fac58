"""Transfer: train on one data set, the source, and test on it and on others, the targets."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from statistics import fmean
from typing import ClassVar

from vlprompt.data.dataset import Dataset, Split
from vlprompt.errors import UserError
from vlprompt.protocols.base import Episode, Protocol, Sample, Source, val_split


class Transfer(Protocol):
    """One training on a few images of every class of the source; a test on the source and one on each target.

    Tests bear the names of their data sets, the source first. A target that is the source itself is left out: it is
    tested anyway. With another `part` than "test" the source's validation images are the only test: settings are
    chosen without a look at the targets.

    Raises: UserError where there are no targets.
    """

    transfer: ClassVar[bool] = True

    def __init__(self, *, targets: list[str], part: Source = "test") -> None:
        super().__init__(part=part)
        if not targets:
            raise UserError("protocol.targets is empty: name the data sets to test on, as in protocol.targets=[digits]")
        self.targets = tuple(targets) if part == "test" else ()

    def episode(self, dataset: Dataset, sample: Sample, *, targets: Mapping[str, Dataset] = {}) -> Episode:
        val = val_split(dataset, sample[1])
        names = [name for name in self.targets if name in targets]
        return Episode(
            train=dataset.split("train", sample[0]),
            val=val,
            tests={dataset.name: self.test_of(dataset, val)}
            | {name: replace(self.test(targets[name], dataset), transfer=True) for name in names},
        )

    @abstractmethod
    def test(self, target: Dataset, source: Dataset) -> Split:
        """The test on one target."""

    @classmethod
    def summary(cls, accuracies: Mapping[str, float]) -> dict[str, float]:
        """The source, each target, and the plain mean over the targets. The source comes first in `accuracies`."""
        targets = list(accuracies.values())[1:]
        return {**accuracies, "average": fmean(targets)} if targets else dict(accuracies)
