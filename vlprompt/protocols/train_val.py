"""Train and val: settings are chosen on validation images, and the final training has these, too."""

from collections.abc import Mapping
from typing import ClassVar

from vlprompt.data.dataset import Dataset
from vlprompt.errors import UserError
from vlprompt.protocols.base import Episode, Protocol, Sample, val_split


class TrainVal(Protocol):
    """`part` "val": train on the training images, test on all validation images. "test": train on both, test on test.
    "few_shot_val": as "val", on the validation images of the few-shot sample alone.

    All classes. With shots=all and the 800 and 200 images of VTAB-1k this is how VPT chooses and reports.

    Raises: UserError where validation images are test images (as ImageNet's are).
    Source: Jia et al., "Visual Prompt Tuning" (ECCV 2022), section 4.1; Zhai et al., "A Large-scale Study of
    Representation Learning with the Visual Task Adaptation Benchmark" (2019).
    """

    name: ClassVar[str] = "train_val"

    def has_validation(self, dataset: Dataset) -> bool:
        return self.part != "test" and super().has_validation(dataset)

    def episode(self, dataset: Dataset, sample: Sample, *, targets: Mapping[str, Dataset] = {}) -> Episode:
        """There is no validation split where its images are trained on."""
        if {item.image for item in dataset.val} & {item.image for item in dataset.test}:
            raise UserError(
                f"the validation images of {dataset.name} are test images, so that train_val would choose or train on "
                "the test: use protocol=few_shot."
            )
        train, val = sample
        drawn, final = val_split(dataset, val), self.part == "test"
        return Episode(
            train=dataset.split("train", [*train, *val] if final else train),
            val=None if final else drawn,
            tests={self.part: self.test_of(dataset, drawn)},
        )
