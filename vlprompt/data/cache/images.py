"""Decoded images and test crops on disk: the same pixels, without decoding and resizing again."""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vlprompt.data.cache.budget import Budget
from vlprompt.data.cache.checked import Damaged, checksum, discard
from vlprompt.data.disk import complain, whole_file
from vlprompt.textfiles import ordinary

Pixels = npt.NDArray[np.uint8]
SIZES = 12  # bytes: three sizes of 32 bits
HEADER = SIZES + 8  # and a checksum, in hexadecimal


@dataclass(frozen=True)
class ImageCache:
    """Arrays by what they were made of, in files below `folder`, of `limit` bytes in all.

    Keyed by the image file's bytes and by what was done to them, so that a changed image or transform is another key.
    Each file has a checksum of its key, sizes and pixels; a damaged one is made again with a warning. A file appears
    whole, by a rename: parallel runs share a cache, and a killed one leaves it sound. It may be deleted at any time.
    Where it cannot be written or is full, arrays are made again.
    """

    folder: Path
    limit: int

    def obtain(self, content: bytes, done: str, make: Callable[[], Pixels]) -> Pixels:
        """The stored array of this content, or a new one; `done` says in words how `make` makes it."""
        path = self._path(content, done)
        try:
            pixels = load(path)
        except Damaged:
            discard(path, "it is made again from the image")
            pixels = None
        if pixels is None:
            pixels = make()
            self._store(path, pixels)
        return pixels

    def _path(self, content: bytes, done: str) -> Path:
        digest = hashlib.sha256(content)
        digest.update(done.encode())
        name = digest.hexdigest()
        return self.folder / name[:2] / name

    def _store(self, path: Path, pixels: Pixels) -> None:
        try:
            with Budget(self.folder, self.limit).room_for(path, HEADER + pixels.nbytes) as fits:
                if not fits:
                    complain(f"the image cache in {self.folder} is full: raise data.cache_gb, or delete the folder")
                    return
                with whole_file(path, lasting=False) as draft:
                    sizes, values = np.array(pixels.shape, np.uint32).tobytes(), pixels.tobytes()
                    draft.write_bytes(sizes + _checksum(path, sizes, values) + values)
        except (OSError, NotImplementedError) as error:
            why = getattr(error, "strerror", None) or error
            complain(f"the image cache in {self.folder} cannot be written ({why}): images are decoded again")


def load(path: Path) -> Pixels | None:
    """A stored array; None where there is none. Raises: Damaged."""
    try:
        content = np.fromfile(ordinary(path), np.uint8)
    except OSError:
        return None
    sizes, stated, pixels = content[:SIZES], content[SIZES:HEADER], content[HEADER:]
    shape = sizes.view(np.uint32).tolist() if len(content) >= HEADER else []
    if len(pixels) == math.prod(shape) and stated.tobytes() == _checksum(path, sizes.tobytes(), pixels.data):
        return pixels.reshape(shape)
    if len(content) >= SIZES and len(content) == SIZES + math.prod(content[:SIZES].view(np.uint32).tolist()):
        return None  # of an earlier version, which had no checksums
    raise Damaged(f"{path} has another checksum")


def _checksum(path: Path, sizes: bytes, values: bytes | memoryview) -> bytes:
    return checksum(path.name.encode(), sizes, values).encode()
