"""How long a sweep takes on so many GPUs: a simulation of cells that machines take, lose and resume.

    python scripts/plan_sweep.py results/demo --cells 3300                     # as measured, on what the runs ran on
    python scripts/plan_sweep.py results/demo --cells 3300 --mean-minutes 10   # the same spread, another mean

The cost of each cell is drawn from the costs of finished runs. Each GPU waits in a queue, takes cells until it is
preempted, and waits again; a cell that it lost is resumed from its state by whoever comes next. Everything but the
costs is an assumption, which an option changes.
"""

import argparse
import heapq
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd

from vlprompt.reports.estimates import spent_on
from vlprompt.results.store import find_records

GPUS = (1, 2, 4, 8, 16, 32, 64)
REPEATS = 10
Number = TypeVar("Number", int, float)


@dataclass(frozen=True)
class Cluster:
    """What is assumed of the machines. All times in minutes; 0: it does not happen.

    Attributes:
        queue: mean wait for a GPU, exponential, at the start and after each preemption.
        preempted: mean time that a GPU is held, exponential; 0: for ever.
        killed: share of the preemptions that give no time to keep a state: they cost up to `interval`.
        interval: between two states of a training.
        start: that a cell takes before its first step, each time it is begun.
        slow: share of GPUs that take twice as long.
    """

    queue: float = 5.0
    preempted: float = 240.0
    killed: float = 0.1
    interval: float = 5.0
    start: float = 0.15
    slow: float = 0.05


@dataclass(frozen=True)
class Outcome:
    """Minutes until the last cell is finished; GPU minutes that were spent, and those of them on work that was lost."""

    wall: float
    held: float
    lost: float
    preemptions: int


def simulate(costs: Sequence[float], gpus: int, cluster: Cluster, seed: int = 0) -> Outcome:
    """Cells of these minutes on so many GPUs, which take them in the order given."""
    random = np.random.default_rng(seed)
    todo = list(costs)[::-1]
    pace = np.where(random.random(gpus) < cluster.slow, 2.0, 1.0)

    def after(mean: float) -> float:
        return float(random.exponential(mean)) if mean else 0.0

    def comes(gpu: int, now: float) -> tuple[float, int, float, float | None]:
        at = now + after(cluster.queue)
        return at, gpu, (at + after(cluster.preempted) if cluster.preempted else math.inf), None

    # when, which GPU, until when it is held, and what is left of its cell
    events = [comes(gpu, 0.0) for gpu in range(gpus)]
    heapq.heapify(events)
    idle: list[tuple[int, float]] = []  # GPUs that found no cell
    left, now, held, lost, preemptions = len(todo), 0.0, 0.0, 0.0, 0
    while left:
        now, gpu, until, rest = heapq.heappop(events)
        if rest == 0:
            left -= 1
        elif rest is not None:
            todo.append(rest)
            for other in idle:
                heapq.heappush(events, (now, *other, None))
            idle = []
        if now >= until:
            heapq.heappush(events, comes(gpu, now))
        elif not todo:
            idle.append((gpu, until))
        else:
            minutes = todo.pop()
            ends = now + cluster.start + minutes * pace[gpu]
            rest, wasted = 0.0, cluster.start
            if ends > until:
                ran = max(until - now - cluster.start, 0.0) / pace[gpu]
                again = min(ran, random.uniform(0, cluster.interval)) if random.random() < cluster.killed else 0.0
                ends, rest, wasted = until, minutes - ran + again, min(cluster.start, until - now) + again * pace[gpu]
                preemptions += 1
            held, lost = held + ends - now, lost + wasted
            heapq.heappush(events, (ends, gpu, until, rest))
    return Outcome(now, held, lost, preemptions)


def plan(costs: Sequence[float], cluster: Cluster, gpus: Sequence[int] = GPUS) -> pd.DataFrame:
    """One row a number of GPUs: means over several simulations."""
    rows = []
    for n in gpus:
        outcomes = [simulate(costs, n, cluster, seed) for seed in range(REPEATS)]
        wall, held, lost, preemptions = np.mean([astuple(one) for one in outcomes], axis=0)
        rows.append(
            {
                "GPUs": n,
                "hours": f"{wall / 60:.1f}",
                "cells an hour": f"{60 * len(costs) / wall:.0f}",
                "GPU hours": f"{held / 60:.0f}",
                "lost": f"{lost / held:.1%}",
                "preemptions": f"{preemptions:.0f}",
            }
        )
    return pd.DataFrame(rows)


def whole(text: str) -> int:
    return in_range(text, int, 1, math.inf, "a whole number from 1")


def minutes(text: str) -> float:
    return in_range(text, float, 0, math.inf, "minutes, 0 or more")


def share(text: str) -> float:
    return in_range(text, float, 0, 1, "a share from 0 to 1")


def in_range(text: str, kind: type[Number], least: float, most: float, allowed: str) -> Number:
    with suppress(ValueError):
        if math.isfinite(value := kind(text)) and least <= value <= most:
            return value
    raise argparse.ArgumentTypeError(f"{text!r} is not {allowed}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", nargs="+", type=Path, help="folders of finished runs, whose costs are drawn from")
    parser.add_argument("--cells", type=whole, default=3300)
    parser.add_argument("--mean-minutes", type=minutes, help="of a cell; else as the runs took")
    for name, value in vars(Cluster()).items():
        kind = share if name in ("killed", "slow") else minutes
        parser.add_argument(f"--{name}", type=kind, default=value, help=f"default {value}")
    options = parser.parse_args()
    spent = [spent_on(r) / 60 for r in find_records(options.results) if r.status == "finished" and spent_on(r)]
    if not spent:
        parser.error(f"no finished runs in {', '.join(map(str, options.results))}")
    costs = np.random.default_rng(0).choice(spent, options.cells)
    if options.mean_minutes:
        costs *= options.mean_minutes / costs.mean()
    cluster = Cluster(**{name: getattr(options, name) for name in vars(Cluster())})
    print(f"{len(costs):,} cells of {costs.mean():.2f} minutes (at most {costs.max():.1f}); {cluster}\n")
    print(plan(costs.tolist(), cluster).to_markdown(index=False, disable_numparse=True))


if __name__ == "__main__":
    main()
