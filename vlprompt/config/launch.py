"""The cells of a sweep given to Hydra's launcher: each once, whatever other processes share the sweep."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext
from itertools import takewhile
from pathlib import Path

from hydra._internal.callbacks import Callbacks
from hydra._internal.hydra import Hydra
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext
from omegaconf import DictConfig

from vlprompt.config.queue import Lost, waited_for
from vlprompt.errors import UserError
from vlprompt.results.store import is_free
from vlprompt.results.sweeps import read_sweep
from vlprompt.training.device import JOBS, share_of_cores
from vlprompt.training.stops import Stopped, is_asked, served_by_others

SECONDS_BETWEEN_LOOKS = 1.0  # at cells that others hold
Cell = list[str]  # its overrides
Held = tuple[Cell, Path | None]  # a cell, and the folder of the run that another process is making; None: not begun
DIED = "a process of joblib died (killed, or out of memory), and with it those of the other jobs"
Outcome = str | Stopped | None  # the folder of a run that another process is making, or a stop of this job


class NotBegun:
    """What a job gives that was to come when a process died."""


Answer = str | Lost | NotBegun | None


@contextmanager
def sharing(jobs: int) -> Iterator[None]:
    """Tell the processes of jobs that run at once how many share this machine, unless the environment does."""
    tells = jobs > 1 and JOBS not in os.environ
    if tells:
        os.environ[JOBS] = str(jobs)
    try:
        yield
    finally:
        if tells:
            del os.environ[JOBS]


def n_at_once(config: DictConfig, n_cells: int) -> int:
    """How many jobs the launcher runs at once on this machine."""
    launcher = config.hydra.launcher
    if str(launcher.get("_target_")).endswith("submitit_launcher.LocalLauncher"):
        return n_cells
    n_jobs = launcher.get("n_jobs")  # joblib's: -1 are all cores, -2 all but one
    if not isinstance(n_jobs, int):
        return 1
    return max(min(n_jobs if n_jobs > 0 else share_of_cores() + 1 + n_jobs, n_cells), 1)


def launch(
    cells: Sequence[Cell],
    job: Callable[[DictConfig], Outcome],
    config: DictConfig,
    hydra: Hydra,
    *,
    number: int,
    on_loss: Callable[[list[str], int, str], object],
) -> None:
    """Give all cells to Hydra's launcher, which may run several at once.

    A job gives the folder of its run if another process is making it, and is tried again once that one lets go.
    `number` is that of the first second try. `on_loss` hears of a job that was lost with its process: its cell, number
    and reason.

    Raises: Stopped; UserError where the processes die before they begin a cell.
    """
    callbacks = Callbacks(config)
    callbacks.on_multirun_start(config=config, config_name="config")
    context = HydraContext(config_loader=hydra.config_loader, callbacks=callbacks)
    in_processes = str(config.hydra.launcher.get("_target_")).endswith(".JoblibLauncher")
    if in_processes:  # what is given to a process cannot be taken back when a signal comes
        config.hydra.launcher.update(pre_dispatch="n_jobs", batch_size=1)
    launcher = Plugins.instance().instantiate_launcher(context, job, config)

    def tried(cells: Sequence[Cell], number: int) -> list[Held]:
        """The cells that another process holds, or that were not begun, of those which are tried now."""
        batch, held = config.hydra.sweeper.max_batch_size or len(cells), list[Held]()
        for first in range(0, len(cells), batch):
            some = cells[first : first + batch]
            with waited_for(config):
                try:
                    answers = outcomes(launcher, some, number + first, in_processes=in_processes)
                except BrokenProcessPool:  # joblib ends all its processes when one of them dies
                    answers = after_a_death(some, Path(config.hydra.sweep.dir))
            for of_cell, (cell, answer) in enumerate(zip(some, answers, strict=True), number + first):
                if isinstance(answer, Lost):
                    on_loss(cell, of_cell, answer.reason)
                elif isinstance(answer, NotBegun):
                    held.append((cell, None))
                elif answer:
                    held.append((cell, Path(answer)))
        return held

    held = tried(cells, 0)
    told = False
    while held:
        free = [cell for cell, folder in held if folder is None or is_free(folder)]
        if not free:
            if not told:
                print(f"all other cells are done; waiting for {len(held)} that other processes run")  # noqa: T201
            told = True
            time.sleep(SECONDS_BETWEEN_LOOKS)
            continue
        held = [one for one in held if one[0] not in free] + tried(free, number)
        number += len(free)
    callbacks.on_multirun_end(config=config, config_name="config")


def after_a_death(cells: Sequence[Cell], folder: Path) -> list[Answer]:
    """What the jobs of these cells gave whose processes are all dead. Raises: UserError where none was begun."""
    there = read_sweep(folder)
    answers = list[Answer]()
    for job in map(" ".join, cells):
        if job in there.outcomes:
            answers.append(None)
        elif run := there.begun.get(job):
            answers.append(Lost(DIED) if is_free(run) else str(run))
        else:
            answers.append(NotBegun())
    if all(isinstance(one, NotBegun) for one in answers):
        raise UserError(
            f"{DIED}, before a cell was begun: see that there is memory for hydra.launcher.n_jobs processes"
        )
    return answers


class Stoppable(list[Cell]):
    """Cells of which no more are begun once a signal came."""

    def __iter__(self) -> Iterator[Cell]:
        return takewhile(lambda _: not is_asked(), super().__iter__())


def outcomes(launcher: Launcher, cells: Sequence[Cell], number: int, *, in_processes: bool) -> list[Answer]:
    """What the jobs give that a launcher runs, here or in processes that it starts. Raises: Stopped."""
    stopped = list[Stopped]()
    try:
        with served_by_others() if in_processes else nullcontext():
            jobs = launcher.launch(Stoppable(cells), initial_job_idx=number)
            given = [one.return_value for one in jobs]  # raises what the job raised
            stopped = [one for one in given if isinstance(one, Stopped)]
    except Stopped as stop:
        if in_processes:
            stop.keep(what_remains(stopped) if stopped else "`vlprompt status` says what is kept")
        raise
    if stopped:
        raise Stopped(stopped[0].number, what_remains(stopped))
    return given


def what_remains(stopped: Sequence[Stopped]) -> str:
    """What several processes kept, the first of them by name."""
    texts = [one.kept for one in stopped if one.kept]
    more = f" (and {len(texts) - 1} more: see `vlprompt status`)" if len(texts) > 1 else ""
    return "".join(texts[:1]) + more
