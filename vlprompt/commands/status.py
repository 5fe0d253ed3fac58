"""`vlprompt status`: how far sweeps are, from what their jobs leave, on whatever machine these run."""

import argparse
import re
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlprompt.config.paths import results_root
from vlprompt.errors import UserError, printable
from vlprompt.results.states import position, stopped_runs
from vlprompt.results.store import draft_of, holder, stored_run
from vlprompt.results.sweeps import Sweep, alike, find_sweeps, read_sweep
from vlprompt.textfiles import path_of

if TYPE_CHECKING:
    from vlprompt.results.record import Record

SECONDS = 10.0  # between looks
RESUMES = "stopped: the same command resumes it, without resume=false and force=true"
MOST_BYTES = 100_000  # of the end of a log


def register(commands: Any) -> None:
    """Add `status` to the sub-commands."""
    text = "how far a sweep is: cells finished, running, stopped, failed and to do, and the time left"
    parser = commands.add_parser("status", help=text, description=text)
    parser.add_argument(
        "sweeps", nargs="*", metavar="SWEEP", help="its folder, or its name in multirun/; else the last"
    )
    parser.add_argument("--watch", action="store_true", help=f"look again every {SECONDS:.0f} seconds, until Ctrl-C")
    parser.set_defaults(command=show_status, resumes=False)


def show_status(options: argparse.Namespace) -> int:
    while True:
        groups = chosen(options.sweeps)
        alone = [] if options.sweeps else stopped_alone(groups)
        text = "\n\n".join([*map(described, groups), *alone])
        if options.watch and sys.stdout.isatty():
            print("\x1b[H\x1b[2J", end="")  # noqa: T201
        print(printable(text), flush=True)  # noqa: T201
        if not options.watch:
            return 0
        time.sleep(SECONDS)


def chosen(names: Sequence[str]) -> list[list[Sweep]]:
    """Each sweep that is asked for, last of those of the same cells, which it is shared with. Raises: UserError."""
    root = results_root() / "multirun"
    there = find_sweeps(root)
    if not names and not there and not stopped_runs(results_root() / "runs"):
        raise UserError(f"there is no sweep in '{root}': start one, as `python run.py -m seed=1,2,3`")
    asked = [read_sweep(root / name if (root / name).is_dir() else path_of(name)) for name in names] or there[-1:]
    groups = []
    for one in asked:
        others = [other for other in alike(there, one.cells) if other.folder.resolve() != one.folder.resolve()]
        groups.append([*others, one])
    return groups


@dataclass
class State:
    """The jobs of a sweep, by their overrides, by what became of them."""

    finished: dict[str, "Record | None"] = field(default_factory=dict)
    running: dict[str, str] = field(default_factory=dict)  # where, since when, which epoch
    stopped: dict[str, str] = field(default_factory=dict)  # how far its training is, and where
    failed: dict[str, tuple[str, str]] = field(default_factory=dict)  # status and reason
    todo: list[str] = field(default_factory=list)
    kept: dict[str, str] = field(default_factory=dict)  # how far those that failed had come


def state_of(sweeps: Sequence[Sweep]) -> State:
    """What became of the cells that several processes share."""
    state = State()
    for job in sweeps[-1].cells:
        outcomes = [sweep.outcomes[job] for sweep in sweeps if job in sweep.outcomes]
        runs = [sweep.begun[job] for sweep in sweeps if job in sweep.begun]
        done = next((one for one in outcomes if "status" not in one), None)
        if done:  # its own run is the last; the one before it is what it is compared with
            state.finished[job] = record_in(Path(done["folders"][-1])) if done.get("folders") else None
        elif where := next((text for run in runs if (text := holder(run))), None):
            state.running[job] = ", ".join(filter(None, [where, epoch(runs[-1])]))
        elif outcomes:
            state.failed[job] = (str(outcomes[-1].get("status")), str(outcomes[-1].get("reason")))
            if step := next(filter(None, map(position, runs)), None):
                state.kept[job] = step
        elif where := next((text for run in runs if (text := stopped(run))), None):
            state.stopped[job] = where
        elif runs and (record := record_in(runs[-1])) and record.status == "finished":
            state.finished[job] = record
        else:
            state.todo.append(job)
    return state


def stopped(run: Path) -> str | None:
    """How far a stopped training is, and where it lies."""
    reached = position(run)
    return f"{reached}, in {run}" if reached else None


def stopped_alone(groups: Sequence[Sequence[Sweep]]) -> list[str]:
    """The stopped runs that are in none of these sweeps, in words."""
    shown = {run for sweeps in groups for sweep in sweeps for run in sweep.begun.values()}
    runs = [run for run in stopped_runs(results_root().absolute() / "runs") if run not in shown]
    return ["\n".join([RESUMES, *(f"  {stopped(run)}" for run in runs)])] if runs else []


def record_in(folder: Path) -> "Record | None":
    try:
        run = stored_run(folder)
    except UserError:  # damaged, and to be made again
        return None
    return run[1] if run else None


def epoch(run: Path) -> str:
    """The last epoch in the log of a run in the making."""
    try:
        with (draft_of(run) / "log.txt").open("rb") as file:
            file.seek(max(file.seek(0, 2) - MOST_BYTES, 0))
            told = re.findall(r"^\[[\d :-]+\] (epoch \d+) ", file.read().decode(errors="replace"), re.MULTILINE)
    except OSError:
        return ""
    return told[-1] if told else ""


def described(sweeps: Sequence[Sweep]) -> str:
    """One sweep in words."""
    from vlprompt.reports.estimates import duration, spent_on, time_left
    from vlprompt.reports.sweeps import cells, short_names

    sweep, state = sweeps[-1], state_of(sweeps)
    name_of = dict(zip(sweep.cells, short_names(sweep.cells), strict=True))
    records = [record for record in state.finished.values() if record]
    n_failed = Counter(kind.replace("_", " ") for kind, _ in state.failed.values())
    numbers = {"finished": len(state.finished), "running": len(state.running), "stopped": len(state.stopped)}
    numbers |= {**n_failed, "to do": len(state.todo)}
    more = f", and {len(sweeps) - 1} more of the same cells" if len(sweeps) > 1 else ""
    lines = [f"sweep {sweep.folder.name}{more}"]
    lines.append(f"{cells(len(sweep.cells))}: " + ", ".join(f"{n:,} {name}" for name, n in numbers.items() if n))
    if records:
        lines.append(f"{duration(sum(map(spent_on, records)))} of training and tests so far")
    if left := [sweep.cells[job] for job in (*state.running, *state.stopped, *state.todo)]:
        lines.append(time_left(left, records, max(len(state.running), 1)))
    if state.running:
        lines += ["", "running", *(f"  {name_of[job]}: {where}" for job, where in state.running.items())]
    if state.stopped:
        lines += ["", RESUMES, *(f"  {name_of[job]}: {where}" for job, where in state.stopped.items())]
    for kind, reason in dict.fromkeys(state.failed.values()):
        lines += ["", f"{kind.replace('_', ' ')}: {reason}"]
        told = {job: f" ({step} is kept)" for job, step in state.kept.items()}
        lines += [f"  {name_of[job]}{told.get(job, '')}" for job, why in state.failed.items() if why == (kind, reason)]
    return "\n".join(lines)
