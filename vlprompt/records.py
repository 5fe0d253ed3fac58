"""One record per run: where it lies, how it is read, and written so that nothing half done reads as finished."""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vlprompt.errors import UserError

SCHEMA_VERSION = 1
FILE = "result.json"
TRIALS = "tune"  # the folder of searches for settings, beside runs/
PACKAGES = ("torch", "torchvision", "open_clip_torch", "timm", "hydra-core", "numpy", "vlprompt")


def results_root() -> Path:
    """VLPROMPT_RESULTS, or `results` in the working directory."""
    return Path(os.environ.get("VLPROMPT_RESULTS") or "results")


class Cell(BaseModel):
    """What one run is a run of: its place in every table."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    protocol: str
    dataset: str
    backbone: str
    method: str
    variant: str | None = None  # `name=`, or a hash of what differs from the default recipe
    shots: int | Literal["all"]  # 0 for a learner that is not trained
    seed: int

    @property
    def learner(self) -> str:
        """The method, with its variant where there is one."""
        return self.method if self.variant is None else f"{self.method}@{self.variant}"

    def folder(self, root: Path) -> Path:
        """Where this run lies below the results root. Raises: UserError where a name cannot be that of a folder."""
        for part in filter(None, (self.protocol, self.dataset, self.backbone, self.method, self.variant)):
            if not re.fullmatch(r"\w[\w.+=-]{0,99}", part):
                raise UserError(
                    f"'{part}' cannot name a folder of results: use up to 100 letters, digits and _ . + = -, "
                    "a letter or digit first."
                )
        names = (self.protocol, self.dataset, self.backbone, self.learner, f"shots{self.shots}", f"seed{self.seed}")
        return root.joinpath("runs", *names)


class Record(Cell):
    """Everything that is known about one run: the content of `result.json`."""

    model_config = ConfigDict(ser_json_inf_nan="strings")

    schema_version: int = SCHEMA_VERSION
    status: Literal["finished", "failed", "not_applicable"]
    reason: str | None = None  # why it is not finished
    weights: str | None = None  # of the backbone: a tag, a path or "random"
    precision: str | None = None
    device: str | None = None
    config: dict[str, Any] = {}
    config_hash: str = ""
    recipe: list[str] = []
    selection: Literal["last", "val", "test"] = "last"  # what chose the epoch; test: of what else was searched, too
    versions: dict[str, str] = {}
    git: str | None = None
    split_hash: str | None = None
    target_hashes: dict[str, str] = {}  # of the splits of other data sets that were tested
    scores: dict[str, dict[str, int | float]] = {}  # by test split; fractions
    # trained_parameters, stored_bytes, *_seconds, peak_memory_bytes, steps, seconds_per_step, backbone_bytes,
    # quantization_error, mergeable; flops_* and seconds_per_image (costs.py)
    cost: dict[str, bool | int | float | None] = {}
    bank: dict[str, Any] = {}
    curve: list[dict[str, int | float | None]] = []  # epoch, loss, accuracy, lr
    imported: dict[str, dict[str, str | int]] = {}  # by test split: the log it was read from, its sha256, its decimals
    created: str = Field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds"))

    @property
    def cell(self) -> Cell:
        return Cell(**{name: getattr(self, name) for name in Cell.model_fields})

    @classmethod
    def read(cls, folder: Path) -> "Record | None":
        """The record in a run's folder, None where there is none. Raises: UserError where it is damaged."""
        path = folder / FILE
        try:
            record = cls.model_validate_json(path.read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValidationError) as error:
            raise UserError(f"cannot read the record '{path}': delete its folder and run this cell again.") from error
        if record.schema_version > SCHEMA_VERSION:
            raise UserError(f"'{path}' was written by a newer vlprompt: update vlprompt to read it.")
        return record


def is_finished(folder: Path, config_hash: str) -> bool:
    """Whether the folder holds a finished run of exactly these settings; what was imported is no run."""
    record = Record.read(folder)
    if record is None or record.imported:
        return False
    return record.status == "finished" and record.config_hash == config_hash


def find_records(roots: Sequence[Path]) -> list[Record]:
    """The records of `find_runs`."""
    return list(find_runs(roots).values())


def find_runs(roots: Sequence[Path]) -> dict[Path, Record]:
    """All runs below results roots (their `demo/` and `runs/`) or below any other folders: folder -> record.

    Of several runs of one cell the last found counts: `runs/` before `demo/`, a later root before an earlier one.
    """
    found: dict[Cell, tuple[Path, Record]] = {}
    for root in roots:
        parts = [root / name for name in ("demo", "runs") if (root / name).is_dir()] or [root]
        for path in (path for part in parts for path in sorted(part.rglob(FILE))):
            names = path.relative_to(root).parts
            hidden = any(name.startswith(".") for name in names)  # a run in the making
            trial = names[0] == TRIALS  # shown where its own folder is asked for
            if not (hidden or trial) and (record := Record.read(path.parent)) is not None:
                found[record.cell] = path.parent, record
    return dict(found.values())


class OpenRun:
    """One run in the making: `folder` takes its files, `publish` makes them the cell's run."""

    def __init__(self, target: Path) -> None:
        self.target = target
        self.folder = target.with_name(f".{target.name}.partial")
        self._old = target.with_name(f".{target.name}.old")

    def publish(self, record: Record) -> bool:
        """Write the record, last of all files, and put the folder in its place.

        False, and nothing changes, where a run that did not finish would replace one that did.
        """
        if record.status != "finished":
            with contextlib.suppress(UserError):  # a damaged record is no loss
                old = Record.read(self.target)
                if old is not None and old.status == "finished":
                    return False
        draft = self.folder / f".{FILE}"
        draft.write_text(record.model_dump_json(indent=2) + "\n", encoding="utf-8")
        for path in self.folder.rglob("*"):  # on the disk before the name that says "complete"
            if path.is_file():
                with path.open("rb+") as file:
                    os.fsync(file.fileno())
        draft.replace(self.folder / FILE)
        self.settle()
        return True

    def settle(self) -> None:
        """Order the folders, whatever was interrupted: a complete run takes its place, a partial one goes."""
        if (self.folder / FILE).exists():
            if self.target.exists():
                shutil.rmtree(self._old, ignore_errors=True)
                self.target.rename(self._old)
            self.folder.rename(self.target)
        elif self._old.exists() and not self.target.exists():
            self._old.rename(self.target)
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.rmtree(self._old, ignore_errors=True)


@contextlib.contextmanager
def open_run(folder: Path, *, on_wait: Callable[[], object] = lambda: None) -> Iterator[OpenRun]:
    """Hold one cell's folder for writing. Left without `publish`, what was there stays as it was.

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
            run.folder.mkdir()
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


def config_hash(settings: Mapping[str, Any]) -> str:
    """sha256 of settings, the same whatever the order of keys and whether a whole number is written 1 or 1.0."""
    return hashlib.sha256(_canonical(settings).encode()).hexdigest()


def variant_of(settings: Mapping[str, Any], default_settings: Mapping[str, Any]) -> str | None:
    """8 hex digits that stand for every setting that differs from the default; None where none does."""
    new, old = _flat(settings), _flat(default_settings)
    changed = {
        key: new.get(key, "(absent)")
        for key in new.keys() | old.keys()
        if key not in new or key not in old or _canonical(new[key]) != _canonical(old[key])
    }
    return config_hash(changed)[:8] if changed else None


def _canonical(value: object) -> str:
    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {str(key): plain(inner) for key, inner in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(inner) for inner in value]
        return int(value) if isinstance(value, float) and value.is_integer() else value

    return json.dumps(plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        nested = isinstance(value, Mapping) and bool(value)
        flat |= _flat(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return flat


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that results depend on, as installed."""
    import platform

    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def git_commit() -> str | None:
    """The commit of the checkout that the running code lies in, "+dirty" where files differ; None outside one."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():  # an installed package may lie in a checkout of something else
        return None
    command = ["git", f"--git-dir={root / '.git'}", f"--work-tree={root}", "describe"]
    command += ["--always", "--exclude=*", "--abbrev=40", "--dirty=+dirty"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip() or None
