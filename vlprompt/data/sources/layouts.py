"""How people lay out labelled images of their own: class folders, part folders, tables, files of names."""

import csv
import logging
import os
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NoReturn

from vlprompt.data.dataset import Part
from vlprompt.errors import UserError

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
    logger.warning("%s", text)


def walk(base: Path) -> Iterator[Labelled]:
    """The images below class folders, or below class folders in train, val and test folders.

    Raises: UserError where there are no class folders, an empty one, or two folders of one part.
    """
    folders = folders_in(base)
    parts = [folder for folder in folders if folder.name.lower() in PART_FOLDERS]
    split = {PART_FOLDERS[folder.name.lower()] for folder in parts if folders_in(folder)}
    if not parts or (parts != folders and not ("train" in split and len(split) > 1)):  # a class may be called "train"
        yield from classes_in(base, base, None)
        return
    if others := [folder.name for folder in folders if folder not in parts]:
        warn(f"{base} has train and test folders; what is next to them is left out: {', '.join(others)}")
    seen: dict[Part, Path] = {}
    for folder in parts:
        part = PART_FOLDERS[folder.name.lower()]
        if part in seen:
            raise UserError(f"{seen[part]} and {folder} mean the same: leave one of them.")
        seen[part] = folder
        yield from classes_in(folder, base, part)


def classes_in(folder: Path, base: Path, part: Part | None) -> Iterator[Labelled]:
    """The images below the class folders in `folder`."""
    folders = folders_in(folder)
    if not folders:
        raise UserError(
            f"{folder} has no class folders: put the images of each class into a folder with its name, "
            "or give dataset.labels=FILE."
        )
    if stray := sum(is_image(path.name) for path in folder.iterdir()):
        warn(f"{stray} images in {folder} are in no class folder and are left out")
    for of_class in folders:
        images = list(images_below(of_class))
        if not images and part in (None, "train"):
            raise UserError(f"{of_class} holds no images ({' '.join(SUFFIXES)}): fill the folder, or remove it.")
        for image in images:
            yield Labelled(in_utf8(image.relative_to(base).as_posix()), normal(of_class.name), part)


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


def read_table(base: Path, path: Path) -> list[Labelled]:
    """The rows of a CSV file with the columns path, label and, if wanted, split. Paths are relative to `base`.

    Raises: UserError that names the line.
    """
    images: dict[str, Labelled] = {}
    for line, row in rows_of(path):
        file = Path(os.path.normpath(base / row["path"]))
        part = PART_FOLDERS.get(row["split"].lower()) if "split" in row else None
        if not row["path"] or not row["label"]:
            raise UserError(f"{path}, line {line}: path or label is empty.")
        if "split" in row and part is None:
            raise UserError(f"{path}, line {line}: split is '{row['split']}', allowed are train, val and test.")
        if not file.is_relative_to(base):
            raise UserError(f"{path}, line {line}: {row['path']} is not below {base}; paths are relative to it.")
        if not file.is_file():
            raise UserError(f"{path}, line {line}: there is no file {file}; paths are relative to {base}.")
        new = Labelled(file.relative_to(base).as_posix(), normal(row["label"]), part)
        if images.setdefault(new.image, new) != new:
            raise UserError(f"{path}, line {line}: {new.image} has another label or split in an earlier line.")
    return list(images.values())


def rows_of(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Line number and cells, without the white space around them."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, restval="")
        try:
            columns = reader.fieldnames = [name.strip().lower() for name in reader.fieldnames or ()]
            if not {"path", "label"} <= set(columns):
                raise UserError(f"{path} begins with '{','.join(columns)}', allowed is the header path,label,split.")
            for row in reader:
                yield reader.line_num, {name: row[name].strip() for name in columns}
        except (UnicodeDecodeError, csv.Error) as error:
            raise UserError(f"{path} is no CSV file in UTF-8 ({error}): save it as one.") from error


def read_names(path: Path, keys: Sequence[str]) -> dict[str, str]:
    """Class names by key, from lines of key, comma or tab, and name; or from a name a line, in the order of `keys`.

    Raises: UserError where a class is left without a name, or the number of names differs.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no text in UTF-8 ({error}): save it as one.") from error
    cells = [line.partition("\t" if "\t" in line else ",") for line in lines]
    named = {normal(key.strip()): name.strip() for key, _, name in cells if name.strip()}
    if named.keys() & set(keys):
        nameless = next((key for key in keys if key not in named), None)
        if nameless is not None:
            raise UserError(f"{path} has no name for '{nameless}': add a line '{nameless},NAME'.")
        return {key: named[key] for key in keys}
    if len(lines) != len(keys):
        raise UserError(
            f"{path} has {len(lines)} names for {len(keys)} classes ('{keys[0]}' to '{keys[-1]}'): "
            f"give one a line in their order, or lines such as '{keys[0]},NAME'."
        )
    return dict(zip(keys, map(normal, lines), strict=True))
