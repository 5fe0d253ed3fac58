"""How much a cache may hold: one limit for all processes that write into its folder."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from vlprompt.data.cache.checked import checksum
from vlprompt.data.disk import remove_drafts

LEDGER, LOCK = ".used", ".used.lock"
WIDTH = (
    80  # of a ledger, always: it is overwritten, as file systems take milliseconds to empty a file and fill it again
)
LONGEST_WAIT = 60.0  # seconds for the lock: its holder may have been stopped, and a cache is not worth more
POLL = 0.002  # seconds between two looks at a lock that another process holds: a write takes less
PATIENCE = 60.0  # seconds until a full folder is counted anew: files may be deleted at any time
STARTED = time.time()  # this process, or the one that it is a worker of


@dataclass(frozen=True)
class Budget:
    """At most `limit` bytes of files below `folder`, whoever writes them.

    A ledger in the folder holds their sum, so that a write need not count them. The first write of a run counts them,
    and deletes drafts of killed processes on the way.
    """

    folder: Path
    limit: int

    @contextmanager
    def room_for(self, path: Path, size: int) -> Iterator[bool]:
        """Whether a file of `size` bytes still fits as `path`; nobody else writes until the end of this context.

        Raises: OSError, or NotImplementedError where the file system knows no locks.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._lock():
            before = size_of(path)
            used, counted = self._recall()
            full = used + size - before > self.limit
            now = time.time()
            if not STARTED <= counted <= now + PATIENCE or (full and counted < now - PATIENCE):
                used, counted = self._count(), time.time()
                full = used + size - before > self.limit
                self._note(used, counted)
            if full:
                yield False
                return
            self._note(used + size - before, counted)  # beforehand: a kill must not leave less in it than there is
            try:
                yield True
            finally:
                if (after := size_of(path)) != size:
                    self._note(used + after - before, counted)

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """Raises: TimeoutError, after a wait, and from then on at once: runs go on without the cache."""
        lock = FileLock(self.folder / LOCK)
        try:
            lock.acquire(timeout=0 if self.folder in _given_up else LONGEST_WAIT, poll_interval=POLL)
        except Timeout:
            _given_up.add(self.folder)
            raise TimeoutError(f"another process has held {self.folder / LOCK} for long") from None
        _given_up.discard(self.folder)
        try:
            yield
        finally:
            lock.release()

    def _recall(self) -> tuple[int, float]:
        """What the ledger says, and when that was counted; never, where it is damaged or absent."""
        try:
            used, counted, check = (self.folder / LEDGER).read_text(encoding="ascii").split()
            return (int(used), float(counted)) if check == _check(used, counted) else (0, 0.0)
        except (OSError, ValueError):
            return 0, 0.0

    def _note(self, used: int, counted: float) -> None:
        numbers = str(used), str(counted)
        text = " ".join([*numbers, _check(*numbers)]).ljust(WIDTH)
        with open(self.folder / LEDGER, "wb", opener=_open_in_place) as file:
            file.write(text.encode("ascii"))

    def _count(self) -> int:
        total = 0
        for folder, _, names in os.walk(self.folder):
            paths = [Path(folder, name) for name in names if name not in (LEDGER, LOCK)]
            remove_drafts(paths)
            total += sum(map(size_of, paths))
        return total


_given_up: set[Path] = set()  # folders whose lock was waited for in vain


def _open_in_place(path: str, flags: int) -> int:
    flags |= getattr(os, "O_NOFOLLOW", 0)  # what somebody's link points to stays as it is
    return os.open(path, flags & ~os.O_TRUNC, 0o666)


def _check(used: str, counted: str) -> str:
    return checksum(used.encode(), counted.encode())


def size_of(path: Path) -> int:
    """In bytes; 0 where there is no such file (any more)."""
    try:
        return path.stat().st_size
    except OSError:
        return 0
