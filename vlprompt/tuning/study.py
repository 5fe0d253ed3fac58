"""A search for a method's settings on disk: what was allowed, all trials, the choice and its tests."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from vlprompt.data.disk import whole_file, writing
from vlprompt.results.record import RunKey

FILE = "study.json"
Setting = dict[str, Any]  # values by name, as on the command line


class Trial(BaseModel):
    """One setting and what it came to."""

    model_config = ConfigDict(frozen=True)

    number: int  # from 0, which is the default setting
    setting: Setting
    record: str = ""  # its folder below the study's
    accuracy: float | None = None  # on the validation images, a fraction; None: it failed
    reason: str | None = None  # why it failed
    seconds: float = 0.0


class Study(BaseModel):
    """What a search was allowed, what it did and what it found: the content of `study.json`."""

    cell: RunKey  # of the run whose settings are searched
    overrides: list[str]
    space: dict[str, Any]
    sampler: dict[str, Any]
    budget: int  # trials
    trials: list[Trial] = []
    chosen: Trial | None = None  # None until all trials are through, or where all failed
    seconds: float = 0.0  # of all trials
    tests: list[dict[str, Any]] = []  # on the test images, after the choice: variant, seed, scores
    versions: dict[str, str] = {}
    git: str | None = None
    status: Literal["searching", "chosen", "tested"] = "searching"

    def add(self, trial: Trial, folder: Path) -> None:
        self.trials.append(trial)
        self.seconds += trial.seconds
        self.write(folder)

    def progress(self) -> str:
        """The last trial and the best so far."""
        last, leader = self.trials[-1], best(self.trials)
        if last.accuracy is None:
            return f"trial {last.number + 1} failed: {last.reason}"
        assert leader is not None
        so_far = f"best so far {percent(leader.accuracy)} %, trial {leader.number + 1}"
        return f"trial {last.number + 1}: {percent(last.accuracy)} % of the validation images ({so_far})"

    def write(self, folder: Path) -> None:
        """Replace the study's file, whole or not at all."""
        with (
            writing(f"'{folder / FILE}'", "and search again: finished trials are read"),
            whole_file(folder / FILE) as draft,
        ):
            draft.write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")


def best(trials: list[Trial]) -> Trial | None:
    """The most accurate trial, the earliest of equals: the default stays unless it is beaten."""
    done = [trial for trial in trials if trial.accuracy is not None]
    return max(done, key=lambda trial: (trial.accuracy, -trial.number), default=None)


def row(study: Study) -> dict[str, str]:
    """The study as a row of a table."""
    chosen = study.chosen
    failed = sum(trial.accuracy is None for trial in study.trials)
    return {
        "method": study.cell.learner,
        "trials": str(len(study.trials)),
        "failed": str(failed),
        "default": percent(study.trials[0].accuracy),
        "chosen": percent(chosen.accuracy if chosen else None),
        "setting": in_words(chosen.setting) if chosen else "none",
        "trial": str(chosen.number + 1) if chosen else "",
        "search s": f"{study.seconds:.1f}",
    }


def percent(share: float | None) -> str:
    return "failed" if share is None else f"{100 * share:.2f}"


def in_words(setting: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in setting.items())
