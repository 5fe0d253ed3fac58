"""What a GPU gives: steps a second and memory of five methods, loading, and cells an hour. One command, six minutes.

    python scripts/benchmark_gpu.py --output results/benchmarks          # writes gpu.json and gpu.md
    python scripts/benchmark_gpu.py --device cpu --backbone shapes_vit --classes 5 --seconds 20   # a trial of the code

A step is forward, backward and SGD's update, of the originals' algorithm (scripts/plain_clip.py; 77 tokens, from
pixels) and of vlprompt as a run does it: from banked features where a method leaves the image tower alone. ViT-B/16,
random weights, 100 class names, the papers' batches. What there is no time for is named as not measured; files are
written after each measurement, so that a run that is cut short leaves what it has.
"""

import argparse
import gc
import json
import tempfile
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import gpu_report
import torch
import torch.nn.functional as F
from benchmark_loading import make_images
from compare_precisions import deviations
from plain_clip import plain_logits
from speed_cases import DEFAULTS, FROM_FEATURES, MAKE, Case, class_names, draw_images, random_clip

from vlprompt.data.views import Batches, Views
from vlprompt.towers import Clip, Images
from vlprompt.towers.precision import autocast
from vlprompt.training.device import default_workers, device_name, peak_memory, reset_peak_memory, resolve_device
from vlprompt.training.precision import Scaler, compiled

BATCHES = {"coop": 32, "cocoop": 1, "maple": 4, "vpt_deep": 4, "lora": 32}  # of the papers
VARIANTS = (
    *(("originals", name, False) for name in ("fp32", "fp16")),
    *(("vlprompt", name, False) for name in ("fp32", "tf32", "bf16", "fp16")),
    ("vlprompt", "bf16", True),
)
"""Whose algorithm, its precision, and whether it is compiled; compiled ones last, as the first step takes long."""
COMPILING = 0.2  # of the seconds in all, that a compiled step may take before its first measurement
WARM_UP = 3  # steps, before the clock starts
SHARE = 0.012  # of the seconds in all, for one measurement

Step = Callable[[], Any]


@dataclass(frozen=True)
class Row:
    """One measurement: steps a second (None: not measured, for `reason`), and a step's peak memory in bytes."""

    method: str
    algorithm: str
    precision: str
    compiled: bool
    batch: int
    steps_per_second: float | None = None
    peak_bytes: int | None = None
    reason: str = ""


def make_step(case: Case, algorithm: str, precision: str, device: torch.device, *, compile: bool) -> Step:
    """One step of a training, as the loop of vlprompt takes it, or the same with the originals' logits."""
    clip = random_clip(case.backbone, device)
    torch.manual_seed(0)
    learner = MAKE[case.method](clip, class_names(case.classes, case.backbone), case.context).to(device)
    generator = torch.Generator().manual_seed(2)
    labels = torch.randint(case.classes, (case.batch,), generator=generator).to(device)
    images = draw_images(case, clip, generator)
    if algorithm == "originals":
        logits = plain_logits(learner)

        def loss_of(images: Images, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            predicted = logits(images).float()
            return F.cross_entropy(predicted, labels), predicted

        learner.loss = loss_of  # type: ignore[method-assign]
    elif case.method in FROM_FEATURES:
        with torch.no_grad():
            images = Images(features=clip.image(images))
    scaler, optimizer = Scaler(learner, precision), torch.optim.SGD(learner.parameters(), lr=1e-4)
    backward = compiled(scaler.backward, learner, say=refuse) if compile else scaler.backward

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with autocast(device, precision):
            backward(images, labels)
        if scaler.unscale(optimizer):
            optimizer.step()

    return step


def refuse(reason: str) -> None:
    raise NotImplementedError(reason)


def timed(step: Step, seconds: float, device: torch.device) -> tuple[float, int | None]:
    """Steps a second, over about so many seconds, and the peak memory of a step."""

    def clock() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    reset_peak_memory(device)
    for _ in range(WARM_UP):
        step()
    peak, start = peak_memory(device), clock()
    step()
    times = max(1, min(1000, int(seconds / 5 / max(clock() - start, 1e-6))))
    rates = []
    while not rates or clock() - start < seconds:
        begun = clock()
        for _ in range(times):
            step()
        rates.append(times / (clock() - begun))
    return median(rates), peak


def measure(row: Row, case: Case, device: torch.device, seconds: float) -> Row:
    """A case that fails, for whatever reason, costs the others nothing."""
    try:
        step = make_step(case, row.algorithm, row.precision, device, compile=row.compiled)
        rate, peak = timed(step, seconds, device)
        return replace(row, steps_per_second=rate, peak_bytes=peak)
    except Exception as error:  # out of memory, no compiler, an error of a driver's, ...
        return replace(row, reason=reason_of(error))
    finally:
        step = None
        torch._dynamo.reset() if row.compiled else None
        gc.collect()  # a learner refers to itself, and would count in the next one's memory
        torch.cuda.empty_cache() if device.type == "cuda" else None


def reason_of(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".strip().splitlines()[0]


def loading(clip: Clip, n_images: int, workers: int) -> dict[str, float]:
    """Images a second: read, augmented and brought to the device; and through the image tower in bf16."""
    with tempfile.TemporaryDirectory() as folder:
        split = make_images(Path(folder), (500, 375), n_images)
        views = Views(split, clip.preprocess, seed=1)
        batches = Batches(views, [(0, i) for i in range(n_images)], batch_size=100, workers=workers, device=clip.device)
        for _ in batches:  # the workers start
            pass
        start = time.perf_counter()
        ((pixels, _),) = deque(batches, maxlen=1)
        pixels.sum().item()  # waits for the device
        seconds = time.perf_counter() - start

    @torch.no_grad()
    def encode() -> None:
        with autocast(clip.device, "bf16"):
            clip.image(Images(pixels))

    rate, _ = timed(encode, 1.0, clip.device)
    return {"workers": workers, "images_read": n_images / seconds, "images_encoded": rate * len(pixels)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--backbone", default="ViT-B-16-quickgelu", help="an open_clip model, or shapes_vit")
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--methods", default=",".join(BATCHES))
    parser.add_argument("--batch", type=int, help="another one than the papers', for all methods")
    parser.add_argument("--images", type=int, help="read for the speed of loading (default: 2000, on a CPU 40)")
    parser.add_argument("--seconds", type=float, default=300, help="after which nothing new is begun")
    parser.add_argument("--output", type=Path, default=Path("results/benchmarks"), metavar="FOLDER")
    options = parser.parse_args()
    begun, device = time.perf_counter(), resolve_device(options.device)
    options.output.mkdir(parents=True, exist_ok=True)
    clip = random_clip(options.backbone, device)
    report: dict[str, Any] = {
        "device": device_name(device), "torch": torch.__version__, "backbone": options.backbone,
        "classes": options.classes, "rows": [],
    }  # fmt: skip

    def write() -> None:
        report["seconds"] = round(time.perf_counter() - begun, 1)
        (options.output / "gpu.json").write_text(json.dumps(report, indent=2) + "\n")
        (options.output / "gpu.md").write_text(gpu_report.page(report))

    small = device.type == "cpu"
    n_read = options.images or (40 if small else 2000)
    names = class_names(options.classes, options.backbone)
    parts: dict[str, Callable[[], Any]] = {
        "loading": lambda: loading(clip, n_read, 0 if small else default_workers()),
        "precisions": lambda: [asdict(row) for row in deviations(clip, names, n_read // 4)],
    }
    for part, make in parts.items():
        try:
            report[part] = make()
        except Exception as error:  # the speeds are worth more
            print(f"{part} is left out: {reason_of(error)}", flush=True)
        write()
    for algorithm, precision, compile in VARIANTS:
        for method in options.methods.split(","):
            batch = options.batch or BATCHES[method]
            row = Row(method, algorithm, precision, compile, batch)
            case = replace(DEFAULTS[method], backbone=options.backbone, classes=options.classes, batch=batch)
            case = replace(case, case="step")
            if precision == "tf32" and device.type != "cuda":
                row = replace(row, reason=f"{device.type} has none")
            elif time.perf_counter() - begun > options.seconds * (1 - COMPILING * compile):
                row = replace(row, reason="the time was up")
            else:
                row = measure(row, case, device, SHARE * options.seconds)
            report["rows"].append(asdict(row))
            print(gpu_report.line(asdict(row)), flush=True)
            write()
    print(f"\n{gpu_report.page(report)}")


if __name__ == "__main__":
    main()
