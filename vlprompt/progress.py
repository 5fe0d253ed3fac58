"""What a run says while it works: a bar on a terminal, plain lines elsewhere, and everything in log.txt."""

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

PLAIN_LINES = 10  # of a long stretch of work, where there is no terminal
LONG = 2.0  # seconds: shorter stretches leave no plain lines

logger = logging.getLogger("vlprompt")


class Reporter:
    """Lines for the user and for the log file."""

    def __init__(self, log: Path | None = None) -> None:
        self.console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
        self._log: TextIO | None = log.open("a", encoding="utf-8", buffering=1) if log else None
        self._warnings = _Warnings(self)
        if log:
            logger.addHandler(self._warnings)
            logger.propagate = False  # libraries leave handlers at the root, which would show them once more

    def close(self) -> None:
        logger.removeHandler(self._warnings)
        logger.propagate = True
        if self._log:
            self._log.close()

    def say(self, line: str) -> None:
        """Show a line and log it."""
        self.console.print(line, markup=False)
        self.log(line)

    def log(self, line: str) -> None:
        """Only log it."""
        if self._log:
            self._log.write(f"[{time.strftime('%Y-%m-%d %H:%M:%S')}] {line}\n")

    @contextmanager
    def track(self, title: str, total: int) -> Iterator["Track"]:
        """A bar over `total` steps on a terminal; elsewhere about ten plain lines."""
        if not self.console.is_terminal:
            yield Track(self, title, total, None)
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.console) as bar:
            yield Track(self, title, total, bar)


class _Warnings(logging.Handler):
    """Shows warnings from anywhere in the package, and logs them."""

    def __init__(self, reporter: Reporter) -> None:
        super().__init__(logging.WARNING)
        self.reporter = reporter

    def emit(self, record: logging.LogRecord) -> None:
        self.reporter.say(f"warning: {record.getMessage()}")


class Track:
    """One stretch of work under way."""

    def __init__(self, reporter: Reporter, title: str, total: int, bar: Progress | None) -> None:
        self.reporter, self.title, self.total, self.bar = reporter, title, total, bar
        self.done, self.start, self.told = 0, time.monotonic(), 0
        self.task = bar.add_task(title, total=total, note="") if bar else None

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Count steps as done; `note` stands beside the bar."""
        self.done += steps
        if self.bar is not None and self.task is not None:
            self.bar.update(self.task, advance=steps, note=note)
            return
        spent, tenth = time.monotonic() - self.start, PLAIN_LINES * self.done // max(self.total, 1)
        if spent > LONG and tenth > self.told:
            self.told = tenth
            left = spent / self.done * (self.total - self.done)
            line = f"{self.title}: {self.done}/{self.total}  {note}  {left:.0f} s left"
            self.reporter.console.print(" ".join(line.split()), markup=False)
