"""A data set of one's own: images in folders, or listed in a table."""

import hashlib
import json
import os
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from vlprompt.data.dataset import Dataset, Item, Part
from vlprompt.data.sources import split_file
from vlprompt.data.sources.files import Files
from vlprompt.data.sources.layouts import Found, read_names, read_table, walk, warn
from vlprompt.errors import UserError

STORED = "vlprompt_split.json"
SPLIT_SEED = 0  # not the run's: all runs share one split
TRAIN, TRAIN_AND_VAL = 0.5, 0.7  # of each class, where nothing is given
TRAIN_BESIDE_TEST = 0.8  # of each class's training images, the rest being for validation
N_NAMED = 10  # images that a message names before it counts the rest


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
    50/20/30, or 80/20 into train and val where a test is given. That split is kept in the file `stored` (beside the
    images, where none is named), and used from then on. `root` is not used.

    Raises: UserError where the folder or one of the files is not what it should be.
    """
    if path is None:
        raise UserError("dataset=folder needs to know where your images are: add dataset.root=PATH.")
    base = Path(path).expanduser().absolute()
    if not base.is_dir():
        raise UserError(f"dataset.root={path} is no folder: give the one that holds your images.")
    try:
        found = read_table(base, find(base, labels, "labels")) if labels else list(walk(base))
        keys = order(found)
        if len(keys) < 2:
            only = f"one class, '{keys[0]}'" if keys else "no images"
            raise UserError(f"{base} has {only}: give a folder with two classes or more.")
        class_names = read_names(find(base, names, "names"), keys) if names else {key: key for key in keys}
        found = settle(found, Path(stored).expanduser().absolute() if stored else base / STORED, class_names)
        dataset = assemble(found, class_names, base)
        return replace(dataset, name=f"{name}-{slug(base.name)}-{digest(dataset, base)}")
    except OSError as error:  # no permission, a link to nothing
        raise UserError(f"cannot read the images below {base}: {error}.") from error


def find(base: Path, file: str, key: str) -> Path:
    """The file as seen from the working directory, else from the images."""
    for path in (Path(file).expanduser().absolute(), base / file):
        if path.is_file():
            return path
    raise UserError(f"dataset.{key}={file}: there is no such file, neither here nor in {base}.")


def order(found: Iterable[Found]) -> list[str]:
    """Classes by label: in the order of their names, or as numbers where all are."""
    keys = {f.key for f in found}
    numbers = all(re.fullmatch("[0-9]+", key) for key in keys)
    return sorted(keys, key=lambda key: (int(key), key) if numbers else (0, key))


def settle(found: list[Found], stored: Path, class_names: Mapping[str, str]) -> list[Found]:
    """The images with a part each: as given, else as stored, else split now and stored. New images are left out."""
    given = {f.part for f in found}
    if "train" not in given and given != {None}:
        raise UserError("the data set has no training images: give it a train part, or no parts at all.")
    if given == {"train", "val"}:
        warn("there is no test part: the validation images are the test, and a part of train is for validation")
        found = [replace(f, part="test") if f.part == "val" else f for f in found]
    if given == {"train", "val", "test"}:
        return found
    if stored.is_file():
        return recall(found, stored)
    found = divide(found)
    store(found, stored, class_names)
    return found


def divide(found: Iterable[Found]) -> list[Found]:
    """A seeded split of each class; other classes do not change it."""
    found = sorted(found, key=lambda f: f.image)
    has_test = any(f.part == "test" for f in found)
    first, second = (TRAIN_BESIDE_TEST, 1.0) if has_test else (TRAIN, TRAIN_AND_VAL)
    done: list[Found] = []
    groups: dict[str, list[Found]] = {}
    for f in found:
        (done if f.part == "test" else groups.setdefault(f.key, [])).append(f)
    for key, group in groups.items():
        if len(group) == 1 and not has_test:
            raise UserError(f"class '{key}' has one image: at least two are needed, for training and for the test.")
        random.Random(f"{SPLIT_SEED} {key}").shuffle(group)
        for place, f in enumerate(group):
            part: Part = "train" if place < round(first * len(group)) else "val"
            done.append(replace(f, part=part if place < round(second * len(group)) else "test"))
    return done


def store(found: Sequence[Found], path: Path, class_names: Mapping[str, str]) -> None:
    """Write a split in the form of the published ones, whole or not at all."""
    labels = {key: label for label, key in enumerate(class_names)}
    content: dict[str, list[tuple[str, int, str]]] = {part: [] for part in split_file.SplitFile.model_fields}
    for f in sorted(found, key=lambda f: (labels[f.key], f.image)):
        content[str(f.part)].append((f.image, labels[f.key], class_names[f.key]))
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
        draft.replace(path)
    except OSError as error:
        raise UserError(
            f"cannot store the split of your images as {path} ({error.strerror}): "
            "set dataset.split=FILE to a place where you may write."
        ) from error
    finally:
        draft.unlink(missing_ok=True)


def recall(found: Iterable[Found], path: Path) -> list[Found]:
    """The images of a stored split, with their parts in it."""
    anew = f"delete {path} to split anew"
    content = split_file.read(path, remedy=anew)
    parts: dict[str, Part] = {image: "train" for image, _, _ in content.train}
    parts |= {image: "val" for image, _, _ in content.val}
    parts |= {image: "test" for image, _, _ in content.test}
    by_image = {f.image: f for f in found}
    if gone := [image for image in parts if image not in by_image]:
        raise UserError(f"{listed(gone)} of the stored split {'are' if gone[1:] else 'is'} not there: "
                        f"put back what is missing, or {anew}.")  # fmt: skip
    if extra := [image for image in by_image if image not in parts]:
        warn(f"not in the stored split and left out: {listed(extra)}; {anew}")
    for image, part in parts.items():
        if by_image[image].part not in (None, part, "train") or (by_image[image].part, part) == ("train", "test"):
            raise UserError(f"{image} is in {by_image[image].part}, but {path} has it in {part}: {anew}.")
    return [replace(by_image[image], part=part) for image, part in parts.items()]


def listed(images: Sequence[str]) -> str:
    rest = f" and {len(images) - N_NAMED} more" if len(images) > N_NAMED else ""
    return ", ".join(images[:N_NAMED]) + rest


def assemble(found: Iterable[Found], class_names: Mapping[str, str], base: Path) -> Dataset:
    """Classes without any image (none is in the stored split) are left out."""
    found = sorted(found, key=lambda f: f.image)
    labels = {key: label for label, key in enumerate(order(found))}
    parts = {
        part: tuple(sorted((Item(f.image, labels[f.key]) for f in found if f.part == part), key=lambda i: i.label))
        for part in split_file.SplitFile.model_fields
    }
    trained = {item.label for item in parts["train"]}
    if untrained := [key for key, label in labels.items() if label not in trained]:
        raise UserError(f"class '{untrained[0]}' has no training images: add some, or leave the class out.")
    names = tuple(class_names[key] for key in labels)
    return Dataset("", names, parts["train"], parts["val"], parts["test"], Files(base, as_shown=True))


def slug(text: str) -> str:
    """What of a folder's name can be part of another's."""
    return re.sub(r"[^\w.+=-]+", "_", text)[:60] or "root"


def digest(dataset: Dataset, base: Path) -> str:
    """6 hex digits that tell data sets of one name apart, by split and by the sizes of files: not by where they lie."""
    images = [item.image for part in (dataset.train, dataset.val, dataset.test) for item in part]
    sizes = [(base / image).stat().st_size for image in images]
    return hashlib.sha256(json.dumps([dataset.fingerprint(), sizes]).encode()).hexdigest()[:6]
