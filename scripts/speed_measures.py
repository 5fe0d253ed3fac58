"""What benchmark_speed.py measures of two ways to the same logits and gradients."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import median

import torch
from speed_cases import Case, Sides, count_tokens, sides
from torch import Tensor

from vlprompt import demo
from vlprompt.training.device import peak_memory, reset_peak_memory

LOGITS, GRADIENTS = 1e-4, 2e-5  # the largest difference: of logits at scale 100; of gradients, over their maximum
OURS_PER_PAIR = 3  # a step of ours is short compared with the originals'
N_THREADS = torch.get_num_threads()


@dataclass(frozen=True)
class Seconds:
    """CPU time of all threads, and wall time."""

    cpu: float
    wall: float


@dataclass(frozen=True)
class Row:
    """A case's result. Seconds are medians; memory in bytes, `saved` kept for backward, `peak` above what was there."""

    case: str
    method: str
    backbone: str
    classes: int
    context: int
    batch: int
    cpu_ratio: float
    wall_ratio: float
    cpu_seconds: float
    plain_cpu_seconds: float
    wall_seconds: float
    plain_wall_seconds: float
    saved: int
    plain_saved: int
    peak: int
    plain_peak: int
    logits_difference: float
    gradients_difference: float
    exact: bool
    counted: dict[str, float] | None = None  # ratios of tokens, counted and not timed


@dataclass(frozen=True)
class Watched:
    """One step, watched: what it computed, and its memory in bytes."""

    logits: Tensor
    gradients: list[Tensor]
    saved: int
    peak: int


def compare_speed(case: Case, *, device: torch.device, repeats: int) -> Row:
    """Hold both sides' numbers against each other, then time them in turn."""
    case = case.filled()
    torch.set_num_threads(1 if case.backbone in demo.BACKBONES else N_THREADS)
    both = sides(case, device)
    both.ours()  # what is made at the first step only: embedded prompts, packings
    ours, plain = watch(both.ours, both, device), watch(both.plain, both, device)
    logits, gradients = differences(ours, plain)
    n_images = 1
    if case.case == "memory":
        n_images, many, ours = largest_batch(case, ours, plain, device)
        both = replace(many, plain=both.plain)
    pairs = [(seconds(both.ours, device, OURS_PER_PAIR), seconds(both.plain, device)) for _ in range(repeats)]
    tokens = {f"{n} templates x 1000 classes": count_tokens(n) for n in (8, 80)} if case.case == "templates" else None
    return Row(
        **vars(replace(case, batch=case.batch * n_images)),
        cpu_ratio=n_images * median(plain.cpu / ours.cpu for ours, plain in pairs),
        wall_ratio=n_images * median(plain.wall / ours.wall for ours, plain in pairs),
        cpu_seconds=median(ours.cpu for ours, _ in pairs),
        plain_cpu_seconds=median(plain.cpu for _, plain in pairs),
        wall_seconds=median(ours.wall for ours, _ in pairs),
        plain_wall_seconds=median(plain.wall for _, plain in pairs),
        saved=ours.saved,
        plain_saved=plain.saved,
        peak=ours.peak,
        plain_peak=plain.peak,
        logits_difference=logits,
        gradients_difference=gradients,
        exact=logits <= LOGITS and gradients <= GRADIENTS,
        counted=tokens,
    )


def watch(run: Callable[[], Tensor], both: Sides, device: torch.device) -> Watched:
    """One step and its memory."""
    known = {p.untyped_storage().data_ptr() for p in [*both.parameters, *both.frozen]}
    saved: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    reset_peak_memory(device)
    before = peak_memory(device) or 0
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = run()
    peak = (peak_memory(device) or 0) - before
    gradients = [p.grad.clone() for p in both.parameters if p.grad is not None]
    return Watched(logits, gradients, sum(saved.values()), peak)


def differences(ours: Watched, plain: Watched) -> tuple[float, float]:
    """The largest of the logits, and of a parameter's gradient over that gradient's maximum."""
    assert len(ours.gradients) == len(plain.gradients)
    logits = (ours.logits - plain.logits).abs().max().item()
    pairs = zip(ours.gradients, plain.gradients, strict=True)
    gradients = [(a - b).abs().max() / b.abs().max() for a, b in pairs]
    return logits, torch.stack(gradients).max().item() if gradients else 0.0  # NaN where one of them is


def largest_batch(case: Case, one: Watched, plain: Watched, device: torch.device) -> tuple[int, Sides, Watched]:
    """The largest batch whose step stays below the memory of theirs, kept for backward and at its peak, as it ran."""
    some = sides(replace(case, batch=8), device)
    watched = watch(some.ours, some, device)
    slopes = ((watched.peak - one.peak) / 7, (watched.saved - one.saved) / 7)
    n = 1 + int(min((plain.peak - one.peak) / slopes[0], (plain.saved - one.saved) / slopes[1]))
    while True:
        many = sides(replace(case, batch=n), device)
        watched = watch(many.ours, many, device)
        if n == 1 or (watched.peak <= plain.peak and watched.saved <= plain.saved):
            return n, many, watched
        n -= 1


def seconds(run: Callable[[], Tensor], device: torch.device, times: int = 1) -> Seconds:
    """Of one step, the mean of several."""
    cpu, wall = time.process_time(), time.perf_counter()
    for _ in range(times):
        run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return Seconds((time.process_time() - cpu) / times, (time.perf_counter() - wall) / times)
