"""Optuna proposes settings, a function answers with a trial."""

import json
from collections.abc import Callable
from types import ModuleType
from typing import Any

from vlprompt.errors import UserError
from vlprompt.tuning.space import Choices, Dimension, Space
from vlprompt.tuning.study import Setting, Trial

N_RANDOM = 5
"""Trials, the default among them, before the sampler draws conclusions: Optuna's own ten would be most of a budget."""


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
