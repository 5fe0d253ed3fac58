"""One run for each GPU: a process takes a card for itself, with a file lock, and has it for as long as it lives.

Cards are known by their hardware's own numbers, so that processes which see different ones (CUDA_VISIBLE_DEVICES, as
SLURM and Ray set it) agree. Processes of other users, and of other programs, are not seen.
"""

import getpass
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from vlprompt.data.disk import Lock
from vlprompt.errors import UserError

SECONDS_BETWEEN_LOOKS = 1.0  # at cards that are all taken
leased: tuple[int, Lock] | None = None  # this process's card


def lease(device: torch.device, jobs_per_gpu: int | None, on_wait: Callable[[str], object]) -> torch.device:
    """The first visible GPU that fewer than `jobs_per_gpu` processes have, where `device` is any GPU; else `device`.

    None: one process for each card where several are visible; a single card is shared by all who ask. While all are
    taken, `on_wait` hears so once, and this one waits. Raises: UserError where no lock can be held.
    """
    global leased
    if device.type != "cuda" or device.index is not None:
        return device
    if leased is None:
        cards = visible_cards()
        if len(cards) < 2 and jobs_per_gpu is None:
            return device
        leased = first_free(cards, jobs_per_gpu or 1, on_wait)
    return torch.device("cuda", leased[0])


def first_free(cards: list[str], jobs_per_gpu: int, on_wait: Callable[[str], object]) -> tuple[int, Lock]:
    """The index of a card and its lock: of the cards with the fewest processes the first."""
    folder, told = lock_folder(), False
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        while True:
            for job in range(jobs_per_gpu):
                for index, card in enumerate(cards):
                    lock = Lock(folder / f"{card}.{job}.lock")
                    if lock.try_acquire():
                        return index, lock
            if not told:
                on_wait(f"all {len(cards)} GPUs are taken (jobs_per_gpu={jobs_per_gpu}): waiting for one")
            told = True
            time.sleep(SECONDS_BETWEEN_LOOKS)
    except OSError as error:
        raise UserError(
            f"cannot take a GPU, as '{folder}' cannot be written ({error.strerror}): set TMPDIR to a folder of "
            "your own, or name the GPU with device=cuda:0"
        ) from error


def visible_cards() -> list[str]:
    """The visible GPUs' own numbers, in torch's order."""
    properties = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return [str(one.uuid) for one in properties]


def lock_folder() -> Path:
    """Where this user's processes on this machine lock cards."""
    return Path(tempfile.gettempdir(), f"vlprompt-gpus-{re.sub(r'[^A-Za-z0-9_.-]', '_', getpass.getuser())}")
