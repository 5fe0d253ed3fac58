"""Signals that ask a run to stop: SIGTERM and SIGUSR1 (of a cluster, before it takes the machine away), and Ctrl-C."""

import math
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, ClassVar, TypeVar

NAMES = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2")  # the last one is what submitit has SLURM send
SIGNALS = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]  # Windows lacks some
PATIENCE = 10.0  # seconds that a step under way has to come to its end
MORE_PATIENCE = 5.0  # for processes that have steps under way, which then end by their own patience
ECHO = 1.0  # seconds in which a signal comes once more: GNU timeout sends it to a process and to its group
T = TypeVar("T")
NOTHING = "nothing of a run under way was kept, finished ones are untouched"


class Stopped(KeyboardInterrupt):
    """A signal stopped this process; `kept` says what is there to resume from."""

    def __init__(self, number: int, kept: str = "") -> None:
        super().__init__(number, kept)
        self.number, self.kept = number, kept

    def keep(self, kept: str) -> None:
        """Say what is there to resume from."""
        self.kept = kept
        self.args = self.number, kept

    @property
    def line(self) -> str:
        """It for the terminal, which shows ^C before."""
        return f"\n{self}" if self.number == signal.SIGINT else str(self)

    def __str__(self) -> str:
        name = "Ctrl-C" if self.number == signal.SIGINT else signal.Signals(self.number).name
        return f"stopped by {name}: {self.kept or NOTHING}"


class _Now:
    """What this process hears."""

    earlier: dict[int, Any] | None = None  # handlers of before; None: signals are not heard
    deferring = False  # in a step, whose end is waited for
    patience = PATIENCE  # how long
    ask_others: Callable[[int], object] | None = None  # to stop, too
    serves = False  # this process runs jobs for another one, until it ends
    numbers: ClassVar[list[int]] = []  # the signals that came meanwhile
    asked = False  # since `asked` was called
    since: ClassVar[dict[int, float]] = {}  # when each came
    raised: int | None = None  # the signal that was answered by `Stopped`


@contextmanager
def heard() -> Iterator[None]:
    """Signals raise `Stopped` within, at once or at the end of a step. Outside the main thread it changes nothing.

    What somebody else has a signal do (submitit: ask for the job to be queued again) is done instead, at that moment.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    if _Now.earlier is not None:  # heard already
        with _answered():
            allow()
            yield
        return
    earlier = _hear_signals()
    try:
        with _answered():
            yield
    finally:
        for number, handler in earlier.items():
            if handler is not None:  # which Python did not set
                signal.signal(number, handler)
        _Now.earlier = None


def _hear_signals() -> dict[int, Any]:
    """-> the handlers of before."""
    _Now.since, _Now.raised, _Now.asked = {}, None, False
    _Now.earlier = {number: signal.getsignal(number) for number in SIGNALS}
    for number, handler in _Now.earlier.items():
        if handler not in (signal.SIG_IGN, None):  # ignored: a job of a shell's background, whose Ctrl-C is another's
            signal.signal(number, _hear)
    return _Now.earlier


@contextmanager
def _answered() -> Iterator[None]:
    """A stop is one even where a library took it for an error of its own, as OmegaConf does, or dropped it."""
    try:
        yield
    except BaseException as error:
        if isinstance(error, Stopped) and error.number == _Now.raised:
            raise
        allow()
        if _Now.raised is None:
            raise
    allow()
    if _Now.raised is not None:
        raise Stopped(_Now.raised)


def served(job: Callable[[], T]) -> T | Stopped:
    """What a job of a sweep gives. In a process of a launcher's (joblib's) a stop is given, too, instead of raised.

    For what a job raises, or the end of one process, would end the others before they kept what they reached. So such a
    process notes a signal between its jobs, too, which then stops the next one.
    """
    if not _Now.serves:
        if _Now.earlier is not None or multiprocessing.parent_process() is None:
            with heard():
                return job()
        _hear_signals()
        _Now.serves = True
    _Now.raised = None
    try:
        with _answered():
            allow()
            return job()
    except Stopped as stop:
        return stop
    finally:
        defer(patience=math.inf)


@contextmanager
def served_by_others() -> Iterator[None]:
    """A signal is handed on to the processes that this one started, and answered at the end. Raises: Stopped."""
    defer(patience=PATIENCE + MORE_PATIENCE, ask_others=_ask_children)
    with _answered():
        yield


def _ask_children(number: int) -> None:
    for process in multiprocessing.active_children():
        with suppress(ProcessLookupError):
            os.kill(process.pid or 0, number)


def is_asked() -> bool:
    """Whether a signal came that is still to be answered."""
    return bool(_Now.numbers)


def defer(*, patience: float = PATIENCE, ask_others: Callable[[int], object] | None = None) -> None:
    """From here on a signal is noted alone, for at most `patience` seconds: a step must not end in its middle."""
    _Now.deferring = _Now.earlier is not None and threading.current_thread() is threading.main_thread()
    _Now.patience, _Now.ask_others = patience, ask_others


def asked() -> bool:
    """Whether a signal came since the last call, also one that somebody else's handler let pass.

    SLURM sends SIGTERM before it takes a job from its node, submitit lets it pass, and SIGKILL follows.
    """
    came, _Now.asked = _Now.asked, False
    return came


def allow() -> None:
    """From here on a signal is answered at once, and now if one came. Raises: Stopped."""
    numbers = _Now.numbers
    _let_go()
    for number in numbers:
        _answer(number, None)


def _hear(number: int, frame: FrameType | None) -> None:
    now = time.monotonic()
    if now - _Now.since.get(number, -ECHO) < ECHO:
        return
    _Now.since[number], _Now.asked = now, True
    if _Now.deferring and number not in _Now.numbers:
        timed = not _Now.numbers and _Now.patience < math.inf and hasattr(signal, "setitimer")
        if timed and signal.getsignal(signal.SIGALRM) == signal.SIG_DFL:
            signal.signal(signal.SIGALRM, lambda *_: allow())
            signal.setitimer(signal.ITIMER_REAL, _Now.patience)
        _Now.numbers.append(number)
        if _Now.ask_others:
            _Now.ask_others(number)
        return
    _let_go()
    _answer(number, frame)


def _answer(number: int, frame: FrameType | None) -> None:
    handler = (_Now.earlier or {}).get(number)
    if callable(handler) and handler is not signal.default_int_handler:
        handler(number, frame)
    else:
        _Now.raised = number
        raise Stopped(number)


def _let_go() -> None:
    if _Now.numbers and hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
    _Now.deferring, _Now.numbers = False, []
