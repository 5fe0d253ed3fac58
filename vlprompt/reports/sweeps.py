"""What a sweep came to: its table, what did not finish, and its line in W&B."""

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlprompt.config.paths import results_root
from vlprompt.errors import printable
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


def show_plan(plan: Mapping[str, tuple[Mapping[str, Any], str]]) -> str:
    """A sweep's cells with their states, and the time that those to do would take; `plan` by the overrides of jobs."""
    from vlprompt.results.store import find_records

    states = Counter(state.partition(":")[0] for _, state in plan.values())
    lines = [f"{state:<9} {job}" for job, (_, state) in plan.items()]
    todo = [key for key, state in plan.values() if state == "to do"]
    counts = ", ".join(f"{n} {state}" for state, n in states.items())
    n = len(plan)
    lines.append(f"\n{n} cell{'s' * (n != 1)}: {counts}. Nothing was run.")
    if todo:
        lines.append(time_left(todo, find_records([results_root()])))
    return printable("\n".join(lines))


def time_left(todo: Sequence[Mapping[str, Any]], records: "Sequence[Record]", jobs: int = 1) -> str:
    """How long cells will take, as finished runs of their kind took, `jobs` of them at once."""
    expected = Costs(records)
    seconds = [one for key in todo if (one := expected(key)) is not None]
    if not seconds:
        return "No estimate of the time left: there is no finished run to go by."
    total = sum(seconds) * len(todo) / len(seconds) / jobs
    at_once = f" with {jobs} at once" if jobs > 1 else ", one after another"
    return f"About {duration(total)} left{at_once}, as finished runs took."


class Costs:
    """Seconds that a cell takes: the mean over the finished runs that are most like it."""

    ALIKE = (
        ("protocol", "dataset", "backbone", "method", "shots"),
        ("backbone", "method", "shots"),
        ("backbone", "method"),
        ("backbone",),
        (),
    )

    def __init__(self, records: "Sequence[Record]") -> None:
        self.seconds: dict[tuple[str, ...], list[float]] = {}
        for record in records:
            if record.status == "finished" and (spent := spent_on(record)):
                for names in self.ALIKE:
                    self.seconds.setdefault(self._kind(names, record.key.model_dump()), []).append(spent)

    def __call__(self, key: Mapping[str, Any]) -> float | None:
        known = (self.seconds.get(self._kind(names, key)) for names in self.ALIKE)
        return next((sum(some) / len(some) for some in known if some), None)

    @staticmethod
    def _kind(names: Sequence[str], key: Mapping[str, Any]) -> tuple[str, ...]:
        return tuple(f"{name}={key.get(name)}" for name in names)


def spent_on(record: "Record") -> float:
    """Seconds of training and test that a record tells."""
    parts = (record.cost.get(name) for name in ("train_seconds", "test_seconds"))
    return sum(float(part) for part in parts if part)


def duration(seconds: float) -> str:
    """45 s, 12 min, 3 h 20 min, 4 d 3 h."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} d {hours % 24} h"
