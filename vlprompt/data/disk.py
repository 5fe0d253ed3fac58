"""What everything that writes below the data root shares: locks, whole files, a disk that may be full."""

import contextlib
import errno
import hashlib
import logging
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from filelock import FileLock, Timeout
from rich.filesize import decimal

from vlprompt.errors import UserError

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
def whole_file(path: Path, *, lasting: bool = True) -> Iterator[Path]:
    """A draft next to `path`, which takes its name at the end: a file appears whole or not at all, and stays there.

    Not `lasting` is what can be made again: it is not waited for until it is on the disk, and drafts of killed
    processes are left to whoever looks after the folder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if lasting:
        _clear_drafts(path.parent)
    draft = path.with_name(f".{path.name}.{_process()}")
    try:
        yield draft
        if lasting:
            sync(draft)
        draft.replace(path)
        if lasting:
            sync(path.parent)
    finally:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)


@cache
def _clear_drafts(folder: Path) -> None:
    """Delete, once in a process, what others that were killed left half written in a folder."""
    remove_drafts(folder.glob(".*"))


def remove_drafts(paths: Iterable[Path]) -> None:
    """Delete those of these files that a killed process left half written."""
    for path in paths:
        if _is_left_behind(path):
            with contextlib.suppress(OSError):
                path.unlink()


def _process() -> str:
    """This process in the name of what it is writing: its host, hashed, and its number there."""
    return f"vlprompt-{_host()}-{os.getpid()}"


@cache
def _host() -> str:
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


def _is_left_behind(path: Path) -> bool:
    """Whether the process in the name is gone; of another host's one knows only that drafts take less than a day."""
    named = re.search(r"\bvlprompt-([0-9a-f]{8})-(\d{1,10})(\.\w+)?$", path.name)
    if not named:
        return False
    if named[1] == _host():
        return not _is_alive(int(named[2]))
    with contextlib.suppress(OSError):
        return time.time() - path.stat().st_mtime > 24 * 3600
    return False


def _is_alive(pid: int) -> bool:
    if os.name == "nt":  # where the question would end the process
        return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # somebody else's
        return True
    return True


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
def complain(text: str) -> None:
    """Warn, once in a process."""
    logger.warning("%s", text)
