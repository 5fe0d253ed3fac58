"""What a run says while it works: a bar on a terminal, plain lines elsewhere, and everything in log.txt."""

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.filesize import decimal
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from vlprompt.errors import printable

PLAIN_LINES = 10  # of a long stretch of work, where there is no terminal
LONG = 2.0  # seconds: shorter stretches leave no plain lines
MINUTE = 60.0  # seconds between plain lines where the total is not known

logger = logging.getLogger("vlprompt")


class Reporter:
    """Lines for the user and for the log file; `aside`: on stderr, not stdout; `quiet`: for the file alone.

    `cell`: several jobs write to one terminal, so each line starts with this one's name, and there is no bar.
    """

    def __init__(
        self, log: Path | None = None, *, aside: bool = False, quiet: bool = False, cell: str | None = None
    ) -> None:
        stream = sys.stderr if aside else sys.stdout
        self.console = Console(file=stream, highlight=False, soft_wrap=True, quiet=quiet)
        self._prefix = f"[{cell}] " if cell else ""
        self._path, self._lines = log, list[str]()
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
        self.show(line)
        self.log(line)

    def show(self, line: str) -> None:
        """Only show it."""
        lines = "\n".join(self._prefix + one for one in line.split("\n"))
        self.console.print(printable(lines), markup=False)

    def log(self, line: str) -> None:
        """Only log it."""
        if self._log:
            self._lines.append(f"[{time.strftime('%Y-%m-%d %H:%M:%S')}] {line}\n")
            self._log.write(self._lines[-1])

    def restore_log(self) -> None:
        """Write the log file again where somebody deleted it."""
        if self._path and not self._path.exists():
            self._path.write_text("".join(self._lines), encoding="utf-8")

    @contextmanager
    def track(self, title: str, total: int | None, *, done: int = 0, in_bytes: bool = False) -> Iterator["Track"]:
        """A bar over `total` steps, `done` of them before, on a terminal; elsewhere about ten plain lines.

        `in_bytes`: steps are bytes, shown as MB with their speed. Total None: not known.
        """
        if self._prefix or not self.console.is_terminal:  # of several cells at once, each has lines
            yield Track(self, title, total, None, done=done, in_bytes=in_bytes)
            return
        amount: tuple[ProgressColumn, ...] = (TextColumn("{task.fields[note]}"), TimeElapsedColumn())
        if in_bytes:
            amount = (DownloadColumn(), TransferSpeedColumn())
        columns = (TextColumn("{task.description}"), BarColumn(), *amount, TextColumn("left"), TimeRemainingColumn())
        with Progress(*columns, console=self.console) as bar:
            yield Track(self, title, total, bar, done=done, in_bytes=in_bytes)


class _Warnings(logging.Handler):
    """Shows warnings from anywhere in the package, and logs them."""

    def __init__(self, reporter: Reporter) -> None:
        super().__init__(logging.WARNING)
        self.reporter = reporter

    def emit(self, record: logging.LogRecord) -> None:
        self.reporter.say(f"warning: {record.getMessage()}")


class Track:
    """One stretch of work under way."""

    def __init__(
        self,
        reporter: Reporter,
        title: str,
        total: int | None,
        bar: Progress | None,
        *,
        done: int = 0,
        in_bytes: bool = False,
    ) -> None:
        self.reporter, self.title, self.total, self.bar, self.in_bytes = reporter, title, total, bar, in_bytes
        self.first, self.done, self.start = done, done, time.monotonic()
        self.told = self._part(0.0)
        self.task = bar.add_task(title, total=total, completed=done, note="") if bar else None

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Count steps as done; `note` stands next to the bar."""
        self.done += steps
        if self.bar is not None and self.task is not None:
            self.bar.update(self.task, advance=steps, note=note)
            return
        spent = time.monotonic() - self.start
        if spent > LONG and self._part(spent) > self.told:
            self.told = self._part(spent)
            self.reporter.show(self._line(spent, note))

    def _part(self, spent: float) -> int:
        """How many plain lines are due."""
        return int(spent / MINUTE) if self.total is None else PLAIN_LINES * self.done // max(self.total, 1)

    def _line(self, spent: float, note: str) -> str:
        show = decimal if self.in_bytes else str
        rate = (self.done - self.first) / spent
        amount = show(self.done) if self.total is None else f"{show(self.done)}/{show(self.total)}"
        speed = f"{decimal(int(rate))}/s" if self.in_bytes else ""
        left = f"{(self.total - self.done) / rate:.0f} s left" if self.total is not None and rate > 0 else ""
        return " ".join(f"{self.title}: {amount} {note} {speed} {left}".split())
