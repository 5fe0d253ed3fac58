"""A sweep's folder: what its cells are, and a file for each job that began and that ended, on whatever machine."""

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from vlprompt.data.disk import whole_file, writing
from vlprompt.errors import UserError
from vlprompt.textfiles import ordinary

MANIFEST = "sweep.json"
OUTCOMES = "jobs"
MOST_BYTES = 10**8  # of a file here: the cells of the largest sweeps take some MB


@dataclass(frozen=True)
class Sweep:
    """A sweep as its folder tells it."""

    folder: Path
    started: datetime
    cells: dict[str, dict[str, Any]]  # the key of each cell, as far as its settings tell, by the overrides of its job
    outcomes: dict[str, dict[str, Any]] = field(default_factory=dict)  # of jobs that ended, by their overrides
    begun: dict[str, Path] = field(default_factory=dict)  # the runs of jobs that began, by their overrides


def write_sweep(folder: Path, cells: Mapping[str, Mapping[str, Any]]) -> datetime:
    """Leave the cells where the jobs leave their outcomes; -> when the sweep started. Raises: UserError."""
    started = datetime.now(timezone.utc).replace(microsecond=0)
    _write(folder / MANIFEST, {"started": started.isoformat(), "cells": cells})
    return started


def write_begun(folder: Path, number: int, job: str, run: Path) -> None:
    """A job begins, and its run lies there."""
    _write(folder / OUTCOMES / f"{number:06d}.begun", {"job": job, "run": str(run.absolute())})


def write_outcome(folder: Path, number: int, outcome: Mapping[str, Any]) -> None:
    """A job ended: its overrides, the folders of its finished runs, and its status and reason if it did not finish."""
    _write(folder / OUTCOMES / f"{number:06d}.json", outcome)


def _write(path: Path, fields: Mapping[str, Any]) -> None:
    with writing(f"'{path}'", "and run the sweep again: finished runs are read"), whole_file(path) as draft:
        draft.write_text(json.dumps(fields), encoding="utf-8")


def read_outcomes(folder: Path) -> list[dict[str, Any]]:
    """The outcomes of all jobs that ended, in the order of their numbers."""
    return [_read(path) for path in sorted(folder.glob(f"{OUTCOMES}/*.json"))]


def start_of(folder: Path) -> datetime | None:
    """When a sweep started; None where its folder does not say."""
    with contextlib.suppress(UserError, FileNotFoundError, KeyError, TypeError, ValueError):
        return datetime.fromisoformat(_read(folder / MANIFEST)["started"])
    return None


def read_sweep(folder: Path) -> Sweep:
    """Raises: UserError where the folder holds no sweep, or a damaged one."""
    try:
        fields = _read(folder / MANIFEST)
        started = datetime.fromisoformat(fields["started"])
        cells = {str(job): dict(key) for job, key in fields["cells"].items()}
        outcomes = {str(outcome["job"]): outcome for outcome in read_outcomes(folder)}
        marks = [_read(path) for path in sorted(folder.glob(f"{OUTCOMES}/*.begun"))]
        begun = {str(mark["job"]): Path(mark["run"]) for mark in marks}
    except FileNotFoundError:
        raise UserError(f"'{folder}' is no folder of a sweep: it has no {MANIFEST}") from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"the sweep in '{folder}' is damaged ({error!r}): start it again") from None
    return Sweep(folder, started, cells, outcomes, begun)


def find_sweeps(root: Path) -> list[Sweep]:
    """The sweeps in a folder, the latest last; what cannot be read is left out."""
    sweeps = []
    for path in root.glob(f"*/{MANIFEST}"):
        with contextlib.suppress(UserError):
            sweeps.append(read_sweep(path.parent))
    return sorted(sweeps, key=lambda sweep: (sweep.started, sweep.folder))


def alike(sweeps: Sequence[Sweep], cells: Mapping[str, Any]) -> list[Sweep]:
    """Those of the same cells: of processes that share them, or of the same command at another time."""
    return [sweep for sweep in sweeps if sweep.cells.keys() == cells.keys()]


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(ordinary(path, MOST_BYTES).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"'{path}' cannot be read ({error}): start the sweep again") from None
    if not isinstance(content, dict):
        raise UserError(f"'{path}' is damaged: start the sweep again")
    return content
