"""What everything that writes below the data root shares: locks, whole files, a disk that may be full."""

import contextlib
import errno
import hashlib
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from filelock import FileLock, Timeout
from rich.filesize import decimal

from vlprompt.errors import UserError, printable

FULL = (errno.ENOSPC, errno.EDQUOT)
logger = logging.getLogger(__name__)


@contextmanager
def locked(path: Path, on_wait: Callable[[], object]) -> Iterator[None]:
    """Hold a lock file. While another process holds it, `on_wait` is called once and this one waits."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        on_wait()
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def check_space(folder: Path, needed: int, what: str) -> None:
    """Raises: UserError with both numbers where the file system of `folder` has fewer than `needed` bytes free."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"{what} needs {decimal(needed)}, but {decimal(free)} are free in '{folder}': free some, or set "
            "VLPROMPT_DATA to a folder on another disk."
        )


@contextmanager
def writing(what: str, do: str) -> Iterator[None]:
    """What the system refuses, as a `UserError`: a full disk above all. `do` says what to do after freeing some."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise UserError(f"no space left on the disk while writing {what}: free some, {do}.") from error
        if error.errno is None:
            raise
        raise UserError(f"cannot write {what} ({os.strerror(error.errno)}).") from error


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A draft next to `path`, which takes its name at the end: a file appears whole or not at all, and stays there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield draft
        sync(draft)
        draft.replace(path)
        sync(path.parent)
    finally:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Have the content of a file, or the names in a folder, on the disk itself, so that a power cut keeps them."""
    windows = os.name == "nt"
    if windows and path.is_dir():  # which it does not open
        return
    number = os.open(path, os.O_RDWR if windows else os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def sha256_of(path: Path) -> str:
    """The hash of a file's content. Raises: OSError."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


@cache
def used_below(folder: Path, pattern: str) -> list[int]:
    """[bytes of the files of this pattern below a folder], counted once in a process; whoever writes adds to it."""
    return [sum(size_of(path) for path in folder.glob(pattern))]


def size_of(path: Path) -> int:
    """In bytes; 0 where another process has just moved or deleted the file."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


@cache
def complain(text: str) -> None:
    """Warn, once in a process."""
    logger.warning("%s", printable(text))
