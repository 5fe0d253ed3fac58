"""How people lay out labelled images of their own: class folders, part folders."""

import logging
import os
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NoReturn

from vlprompt.data.dataset import Part
from vlprompt.errors import UserError, printable

logger = logging.getLogger(__name__)

SUFFIXES = (".avif", ".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff",
            ".webp")  # fmt: skip
PART_FOLDERS: Mapping[str, Part] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
SHARDS = (".tar", ".tar.gz", ".tgz", ".parquet", ".arrow")  # what image-text pairs are published in
LISTS = ("metadata.", "captions")  # what tables of texts are called
NO_DATA = "__MACOSX"  # what some archives unpack next to the data


@dataclass(frozen=True)
class Labelled:
    """An image, its class as the folder or the table calls it, and its part where they say so."""

    image: str  # below the data set's folder, with forward slashes
    key: str
    part: Part | None


@cache
def warn(text: str) -> None:
    """Say it once in a process, though a sweep loads a data set many times."""
    logger.warning("%s", printable(text))


def walk(base: Path, *, gaps_allowed: bool = False) -> Iterator[Labelled]:
    """The images below class folders, or below class folders in train, val and test folders.

    `gaps_allowed`: a class folder may be empty, and is left out.

    Raises: UserError where there are no class folders, an empty one, or two folders of one part.
    """
    folders = folders_in(base)
    parts = [folder for folder in folders if folder.name.lower() in PART_FOLDERS]
    split = {PART_FOLDERS[folder.name.lower()] for folder in parts if folders_in(folder)}
    if not parts or (parts != folders and not ("train" in split and len(split) > 1)):  # a class may be called "train"
        yield from classes_in(base, base, None, gaps_allowed=gaps_allowed)
        return
    if others := [folder.name for folder in folders if folder not in parts]:
        warn(f"{base} has train and test folders; what is next to them is left out: {', '.join(others)}")
    seen: dict[Part, Path] = {}
    for folder in parts:
        part = PART_FOLDERS[folder.name.lower()]
        if part in seen:
            raise UserError(f"{seen[part]} and {folder} mean the same: leave one of them.")
        seen[part] = folder
        images = list(classes_in(folder, base, part, gaps_allowed=gaps_allowed))
        if not images:
            raise UserError(f"{folder} holds no images ({' '.join(SUFFIXES)}): fill the folder, or remove it.")
        yield from images


def classes_in(folder: Path, base: Path, part: Part | None, *, gaps_allowed: bool = False) -> Iterator[Labelled]:
    """The images below the class folders in `folder`."""
    folders = folders_in(folder)
    if not folders:
        if holds_pairs(folder):
            raise pairs(f"{folder} holds images with texts or in archives, and no class folders")
        raise UserError(
            f"{folder} has no class folders: put the images of each class into a folder with its name, "
            "or give dataset.labels=FILE."
        )
    if stray := sum(is_image(path.name) for path in folder.iterdir()):
        warn(f"images in {folder} that are in no class folder are left out: {stray}")
    for of_class in folders:
        images = list(images_below(of_class))
        if not images and part in (None, "train"):
            empty = f"{of_class} holds no images ({' '.join(SUFFIXES)})"
            if not gaps_allowed:
                raise UserError(f"{empty}: fill the folder, remove it, or leave it out with dataset.classes=present.")
            warn(f"{empty}: it is left out")
        for image in images:
            yield Labelled(in_utf8(image.relative_to(base).as_posix()), normal(of_class.name), part)


def holds_pairs(folder: Path) -> bool:
    """Whether there are texts next to the images or a table of them, or shards of archives."""
    files = {path.name.lower() for path in folder.iterdir() if is_shown(path.name)}
    stems = {name.rpartition(".")[0] for name in files if is_image(name)}
    return any(name.endswith(SHARDS) or name.startswith(LISTS) for name in files) or any(
        f"{stem}{suffix}" in files for stem in stems for suffix in (".txt", ".caption", ".json")
    )


def pairs(what: str) -> UserError:
    """The error for images that come with texts instead of classes."""
    return UserError(
        f"{what}: training on image-text pairs is not built, only on images of classes; give a class folder for each "
        "class, or a table with a column path and a column label, the class of the image."
    )


def class_in(image: str) -> str:
    """The class folder in an image's path."""
    first, *rest = image.split("/")
    return normal(rest[0] if rest[1:] and first.lower() in PART_FOLDERS else first)


def folders_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and is_shown(path.name))


def images_below(folder: Path) -> Iterator[Path]:
    """At any depth. Links are followed, but not in circles."""

    def fail(error: OSError) -> NoReturn:
        raise error

    seen = set()
    for path, folders, files in os.walk(folder, followlinks=True, onerror=fail):
        real = os.path.realpath(path)
        folders[:] = [] if real in seen else sorted(filter(is_shown, folders))
        if real not in seen:
            yield from (Path(path, file) for file in sorted(files) if is_image(file))
        seen.add(real)


def is_shown(name: str) -> bool:
    return not name.startswith(".") and name != NO_DATA


def is_image(name: str) -> bool:
    return is_shown(name) and name.lower().endswith(SUFFIXES)


def in_utf8(name: str) -> str:
    """The name itself. Raises: UserError where it came from bytes that are no text: no JSON file could hold it."""
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"the file name {name!r} is not in UTF-8: rename it.") from error
    return name


def normal(name: str) -> str:
    """One spelling of accented letters: macOS decomposes them, models know them composed."""
    return unicodedata.normalize("NFC", name)
