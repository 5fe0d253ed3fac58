"""The folders of runs: listed, held by one process, and written so that nothing half done reads as finished."""

import contextlib
import errno
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from vlprompt.errors import UserError
from vlprompt.results.record import FILE, Record, RunKey

TRIALS = "tune"  # the folder of searches for settings, next to runs/


def find_records(roots: Sequence[Path]) -> list[Record]:
    """The records of `find_runs`."""
    return list(find_runs(roots).values())


def find_runs(roots: Sequence[Path], notes: list[str] | None = None) -> dict[Path, Record]:
    """All runs below results roots (their `demo/` and `runs/`) or below any other folders: folder -> record.

    Of several runs with one key the last counts: `runs/` before `demo/`, a later root before an earlier one. `notes`
    are told how many were replaced so.
    """
    runs: dict[RunKey, tuple[Path, Record]] = {}
    replaced: Counter[tuple[Path, Path]] = Counter()
    for root in roots:
        parts = [root / name for name in ("demo", "runs") if (root / name).is_dir()] or [root]
        for path in (path for part in parts for path in sorted(part.rglob(FILE))):
            names = path.relative_to(root).parts
            hidden = any(name.startswith(".") for name in names)  # a run in the making
            trial = names[0] == TRIALS  # shown where its own folder is asked for
            if not (hidden or trial) and (record := read_or_note(path.parent, notes)) is not None:
                earlier = runs.get(record.key)
                if earlier and not earlier[0].samefile(path.parent):
                    replaced[folder_of(*earlier), folder_of(path.parent, record)] += 1
                runs[record.key] = path.parent, record
    if notes is not None:
        notes += [
            f"{n} runs of {old} are left out: {new} has runs of the same cells and seeds."
            for (old, new), n in replaced.items()
        ]
    return dict(runs.values())


def read_or_note(folder: Path, notes: list[str] | None) -> Record | None:
    """A record; None, and a note, where it is damaged. Raises: UserError in that case where there are no notes."""
    try:
        return Record.read(folder)
    except UserError as error:
        if notes is None:
            raise
        notes.append(f"Left out: {error}")
        return None


def folder_of(run: Path, record: Record) -> Path:
    """The folder of results that a run lies in: `runs` or `demo`, or whatever holds the folders that its key names."""
    names = record.folder_names
    return run.parents[len(names) - 1] if run.parts[-len(names) :] == names else run.parent


class OpenRun:
    """One run in the making: `path` takes its files, `publish` makes them the run of its key."""

    def __init__(self, target: Path) -> None:
        self.target = target
        self.path = target.with_name(f".{target.name}.partial")
        self._old = target.with_name(f".{target.name}.old")

    def publish(self, record: Record) -> bool:
        """Write the record, last of all files, and put the folder where it belongs.

        False, and nothing changes, where a run that did not finish would replace one that did.
        """
        if record.status != "finished":
            with contextlib.suppress(UserError):  # a damaged record is no loss
                old = Record.read(self.target)
                if old is not None and old.status == "finished":
                    return False
        draft = self.path / f".{FILE}"
        draft.write_text(record.model_dump_json(indent=2) + "\n", encoding="utf-8")
        for path in self.path.rglob("*"):  # on the disk before the name that says "complete"
            if path.is_file():
                with path.open("rb+") as file:
                    os.fsync(file.fileno())
        draft.replace(self.path / FILE)
        self.settle()
        return True

    def settle(self) -> None:
        """Order the folders, whatever was interrupted: a complete run takes its place, a partial one goes."""
        if (self.path / FILE).exists():
            if self.target.exists():
                shutil.rmtree(self._old, ignore_errors=True)
                self.target.rename(self._old)
            self.path.rename(self.target)
        elif self._old.exists() and not self.target.exists():
            self._old.rename(self.target)
        shutil.rmtree(self.path, ignore_errors=True)
        shutil.rmtree(self._old, ignore_errors=True)


@contextlib.contextmanager
def open_run(folder: Path, *, on_wait: Callable[[], object] = lambda: None) -> Iterator[OpenRun]:
    """Hold one run's folder for writing. Left without `publish`, what was there stays as it was.

    While another process holds it, `on_wait` is called once and this one waits: look again for a finished run.
    Raises: UserError where the disk is full.
    """
    run = OpenRun(folder)
    with _full_disk_named(folder):
        lock = FileLock(folder.with_name(f".{folder.name}.lock"))
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
        except Timeout:
            on_wait()
            lock.acquire()
        except OSError as error:
            raise UserError(
                f"cannot write results to '{folder}' ({error.strerror}): set VLPROMPT_RESULTS to a folder of your own."
            ) from error
        try:
            run.settle()
            run.path.mkdir()
            yield run
        finally:
            run.settle()
            lock.release()


@contextlib.contextmanager
def _full_disk_named(folder: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        # safetensors and torch raise errors of their own, with the system's text in them
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or os.strerror(errno.ENOSPC) in str(error):
            raise UserError(
                f"no space left on the disk while writing '{folder}': free some, or set VLPROMPT_RESULTS to a "
                "folder on another disk, and run this again (earlier runs are untouched)."
            ) from error
        raise
