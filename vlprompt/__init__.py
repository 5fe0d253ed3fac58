"""vlprompt: one benchmark suite for adapting frozen vision-language models.

The public names below are loaded when they are first used, so that `import vlprompt` itself brings no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    **dict.fromkeys(("Model", "Score", "benchmark", "fit", "load", "load_clip", "read_results", "score"), "api"),
    **dict.fromkeys(("ClassBoundError", "UserError"), "errors"),
    "PromptClassifier": "estimator",
    "Record": "results.record",
}
"""Public name -> the module that it lives in. None of them is the name of a module, which would hide it."""

if TYPE_CHECKING:
    from vlprompt import learners as learners
    from vlprompt.api import Model as Model
    from vlprompt.api import Score as Score
    from vlprompt.api import benchmark as benchmark
    from vlprompt.api import fit as fit
    from vlprompt.api import load as load
    from vlprompt.api import load_clip as load_clip
    from vlprompt.api import read_results as read_results
    from vlprompt.api import score as score
    from vlprompt.errors import ClassBoundError as ClassBoundError
    from vlprompt.errors import UserError as UserError
    from vlprompt.estimator import PromptClassifier as PromptClassifier
    from vlprompt.results.record import Record as Record

__all__ = [*sorted(_HOMES), "learners"]


def __getattr__(name: str) -> Any:
    if name == "learners":
        return importlib.import_module("vlprompt.learners")
    if name not in _HOMES:
        raise AttributeError(f"module 'vlprompt' has no attribute '{name}'")
    return getattr(importlib.import_module(f"vlprompt.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
