"""Cross-dataset transfer: what is learned on one data set, on data sets of other classes."""

from typing import ClassVar

from vlprompt.data.dataset import Dataset, Split
from vlprompt.protocols.transfer import Transfer


class CrossDataset(Transfer):
    """Train on the source, test on the whole test split of each target with the target's own class names.

    Source: Zhou et al., "Conditional Prompt Learning for Vision-Language Models" (CVPR 2022), section 4.2.
    """

    name: ClassVar[str] = "cross_dataset"

    def test(self, target: Dataset, source: Dataset) -> Split:
        return target.split("test")
