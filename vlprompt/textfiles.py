"""Paths and text files that a user gives.

Texts are in UTF-8, with or without the mark (BOM) that spreadsheets put at the start.
"""

import codecs
import errno
import json
import stat
from pathlib import Path
from typing import Any

from rich.filesize import decimal

from vlprompt.errors import UserError

OTHER_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def ordinary(path: Path, most: int | None = None) -> Path:
    """A file of at most so many bytes, which can be read to its end. Raises: OSError; for a pipe or a device, too."""
    status = path.stat()
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):  # folders have an error of their own
        raise OSError(errno.EINVAL, "it is a pipe or a device, not a file", str(path))
    if most is not None and status.st_size > most:
        raise OSError(errno.EFBIG, f"it has {decimal(status.st_size)}, allowed are {decimal(most)}", str(path))
    return path


def path_of(text: str) -> Path:
    """The path that a text names, with ~ as the home folder. Raises: UserError where there can be no such path."""
    try:
        path = Path(text).expanduser()
        path.exists()
    except RuntimeError:
        raise UserError(f"there is no home folder for '{text}': write the whole path.") from None
    except OSError as error:
        raise UserError(f"'{text[:200]}' cannot be read: {error.strerror or error}.") from None
    return path


def absolute(path: str | Path) -> Path:
    """The whole path that a user means: seen from the working directory, ~ as the home folder, .. followed.

    Links before a .. are followed, as the system does; later ones keep their names. Raises: UserError.
    """
    whole = path_of(str(path)).absolute()
    end = max((n for n, part in enumerate(whole.parts, 1) if part == ".."), default=0)
    return Path(*whole.parts[:end]).resolve().joinpath(*whole.parts[end:]) if end else whole


def read_text(path: Path, what: str = "") -> str:
    """The text of a file, line ends as they are. `what` names it in messages instead of its path.

    Raises: UserError where it cannot be read, or is no text in UTF-8.
    """
    try:
        content = path.read_bytes() if path.is_relative_to("/dev") else ordinary(path).read_bytes()  # <(cut ...)
    except OSError as error:
        raise UserError(f"{what or path} cannot be read: {error.strerror or error}.") from None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        kind = "but UTF-16" if content.startswith(OTHER_MARKS) else f"see byte {error.start}"
        raise UserError(f"{what or path} is not in UTF-8 ({kind}): save it as UTF-8.") from None
    if "\0" in text:
        raise UserError(f"{what or path} is no text in UTF-8 (it holds zero bytes): save it as UTF-8.")
    return text


def read_json(path: Path, what: str = "") -> Any:
    """The content of a JSON file. Raises: UserError as `read_text`, and where it is no JSON, or names a thing twice."""
    try:
        return parse_json(read_text(path, what))
    except ValueError as error:
        raise UserError(f"{what or path} cannot be read: {error}.") from None


def parse_json(text: str) -> Any:
    """What a text in JSON stands for. Raises: ValueError, also for a name that an object gives twice."""
    try:
        content = json.loads(text, object_pairs_hook=_once)
        if "\\ud" in text.lower():
            json.dumps(content, ensure_ascii=False).encode()  # halves of characters, which nothing could print
    except RecursionError:
        raise ValueError("no JSON (nested too deeply)") from None
    except UnicodeEncodeError as error:
        raise ValueError(f"no text ({error})") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"no JSON ({error})") from None
    return content


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"one object gives '{twice}' twice, leave one of them")
    return content
