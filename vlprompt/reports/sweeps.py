"""What a sweep came to: its table, what did not finish, and its line in W&B."""

import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlprompt.config.paths import results_root
from vlprompt.errors import printable
from vlprompt.reports.estimates import time_left
from vlprompt.results.sweeps import read_outcomes

if TYPE_CHECKING:
    from vlprompt.results.record import Record


def summarise_sweep(folder: Path, since: datetime) -> int:
    """Show what the jobs of a sweep came to, and log it if a run is new `since` then; -> 1 if a job failed."""
    from vlprompt.reports.endings import next_steps
    from vlprompt.reports.render import in_words
    from vlprompt.results.store import stored_run

    outcomes = read_outcomes(folder)
    folders = dict.fromkeys(name for outcome in outcomes for name in outcome["folders"])
    records = [run[1] for folder in folders if (run := stored_run(Path(folder)))]
    if records:
        print(f"\n{in_words(records)}\n\n{next_steps(records)}")  # noqa: T201
    if any(datetime.fromisoformat(record.created) >= since for record in records):  # else it was logged then
        log_sweep(records, outcomes, folder.name)
    stopped = [outcome for outcome in outcomes if "status" in outcome]
    if stopped:
        lines = [f"{len(stopped)} of {len(outcomes)} runs did not finish:"]
        for status, reason in dict.fromkeys((outcome["status"], outcome["reason"]) for outcome in stopped):
            lines.append(f"  {status}: {reason}")
            lines += [f"    {o['job']}" for o in stopped if (o["status"], o["reason"]) == (status, reason)]
        lines.append("Mend this and give the same command again: finished runs are read, not made anew.")
        print(printable("\n".join(lines)), file=sys.stderr)  # noqa: T201
    return int(any(outcome["status"] == "failed" for outcome in stopped))


def log_sweep(records: "Sequence[Record]", outcomes: Sequence[Mapping[str, Any]], name: str) -> None:
    """Leave W&B one table of all results, in the mode that the jobs had."""
    from vlprompt.reports.summary import summarise
    from vlprompt.reports.variants import distinguishing
    from vlprompt.training.tracking import track_sweep

    jobs = Counter(outcome.get("status", "finished") for outcome in outcomes)
    mode = next((outcome["wandb"] for outcome in outcomes if "wandb" in outcome), None)
    table = summarise(records, columns=distinguishing(records))
    track_sweep(mode, table, jobs, name=name, folder=results_root())


@dataclass(frozen=True)
class Planned:
    """A cell of a sweep before it runs: its key as far as its settings tell, its state, and the reason for that."""

    key: Mapping[str, Any]
    state: str
    reason: str = ""


def show_plan(plan: Mapping[str, Planned]) -> str:
    """A sweep's cells with their states, and the time that those to do would take; `plan` by the overrides of jobs."""
    from vlprompt.results.store import find_records

    counts = Counter(cell.state for cell in plan.values())
    width, lines = max(map(len, counts)), list[str]()
    for name, cell in zip(short_names(plan), plan.values(), strict=True):
        lines.append(f"{cell.state:<{width}}  {name}" + (f": {cell.reason}" if cell.reason else ""))
    lines += ["", f"{cells(len(plan))}: {', '.join(f'{n:,} {state}' for state, n in counts.items())}. Nothing was run."]
    if todo := [cell.key for cell in plan.values() if cell.state == "to do"]:
        lines.append(time_left(todo, find_records([results_root()])))
    return printable("\n".join(lines))


def cells(n: int) -> str:
    return f"{n:,} cell{'s' * (n != 1)}"


def short_names(jobs: Iterable[str]) -> list[str]:
    """Jobs by those of their overrides that not all of them have."""
    parts = [re.split(r" (?=~\w|[+~]{0,2}[\w./@]+=)", job) for job in jobs]
    shared = set(parts[0]).intersection(*parts[1:]) if len(parts) > 1 else set()
    return [" ".join(part for part in of_job if part not in shared) for of_job in parts]
