"""Methods: one file each, under the name of its paper. Each class is a name of this package, too: `learners.CoOp`."""

import importlib
import pkgutil
from typing import Any


def _classes() -> dict[str, type]:
    """The methods by their class names, wherever they are defined here."""
    from vlprompt.learners.base import Learner

    modules = [importlib.import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__)]
    return {
        name: kind
        for module in modules
        for name, kind in vars(module).items()
        if isinstance(kind, type) and issubclass(kind, Learner) and kind.__module__ == module.__name__
    }


def __getattr__(name: str) -> Any:
    if name.startswith("_") or name not in (classes := _classes()):
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return classes[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *_classes()})
