"""What this machine has: devices, cores, memory."""

import contextlib
import ctypes
import gc
import os
import re
import sys
from contextlib import AbstractContextManager
from pathlib import Path

import torch

from vlprompt.errors import UserError

MAX_WORKERS = 8
JOBS = "VLPROMPT_JOBS"  # in the environment: how many jobs share this machine


def resolve_device(name: str | torch.device) -> torch.device:
    """Raises: UserError for a GPU that this machine does not have, and for what is neither a CPU nor a GPU.

    auto: an NVIDIA GPU where there is one, else the CPU; Apple's (mps) where it is asked for.
    """
    n_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return torch.device("cuda" if n_gpus else "cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda", "mps"):
        raise UserError(f"device={name} is none that can be used: allowed are auto, cpu, cuda, cuda:N, mps")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError("device=mps asks for an Apple GPU, and torch finds none here: use device=cpu or device=auto")
    if device.type == "cuda" and (device.index or 0) >= n_gpus:
        raise UserError(f"device={name} asks for a GPU, and torch finds {n_gpus} here: use device=cpu or device=auto")
    return device


def same_randomness(device: torch.device) -> AbstractContextManager[None]:
    """Torch's random numbers are afterwards where they were, for whoever calls a training within their own program."""
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def reset_peak_memory(device: torch.device) -> None:
    """From here on `peak_memory` counts anew, where the system can do that (a GPU; Linux)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        gc.collect()
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL("libc.so.6").malloc_trim(0)  # what earlier runs have freed
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_memory(device: torch.device) -> int | None:
    """Bytes: of the GPU, or of the process on a CPU, since the reset; None where that is not told."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with contextlib.suppress(OSError):
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        if match := re.search(r"VmHWM:\s+(\d+) kB", status):
            return int(match[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def default_workers() -> int:
    """Processes that read images: one a core but one, of the cores that are this job's share."""
    return min(MAX_WORKERS, max(share_of_cores() - 1, 0))


def default_threads() -> int | None:
    """Threads of a job among several, unless OMP_NUM_THREADS says how many; None: what torch chooses."""
    return share_of_cores() if jobs_at_once() > 1 and not os.environ.get("OMP_NUM_THREADS") else None


def share_of_cores() -> int:
    """Cores that this process may use, divided among the jobs that run at once on this machine; at least one."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(allowed // jobs_at_once(), 1)


def jobs_at_once() -> int:
    """Jobs that share this machine: VLPROMPT_JOBS, which a sweep with several at once sets for its processes.

    Raises: UserError where it is no whole number from 1.
    """
    text = os.environ.get(JOBS) or "1"
    if not (text.isascii() and text.isdigit() and int(text)):
        raise UserError(f"{JOBS}={text} is no number of jobs on this machine: give a whole number from 1, or unset it")
    return int(text)
