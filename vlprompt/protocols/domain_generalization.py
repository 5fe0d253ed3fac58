"""Domain generalisation: what is learned on one data set, on other looks of the same classes."""

from dataclasses import replace
from typing import ClassVar

from vlprompt.data.dataset import Dataset, Split
from vlprompt.errors import UserError
from vlprompt.protocols.transfer import Transfer


class DomainGeneralization(Transfer):
    """Train on the source, test on its variants: data sets of the same classes, or of some of them.

    Only the classes of a variant are candidates (200 for ImageNet-A and -R). Their rows among the source's classes are
    known, so that methods with one parameter per class can be tested, too.

    Source: Zhou et al., "Learning to Prompt for Vision-Language Models" (IJCV 2022), section 4.2.
    """

    name: ClassVar[str] = "domain_generalization"

    def test(self, target: Dataset, source: Dataset) -> Split:
        return replace(target.split("test"), rows=rows_in(target, source))


def rows_in(variant: Dataset, source: Dataset) -> tuple[int, ...]:
    """The row of each class of a variant among the source's; a variant that names none has them all, in order.

    Raises: UserError where these are not the source's classes.
    """
    n_classes = len(source.classes)
    rows = tuple(range(n_classes)) if variant.rows is None else variant.rows
    expected = [plain(source.classes[row]) for row in rows if 0 <= row < n_classes]
    if expected != [plain(name) for name in variant.classes]:
        raise UserError(
            f"{variant.name} is no variant of {source.name}: its {len(variant.classes)} classes are not the "
            f"{n_classes} of the latter, or known ones of them; use protocol=cross_dataset, or name variants in "
            "protocol.targets."
        )
    return rows


def plain(name: str) -> str:
    """A class name as prompts have it."""
    return name.replace("_", " ")
