"""The folders of runs: listed, held by one process, and written so that nothing half done reads as finished.

A run is made in `.NAME.partial`, whose record is written last. Then NAME, if there is one, becomes `.NAME.old`, and the
new folder takes its name: two renames, which no file system joins into one. So whoever reads looks at all three.
A draft stays where it holds the state of a training, from which the same run resumes.
"""

import contextlib
import errno
import logging
import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from vlprompt.data.disk import Lock, complain, is_full, make_folder, sha256_of, sync
from vlprompt.errors import DamagedError, InUseError, Note, UserError
from vlprompt.results.record import FILE, Record, RunKey, checked

TRIALS = "tune"  # the folder of searches for settings, next to runs/
DRAFT = re.compile(r"\.(.+)\.(partial|old|lock\.holder)")
LOG = "log.txt"
STATE = "state.safetensors"  # of a training that was stopped
RESUMED = (STATE, LOG)  # what a run goes on with
ATTEMPTS = 5  # where somebody deletes folders meanwhile
T = TypeVar("T")
logger = logging.getLogger(__name__)


def find_records(roots: Sequence[Path]) -> list[Record]:
    """The records of `find_runs`."""
    return list(find_runs(roots).values())


def find_runs(roots: Sequence[Path], say: Callable[[str], object] = logger.warning) -> dict[Path, Record]:
    """All runs below results roots (their `demo/` and `runs/`) or below any other folders: folder -> record.

    Of several runs with one key the last counts: `runs/` before `demo/`, a later root before an earlier one. `say`
    hears of each record that cannot be read and is left out, and how many were replaced.
    """
    runs: dict[RunKey, tuple[Path, Record]] = {}
    replaced: Counter[tuple[Path, Path]] = Counter()
    for root in roots:
        parts = [root / name for name in ("demo", "runs") if (root / name).is_dir()] or [root]
        for target in (target for part in parts for target in sorted(_targets(part, say))):
            if target.relative_to(root).parts[:1] == (TRIALS,):  # shown where its own folder is asked for
                continue
            try:
                run = stored_run(target)
            except UserError as error:
                say(Note("Left out: " + str(error).replace(str(target), "{}", 1), target))
                continue
            if run is None:
                continue
            earlier = runs.get(run[1].key)
            if earlier and not earlier[0].samefile(run[0]):
                replaced[folder_of(*earlier), folder_of(*run)] += 1
            runs[run[1].key] = run
    for (old, new), n in replaced.items():
        say(f"{n} runs of {old} are left out: {new} has runs of the same cells and seeds.")
    return dict(runs.values())


def folder_of(run: Path, record: Record) -> Path:
    """The folder of results that a run lies in: `runs` or `demo`, or whatever holds the folders that its key names."""
    names = record.folder_names
    return run.parents[len(names) - 1] if run.parts[-len(names) :] == names else run.parent


def _targets(root: Path, say: Callable[[str], object]) -> set[Path]:
    """The folders of runs below a folder, even if a draft of one is all that there is."""

    def unreadable(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            say(Note(f"Left out: '{{}}' cannot be read ({error.strerror}).", error.filename))

    targets = set()
    for name, folders, files in os.walk(root, onerror=unreadable):
        if FILE in files or FILE in folders:
            targets.add(Path(name))
        targets |= {Path(name, draft[1]) for folder in folders if (draft := DRAFT.fullmatch(folder))}
        folders[:] = [folder for folder in folders if not folder.startswith(".") and folder != FILE]
        for folder in folders:  # which may be one of all disks, or a circle
            if (link := Path(name, folder)).is_symlink():
                say(Note("Left out: '{}' is a link, which is not followed: name the folder it points to, too.", link))
    return targets


def stored_run(target: Path) -> tuple[Path, Record] | None:
    """A run's folder and its record, wherever a process that was killed left them; None where there is none.

    Raises: UserError where all that is there is damaged, or of a newer version.
    """
    mistakes: list[UserError] = []
    for folder in (target, *_drafts(target), target):  # again: a process at work may have put it there meanwhile
        try:
            if record := Record.read(folder):
                return folder, record
        except UserError as error:
            mistakes.append(error)
    if mistakes:
        raise mistakes[0]
    return None


def finished_run(target: Path, matches: Callable[[Record], bool]) -> Record | None:
    """The record of a run, if it is finished, `matches`, and its files are what it says; what was imported is no run.

    Files that somebody deleted are no longer asked for, and the log is for people; a damaged one is told.
    """
    try:
        folder, record = stored_run(target) or (target, None)
        if record is None or record.status != "finished" or record.imported or not matches(record):
            return None
        for name in record.files:
            if name != LOG and (folder / name).exists():
                checked(folder / name)
    except DamagedError as error:
        complain(str(error))
        return None
    return record


def _drafts(target: Path) -> tuple[Path, Path]:
    """Where a run is made, and where the one before it is until the new one has its name."""
    return target.with_name(f".{target.name}.partial"), target.with_name(f".{target.name}.old")


def draft_of(target: Path) -> Path:
    """Where the run of this folder is made."""
    return _drafts(target)[0]


def settle(target: Path) -> None:
    """Order the folders of a run whose lock is held, whatever was interrupted. Raises: OSError."""
    partial, old = _drafts(target)
    if (partial / FILE).exists():  # complete
        if target.exists():
            _delete(old)
            target.rename(old)
        partial.rename(target)
        sync(target.parent)
    elif (old / FILE).exists() and not target.exists():
        old.rename(target)
        sync(target.parent)
    if has_state(partial):
        for path in partial.iterdir():
            if path.name not in RESUMED:
                _delete(path)
    else:
        _delete(partial)
    _delete(old)


def has_state(folder: Path) -> bool:
    """Whether a folder holds the state of a training; what a link leads to is somebody else's."""
    return not folder.is_symlink() and (folder / STATE).is_file() and not (folder / STATE).is_symlink()


def _delete(folder: Path) -> None:
    """The record first, so that what is left of a folder, if this is interrupted, is no run."""
    with contextlib.suppress(OSError):
        if folder.is_symlink() or folder.is_file():  # of a link the link alone
            folder.unlink()
        (folder / FILE).unlink()
    shutil.rmtree(folder, ignore_errors=True)


def tidy(folder: Path) -> None:
    """Order what killed processes left of the runs in a folder. What is in use, or cannot be written, stays."""
    for target in {folder / draft[1] for path in folder.glob(".*") if (draft := DRAFT.fullmatch(path.name))}:
        lock = _lock_of(target)
        with contextlib.suppress(OSError):
            if lock.try_acquire():
                try:
                    settle(target)
                finally:
                    lock.release()


def _lock_of(target: Path) -> Lock:
    return Lock(target.with_name(f".{target.name}.lock"))


def is_free(target: Path) -> bool:
    """Whether no process is making the run of this folder."""
    lock = _lock_of(target)
    with contextlib.suppress(OSError):  # whoever asks for the run hears of it
        if not lock.try_acquire():
            return False
        lock.release()
    return True


def holder(target: Path) -> str | None:
    """Who is making the run of this folder, as its note says: 4711 on node3, since 2026-01-31 12:03. None: nobody."""
    return _lock_of(target).note()


class OpenRun:
    """One run in the making: `path` takes its files, `publish` makes them the run of its key."""

    def __init__(self, target: Path, on_wait: Callable[[str], object], *, wait: bool = True) -> None:
        self.target, self.path = target, _drafts(target)[0]
        self._on_wait, self._lock, self._waits = on_wait, _lock_of(target), wait
        self._hold()

    def _hold(self) -> None:
        """Hold the lock and the folder `path`, made anew if need be, empty but for a state. Raises: OSError."""
        for attempt in range(ATTEMPTS):
            try:
                make_folder(self.target.parent)
                if self._waits:
                    self._lock.acquire(self._on_wait)
                elif not self._lock.try_acquire():
                    raise InUseError(f"{self._lock.holder()} is running {self.target}", self.target)
                settle(self.target)
                self.path.mkdir(exist_ok=True)
                if has_state(self.target) and not has_state(self.path):  # of a run that failed
                    (self.target / STATE).replace(self.path / STATE)
                return
            except OSError as error:
                self._lock.release()
                if not isinstance(error, FileNotFoundError) or attempt == ATTEMPTS - 1:
                    raise

    def write(self, files: Callable[[], T]) -> T:
        """What `files` gives, which writes into `path`: if somebody deletes that meanwhile, all is written again."""
        for attempt in range(ATTEMPTS):
            try:
                if not self.path.is_dir():
                    self._lock.release()  # its file is gone, too, perhaps
                    self._hold()
                return files()
            except OSError:
                if self.path.is_dir() or attempt == ATTEMPTS - 1:
                    raise
                time.sleep(0.1)
        raise AssertionError

    def publish(self, record: Record) -> bool:
        """Write the record, last of all files, and put the folder where it belongs.

        False, and nothing changes, where a run that did not finish would replace one that did.
        Raises: OSError: among others where the folder was deleted.
        """
        if record.status != "finished":
            try:
                run = stored_run(self.target)
            except DamagedError:  # no loss
                run = None
            except UserError:  # of a newer version, or somebody else's
                return False
            if run and run[1].status == "finished":
                return False
        paths = [path for path in sorted(self.path.rglob("*")) if path.is_file() and path != self.path / STATE]
        hashes = {path.relative_to(self.path).as_posix(): sha256_of(path) for path in paths}
        draft = self.path / f".{FILE}"
        draft.write_text(record.model_copy(update={"files": hashes}).text(), encoding="utf-8")
        for path in (*paths, draft):  # on the disk before the name that says "complete"
            sync(path)
        draft.replace(self.path / FILE)
        if record.status == "finished":  # one that failed on a full GPU, say, may be resumed
            (self.path / STATE).unlink(missing_ok=True)
        sync(self.path)
        settle(self.target)
        if not (self.target / FILE).exists():
            raise FileNotFoundError(errno.ENOENT, "deleted while it was written", str(self.target))
        return True

    def close(self) -> None:
        try:
            settle(self.target)
        finally:
            self._lock.release()


@contextlib.contextmanager
def open_run(
    folder: Path, *, on_wait: Callable[[str], object] = logger.warning, wait: bool = True
) -> Iterator[OpenRun]:
    """Hold one run's folder for writing. Left without `publish`, what was there stays as it was, next to a state.

    While another process holds it, `on_wait` hears once which, and this one waits: look again for a finished run.
    What others that were killed left next to it is ordered.

    Raises:
        InUseError: another process holds it, and `wait` is false.
        UserError: the disk is full or read-only.
    """
    with _refusals_named(folder):
        try:
            run = OpenRun(folder, lambda holder: on_wait(f"{holder} is running {folder}: waiting for it"), wait=wait)
        except OSError as error:
            if is_full(error):
                raise
            raise UserError(
                f"cannot write results to '{folder}' ({error.strerror}): set VLPROMPT_RESULTS to a folder of your own."
            ) from error
        try:
            tidy(folder.parent)
            yield run
        finally:
            run.close()


@contextlib.contextmanager
def _refusals_named(folder: Path) -> Iterator[None]:
    """What a disk refuses while it is written, as a `UserError`."""
    try:
        yield
    except Exception as error:
        number = getattr(error, "errno", None)
        if is_full(error):
            problem = "no space left on the disk"
        elif number in (errno.EFBIG, errno.EROFS):  # a limit on the size of files; a disk that turned read-only
            problem = os.strerror(number)
        else:
            raise
        raise UserError(
            f"{problem} while writing '{folder}': free some, or set VLPROMPT_RESULTS to a "
            "folder on another disk, and run this again (earlier runs are untouched)."
        ) from error
