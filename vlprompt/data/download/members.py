"""What lies in an archive, read so that nothing in it can be taken for a path outside of a folder."""

import bz2
import gzip
import io
import lzma
import posixpath
import re
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, Literal

from vlprompt.errors import UserError

CHUNK = 1 << 20  # bytes
LONGEST_HEADER = 1 << 24  # bytes: tarfile reads headers whole
LONGEST_TAIL = 1 << 30  # bytes of padding after the last member
LONGEST_TARGET = 4096  # bytes of a link's target
COMPRESSED: dict[bytes, Callable[..., Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open}
# what the readers raise for damaged content depends on the format
DAMAGED = (
    *(zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, struct.error),
    *(EOFError, ValueError, IndexError, OverflowError, NotImplementedError, RuntimeError, OSError),
)


@dataclass(frozen=True)
class Member:
    """One thing in an archive. `name` has no empty parts, no `.` and no `..`; it is empty for the archive's root."""

    name: str
    kind: Literal["file", "folder", "link"]
    size: int = 0  # bytes
    target: str = ""  # the member that a link, symbolic or hard, points to


Opened = tuple[Member, Callable[[], IO[bytes] | None]]


class BadArchive(UserError):
    """An archive that is damaged, might do harm, or is another one than expected."""


class Harmful(UserError):
    """A member that no data set needs, and that might do harm."""

    def __init__(self, name: str, why: str) -> None:
        super().__init__(f"its member {name!r} {why}")


@contextmanager
def reading(path: Path, title: str) -> Iterator[tuple[io.BufferedIOBase, Iterator[Opened]]]:
    """The file, and its members with how to open each, in order. A zip, or a tar of any compression, by content.

    `title` names the archive in messages: one within another archive has no lasting path.
    Raises: UserError where the file cannot be read; BadArchive, also while members are read.
    """
    try:
        with path.open("rb") as file:
            yield file, _members(file)
    except Harmful as error:
        raise BadArchive(f"'{title}' is refused: {error}. Nothing of it was unpacked.") from error
    except DAMAGED as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise UserError(f"'{title}' cannot be read ({error.strerror}).") from error
        raise BadArchive(f"'{title}' is no zip or tar archive, or damaged: delete it and fetch again.") from error


def _members(file: io.BufferedIOBase) -> Iterator[Opened]:
    start = file.read(6)
    file.seek(0)
    if start.startswith(b"PK"):
        with zipfile.ZipFile(file) as opened:
            for info in opened.infolist():
                yield _of_zip(opened, info), partial(opened.open, info)
        return
    unpack = next((opener for magic, opener in COMPRESSED.items() if start.startswith(magic)), None)
    with unpack(file) if unpack else file as stream:
        blocks: Any = _Blocks(stream)
        with tarfile.TarFile(fileobj=blocks) as tar:
            while (entry := tar.next()) is not None:
                yield _of_tar(entry), partial(tar.extractfile, entry)
                tar.members.clear()  # type: ignore[attr-defined]  # it would hold on to them all
        blocks.check_end(has_checksum=unpack is not None)


class _Blocks:
    """A tar's bytes. tarfile takes a cut or damaged header for the end: `check_end` looks whether it was one."""

    def __init__(self, stream: io.BufferedIOBase) -> None:
        self.stream, self.last = stream, b""
        self.seek, self.tell = stream.seek, stream.tell

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= LONGEST_HEADER:
            raise tarfile.ReadError("an endless header")
        self.last = self.stream.read(size)
        return self.last

    def check_end(self, *, has_checksum: bool) -> None:
        """Raises: ReadError without an end mark; what the decompressor raises where its checksum is wrong."""
        if self.last == bytes(tarfile.BLOCKSIZE) or (has_checksum and not self.last):
            for _ in range(LONGEST_TAIL // CHUNK):
                if not self.stream.read(CHUNK):
                    return
        raise tarfile.ReadError("no end")


def _of_zip(opened: zipfile.ZipFile, info: zipfile.ZipInfo) -> Member:
    name, mode = clean(info.orig_filename), info.external_attr >> 16
    if info.flag_bits & 0x41:
        raise Harmful(info.orig_filename, "is encrypted")
    if stat.S_ISLNK(mode):
        if info.file_size > LONGEST_TARGET:
            raise Harmful(name, "is a link to an overlong name")
        return _symbolic_link(name, opened.read(info).decode())
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise Harmful(name, "is a device or a pipe")
    return Member(name, "folder") if info.is_dir() else _file(name, info.file_size)


def _of_tar(info: tarfile.TarInfo) -> Member:
    name = clean(info.name)
    if info.isdir():
        return Member(name, "folder")
    if info.issym():
        return _symbolic_link(name, info.linkname)
    if info.islnk():
        return Member(name, "link", target=clean(info.linkname, link=name))
    if not info.isreg():
        raise Harmful(name, "is a device, a pipe or of an unknown kind")
    return _file(name, info.size)


def _file(name: str, size: int) -> Member:
    if not name:
        raise Harmful(name, "is a file without a name")
    return Member(name, "file", size)


def _symbolic_link(name: str, target: str) -> Member:
    if not target.startswith("/"):
        target = posixpath.normpath(posixpath.join(posixpath.dirname(name), target))
    return Member(name, "link", target=clean(target, link=name))


def clean(path: str, *, link: str | None = None) -> str:
    """A path within an archive without empty parts.

    Raises: Harmful, naming the path, or the `link` that has it as its target, where it might lead elsewhere.
    """
    parts = path.split("/")
    reasons = {
        "is absolute": path.startswith("/"),
        "leads out of the folder": ".." in parts,
        "has a backslash": "\\" in path,
        "has a zero byte": "\0" in path,
        "has a drive letter": any(re.match("[A-Za-z]:", part) for part in parts),
    }
    if why := next((why for why, applies in reasons.items() if applies), None):
        raise Harmful(path, why) if link is None else Harmful(link, f"is a link to {path!r}, which {why}")
    return "/".join(part for part in parts if part not in ("", "."))
