"""The pictures that arguments of a command name: files, folders, and patterns such as 'photos/*.jpg'."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

from vlprompt.data.sources.layouts import images_below, is_image, is_shown
from vlprompt.errors import UserError, first_names
from vlprompt.textfiles import path_of


def find_pictures(names: Sequence[str]) -> list[Path]:
    """Files in the order of the arguments, those of a folder by name, whatever is below it; each once.

    A file that is named is a picture whatever its name; in a folder, those are that `dataset=folder` would read.

    Raises: UserError where an argument stands for no picture.
    """
    paths = [path for name in names for path in _named(name)]
    return list(dict.fromkeys(paths))


def _named(name: str) -> list[Path]:
    path = path_of(name)
    try:
        if name and path.is_dir():
            if inside := list(images_below(path)):
                return inside
            others = first_names(sorted(file.name for file in path.iterdir()), most=3) or "nothing"
            raise UserError(f"no picture lies below '{name}', which holds {others}: name a folder of .jpg, .png, ...")
        if name and path.exists():
            return [path]
        folders_and_files = [[*images_below(one)] if one.is_dir() else [one] for one in _matching(path)]
        if pictures := [file for files in folders_and_files for file in files if is_image(file.name)]:
            return pictures
    except OSError as error:
        raise UserError(f"'{error.filename or name}' cannot be read: {error.strerror or error}") from None
    raise UserError(f"there is no picture '{name}': give files, folders, or patterns in quotes such as 'photos/*.jpg'")


def _matching(pattern: Path) -> list[Path]:
    """What a pattern stands for, as a shell has it: what is hidden only where the pattern says so, no links by **."""
    anchor = Path(pattern.anchor)
    with contextlib.suppress(ValueError, IndexError):  # a pattern such as a**b, and none at all
        paths = sorted(anchor.glob(str(pattern.relative_to(anchor))))
        return [path for path in paths if all(part in pattern.parts or is_shown(part) for part in path.parts)]
    return []
