"""How long methods on banked features train at the sizes of ImageNet on ViT-B/16, and in how much memory.

    python scripts/benchmark_banked.py                          # all of METHODS that there are
    python scripts/benchmark_banked.py clap cross_modal         # these; the other rows stay
    python scripts/benchmark_banked.py --classes 10 --output FOLDER

Features are random, 512 numbers in a cluster for each class; so are those of texts. Each method trains as
`python run.py dataset=imagenet protocol=few_shot` would, in a process of its own, with four validation features
a class, and is stopped at `--limit` seconds. What no feature holds (the towers, the images) is left out. Rows are
written after each method.
"""

import argparse
import json
import platform
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from vlprompt.config.compose import compose
from vlprompt.config.locate import locate
from vlprompt.config.paths import config_dir
from vlprompt.config.schema import read_settings
from vlprompt.data.cache.features import FeatureCache
from vlprompt.data.dataset import Item, Split
from vlprompt.data.loader import Loader
from vlprompt.learners.base import Learner
from vlprompt.protocols.base import Episode
from vlprompt.towers.tiny import VIT, tiny_clip
from vlprompt.train import train
from vlprompt.training.device import peak_memory
from vlprompt.training.progress import Reporter

METHODS = ("zs_lp", "clap", "cross_modal", "tip_adapter", "tip_adapter_f", "taskres", "clip_adapter", "lp_plus_plus",
           "gda", "ss_text", "prolip", "linear_probe")  # fmt: skip
WIDTH, SHOTS, VAL_SHOTS, N_VIEWS = 512, 16, 4, 20
ALLOWED = 300  # seconds
WHY = {
    "cross_modal": "twelve trainings of 12,800 steps, as published",
    "linear_probe": "23 logistic regressions of up to 1,000 iterations, as published",
    "tip_adapter": "200 values of beta, as published: a product with the whole cache for each",
    "tip_adapter_f": "200 values of beta, as published: a product with the whole cache for each",
    "clip_adapter": "200 epochs in batches of 32: 100,000 steps",
}


class Bank(FeatureCache):
    """Stands for the cache of features: as many views of each image as a bank holds, in memory."""

    def __init__(self, centres: Tensor) -> None:
        self.centres, self.views = centres, dict[Any, Tensor]()

    def features(self, split: Split, view: int | None = None, **_: Any) -> Tensor:
        key = split.origin, None if view is None else view % N_VIEWS
        if key not in self.views:
            labels = torch.tensor([item.label for item in split.items])
            self.views[key] = self.centres[labels] + 3 * torch.randn(len(labels), WIDTH)
        return self.views[key]

    def fill(self, *_: Any, **__: Any) -> None: ...

    def forget(self, *_: Any, **__: Any) -> None: ...


def measure(method: str, n_classes: int, n_threads: int) -> dict[str, Any]:
    """One training, in this process."""
    torch.set_num_threads(n_threads)
    torch.manual_seed(0)
    settings = read_settings(compose([f"method={method}", "protocol=few_shot", "dataset=imagenet", f"shots={SHOTS}"]))
    assert settings.fit is not None
    classes = [f"class {i}" for i in range(n_classes)]
    clip = tiny_clip(VIT)
    clip = replace(clip, image=replace(clip.image, embed_dim=WIDTH))
    kind, arguments = locate(settings.method, Learner, "method")
    learner = kind(clip, classes, **kind.resolved(arguments))
    centres = torch.randn(n_classes, WIDTH)
    texts = centres + torch.randn(n_classes, WIDTH)
    learner.zero_shot_features = lambda *_, **__: texts  # type: ignore[assignment, misc]
    learner._cache[()] = texts

    def split(name: str, shots: int) -> Split:
        items = tuple(Item(f"{name} {c} {i}", c) for c in range(n_classes) for i in range(shots))
        return Split(items, tuple(classes), str, origin=name)  # type: ignore[arg-type]

    episode = Episode(split("train", SHOTS), split("val", VAL_SHOTS), {})
    bank = Bank(centres)
    for view in (None, *range(N_VIEWS)):  # what a bank on disk holds
        bank.features(episode.train, view)
    loader = Loader(clip, bank, n_views=settings.bank.views, pooled=settings.bank.pooled)
    before, wall, cpu = peak_memory(clip.device) or 0, time.perf_counter(), time.process_time()
    curve = train(learner, episode, loader, settings.fit, precision="fp32", reporter=Reporter(quiet=True))
    return {
        "seconds": time.perf_counter() - wall,
        "cpu_seconds": time.process_time() - cpu,
        "bytes": (peak_memory(clip.device) or 0) - before,
        "trained": learner.n_trained,
        "epochs": len(curve),
    }


def in_a_process(method: str, options: argparse.Namespace) -> dict[str, Any]:
    """The row of a method; one that ran too long or failed has a reason."""
    command = [
        sys.executable,
        __file__,
        method,
        "--measure",
        f"--classes={options.classes}",
        f"--threads={options.threads}",
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=options.limit, check=False)
    except subprocess.TimeoutExpired:
        return {"reason": f"stopped at {options.limit} s"}
    lines = done.stdout.splitlines()
    if done.returncode:
        return {"reason": (done.stderr.strip().splitlines() or ["no output"])[-1][:200]}
    row: dict[str, Any] = json.loads(lines[-1])
    return row


def write(folder: Path, rows: dict[str, dict[str, Any]]) -> None:
    """The rows as JSON, and as a table."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "banked.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    table = [
        {
            "method": method,
            "seconds": None if "seconds" not in row else round(row["seconds"], 1),
            "CPU s": None if "cpu_seconds" not in row else round(row["cpu_seconds"], 1),
            "MB": None if "bytes" not in row else row["bytes"] // 2**20,
            "trained": row.get("trained"),
            "classes": row["classes"],
            "threads": row["threads"],
            "remark": "; ".join(filter(None, (row.get("reason"), why(method, row)))),
        }
        for method, row in rows.items()
    ]
    text = (
        f"Training on banked features of {WIDTH} numbers, {SHOTS} shots, {N_VIEWS} views; {platform.machine()}, Python "
        f"{platform.python_version()}, torch {torch.__version__}. Seconds are wall time; MB: the peak of the process "
        f"above the bank, which is {N_VIEWS + 1} views in memory. A remark says why one takes over {ALLOWED} s.\n\n"
        "Made by `python scripts/benchmark_banked.py`.\n\n"
    )
    (folder / "banked.md").write_text(text + pd.DataFrame(table).to_markdown(index=False) + "\n", encoding="utf-8")


def why(method: str, row: dict[str, Any]) -> str:
    slow = row.get("seconds", ALLOWED + 1 if "stopped" in row.get("reason", "") else 0) > ALLOWED
    return WHY.get(method, "") if slow else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", metavar="METHOD", help="as in conf/method; without any all of METHODS")
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--limit", type=int, default=1800, help="seconds for a method")
    parser.add_argument("--output", type=Path, default=Path("results/benchmarks"), help="folder")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.methods[0], options.classes, options.threads)))
        return
    path = options.output / "banked.json"
    rows = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for method in options.methods or METHODS:
        if not (config_dir() / "method" / f"{method}.yaml").is_file():
            continue
        rows[method] = {"classes": options.classes, "threads": options.threads, **in_a_process(method, options)}
        write(options.output, rows)
        print(method, rows[method], flush=True)


if __name__ == "__main__":
    main()
