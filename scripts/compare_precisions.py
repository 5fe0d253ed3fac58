"""How far the logits of each precision are from those of float32, and how many predictions that turns.

    python scripts/compare_precisions.py                                  # ViT-B/16, random weights, 64 images of noise
    python scripts/compare_precisions.py --device cuda --images 1000 --output results/benchmarks

The second writes precisions.json and precisions.md into that folder.

The frozen model as a classifier of ImageNet's class names, at scale 100. Random weights put all images close together,
so that their predictions turn sooner than those of a trained model.
"""

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from speed_cases import class_names, random_clip
from torch import Tensor

from vlprompt import demo
from vlprompt.learners.base import Learner
from vlprompt.towers import Clip, Images
from vlprompt.towers.precision import HALF, autocast
from vlprompt.training.device import device_name, resolve_device

BATCH = 50
HEADER = "| precision | median difference | largest | spread of an image's logits | predictions that turn |\n"
HEADER += "|---|---|---|---|---|\n"


@dataclass(frozen=True)
class Deviation:
    """Of the logits of one precision from those of float32."""

    precision: str
    median: float
    largest: float
    spread: float  # standard deviation over the classes of an image, the mean over images
    turned: int
    images: int

    def __str__(self) -> str:
        share = f"{self.turned} of {self.images}"
        return f"| {self.precision} | {self.median:.2g} | {self.largest:.2g} | {self.spread:.2g} | {share} |"


def deviations(clip: Clip, names: list[str], n_images: int) -> list[Deviation]:
    """Of each precision that the device has."""
    learner = Learner(clip, names).eval()
    generator = torch.Generator().manual_seed(3)
    shape = (n_images, 3, clip.preprocess.size, clip.preprocess.size)
    smooth = torch.nn.functional.interpolate(torch.randn(n_images, 3, 8, 8, generator=generator), shape[-2:])
    pixels = (smooth + 0.5 * torch.randn(shape, generator=generator)).to(clip.device)
    exact = logits_in("fp32", learner, pixels)
    precisions = [*(["tf32"] if clip.device.type == "cuda" else []), *HALF]
    return [deviation(name, logits_in(name, learner, pixels), exact) for name in precisions]


@torch.no_grad()
def logits_in(precision: str, learner: Learner, pixels: Tensor) -> Tensor:
    learner.forget()
    with autocast(learner.clip.device, precision):
        classes = learner.encode_classes()
        return torch.cat([learner(Images(part), classes) for part in pixels.split(BATCH)]).float()


def deviation(precision: str, logits: Tensor, exact: Tensor) -> Deviation:
    distance = (logits - exact).abs()
    return Deviation(
        precision,
        distance.median().item(),
        distance.max().item(),
        exact.std(1, correction=0).mean().item(),
        int((logits.argmax(1) != exact.argmax(1)).sum()),
        len(exact),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="ViT-B-16-quickgelu", help="an open_clip model, or shapes_vit")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--output", type=Path, metavar="FOLDER")
    options = parser.parse_args()
    device = resolve_device(options.device)
    clip = random_clip(options.backbone, device)
    rows = deviations(clip, class_names(options.classes, options.backbone), options.images)
    kind = "the demo's small model" if options.backbone in demo.BACKBONES else options.backbone
    about = {"model": kind, "classes": options.classes, "device": device_name(device), "torch": torch.__version__}
    names = ("backbone", "device", "classes", "images")
    command = " ".join(["scripts/compare_precisions.py", *(f"--{name} {getattr(options, name)}" for name in names)])
    text = f"{kind} with random weights, {options.classes} classes, on {about['device']} (torch {about['torch']})\n"
    text += f"made by `python {command}`\n\n{HEADER}"
    text += "\n".join(map(str, rows)) + "\n"
    print(text)
    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)
        (options.output / "precisions.md").write_text(text)
        report = {**about, "rows": [asdict(row) for row in rows]}
        (options.output / "precisions.json").write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
