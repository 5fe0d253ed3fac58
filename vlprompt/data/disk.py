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
from datetime import datetime
from functools import cache
from pathlib import Path

from filelock import FileLock, Timeout
from rich.filesize import decimal

from vlprompt.errors import UserError, printable
from vlprompt.textfiles import ordinary

FULL = (errno.ENOSPC, errno.EDQUOT)
logger = logging.getLogger(__name__)


class Lock:
    """A lock file that one process holds at a time, and a note next to it that says who.

    The lock alone decides: a note may be that of a process that was killed, and is for people.
    """

    def __init__(self, path: Path) -> None:
        self._lock = FileLock(path)
        self._note = path.with_name(f"{path.name}.holder")
        self._text = ""

    def acquire(self, on_wait: Callable[[str], object]) -> None:
        """Hold it. While another process does, `on_wait` hears once which, and this one waits. Raises: OSError."""
        if not self.try_acquire():
            on_wait(self.holder())
            self._lock.acquire()
            self._sign()

    def try_acquire(self) -> bool:
        """Hold it if no other process does; -> whether it is held. Raises: OSError."""
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            return False
        self._sign()
        return True

    def is_lost(self) -> bool:
        """Whether somebody deleted its folder, so that others may hold a file of the same name."""
        return _read_note(self._note) != self._text

    def release(self) -> None:
        if not self.is_lost():
            with contextlib.suppress(OSError):
                self._note.unlink()
        self._text = ""
        self._lock.release()

    def _sign(self) -> None:
        self._text = f"{os.getpid()} on {socket.gethostname()}, since {datetime.now():%Y-%m-%d %H:%M}"
        with contextlib.suppress(OSError):  # on a full disk, say: the lock holds without it
            self._note.unlink(missing_ok=True)
            with self._note.open("x", encoding="utf-8") as file:  # never through a link that somebody put there
                file.write(self._text)

    def holder(self) -> str:
        """Who holds it, as far as one can know: another process (4711 on node3, since 2026-01-31 12:03)."""
        for _ in range(3):
            if text := self.note():
                return f"another process ({text})"
            time.sleep(0.05)  # it may be about to sign
        return "another process"

    def note(self) -> str | None:
        """What its holder signed with; None where there is no note, or its process is known to be gone."""
        text = _read_note(self._note)
        named = re.fullmatch(r"(\d+) on (\S+), since [\d :-]+", text)
        if not named:
            return None
        here = named[2] == socket.gethostname()
        return text if (_is_alive(int(named[1])) if here else self._is_held()) else None

    def _is_held(self) -> bool:
        """Whether a process of another machine, whose number says nothing here, holds it, as the file system knows."""
        path = Path(self._lock.lock_file)
        try:
            with FileLock(path, timeout=0) if path.exists() else contextlib.nullcontext():
                return False
        except (Timeout, OSError):  # held, or where nothing can be locked
            return True


def _read_note(path: Path) -> str:
    with contextlib.suppress(OSError, UnicodeDecodeError), ordinary(path).open(encoding="utf-8") as file:
        return file.read(200)
    return ""


@contextmanager
def locked(path: Path, on_wait: Callable[[str], object]) -> Iterator[None]:
    """Hold a lock file. While another process holds it, `on_wait` hears once which, and this one waits."""
    lock = Lock(path)
    lock.acquire(on_wait)
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
    except Exception as error:
        if is_full(error):
            raise UserError(f"no space left on the disk while writing {what}: free some, {do}.") from error
        if not isinstance(error, OSError) or error.errno is None:
            raise
        raise UserError(f"cannot write {what} ({os.strerror(error.errno)}).") from error


def is_full(error: Exception) -> bool:
    """Whether a disk or a quota is full: libraries raise errors of their own, with the system's text in them."""
    return getattr(error, "errno", None) in FULL or os.strerror(errno.ENOSPC) in str(error)


def make_folder(path: Path) -> None:
    """Make a folder and its parents, if need be, and have their names on the disk. Raises: OSError."""
    new = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in new:
        sync(folder.parent)


@contextmanager
def whole_file(path: Path, *, lasting: bool = True) -> Iterator[Path]:
    """A draft next to `path`, which takes its name at the end: a file appears whole or not at all, and stays there.

    Not `lasting` is what can be made again: it is not waited for until it is on the disk, and drafts of killed
    processes are left to whoever looks after the folder.
    """
    if lasting:
        make_folder(path.parent)
        _clear_drafts(path.parent)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
    draft = draft_of(path)
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


def draft_of(path: Path) -> Path:
    """Where a file or a folder is made that is to be `path`, in the name of this process."""
    return path.with_name(f".{path.name}.{_process()}")


@cache
def _clear_drafts(folder: Path) -> None:
    """Delete, once in a process, what others that were killed left half written in a folder."""
    remove_drafts(folder.glob(".*"))


def remove_drafts(paths: Iterable[Path]) -> None:
    """Delete those of these files that a killed process left half written."""
    for path in paths:
        if is_left_behind(path):
            with contextlib.suppress(OSError):
                path.unlink()


def _process() -> str:
    """This process in the name of what it is writing: its host, hashed, and its number there."""
    return f"vlprompt-{_host()}-{os.getpid()}"


@cache
def _host() -> str:
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


def is_left_behind(path: Path) -> bool:
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
    windows, folder = os.name == "nt", path.is_dir()
    if windows and folder:  # which it does not open
        return
    with contextlib.suppress(OSError) if folder else contextlib.nullcontext():  # some network drives refuse it
        number = os.open(path, os.O_RDWR if windows else os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def sha256_of(path: Path) -> str:
    """The hash of a file's content. Raises: OSError; for a pipe or a device, too."""
    digest = hashlib.sha256()
    with ordinary(path).open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


@cache
def complain(text: str) -> None:
    """Warn, once in a process."""
    logger.warning("%s", printable(text))
