"""FGVC-Aircraft as it is published: a list of class names, and one list of images for each part."""

from pathlib import Path

from vlprompt.data.dataset import PARTS, Dataset, Item
from vlprompt.data.presence import published_part
from vlprompt.data.sources.files import Files
from vlprompt.data.sources.split_file import REMEDY, check_presence
from vlprompt.errors import UserError
from vlprompt.textfiles import absolute, read_text

CLASSES = "variants.txt"
LIST = "images_variant_{}.txt"


def load(
    name: str, *, root: str | Path, folder: str, images: str, need_images: bool = True, present: bool = False
) -> Dataset:
    """The data set below `root/folder`; labels follow the order of the names in `variants.txt`.

    `need_images`: look for them; `present`: leave out the classes that lack some.

    Raises: UserError where a file is missing, or is not what it should be.
    """
    base = absolute(root) / folder
    wanted = [CLASSES, *(LIST.format(part) for part in PARTS), *([images] if need_images else [])]
    missing = [str(base / file) for file in wanted if not (base / file).exists()]
    if missing:
        raise UserError(f"{name} is not complete: there is no {', '.join(missing)}. {REMEDY.format(name, folder)}")
    classes = tuple(read_lines(base / CLASSES))
    labels = {variant: label for label, variant in enumerate(classes)}
    if len(labels) < len(classes) or not classes:
        raise UserError(f"{base / CLASSES} is empty, or names a class twice: unpack the data set again.")
    parts = {part: read_list(base / LIST.format(part), labels) for part in PARTS}
    if need_images and not present:
        check_presence(parts.values(), Files(base / images), base / LIST.format("*"))
    dataset = Dataset(name, classes, parts["train"], parts["val"], parts["test"], Files(base / images))
    return published_part(dataset) if present else dataset


def read_list(path: Path, labels: dict[str, int]) -> tuple[Item, ...]:
    """Lines of an image's number and its class, which may contain spaces."""
    items = []
    for line in read_lines(path):
        image, _, variant = line.partition(" ")
        if not image.isalnum() or variant not in labels:
            raise UserError(f"{path} has the line '{line}', allowed is a number and a name of {CLASSES}: "
                            "unpack the data set again.")  # fmt: skip
        items.append(Item(f"{image}.jpg", labels[variant]))
    return tuple(items)


def read_lines(path: Path) -> list[str]:
    return [line.strip() for line in read_text(path).split("\n") if line.strip()]
