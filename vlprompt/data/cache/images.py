"""Decoded images and test crops on disk: the same pixels, without decoding and resizing again."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vlprompt.data.disk import complain, used_below, whole_file

Pixels = npt.NDArray[np.uint8]
HEADER = 12  # bytes: three sizes of 32 bits
FILES = "??/*"


@dataclass(frozen=True)
class ImageCache:
    """Arrays by what they were made of, in files below `folder`, of `limit` bytes in all.

    Keyed by the image file's bytes and by what was done to them, so that a changed image or transform is another key.
    A file appears whole, by a rename: parallel runs share a cache, and a killed one leaves it sound. It may be
    deleted at any time. Where it cannot be written or is full, arrays are made again.
    """

    folder: Path
    limit: int

    def obtain(self, content: bytes, done: str, make: Callable[[], Pixels]) -> Pixels:
        """The stored array of this content, or a new one; `done` says in words how `make` makes it."""
        path = self._path(content, done)
        pixels = load(path)
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
        used = used_below(self.folder, FILES)
        if used[0] + pixels.nbytes > self.limit:
            complain(f"the image cache in {self.folder} is full: raise data.cache_gb, or delete the folder")
            return
        try:
            with whole_file(path) as draft:
                draft.write_bytes(np.array(pixels.shape, np.uint32).tobytes() + pixels.tobytes())
            used[0] += HEADER + pixels.nbytes
        except OSError as error:
            complain(f"the image cache in {self.folder} cannot be written ({error.strerror}): images are decoded again")


def load(path: Path) -> Pixels | None:
    """A stored array; None where there is none, or not all of one."""
    try:
        content = np.fromfile(path, np.uint8)
    except OSError:
        return None
    sizes = content[:HEADER].view(np.uint32).tolist() if len(content) >= HEADER else [0]
    if len(content) != HEADER + int(np.prod(sizes, dtype=np.int64)):
        return None
    return content[HEADER:].reshape(sizes)
