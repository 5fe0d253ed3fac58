"""Train and val: settings are chosen on validation images, and the final training has these, too."""

from collections.abc import Iterator, Mapping
from typing import ClassVar

from vlprompt.data.dataset import Dataset
from vlprompt.data.sampling import Sampler, Shots, sample_few_shot
from vlprompt.errors import UserError
from vlprompt.protocols.base import Episode, Protocol


class TrainVal(Protocol):
    """`part` "val": train on the training images, test on all validation images. "test": train on both, test on test.
    "few_shot_val": as "val", on the validation images of the few-shot sample alone.

    All classes. With shots=all and the 800 and 200 images of VTAB-1k this is how VPT chooses and reports.

    Source: Jia et al., "Visual Prompt Tuning" (ECCV 2022), section 4.1; Zhai et al., "A Large-scale Study of
    Representation Learning with the Visual Task Adaptation Benchmark" (2019).
    """

    name: ClassVar[str] = "train_val"

    def episodes(
        self,
        dataset: Dataset,
        *,
        shots: Shots,
        seed: int,
        sample: Sampler = sample_few_shot,
        targets: Mapping[str, Dataset] = {},
    ) -> Iterator[Episode]:
        """One episode; there is no validation split where its images are trained on.

        Raises: UserError where validation images are test images (as ImageNet's are).
        """
        if {item.image for item in dataset.val} & {item.image for item in dataset.test}:
            raise UserError(
                f"the validation images of {dataset.name} are test images, so that train_val would choose or train on "
                "the test: use protocol=few_shot."
            )
        train, val = sample(dataset, shots=shots, seed=seed)
        drawn = dataset.split("val", val) or None  # an empty split is false
        final = self.part == "test"
        yield Episode(
            train=dataset.split("train", [*train, *val] if final else train),
            val=None if final else drawn,
            tests={self.part: self.test_of(dataset, drawn)},
        )
