"""Common corruptions: trained on clean images, tested on clean and on corrupted ones."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import ClassVar

from vlprompt.data.corruptions import BENCHMARK_KINDS, EXTRA_KINDS, Corrupted
from vlprompt.data.dataset import Dataset, Split
from vlprompt.errors import UserError, unknown
from vlprompt.protocols.base import Episode, Protocol, Sample, Source, val_split

SEVERITIES = (1, 2, 3, 4, 5)
CLEAN = "clean"


class Corruptions(Protocol):
    """One training on a few images of every class; a test on clean images, and one on them for each kind and severity.

    With another `part` than "test" the kinds of the benchmark are left out: they are to be new to whoever chooses
    settings. The four extra kinds are there for that.

    Raises: UserError for unknown kinds or severities, and where there are none.
    Source: Hendrycks & Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations"
    (ICLR 2019), sections 3 and 4.
    """

    name: ClassVar[str] = "corruptions"

    def __init__(
        self,
        *,
        kinds: Sequence[str] = BENCHMARK_KINDS,
        severities: Sequence[int] = SEVERITIES,
        part: Source = "test",
    ) -> None:
        super().__init__(part=part)
        for setting, values, allowed in (
            ("kinds", kinds, (*BENCHMARK_KINDS, *EXTRA_KINDS)),
            ("severities", severities, SEVERITIES),
        ):
            if wrong := [value for value in values if value not in allowed]:
                raise unknown(f"value of protocol.{setting}", str(wrong[0]), [*map(str, allowed)])
            if len(set(values)) < max(len(values), 1):
                raise UserError(f"protocol.{setting} is {[*values]}: name one or more, each once")
        self.kinds = tuple(kind for kind in kinds if part == "test" or kind in EXTRA_KINDS)
        self.severities = tuple(severities)

    def episode(self, dataset: Dataset, sample: Sample, *, targets: Mapping[str, Dataset] = {}) -> Episode:
        val = val_split(dataset, sample[1])
        clean = self.test_of(dataset, val)
        tests = {f"{kind}_{n}": corrupted(clean, kind, n) for kind in self.kinds for n in self.severities}
        return Episode(train=dataset.split("train", sample[0]), val=val, tests={CLEAN: clean, **tests})

    @classmethod
    def summary(cls, accuracies: Mapping[str, float]) -> dict[str, float]:
        """Clean, the mean of each kind over severities, and the mean of these; as far as they are there."""
        by_kind: dict[str, list[float]] = {}
        for name, accuracy in accuracies.items():
            if name != CLEAN:
                by_kind.setdefault(name.rpartition("_")[0], []).append(accuracy)
        means = {kind: fmean(values) for kind, values in by_kind.items()}
        clean = {name: value for name, value in accuracies.items() if name == CLEAN}
        return clean | means | ({"corrupted": fmean(means.values())} if means else {})

    @classmethod
    def against_zero_shot(cls, numbers: Mapping[str, float], zero_shot: Mapping[str, float]) -> dict[str, float]:
        """mCE: the mean over kinds of the error, summed over severities, relative to that of zero-shot. 1 is its own.

        Section 4 of the paper, where errors are relative to AlexNet's. nan where zero-shot makes no error.
        """
        kinds = [name for name in numbers if name in (*BENCHMARK_KINDS, *EXTRA_KINDS)]
        ratios = [(1 - numbers[kind]) / error if (error := 1 - zero_shot[kind]) else float("nan") for kind in kinds]
        return {"mCE": fmean(ratios)} if kinds else {}


def corrupted(clean: Split, kind: str, severity: int) -> Split:
    """The images of a test, corrupted. They have another origin: caches must not take them for the clean ones."""
    opener = Corrupted(clean.open_image, kind, severity)
    return replace(clean, open_image=opener, origin=f"{clean.origin} {kind} {severity}")
