"""What a run says while it works: a bar on a terminal, plain lines elsewhere, and everything in log.txt."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

PLAIN_LINES = 10


class Reporter:
    """Lines for the user and for the log file."""

    def __init__(self, log: Path | None = None) -> None:
        self.console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
        self._log: TextIO | None = log.open("a", encoding="utf-8", buffering=1) if log else None

    def close(self) -> None:
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


class Track:
    """One stretch of work under way."""

    def __init__(self, reporter: Reporter, title: str, total: int, bar: Progress | None) -> None:
        self.reporter, self.title, self.total, self.bar = reporter, title, total, bar
        self.done, self.start = 0, time.monotonic()
        self.task = bar.add_task(title, total=total, note="") if bar else None

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Count steps as done; `note` stands beside the bar."""
        before, self.done = self.done, self.done + steps
        if self.bar is not None and self.task is not None:
            self.bar.update(self.task, advance=steps, note=note)
            return
        shown = PLAIN_LINES * self.done // self.total
        if shown > PLAIN_LINES * before // self.total:
            spent = time.monotonic() - self.start
            left = spent / self.done * (self.total - self.done)
            self.reporter.console.print(
                f"{self.title}: {self.done}/{self.total}  {note}  {left:.0f} s left", markup=False
            )
