"""What fetching and unpacking share: one process at a time, and a disk that may be full."""

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from rich.filesize import decimal

from vlprompt.errors import UserError

FULL = (errno.ENOSPC, errno.EDQUOT)


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
