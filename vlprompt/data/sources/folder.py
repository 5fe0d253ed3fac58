"""A data set of one's own: images in folders, or listed in a table."""

import hashlib
import json
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from vlprompt.data.dataset import PARTS, Dataset, Item, Part
from vlprompt.data.disk import whole_file
from vlprompt.data.presence import USE_PRESENT, only_present
from vlprompt.data.sources import split_file
from vlprompt.data.sources.files import Files
from vlprompt.data.sources.layouts import Labelled, class_in, walk, warn
from vlprompt.data.sources.tables import read_names, read_table
from vlprompt.errors import UserError, first_names
from vlprompt.textfiles import absolute

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
    need_images: bool = True,
    present: bool = False,
) -> Dataset:
    """The images below the folder `path`. The data set is named after the folder and what is in it.

    Classes are sub-folders, in train, val and test folders where there are such; or what the table `labels` says. Their
    names are those of the folders, or what the file `names` says. Images without a part are split within each class:
    50/20/30, or 80/20 into train and val where a test is given. That split is stored in the file `stored` (next to the
    images, where none is named), and used from then on. `root` is not used. `need_images`: those that are listed have
    to be there; `present`: classes that lack some are left out.

    Raises: UserError where the folder or one of the files is not what it should be.
    """
    if not (path or "").strip():
        raise UserError("dataset=folder needs to know where your images are, and dataset.root is "
                        f"{'null' if path is None else 'empty'}: add dataset.root=PATH.")  # fmt: skip
    assert path is not None
    base, gaps_allowed = absolute(path), present or not need_images
    if not base.is_dir():
        raise UserError(f"dataset.root={path} is no folder: give the one that holds your images.")
    try:
        images = (
            read_table(base, find(base, labels, "labels"), gaps_allowed=gaps_allowed)
            if labels
            else list(walk(base, gaps_allowed=gaps_allowed))
        )
        keys = order(images)
        if len(keys) < 2:
            only = f"one class, '{keys[0]}'" if keys else "no images"
            raise UserError(f"{base} has {only}: give a folder with two classes or more.")
        class_names = read_names(find(base, names, "names"), keys) if names else {key: key for key in keys}
        file = absolute(stored) if stored else base / STORED
        images, remembered = settle(images, file, class_names, asked=bool(stored), gaps_allowed=gaps_allowed)
        again = f", or delete {file} to split again" if remembered else ""
        dataset = assemble(images, class_names, base, remedy=again)
        dataset = replace(dataset, name=f"{name}-{slug(base.name)}")
        if present:
            dataset = only_present(dataset)
        elif gaps_allowed:
            return dataset
        sizes = sizes_of(dataset, base)
        warn_of_copies(dataset, base, sizes)
        return replace(dataset, name=f"{dataset.name}-{digest(dataset, sizes)}")
    except OSError as error:  # no permission, a link to nothing
        raise UserError(f"cannot read the images below {base}: {error}.") from error


def find(base: Path, file: str, key: str) -> Path:
    """The file as seen from the working directory, else from the images."""
    for path in (absolute(file), base / file):
        if path.is_file():
            return path
    raise UserError(f"dataset.{key}={file}: there is no such file, neither here nor in {base}.")


def order(images: Iterable[Labelled]) -> list[str]:
    """Classes by label: in the order of their names, or as numbers where all are."""
    keys = {image.key for image in images}
    numbers = all(re.fullmatch("[0-9]+", key) for key in keys)
    return sorted(keys, key=lambda key: (int(key), key) if numbers else (0, key))


def settle(
    images: list[Labelled], stored: Path, class_names: Mapping[str, str], *, asked: bool, gaps_allowed: bool = False
) -> tuple[list[Labelled], bool]:
    """The images with a part each, and whether a stored split says which: else as given, or split now and stored.

    Images that are new since the split was stored are left out. `asked`: the user named the file.
    """
    given = {image.part for image in images}
    if "train" not in given and given != {None}:
        raise UserError("the data set has no training images: give it a train part, or no parts at all.")
    if given == {"train", "val"}:
        warn("there is no test part: the validation images are the test, and a part of train is for validation")
        images = [replace(image, part="test") if image.part == "val" else image for image in images]
    if given == set(PARTS):
        return images, False
    if given == {"train"}:  # like class folders
        images = [replace(image, part=None) for image in images]
    if stored.is_file():
        return recall(images, stored, gaps_allowed=gaps_allowed), True
    images = divide(images)
    store(images, stored, class_names, asked=asked)
    return images, False


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


def store(images: Iterable[Labelled], path: Path, class_names: Mapping[str, str], *, asked: bool) -> None:
    """Write a split in the form of the published ones, whole or not at all.

    Where it cannot be written, a note says so: the names of the files alone give the same split again. Raises:
    UserError, if the user asked for this very file.
    """
    labels = {key: label for label, key in enumerate(class_names)}
    content: dict[str, list[tuple[str, int, str]]] = {part: [] for part in PARTS}
    for image in sorted(images, key=lambda image: (labels[image.key], image.image)):
        content[str(image.part)].append((image.image, labels[image.key], class_names[image.key]))
    try:
        with whole_file(path) as draft:
            draft.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    except OSError as error:
        why = f"cannot store the split of your images as {path} ({error.strerror})"
        if asked:
            raise UserError(f"{why}: set dataset.split=FILE to a path where you may write.") from error
        warn(
            f"{why}; it is the same at each run as long as no image is added or removed: "
            "dataset.split=FILE, a path where you may write, keeps it"
        )


def recall(images: Iterable[Labelled], path: Path, *, gaps_allowed: bool = False) -> list[Labelled]:
    """The images of a stored split, with their parts in it; `gaps_allowed`: those that are not there among them."""
    again = f"delete {path} to split again"
    content = split_file.read(path, remedy=again)
    split_file.check_paths(path, content, remedy=again)
    rows = {part: [(PurePosixPath(image).as_posix(), label) for image, label, _ in getattr(content, part)]
            for part in PARTS}  # fmt: skip
    parts: dict[str, Part] = {image: part for part in PARTS for image, _ in rows[part]}
    if len(parts) < sum(len(getattr(content, part)) for part in PARTS):
        raise UserError(f"{path} lists an image twice: {again}.")
    by_name = {image.image: image for image in images}
    missing = [name for name in parts if name not in by_name]
    if missing and not gaps_allowed:
        raise UserError(f"{first_names(missing)} of the stored split {'are' if missing[1:] else 'is'} not there: "
                        f"put back what is missing, {again}, {USE_PRESENT}.")  # fmt: skip
    labels = dict(row for part in PARTS for row in rows[part])
    keys = {labels[name]: image.key for name, image in by_name.items() if name in labels}
    by_name |= {name: Labelled(name, keys.get(labels[name]) or class_in(name), None) for name in missing}
    for name, part in parts.items():
        if by_name[name].part not in (None, part, "train" if part == "val" else part):
            raise UserError(f"{name} is in {by_name[name].part}, but {path} has it in {part}: {again}.")
    if new := [name for name in by_name if name not in parts]:
        warn(f"left out, as {path} was made without them: {first_names(new)} ({again})")
    return [replace(by_name[name], part=part) for name, part in parts.items()]


def assemble(images: Iterable[Labelled], class_names: Mapping[str, str], base: Path, *, remedy: str) -> Dataset:
    """Classes without any image (none is in the stored split) are left out.

    Raises: UserError that ends with `remedy` where a class has no training images.
    """
    images = sorted(images, key=lambda image: image.image)
    labels = {key: label for label, key in enumerate(order(images))}
    parts = {
        part: tuple(sorted((Item(i.image, labels[i.key]) for i in images if i.part == part), key=lambda i: i.label))
        for part in PARTS
    }
    trained = {item.label for item in parts["train"]}
    if untrained := [key for key, label in labels.items() if label not in trained]:
        raise UserError(f"class '{untrained[0]}' has no training images: add some, or leave the class out{remedy}.")
    if len(labels) < 2:
        raise UserError(f"one class is left, '{next(iter(labels))}': add images of others{remedy}.")
    names = tuple(class_names.get(key, key) for key in labels)  # a class without images has no other
    return Dataset("", names, parts["train"], parts["val"], parts["test"], Files(base, as_shown=True))


def slug(text: str) -> str:
    """A folder's name without what the name of another may not hold."""
    return re.sub(r"[^\w.+=-]+", "_", text)[:60] or "root"


def sizes_of(dataset: Dataset, base: Path) -> dict[str, int]:
    """Bytes of each image's file, in the order of the parts."""
    return {i.image: (base / i.image).stat().st_size for part in PARTS for i in getattr(dataset, part)}


def digest(dataset: Dataset, sizes: Mapping[str, int]) -> str:
    """6 hex digits of the split and the sizes of files, for data sets of one name; not of where they lie."""
    return hashlib.sha256(json.dumps([dataset.fingerprint(), [*sizes.values()]]).encode()).hexdigest()[:6]


def warn_of_copies(dataset: Dataset, base: Path, sizes: Mapping[str, int]) -> None:
    """Say which classes have one picture, many times. Files are read only where all of a class are of one size."""
    groups: dict[int, list[str]] = {}
    for part in PARTS:
        for item in getattr(dataset, part):
            groups.setdefault(item.label, []).append(item.image)
    same = [label for label, images in sorted(groups.items()) if are_copies(images, base, sizes)]
    if same:
        which = first_names([f"'{dataset.classes[label]}'" for label in same])
        warn(f"all images of {'one class are' if len(same) == 1 else 'a class are'} the same file, in {which}: "
             "its test images are among those that are trained on")  # fmt: skip


def are_copies(images: Sequence[str], base: Path, sizes: Mapping[str, int]) -> bool:
    if len(images) < 2 or len({sizes[image] for image in images}) > 1:
        return False
    first = (base / images[0]).read_bytes()
    return all((base / image).read_bytes() == first for image in images[1:])
