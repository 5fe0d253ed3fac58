"""A data set of one's own: images in folders, or listed in a table."""

import hashlib
import json
import random
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from vlprompt.data.dataset import PARTS, Dataset, Item, Part
from vlprompt.data.disk import whole_file
from vlprompt.data.sources import split_file
from vlprompt.data.sources.files import Files
from vlprompt.data.sources.layouts import Labelled, read_names, read_table, walk, warn
from vlprompt.errors import UserError, first_names

STORED = "vlprompt_split.json"
SPLIT_SEED = 0  # not the run's: all runs share one split
TRAIN, TRAIN_AND_VAL = 0.5, 0.7  # of each class, where nothing is given
TRAIN_GIVEN_TEST = 0.8  # of each class's training images, the rest being for validation


def load(
    name: str,
    *,
    path: str | None,
    names: str | None = None,
    labels: str | None = None,
    stored: str | None = None,
    root: object = None,
) -> Dataset:
    """The images below the folder `path`. The data set is named after the folder and what is in it.

    Classes are sub-folders, in train, val and test folders where there are such; or what the table `labels` says. Their
    names are those of the folders, or what the file `names` says. Images without a part are split within each class:
    50/20/30, or 80/20 into train and val where a test is given. That split is stored in the file `stored` (next to the
    images, where none is named), and used from then on. `root` is not used.

    Raises: UserError where the folder or one of the files is not what it should be.
    """
    if path is None:
        raise UserError("dataset=folder needs to know where your images are: add dataset.root=PATH.")
    base = Path(path).expanduser().absolute()
    if not base.is_dir():
        raise UserError(f"dataset.root={path} is no folder: give the one that holds your images.")
    try:
        images = read_table(base, find(base, labels, "labels")) if labels else list(walk(base))
        keys = order(images)
        if len(keys) < 2:
            only = f"one class, '{keys[0]}'" if keys else "no images"
            raise UserError(f"{base} has {only}: give a folder with two classes or more.")
        class_names = read_names(find(base, names, "names"), keys) if names else {key: key for key in keys}
        images = settle(images, Path(stored).expanduser().absolute() if stored else base / STORED, class_names)
        dataset = assemble(images, class_names, base)
        return replace(dataset, name=f"{name}-{slug(base.name)}-{digest(dataset, base)}")
    except OSError as error:  # no permission, a link to nothing
        raise UserError(f"cannot read the images below {base}: {error}.") from error


def find(base: Path, file: str, key: str) -> Path:
    """The file as seen from the working directory, else from the images."""
    for path in (Path(file).expanduser().absolute(), base / file):
        if path.is_file():
            return path
    raise UserError(f"dataset.{key}={file}: there is no such file, neither here nor in {base}.")


def order(images: Iterable[Labelled]) -> list[str]:
    """Classes by label: in the order of their names, or as numbers where all are."""
    keys = {image.key for image in images}
    numbers = all(re.fullmatch("[0-9]+", key) for key in keys)
    return sorted(keys, key=lambda key: (int(key), key) if numbers else (0, key))


def settle(images: list[Labelled], stored: Path, class_names: Mapping[str, str]) -> list[Labelled]:
    """The images with a part each: as given, else as stored, else split now and stored. New images are left out."""
    given = {image.part for image in images}
    if "train" not in given and given != {None}:
        raise UserError("the data set has no training images: give it a train part, or no parts at all.")
    if given == {"train", "val"}:
        warn("there is no test part: the validation images are the test, and a part of train is for validation")
        images = [replace(image, part="test") if image.part == "val" else image for image in images]
    if given == set(PARTS):
        return images
    if given == {"train"}:  # like class folders
        images = [replace(image, part=None) for image in images]
    if stored.is_file():
        return recall(images, stored)
    images = divide(images)
    store(images, stored, class_names)
    return images


def divide(images: Iterable[Labelled]) -> list[Labelled]:
    """A seeded split of each class; other classes do not change it."""
    images = sorted(images, key=lambda image: image.image)
    has_test = any(image.part == "test" for image in images)
    train, train_and_val = (TRAIN_GIVEN_TEST, 1.0) if has_test else (TRAIN, TRAIN_AND_VAL)
    divided = [image for image in images if image.part == "test"]
    groups: dict[str, list[Labelled]] = {}
    for image in images:
        if image.part != "test":
            groups.setdefault(image.key, []).append(image)
    for key, group in groups.items():
        if len(group) == 1 and not has_test:
            raise UserError(f"class '{key}' has one image: at least two are needed, for training and for the test.")
        random.Random(f"{SPLIT_SEED} {key}").shuffle(group)
        n_train, n_train_and_val = round(train * len(group)), round(train_and_val * len(group))
        for index, image in enumerate(group):
            part: Part = "train" if index < n_train else "val" if index < n_train_and_val else "test"
            divided.append(replace(image, part=part))
    return divided


def store(images: Iterable[Labelled], path: Path, class_names: Mapping[str, str]) -> None:
    """Write a split in the form of the published ones, whole or not at all."""
    labels = {key: label for label, key in enumerate(class_names)}
    content: dict[str, list[tuple[str, int, str]]] = {part: [] for part in PARTS}
    for image in sorted(images, key=lambda image: (labels[image.key], image.image)):
        content[str(image.part)].append((image.image, labels[image.key], class_names[image.key]))
    try:
        with whole_file(path) as draft:
            draft.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"cannot store the split of your images as {path} ({error.strerror}): "
            "set dataset.split=FILE to a path where you may write."
        ) from error


def recall(images: Iterable[Labelled], path: Path) -> list[Labelled]:
    """The images of a stored split, with their parts in it."""
    again = f"delete {path} to split again"
    content = split_file.read(path, remedy=again)
    parts: dict[str, Part] = {image: part for part in PARTS for image, _, _ in getattr(content, part)}
    by_name = {image.image: image for image in images}
    if missing := [name for name in parts if name not in by_name]:
        raise UserError(f"{first_names(missing)} of the stored split {'are' if missing[1:] else 'is'} not there: "
                        f"put back what is missing, or {again}.")  # fmt: skip
    for name, part in parts.items():
        if by_name[name].part not in (None, part, "train" if part == "val" else part):
            raise UserError(f"{name} is in {by_name[name].part}, but {path} has it in {part}: {again}.")
    if new := [name for name in by_name if name not in parts]:
        warn(f"left out, as {path} was made without them: {first_names(new)} ({again})")
    return [replace(by_name[name], part=part) for name, part in parts.items()]


def assemble(images: Iterable[Labelled], class_names: Mapping[str, str], base: Path) -> Dataset:
    """Classes without any image (none is in the stored split) are left out."""
    images = sorted(images, key=lambda image: image.image)
    labels = {key: label for label, key in enumerate(order(images))}
    parts = {
        part: tuple(sorted((Item(i.image, labels[i.key]) for i in images if i.part == part), key=lambda i: i.label))
        for part in PARTS
    }
    trained = {item.label for item in parts["train"]}
    if untrained := [key for key, label in labels.items() if label not in trained]:
        raise UserError(f"class '{untrained[0]}' has no training images: add some, or leave the class out.")
    names = tuple(class_names[key] for key in labels)
    return Dataset("", names, parts["train"], parts["val"], parts["test"], Files(base, as_shown=True))


def slug(text: str) -> str:
    """A folder's name without what the name of another may not hold."""
    return re.sub(r"[^\w.+=-]+", "_", text)[:60] or "root"


def digest(dataset: Dataset, base: Path) -> str:
    """6 hex digits of the split and the sizes of files, for data sets of one name; not of where they lie."""
    images = [item.image for part in PARTS for item in getattr(dataset, part)]
    sizes = [(base / image).stat().st_size for image in images]
    return hashlib.sha256(json.dumps([dataset.fingerprint(), sizes]).encode()).hexdigest()[:6]
