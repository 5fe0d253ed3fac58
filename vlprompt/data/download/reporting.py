"""What downloads need of whoever shows progress: lines, and stretches of work of so many steps."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, runtime_checkable


@runtime_checkable
class Track(Protocol):
    """One stretch of work under way."""

    def advance(self, steps: int = 1) -> None:
        """Count steps as done."""


@runtime_checkable
class Reporter(Protocol):
    """Shows lines and progress; `vlprompt.training.progress.Reporter` is one."""

    def say(self, line: str) -> None: ...

    def track(
        self, title: str, total: int | None, *, done: int = 0, in_bytes: bool = False
    ) -> AbstractContextManager[Track]:
        """Progress over `total` steps (None: not known), `done` of them before."""


class Silent:
    """Shows nothing."""

    def say(self, line: str) -> None: ...

    @contextmanager
    def track(self, title: str, total: int | None, *, done: int = 0, in_bytes: bool = False) -> Iterator["Silent"]:
        yield self

    def advance(self, steps: int = 1) -> None: ...


SILENT = Silent()
