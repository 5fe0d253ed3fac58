"""The pictures that arguments of a command name: files, folders, and patterns such as 'photos/*.jpg'."""

import glob
import mimetypes
from collections.abc import Sequence
from pathlib import Path

from vlprompt.errors import UserError, first_names
from vlprompt.textfiles import path_of


def find_pictures(names: Sequence[str]) -> list[Path]:
    """Files in the order of the arguments, those of a folder by name, whatever is below it; each once.

    Raises: UserError where an argument stands for no picture.
    """
    paths = [path for name in names for path in _named(name)]
    return list(dict.fromkeys(paths))


def _named(name: str) -> list[Path]:
    path = path_of(name)
    if path.is_file():
        return [path]
    if path.is_dir():
        if inside := sorted(file for file in path.rglob("*") if is_picture(file.relative_to(path)) and file.is_file()):
            return inside
        others = first_names(sorted(file.name for file in path.iterdir()), most=3) or "nothing"
        raise UserError(f"no picture lies below '{name}', but {others}: name a folder of pictures (.jpg, .png, ...)")
    matching = [path_of(text) for text in sorted(glob.glob(str(path), recursive=True))]  # noqa: PTH207
    if pictures := [file for file in matching if file.is_file() and is_picture(file)]:
        return pictures
    raise UserError(f"there is no picture '{name}': give files, folders, or patterns in quotes such as 'photos/*.jpg'")


def is_picture(path: Path) -> bool:
    """Whether a file's name says so; hidden files and those in hidden folders are none."""
    kind = mimetypes.guess_type(path.name)[0] or ""
    hidden = any(part.startswith(".") and part not in (".", "..") for part in path.parts)
    return kind.startswith("image/") and kind != "image/svg+xml" and not hidden
