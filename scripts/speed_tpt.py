"""How fast test-time prompt tuning is against the published algorithm, with the same weights, views and numbers.

    python scripts/speed_tpt.py                          # 64 views, 100 classes of ImageNet, ViT-B/16
    python scripts/speed_tpt.py --classes 10 --views 8 --repeats 1 --backbone shapes_vit

For each image theirs encodes all texts twice, in all their 77 tokens: before the step, with gradients, and after it
(Shu et al., NeurIPS 2022; azshue/TPT, commit 63ecbac). `text`: the features of the views are at hand on both sides;
`image`: both sides encode the views, theirs the centre crop once more at the end; `banked`: ours has features of the
views, theirs encodes them. Both run in turn; ratios are medians over pairs.
"""

import os

os.environ |= {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0", "KMP_BLOCKTIME": "0"}  # read when torch is loaded

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict
from statistics import median
from typing import Any

import torch
from plain_clip import PaddedPrompts, PlainClip
from speed_cases import class_names, random_clip
from speed_measures import seconds
from torch import Tensor

from vlprompt.inference import ImageViews
from vlprompt.inference.tpt import TPT
from vlprompt.learners.zero_shot import ZeroShot
from vlprompt.towers import Images

SAME = 1e-3  # the largest difference of logits at scale 100
WORDS = "a photo of a"
PARTS = ["text", "image", "banked"]


class Published:
    """The published algorithm for zero-shot CLIP."""

    def __init__(self, learner: ZeroShot, method: TPT) -> None:
        self.clip, self.method = PlainClip(learner.clip.weights.root), method
        self.prompts = PaddedPrompts(learner, [f"{WORDS} {name}." for name in learner.classes])
        self.start = learner.text.embed_phrase(WORDS).float()
        self.context = self.start.clone().requires_grad_()
        self.optimizer = torch.optim.AdamW([self.context], lr=method.lr, weight_decay=method.weight_decay)
        self.fresh = self.optimizer.state_dict()

    def logits(self, images: Images) -> Tensor:
        with torch.no_grad():
            features = images.features if images.pixels is None else self.clip.encode_image(images.pixels)
        texts = self.clip.encode_text(self.prompts.with_context(self.context, "end"), self.prompts.eot)
        return self.clip.compare(features, texts)

    def __call__(self, images: Images) -> Tensor:
        with torch.no_grad():
            self.context.copy_(self.start)
        self.optimizer.load_state_dict(self.fresh)
        log_p = self.logits(images).log_softmax(1)
        surest = (-(log_p.exp() * log_p).sum(1)).argsort()[: int(len(log_p) * self.method.selection)]
        mean = log_p[surest].exp().mean(0)
        self.optimizer.zero_grad()
        (-(mean * mean.log()).sum()).backward()
        self.optimizer.step()
        with torch.no_grad():
            return self.logits(centre_of(images))[0]


def centre_of(images: Images) -> Images:
    return Images(*(None if x is None else x[:1] for x in (images.pixels, images.features)))


def tuned(options: Any) -> dict[str, Any]:
    """Ratios and seconds an image; `options` are those of the command line.

    Raises: SystemExit where both sides come to different numbers.
    """
    device = torch.device(options.device)
    clip = random_clip(options.backbone, device)
    learner = ZeroShot(clip, class_names(options.classes, options.backbone))
    method = TPT(views=options.views, ctx_init=WORDS)
    with torch.no_grad():
        adapter, theirs = method.start(learner, learner.encode_classes()), Published(learner, method)
    size, generator = clip.preprocess.size, torch.Generator().manual_seed(2)
    pixels = torch.randn(options.views, 3, size, size, generator=generator).to(device)
    features = torch.randn(options.views, clip.image.embed_dim, generator=generator).to(device)
    given = {"text": [Images(features=features)] * 2, "image": [Images(pixels)] * 2}
    if "banked" in options.parts:
        with torch.no_grad():
            given["banked"] = [Images(features=clip.image(Images(pixels))), Images(pixels)]
    result: dict[str, Any] = {name: getattr(options, name) for name in ("backbone", "classes", "views", "device")}
    for part in options.parts:
        result[part] = pairs(adapter, theirs, *given[part], device, options.repeats)
        print(json.dumps({part: result[part]}), flush=True)
    return result


def pairs(
    ours: Callable[..., Tensor], theirs: Published, views: Images, images: Images, device: torch.device, n: int
) -> dict[str, Any]:
    """Both sides' times for an image, in turn."""
    results: dict[str, Tensor] = {}
    times = []

    def once(side: str) -> Tensor:
        results[side] = ours(ImageViews(views)) if side == "ours" else theirs(images)
        return results[side]

    ours(ImageViews(centre_of(views)))  # packings are made at the first call
    for _ in range(n):
        times.append([seconds(lambda side=side: once(side), device) for side in ("ours", "theirs")])
    difference = (results["ours"] - results["theirs"]).abs().max().item()
    if not difference <= SAME:
        raise SystemExit(f"logits differ by {difference}, allowed is {SAME}")
    return {
        "cpu_ratio": median(b.cpu / a.cpu for a, b in times),
        "wall_ratio": median(b.wall / a.wall for a, b in times),
        "seconds": {
            side: {kind: median(asdict(pair[i])[kind] for pair in times) for kind in ("cpu", "wall")}
            for i, side in enumerate(("ours", "theirs"))
        },
        "logits_difference": difference,
        "repeats": n,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=PARTS)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--views", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--backbone", default="ViT-B-16-quickgelu", help="an open_clip model, or shapes_vit")
    parser.add_argument("--device", default="cpu")
    print(json.dumps(tuned(parser.parse_args()), indent=1))


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
