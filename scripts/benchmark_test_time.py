"""How long test-time methods take for an image.

    python scripts/benchmark_test_time.py                       # all parts
    python scripts/benchmark_test_time.py zero tda              # these; the others' numbers stay
    python scripts/benchmark_test_time.py --images 100 --classes 1000 --output FOLDER

`zero`, `mta` and `tda`: random features of ViT-B/16's width stand for banked ones of the views of images, so what is
measured is what these methods cost next to reading the bank: logits of all views, and their votes, mode or caches.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from vlprompt.inference import ADAPTATIONS, ImageViews
from vlprompt.learners.zero_shot import ZeroShot
from vlprompt.towers import Images
from vlprompt.towers.tiny import VIT, tiny_clip

WIDTH = 512


@torch.no_grad()
def banked(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """A method without gradients over views whose features are there."""
    adaptation = ADAPTATIONS[name]()
    classes = [f"class {i}" for i in range(options.classes)]
    clip = tiny_clip(VIT)
    learner = ZeroShot(replace(clip, image=replace(clip.image, embed_dim=WIDTH)), classes)
    generator = torch.Generator().manual_seed(0)
    texts = torch.randn(options.classes, WIDTH, generator=generator)
    centres = texts[torch.randint(options.classes, (options.images,), generator=generator)]
    noise = torch.randn(options.images, adaptation.views, WIDTH, generator=generator)
    features = noise.mul_(4).add_(centres[:, None])  # of which an image's are alike, and its class is in doubt
    adapt, logits = adaptation.start(learner, texts), []
    wall, cpu = time.perf_counter(), time.process_time()
    for x in features:
        logits.append(adapt(ImageViews(Images(features=x), learner.compare(x, texts), x)))
    return {
        "images": options.images,
        "views": adaptation.views,
        "classes": options.classes,
        "width": WIDTH,
        "seconds": time.perf_counter() - wall,
        "cpu_seconds": time.process_time() - cpu,
        "changed": (torch.stack(logits).argmax(-1) != learner.compare(features[:, 0], texts).argmax(-1)).sum().item(),
    }


PARTS: dict[str, Callable[[str, argparse.Namespace], dict[str, Any]]] = {
    "zero": banked,
    "mta": banked,
    "tda": banked,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; without any all of them")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("results/benchmarks"), help="folder")
    options = parser.parse_args()
    if others := [part for part in options.parts if part not in PARTS]:
        parser.error(f"no part is called {others[0]}: choose of {', '.join(PARTS)}")
    torch.set_num_threads(options.threads)
    path = options.output / "test_time.json"
    rows = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    options.output.mkdir(parents=True, exist_ok=True)
    versions = {"machine": platform.machine(), "python": platform.python_version(), "torch": torch.__version__}
    for part in options.parts or PARTS:
        rows[part] = {**PARTS[part](part, options), "threads": options.threads, **versions}
        path.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
        print(part, rows[part], flush=True)


if __name__ == "__main__":
    main()
