"""Which images of a data set are on the disk, class by class, and the data set without the classes that lack some."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from vlprompt.data.dataset import PARTS, Dataset, Item
from vlprompt.data.disk import complain
from vlprompt.data.sources.files import Files
from vlprompt.errors import UserError, first_names

USE_PRESENT = "or use the classes that are there whole with dataset.classes=present"


@dataclass(frozen=True)
class Gap:
    """What a class lacks: so many of its listed images, or, where no list says which, all of a part."""

    label: int
    name: str
    n_missing: int
    n_listed: int
    part: str = ""

    @property
    def is_whole(self) -> bool:
        return self.n_missing == self.n_listed

    def __str__(self) -> str:
        return f"{self.name} {f'no {self.part} images' if self.part else f'{self.n_missing:,} of {self.n_listed:,}'}"


def is_there(dataset: Dataset, item: Item) -> bool:
    files = dataset.open_image
    return not isinstance(files, Files) or files.has(item.image)


def gaps(dataset: Dataset) -> list[Gap]:
    """What is missing of the listed images, by class, in the order of labels; nothing of images that are drawn."""
    return count_gaps(dataset, (i for part in PARTS for i in getattr(dataset, part) if not is_there(dataset, i)))


def count_gaps(dataset: Dataset, missing: Iterable[Item]) -> list[Gap]:
    """These items by class; an image that is in two parts is one."""
    listed = Counter(item.label for item in {item for part in PARTS for item in getattr(dataset, part)})
    absent = Counter(item.label for item in set(missing))
    return [Gap(label, dataset.classes[label], absent[label], listed[label]) for label in sorted(absent)]


def summary(missing: Sequence[Gap], dataset: Dataset, most: int = 10) -> str:
    """2,311 of 8,242 images are missing, in 28 of 100 classes: accordion 55 of 55, ..."""
    n_listed = len({item for part in PARTS for item in getattr(dataset, part)})
    n_missing = sum(gap.n_missing for gap in missing if not gap.part)
    images = (
        f"{n_missing:,} of {n_listed:,} images {'is' if n_missing == 1 else 'are'} missing, "
        if n_missing
        else "images are missing "
    )
    return (
        f"{images}in {len(missing):,} of {len(dataset.classes):,} classes: {first_names(list(map(str, missing)), most)}"
    )


def only_present(dataset: Dataset, missing: Sequence[Gap] | None = None) -> Dataset:
    """The data set without the classes that lack an image, labels renumbered in their order; itself where none does.

    Its name says how many classes of how many are left, so that no table mistakes it for the whole. `missing`: what
    the classes lack, where the lists of the data set do not say it.

    Raises: UserError where fewer than two classes are left.
    """
    missing = gaps(dataset) if missing is None else missing
    if not missing:
        return dataset
    absent = {gap.label for gap in missing}
    labels = [label for label in range(len(dataset.classes)) if label not in absent]
    if len(labels) < 2:
        raise UserError(
            f"dataset.classes=present leaves {len(labels)} of the {len(dataset.classes):,} classes of {dataset.name}, "
            f"at least two are needed: {summary(missing, dataset)}."
        )
    new = {label: index for index, label in enumerate(labels)}
    train, val, test = (
        tuple(Item(item.image, new[item.label]) for item in getattr(dataset, part) if item.label in new)
        for part in PARTS
    )
    rows = None if dataset.rows is None else tuple(dataset.rows[label] for label in labels)
    name = f"{dataset.name}-{len(labels)}of{len(dataset.classes)}"
    partly = [str(gap) for gap in missing if not gap.is_whole]
    complain(
        f"{dataset.name}: {len(labels):,} of {len(dataset.classes):,} classes are used, those with all their images; "
        f"{summary(missing, dataset)}"
        + (f"; there in part, and left out all the same: {first_names(partly)}" if partly else "")
    )
    classes = tuple(dataset.classes[label] for label in labels)
    return Dataset(name, classes, train, val, test, dataset.open_image, rows=rows, origin=dataset.origin)


def published_part(dataset: Dataset, missing: Sequence[Gap] | None = None) -> Dataset:
    """`only_present` of a published data set; digits in its name stand for the classes that are left."""
    part = only_present(dataset, missing)
    return part if part is dataset else replace(part, name=f"{part.name}-{part.fingerprint()[:6]}")
