"""Few-shot lists from Dassl's pickles, whose opcodes are checked before any of them is executed."""

import io
import json
import pickle
import pickletools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any, TypeGuard

from vlprompt.errors import UserError
from vlprompt.interop.dassl.loading import read_small

MOST = 2**31  # classes
MOST_OPCODES = 2**22  # each can make an object of 100 bytes; 16 shots of ImageNet take 200,000
DATUM = (
    ("dassl.data.datasets.base_dataset", "Datum"),
    ("dassl.data.datasets", "Datum"),
    ("datasets.utils", "Datum"),
)
PARTS = ("train", "val")
OPCODES = {
    "PROTO", "FRAME", "STOP", "MARK", "POP", "POP_MARK", "NONE", "NEWTRUE", "NEWFALSE", "INT", "BININT", "BININT1",
    "BININT2", "LONG", "LONG1", "LONG4", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "STRING",
    "BINSTRING", "SHORT_BINSTRING", "EMPTY_LIST", "LIST", "APPEND", "APPENDS", "EMPTY_DICT", "DICT", "SETITEM",
    "SETITEMS", "EMPTY_TUPLE", "MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT",
    "GET", "BINGET", "LONG_BINGET", "GLOBAL", "STACK_GLOBAL", "NEWOBJ", "BUILD",
}  # fmt: skip
"""What such lists are made of. None of these calls anything but the constructor of what `find_class` gives.

Tuples with something in them are not: deep ones as keys overflow the stack, and they can set a class's attributes.
"""


@dataclass(frozen=True)
class Shot:
    """One image of a few-shot sample, its path as the pickle has it."""

    split: str
    path: str
    label: int
    classname: str


class _Unpickler(pickle.Unpickler):
    """Knows one class, a new one for each file: a file can set attributes of it."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.datum = type("Datum", (), {})

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in DATUM:
            return self.datum
        raise Refused(f"{module}.{name}")


class Refused(Exception):
    """A pickle names what it has no business with."""


def read_pickle(path: Path) -> list[Shot]:
    """Read `shot_<k>-seed_<s>.pkl`.

    Raises:
        UserError: no such file, one that names anything but Dassl's Datum, or one that is not such a list.
    """
    content = read_small(path)
    try:
        check_opcodes(content, path)
        unpickler = _Unpickler(io.BytesIO(content))
        return _shots(unpickler.load(), unpickler.datum, path)
    except Refused as error:
        name = str(error).encode("ascii", "backslashreplace").decode()[:100]
        raise UserError(
            f"{path} asks for '{name}', which a list of Dassl's Datum does not need: nothing of it was executed"
        ) from None
    except UserError:
        raise
    except Exception as error:  # a damaged file fails in as many ways as there are bytes in it
        raise UserError(f"{path} is no pickle of a few-shot list, or a damaged one ({type(error).__name__})") from None


def check_opcodes(content: bytes, path: Path) -> None:
    """Refuse what would call something, and what would make the unpickler allocate memory: memo indices, many objects.

    Raises:
        Refused: naming the opcode. UserError: too many of them. ValueError: no pickle.
    """
    for count, (opcode, argument, _) in enumerate(pickletools.genops(content), start=1):
        if count > MOST_OPCODES:
            raise UserError(f"{path} has more than {MOST_OPCODES:,} instructions, so it is no few-shot list")
        if opcode.name not in OPCODES:
            raise Refused(opcode.name)
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and not 0 <= int(argument or 0) <= count:
            raise Refused(f"{opcode.name} {argument}")


def _shots(content: Any, datum: type, path: Path) -> list[Shot]:
    if not (isinstance(content, dict) and set(PARTS) >= content.keys() and content.keys() >= {"train"}):
        raise UserError(f"{path} holds no few-shot list: needed is a mapping with 'train' and 'val'")
    shots: list[Shot] = []
    for part in PARTS:
        items = content.get(part) or []
        if not isinstance(items, list):
            raise UserError(f"'{part}' in {path} is no list")
        for item in items:
            fields = vars(item) if type(item) is datum else {}
            image, label, name = fields.get("_impath"), fields.get("_label"), fields.get("_classname")
            if not (isinstance(image, str) and image and isinstance(name, str) and _is_label(label)):
                raise UserError(f"'{part}' in {path} holds something other than images with a path, label and class")
            if not (image + name).isprintable():
                raise UserError(f"'{part}' in {path} holds a path or name with unprintable characters")
            shots.append(Shot(part, image, label, name))
    if not shots:
        raise UserError(f"{path} holds no images")
    return shots


def _is_label(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 <= value < MOST


def relative_paths(shots: Sequence[Shot], images: str | None) -> tuple[list[str], str]:
    """The paths below the image folder, with forward slashes, and what was cut off in front of them.

    `images`: that folder, or its name; None: the longest common parent.
    Raises: UserError where a path does not lie in it.
    """
    parts = [PureWindowsPath(shot.path).parts for shot in shots]  # knows both kinds of slashes, and drives
    if images is None:
        low, high = min(part[:-1] for part in parts), max(part[:-1] for part in parts)  # all share what these share
        start = next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))
        starts = [start] * len(parts)
    else:
        starts = [_start(part, images, shot.path) for part, shot in zip(parts, shots, strict=True)]
    rests = [part[start:] for part, start in zip(parts, starts, strict=True)]
    for rest, shot in zip(rests, shots, strict=True):
        if not rest or ".." in rest or PureWindowsPath(*rest).anchor:
            raise UserError(f"'{shot.path}' does not lie below an image folder: give it with --images")
    return ["/".join(rest) for rest in rests], "/".join(parts[0][: starts[0]]).replace("\\", "/").replace("//", "/")


def _start(parts: tuple[str, ...], images: str, path: str) -> int:
    """Where the part below the image folder begins: after the folder itself, or after the last one of its name."""
    for folder in (Path(images).absolute().as_posix(), images):
        wanted = PureWindowsPath(folder).parts
        for start in range(len(parts) - len(wanted), -1, -1):
            if wanted and parts[start : start + len(wanted)] == wanted:
                return start + len(wanted)
    name = PureWindowsPath(images).name
    if name in parts[:-1]:
        return len(parts) - 1 - parts[-2::-1].index(name)
    raise UserError(f"'{path}' does not lie below '{images}': give the image folder that all paths share with --images")


def write_list(shots: Sequence[Shot], paths: Sequence[str], output: Path, *, force: bool) -> None:
    """Write JSON lines of split, path, label and classname, in the order of the pickle.

    Raises:
        UserError: the file exists already, or cannot be written.
    """
    rows = (
        {"split": shot.split, "path": path, "label": shot.label, "classname": shot.classname}
        for shot, path in zip(shots, paths, strict=True)
    )
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with output.open("w" if force else "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise UserError(f"{output} exists: replace it with --force, or choose another --output") from None
    except OSError as error:
        raise UserError(f"cannot write {output}: {error.strerror}") from None
