"""Whether two states of the code compute the same: short runs of all methods, and what of them differs.

    python scripts/compare_states.py run before --checkout ../other_checkout
    python scripts/compare_states.py run after
    python scripts/compare_states.py compare before after

`run` leaves results below the folder that it is given, as `python run.py` does there with one thread. `compare`
compares status, selection, split, scores, curves, counted costs, predictions and trained tensors, bit for bit; it
prints each run that differs and exits with 1 if any does. Both states have to be run on one machine.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import safetensors.torch
import torch

from vlprompt.results.record import Record

ROOT = Path(__file__).resolve().parents[1]
SHORT = ["dataset=digits", "shots=4", "seed=1", "threads=1", "workers=0", "wandb=disabled"]
STEPS = ["++fit.steps=10", "++fit.epochs=null"]
SLOW_BANK = "bank.use=false"
UNTRAINED = ("zero_shot", "hard_prompts")
CLOSED_FORM = ("linear_probe", "lp_plus_plus", "tip_adapter", "gda", "ss_text")
LONG = ("cross_modal",)  # closed forms with a setting of how long


def methods() -> list[str]:
    return sorted(path.stem for path in (ROOT / "conf" / "method").glob("*.yaml"))


def sweeps() -> Iterator[tuple[str, list[str]]]:
    """Name and overrides of each sweep."""
    trained = "method=" + ",".join(name for name in methods() if name not in (*UNTRAINED, *CLOSED_FORM, *LONG))
    others = "method=" + ",".join((*UNTRAINED, *CLOSED_FORM))
    for protocol in ("few_shot", "base_to_novel"):
        yield protocol, [trained, *STEPS, f"protocol={protocol}"]
        yield f"{protocol} without steps", [others, f"protocol={protocol}"]
    yield "long closed forms", ["method=" + ",".join(LONG), "method.iterations=100", "protocol=few_shot"]
    yield "pixels", [trained, *STEPS, "protocol=few_shot", SLOW_BANK, "name=pixels"]
    yield "pixels without steps", [others, "protocol=few_shot", SLOW_BANK, "name=pixels"]
    chosen = ["method=coop,maple,dylora", "++fit.keep=best", "++fit.epochs=3", "protocol=few_shot"]
    yield "best epoch", [*chosen, "name=best"]
    yield "best epoch on test images", [*chosen, "++fit.select_on=test", "name=best_on_test"]
    average = ["++fit.average={mu: 3, sigma: 1}", "++fit.epochs=4", "protocol=base_to_novel", "name=average"]
    yield "average", ["method=coop,ivlp", *average]
    yield "bf16", [trained, *STEPS, "precision=bf16", "protocol=few_shot"]
    yield "bf16 without steps", [others, "precision=bf16", "protocol=few_shot"]
    closed = ["method=zero_shot,tip_adapter,lp_plus_plus", "precision=bf16", "protocol=few_shot", SLOW_BANK]
    yield "bf16 from pixels", [*closed, "name=bf16_pixels"]  # named, as `bank.use` makes no run another
    yield "two banked views", ["method=coop,kgcoop", *STEPS, "bank.views=2", "protocol=few_shot"]
    yield "text in parts", ["method=coop,cocoop", *STEPS, "text_chunk=3", "protocol=few_shot", "name=chunk"]
    yield "last batches", ["method=coop,vpt_deep", "++fit.epochs=2", "++fit.drop_last=false", "protocol=few_shot"]
    yield "train and val", ["method=coop,vpt_shallow", *STEPS, "protocol=train_val"]
    yield "all images", ["method=adapter", *STEPS, "shots=all", "protocol=few_shot"]
    for protocol in ("cross_dataset", "domain_generalization"):
        yield protocol, ["method=coop,maple,tip_adapter_f", *STEPS, f"protocol={protocol}", "dataset=shapes"]


def run(folder: Path, checkout: Path, only: str) -> int:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("VLPROMPT", "HYDRA"))}
    environment |= {
        "VLPROMPT_RESULTS": str(folder / "results"),
        "VLPROMPT_DATA": str(folder / "datasets"),
        "PYTHONPATH": str(checkout),
        "OMP_NUM_THREADS": "1",
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, overrides in ((name, overrides) for name, overrides in sweeps() if only in name):
        print(name, flush=True)
        command = [sys.executable, str(checkout / "run.py"), "-m", *SHORT, *overrides]
        with (folder / "log.txt").open("a") as log:
            done = subprocess.run(
                command, env=environment, cwd=folder, stdout=log, stderr=subprocess.STDOUT, check=False
            )
        if done.returncode == 2:  # 1: a method that cannot be tested so, which is compared, too
            sys.exit(f"{name} did not start: see {folder / 'log.txt'}")
    return 0


def compare(before: Path, after: Path) -> int:
    sides = [folder / "results" / "runs" for folder in (before, after)]
    names = [{str(path.parent.relative_to(side)) for path in side.rglob("result.json")} for side in sides]
    differing = {name: ["only in the first"] for name in names[0] - names[1]}
    differing |= {name: ["only in the second"] for name in names[1] - names[0]}
    for name in names[0] & names[1]:
        if texts := list(differences(sides[0] / name, sides[1] / name)):
            differing[name] = texts
    for name, texts in sorted(differing.items()):
        print(f"{name}: {'; '.join(texts)}")
    finished = sum(
        json.loads((sides[0] / name / "result.json").read_text())["status"] == "finished" for name in names[0]
    )
    print(f"{len(names[0] | names[1])} runs ({finished} finished in the first), {len(differing)} differ")
    return int(bool(differing) or not names[0])


def differences(first: Path, second: Path) -> Iterator[str]:
    a, b = (Record.read(folder).model_dump(mode="json") for folder in (first, second))
    for key in ("status", "scores", "curve", "selection", "split_hash", "target_hashes"):
        if a[key] != b[key]:
            yield f"{key} {str(a[key])[:60]} against {str(b[key])[:60]}"
    for key in ("trained_parameters", "stored_bytes", "steps", "flops_per_image", "flops_classes", "mergeable"):
        if a["cost"].get(key) != b["cost"].get(key):
            yield f"{key} {a['cost'].get(key)} against {b['cost'].get(key)}"
    for file, read in (("learner.safetensors", read_tensors), ("predictions.npz", read_arrays)):
        if (first / file).exists() != (second / file).exists():
            yield f"{file} in one of them"
        elif (first / file).exists():
            yield from (f"{file}: {text}" for text in unequal(read(first / file), read(second / file)))


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    return {name: tensor.to(torch.float64).numpy() for name, tensor in safetensors.torch.load_file(path).items()}


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def unequal(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> Iterator[str]:
    for name in sorted(a.keys() | b.keys()):
        if name not in a or name not in b or a[name].shape != b[name].shape:
            yield f"{name} in another shape, or missing"
        elif not np.array_equal(a[name], b[name]):
            number = np.issubdtype(a[name].dtype, np.number)
            yield f"{name} by {np.abs(a[name].astype(float) - b[name]).max():.2g}" if number else name


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    make = commands.add_parser("run")
    make.add_argument("folder", type=Path)
    make.add_argument("--checkout", type=Path, default=ROOT)
    make.add_argument("--only", default="", metavar="TEXT", help="sweeps with this in their names")
    hold = commands.add_parser("compare")
    hold.add_argument("before", type=Path)
    hold.add_argument("after", type=Path)
    given = parser.parse_args()
    if given.command == "run":
        return run(given.folder.absolute(), given.checkout.absolute(), given.only)
    return compare(given.before, given.after)


if __name__ == "__main__":
    sys.exit(main())
