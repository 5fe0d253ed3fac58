"""Checksums of what a cache holds, so that damage is noticed and the entry made again."""

import json
import zlib
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from vlprompt.data.disk import complain
from vlprompt.textfiles import ordinary

CHECKSUM, CONTENT = "crc32", "content"
MOST_NOTES = 3  # of damaged entries in a process: where a whole cache is damaged, more would help nobody


class Damaged(ValueError):
    """A file that is not as it was written, is another entry's, or of a version without checksums."""


def checksum(*parts: bytes | memoryview) -> str:
    """CRC-32 in hexadecimal: it changes with every single bit, and misses any other damage once in four thousand
    million times. It reads some gigabytes a second."""
    value = 0
    for part in parts:
        value = zlib.crc32(part, zlib.crc32(len(part).to_bytes(8, "big"), value))
    return f"{value:08x}"


def sealed(content: Any) -> str:
    """A JSON text of plain content with its checksum."""
    return json.dumps({CHECKSUM: checksum(_plain(content)), CONTENT: content}, ensure_ascii=False, indent=1)


def unsealed(path: Path, *, most: int | None = None) -> Any:
    """The content of a file with a `sealed` text, of at most so many bytes. Raises: Damaged; OSError."""
    if most is not None and path.stat().st_size > most:
        raise Damaged(f"{path} has more than {most} bytes")
    try:
        both = json.loads(ordinary(path).read_bytes())
        if both[CHECKSUM] == checksum(_plain(both[CONTENT])):
            return both[CONTENT]
    except (ValueError, LookupError, TypeError, RecursionError):
        pass
    raise Damaged(f"{path} is damaged, or of a version without checksums")


def _plain(content: Any) -> bytes:
    return json.dumps(content, sort_keys=True, ensure_ascii=True).encode()


def discard(path: Path, what: str) -> None:
    """Delete a damaged entry, so that it is made again, and say so."""
    with suppress(OSError):
        path.unlink()
    note_damage(path, what)


@cache
def note_damage(path: Path, what: str) -> None:
    """Warn, once of a file in a process, and of a few files by name."""
    notes = note_damage.cache_info().currsize
    if notes < MOST_NOTES:
        complain(f"{path} is damaged or has no checksum: {what}")
    elif notes == MOST_NOTES:
        complain(f"more files than these in {path.parent.parent} are damaged, and made again without a note")
