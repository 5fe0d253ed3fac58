"""What stands for an image in a feature bank: equal only where the image is."""

import hashlib
import sys
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from vlprompt.data import corruptions
from vlprompt.data.dataset import Split
from vlprompt.data.sources.banked import Banked
from vlprompt.data.sources.files import Files

LENGTH = 32  # of a key, in hexadecimal digits


def image_key(split: Split, image: str) -> str:
    """A key for an image of a split: of its name, from which random views are drawn, and of what it shows.

    That is the file's bytes; for drawn images their data set and the code that draws them. A corrupted image is the
    clean one, the corruption and the code of all corruptions.
    """
    opener = split.open_image
    if isinstance(opener, corruptions.Corrupted):
        done = f"{opener.kind} {opener.severity}"
        clean = replace(split, open_image=opener.open_image, origin=split.origin.removesuffix(f" {done}"))
        return _digest(image_key(clean, image).encode(), done.encode(), _code_of_corruptions())
    if isinstance(opener, Banked):
        return opener.key(image)
    if isinstance(opener, Files):
        return key_of_file(opener, image)
    return _digest(image.encode(), split.origin.encode(), code_of(module_of(opener)).encode())


def key_of_file(files: Files, image: str) -> str:
    try:
        now = files.locate(image).stat()
    except OSError:
        files.read(image)  # raises a UserError
        raise
    return _key_of_file(files, image, now.st_size, now.st_mtime_ns)


@cache
def _key_of_file(files: Files, image: str, size: int, changed: int) -> str:
    return _digest(image.encode(), b"as shown" if files.as_shown else b"", files.read(image))


def module_of(opener: Any) -> str:
    while isinstance(opener, partial):
        opener = opener.func
    return getattr(opener, "__module__", None) or type(opener).__module__


@cache
def code_of(module: str) -> str:
    """sha256 of the Python files in a module's folder."""
    path = getattr(sys.modules.get(module), "__file__", None)
    files = sorted(Path(path).parent.glob("*.py")) if path else []
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


@cache
def _code_of_corruptions() -> bytes:
    return Path(corruptions.__file__).read_bytes()


def _digest(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()[:LENGTH]
