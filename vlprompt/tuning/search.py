"""A search for a method's settings: Optuna proposes, a run on validation images answers, all trials are told."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from vlprompt.errors import UserError
from vlprompt.results.record import RunKey
from vlprompt.tuning.space import Choices, Dimension, Space

FILE = "study.json"
N_RANDOM = 5
"""Trials, the default among them, before the sampler draws conclusions: Optuna's own ten would be most of a budget."""
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
        folder.mkdir(parents=True, exist_ok=True)
        draft = folder / f".{FILE}"
        with draft.open("w", encoding="utf-8") as file:
            file.write(self.model_dump_json(indent=2) + "\n")
            file.flush()
            os.fsync(file.fileno())
        draft.replace(folder / FILE)


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


def sampler(seed: int) -> dict[str, Any]:
    return {"name": "TPE", "library": f"optuna {optuna().__version__}", "seed": seed, "random_trials": N_RANDOM}


def search(
    space: Space, default: Setting, *, budget: int, seed: int, evaluate: Callable[[int, Setting], Trial]
) -> list[Trial]:
    """Try `budget` settings, the default first; -> the trials.

    The same settings are proposed again where seed and answers are the same, whatever the budget: a search that was
    interrupted is carried on by one that finds the answers of the first. A default outside the space is tried, too,
    but tells the sampler nothing.
    """
    library = optuna()
    tpe = library.samplers.TPESampler(seed=seed, n_startup_trials=N_RANDOM)
    study = library.create_study(direction="maximize", sampler=tpe)
    distributions = {name: _distribution(library, dimension) for name, dimension in space.items()}
    trials: list[Trial] = []
    if all(default[name] in dimension for name, dimension in space.items()):
        study.enqueue_trial({name: _encode(dimension, default[name]) for name, dimension in space.items()})
    else:
        trials.append(evaluate(0, default))
    while len(trials) < budget:
        asked = study.ask(distributions)
        setting = {name: _decode(dimension, asked.params[name]) for name, dimension in space.items()}
        trials.append(evaluate(len(trials), setting))
        accuracy = trials[-1].accuracy
        failed = library.trial.TrialState.FAIL
        study.tell(asked, accuracy) if accuracy is not None else study.tell(asked, state=failed)
    return trials


def optuna() -> ModuleType:
    """The library. Raises: UserError where it is not installed."""
    try:
        import optuna
    except ModuleNotFoundError:
        raise UserError("searching for settings needs Optuna: pip install 'vlprompt[tune]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _distribution(library: ModuleType, dimension: Dimension) -> Any:
    kinds = library.distributions
    if isinstance(dimension, Choices):
        return kinds.CategoricalDistribution([_encode(dimension, value) for value in dimension.choices])
    kind = kinds.IntDistribution if dimension.whole else kinds.FloatDistribution
    return kind(dimension.low, dimension.high, log=dimension.log)


def _encode(dimension: Dimension, value: Any) -> Any:
    """Choices of any kind as text, for Optuna takes no lists; equal values alike (0 and 0.0)."""
    if isinstance(dimension, Choices):
        return json.dumps(dimension.choices[dimension.choices.index(value)])
    return value


def _decode(dimension: Dimension, value: Any) -> Any:
    if isinstance(dimension, Choices):
        return json.loads(value)
    return value if dimension.whole else float(f"{value:.3g}")  # digits that one would type


def as_overrides(setting: Mapping[str, Any]) -> list[str]:
    """A setting as on the command line. Quotes, lists, numbers and null read alike in JSON and there."""
    return [f"{name}={json.dumps(value)}" for name, value in setting.items()]
