"""The demo's sweep from two checkouts, timed in turn: for benchmark_speed.py --whole-run."""

import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
METHODS = (
    *("zero_shot", "coop", "cocoop", "maple", "vpt_shallow", "vpt_deep", "ivlp", "prefix_tuning", "adapter", "lora"),
)
SEEDS = "seed=1,2,3"


@dataclass(frozen=True)
class Spent:
    """Seconds of a process and its children."""

    cpu: float
    wall: float


def measure(against: str | None) -> str:
    """A table of seconds by method, of this checkout and of a commit's."""
    with tempfile.TemporaryDirectory() as folder:
        checkouts = {"this checkout": ROOT}
        if against:
            checkouts[against] = Path(folder) / "checkout"
            subprocess.run(["git", "worktree", "add", "--detach", checkouts[against], against], cwd=ROOT, check=True)
        try:
            spent = {m: {name: sweep(root, m, Path(folder)) for name, root in checkouts.items()} for m in METHODS}
        finally:
            if against:
                subprocess.run(["git", "worktree", "remove", "--force", checkouts[against]], cwd=ROOT, check=True)
    return table(spent, list(checkouts))


def sweep(root: Path, method: str, folder: Path) -> Spent:
    """One method's runs on the demo, from nothing."""
    environment = os.environ | {"PYTHONPATH": str(root), "WANDB_MODE": "disabled"}
    with tempfile.TemporaryDirectory(dir=folder) as results:
        environment |= {"VLPROMPT_RESULTS": results}
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        command = [sys.executable, "run.py", "-m", f"method={method}", SEEDS]
        subprocess.run(command, cwd=root, env=environment, check=True, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Spent(cpu, time.perf_counter() - start)


def table(spent: dict[str, dict[str, Spent]], names: list[str]) -> str:
    """Markdown; with two checkouts, the second's time over the first's."""
    both = len(names) == 2
    head = ["method", *(f"{name}: {kind} s" for name in names for kind in ("CPU", "wall"))]
    lines = [head + (["CPU ratio", "wall ratio"] if both else [])]
    total = {name: Spent(sum(s[name].cpu for s in spent.values()), sum(s[name].wall for s in spent.values()))
             for name in names}  # fmt: skip
    for method, times in {**spent, "all": total}.items():
        cells = [method, *(f"{seconds:.1f}" for name in names for seconds in (times[name].cpu, times[name].wall))]
        if both:
            ours, theirs = (times[name] for name in names)
            cells += [f"{theirs.cpu / ours.cpu:.2f}", f"{theirs.wall / ours.wall:.2f}"]
        lines.append(cells)
    rule = [["---"] * len(lines[0])]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [lines[0], *rule, *lines[1:]])
