"""The cells of a sweep given to Hydra's launcher: each once, whatever other processes share the sweep."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hydra._internal.callbacks import Callbacks
from hydra._internal.hydra import Hydra
from hydra.core.plugins import Plugins
from hydra.types import HydraContext
from omegaconf import DictConfig

from vlprompt.config.queue import Lost, waited_for
from vlprompt.results.store import is_free
from vlprompt.training.device import JOBS, share_of_cores

SECONDS_BETWEEN_LOOKS = 1.0  # at cells that others hold
Held = tuple[list[str], Path]  # a cell, and the folder of the run that another process is making


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
    cells: Sequence[list[str]],
    job: Callable[[DictConfig], str | None],
    config: DictConfig,
    hydra: Hydra,
    *,
    number: int,
    on_loss: Callable[[list[str], int, str], object],
) -> None:
    """Give all cells to Hydra's launcher, which may run several at once.

    A job gives the folder of its run if another process is making it, and is tried again once that one lets go.
    `number` is that of the first second try. `on_loss` hears of a job that a cluster lost: its cell, number and reason.
    """
    callbacks = Callbacks(config)
    callbacks.on_multirun_start(config=config, config_name="config")
    context = HydraContext(config_loader=hydra.config_loader, callbacks=callbacks)
    launcher = Plugins.instance().instantiate_launcher(context, job, config)

    def tried(cells: Sequence[list[str]], number: int) -> list[Held]:
        """The cells that another process holds, of those which are tried now."""
        batch, held = config.hydra.sweeper.max_batch_size or len(cells), list[Held]()
        for first in range(0, len(cells), batch):
            some = cells[first : first + batch]
            with waited_for(config):
                jobs = launcher.launch(some, initial_job_idx=number + first)
            for of_cell, (cell, one) in enumerate(zip(some, jobs, strict=True), number + first):
                answer = one.return_value  # raises what the job raised
                if isinstance(answer, Lost):
                    on_loss(cell, of_cell, answer.reason)
                elif answer:
                    held.append((cell, Path(answer)))
        return held

    held = tried(cells, 0)
    told = False
    while held:
        free = [cell for cell, folder in held if is_free(folder)]
        if not free:
            if not told:
                print(f"all other cells are done; waiting for {len(held)} that other processes run")  # noqa: T201
            told = True
            time.sleep(SECONDS_BETWEEN_LOOKS)
            continue
        held = [one for one in held if one[0] not in free] + tried(free, number)
        number += len(free)
    callbacks.on_multirun_end(config=config, config_name="config")
