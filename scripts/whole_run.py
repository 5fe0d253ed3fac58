"""The demo's sweep from two checkouts, timed in turn: for benchmark_speed.py --whole-run."""

import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
METHODS = (
    "zero_shot",
    "coop",
    "cocoop",
    "maple",
    "vpt_shallow",
    "vpt_deep",
    "ivlp",
    "prefix_tuning",
    "adapter",
    "lora",
)


@dataclass(frozen=True)
class Spent:
    """Seconds of a process and its children."""

    cpu: float
    wall: float


def measure(against: str | None) -> str:
    """A table of seconds by method, of this checkout and of a commit's, each from empty folders."""
    with tempfile.TemporaryDirectory() as folder:
        checkouts = {"this checkout": ROOT}
        if against:
            checkouts[against] = Path(folder) / "checkout"
            subprocess.run(["git", "worktree", "add", "--detach", checkouts[against], against], cwd=ROOT, check=True)
        try:
            spent: dict[str, dict[str, Spent]] = {}
            for method in METHODS:
                spent[method] = {name: sweep(at, method, Path(folder) / name) for name, at in checkouts.items()}
                print(method, *(f"{name}: {s.cpu:.1f} CPU s" for name, s in spent[method].items()), flush=True)
        finally:
            if against:
                subprocess.run(["git", "worktree", "remove", "--force", checkouts[against]], cwd=ROOT, check=True)
    return table(spent, list(checkouts))


def sweep(root: Path, method: str, folder: Path) -> Spent:
    """One method's runs on the demo; data, caches and results lie in the folder."""
    environment = os.environ | {"PYTHONPATH": str(root), "WANDB_MODE": "disabled"}
    environment |= {"VLPROMPT_RESULTS": str(folder / "results"), "VLPROMPT_DATA": str(folder / "data")}
    command = [sys.executable, "run.py", "-m", f"method={method}", "seed=1,2,3"]
    before = os.times()
    subprocess.run(command, cwd=root, env=environment, check=True, stdout=subprocess.DEVNULL)
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return Spent(cpu, after.elapsed - before.elapsed)


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
