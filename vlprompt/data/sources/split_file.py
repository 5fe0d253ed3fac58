"""Data sets that come with a published split file: {"train": [[path, label, class name], ...], "val", "test"}.

Source: Zhou et al., "Learning to Prompt for Vision-Language Models" (IJCV 2022), whose split files others use too.
"""

from collections.abc import Iterable
from pathlib import Path, PureWindowsPath
from typing import Annotated

from pydantic import BaseModel, Field, StrictInt, StrictStr, ValidationError

from vlprompt.data.dataset import PARTS, Dataset, Item
from vlprompt.data.presence import USE_PRESENT, published_part
from vlprompt.data.sources.files import Files
from vlprompt.errors import UserError
from vlprompt.textfiles import absolute, parse_json, read_text

DOWNLOAD = "delete it and download it again"
REMEDY = "Get it with: vlprompt data get {}; or point data.root to the folder that holds {}."

Entry = tuple[StrictStr, Annotated[StrictInt, Field(ge=0)], Annotated[StrictStr, Field(min_length=1)]]
"""Path, label, class name; no "3" and no 3.0 for 3."""


class SplitFile(BaseModel):
    """The contents of a split file."""

    train: list[Entry] = Field(min_length=1)
    val: list[Entry]
    test: list[Entry] = Field(min_length=1)


def load(
    name: str,
    *,
    root: str | Path,
    folder: str,
    images: str,
    split: str,
    need_images: bool = True,
    present: bool = False,
) -> Dataset:
    """The data set below `root/folder`: its split file is `split`, its paths are relative to the folder `images`.

    `need_images`: look for them; `present`: leave out the classes that lack some.

    Raises: UserError where a file is missing, or the split file is not what it should be.
    """
    base = absolute(root) / folder
    image_root, split_path = base / images, base / split
    missing = [] if image_root.is_dir() or not need_images else [f"no image folder at {image_root}"]
    missing += [] if split_path.is_file() else [f"no split file at {split_path}"]
    if missing:
        raise UserError(f"{name} is not complete: there is {' and '.join(missing)}. {REMEDY.format(name, folder)}")
    content = read(split_path)
    classes = check(split_path, content)
    parts = {part: tuple(Item(path, label) for path, label, _ in getattr(content, part)) for part in PARTS}
    if need_images and not present:
        check_presence(parts.values(), Files(image_root), split_path)
    dataset = Dataset(name, classes, parts["train"], parts["val"], parts["test"], Files(image_root))
    return published_part(dataset) if present else dataset


def read(path: Path, *, remedy: str = DOWNLOAD) -> SplitFile:
    """The parsed file. Raises UserError that says where it departs from the format, and ends with `remedy`."""
    try:
        content = parse_json(read_text(path, f"split file {path}"))
        if not isinstance(content, dict):
            raise damaged(path, "it should be an object with train, val and test", remedy)
        return SplitFile.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = "".join(f"[{step}]" if isinstance(step, int) else str(step) for step in first["loc"])
        raise damaged(path, f"{where}: {first['msg']}" if where else first["msg"], remedy) from error
    except ValueError as error:
        raise damaged(path, str(error), remedy) from None


def check(path: Path, content: SplitFile) -> tuple[str, ...]:
    """The class names by label, after checks of what the format alone cannot say."""
    check_paths(path, content)
    names: dict[int, str] = {}
    for part in PARTS:
        for index, (_, label, name) in enumerate(getattr(content, part)):
            if names.setdefault(label, name) != name:
                raise damaged(path, f"{part}[{index}] calls label {label} '{name}', but it is '{names[label]}'")
    trained = {label for _, label, _ in content.train}
    gap = next((label for label in range(max(names) + 1) if label not in trained), None)
    if gap is not None:
        raise damaged(path, f"labels go from 0 to {max(names)}, but train has no image of label {gap}")
    return tuple(names[label] for label in sorted(names))


def check_paths(path: Path, content: SplitFile, *, remedy: str = DOWNLOAD) -> None:
    """Raises: UserError where an image would lie elsewhere than below the folder of images."""
    for part in PARTS:
        for index, (image, _, _) in enumerate(getattr(content, part)):
            pure = PureWindowsPath(image)  # knows both kinds of slashes, and drives
            if pure.anchor or ".." in pure.parts or not pure.parts:
                why = f"{part}[{index}] has the path '{image}', which is not below the image folder"
                raise damaged(path, why, remedy)


def damaged(path: Path, why: str, remedy: str = DOWNLOAD) -> UserError:
    """The error for a file that was read but makes no sense."""
    return UserError(f"{path} is not a valid split file: {why}; {remedy}.")


def check_presence(parts: Iterable[Iterable[Item]], files: Files, listed_in: Path) -> None:
    """Look for the first image of each class in each folder: enough to notice an incomplete archive."""
    first: dict[tuple[str, int], str] = {}
    for part in parts:
        for item in part:
            first.setdefault((item.image.rpartition("/")[0], item.label), item.image)
    for image in first.values():
        if not files.locate(image).is_file():
            raise UserError(
                f"{listed_in} lists {image}, which is not below {files.root}: unpack the images there again, "
                f"{USE_PRESENT}."
            )
