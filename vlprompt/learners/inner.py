"""The learner that another one is built around: which it may be, and how a step asks it for features once."""

import pydoc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from vlprompt.errors import UserError
from vlprompt.learners.around import AroundLearner
from vlprompt.learners.base import Learner
from vlprompt.learners.cocoop import CoCoOp
from vlprompt.learners.coop import CoOp
from vlprompt.learners.ivlp import IVLP
from vlprompt.learners.kgcoop import KgCoOp
from vlprompt.learners.maple import MaPLe
from vlprompt.learners.promptsrc import PromptSRC
from vlprompt.learners.tcp import TCP

INNER: Mapping[str, type[Learner]] = {"coop": CoOp, "cocoop": CoCoOp, "kgcoop": KgCoOp, "tcp": TCP, "maple": MaPLe,
                                      "ivlp": IVLP, "promptsrc": PromptSRC}  # fmt: skip
"""Learners of prompts that a method may be built around, by name."""


def prompt_learner(name: str) -> type[Learner]:
    """The class of a learner of prompts, by its name or import path. Raises: UserError for what is none."""
    try:
        kind: Any = INNER.get(name) or ("." in name and pydoc.locate(name))
    except pydoc.ErrorDuringImport as error:
        raise UserError(f"method.inner={name} cannot be imported: {error}") from error
    if kind is None:
        raise UserError(f"method.inner={name} cannot be imported: correct it, or put its folder into PYTHONPATH")
    if not (isinstance(kind, type) and issubclass(kind, Learner)) or issubclass(kind, AroundLearner):
        raise no_prompts(name)
    if kind.logits is not Learner.logits or kind.backward is not Learner.backward:
        raise no_prompts(name)
    return kind


def no_prompts(name: str) -> UserError:
    return UserError(
        f"method.inner is '{name}', allowed is a learner of prompts whose logits and gradients are plain: "
        f"{', '.join(INNER)}, or the import path of one of yours"
    )


@contextmanager
def computed_once(learner: Learner, *names: str) -> Iterator[None]:
    """Within it, methods of a learner give for the same first argument what they gave before."""

    def once(method: Callable[..., Any]) -> Callable[..., Any]:
        computed: list[tuple[Any, Any]] = []

        def call(first: Any = None, *more: Any) -> Any:
            if not any(first is known for known, _ in computed):
                computed.append((first, method(*(() if first is None else (first, *more)))))
            return next(result for known, result in computed if known is first)

        return call

    for name in names:
        setattr(learner, name, once(getattr(learner, name)))
    try:
        yield
    finally:
        for name in names:
            delattr(learner, name)
