"""The cases of benchmark_speed.py: what runs on each side."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES
from plain_clip import plain_logits
from torch import Tensor

from vlprompt import demo
from vlprompt.demo import shapes
from vlprompt.learners.base import Learner
from vlprompt.learners.cocoop import CoCoOp
from vlprompt.learners.coop import CoOp
from vlprompt.learners.ivlp import IVLP
from vlprompt.learners.lora import LoRA
from vlprompt.learners.maple import MaPLe
from vlprompt.learners.vpt import VPT
from vlprompt.learners.zero_shot import ZeroShot
from vlprompt.towers import Clip, Images, ensemble, load_clip

CASES = {
    "text": "text side alone, image features at hand on both sides",
    "csc": "the same with class-specific contexts",
    "front": "the same with the name in front of the context",
    "middle": "the same with the name within the context",
    "images": "a whole step, both sides from pixels",
    "banked": "a whole step, vlprompt from banked image features, the originals from pixels",
    "step": "as a run does it: banked where the method leaves the image tower alone, images where not",
    "memory": "the most images a batch in the memory where the originals hold one",
    "templates": "the classifier of several templates, forward only",
}
SUITED = {
    "coop": ("text", "csc", "front", "middle", "images", "banked", "step"),
    "cocoop": ("images", "banked", "step", "memory"),
    "maple": ("images", "step"),
    "ivlp": ("images", "step"),
    "vpt_deep": ("images", "step"),
    "lora": ("images",),
    "zero_shot": ("templates",),
}
"""By method: the cases that it has."""
TEXT_ALONE = ("text", "csc", "front", "middle", "templates")
FROM_FEATURES = ("coop", "cocoop")  # methods that leave the image tower alone
N_TEMPLATES = 8


@dataclass(frozen=True)
class Case:
    """One comparison. Zeros are filled from the method's default."""

    case: str
    method: str
    classes: int = 0
    context: int = 0
    batch: int = 0
    backbone: str = "ViT-B-16-quickgelu"

    def filled(self, **given: int) -> "Case":
        sizes = {name: getattr(DEFAULTS[self.method], name) for name in ("classes", "context", "batch")}
        asked = {name: getattr(self, name) for name in sizes if getattr(self, name)}
        return replace(self, **{**sizes, **asked, **given})


DEFAULTS = {
    "coop": Case("text", "coop", 100, 4, 32),
    "cocoop": Case("images", "cocoop", 100, 4, 1),
    "maple": Case("images", "maple", 100, 2, 4),
    "ivlp": Case("images", "ivlp", 50, 2, 4),
    "vpt_deep": Case("images", "vpt_deep", 50, 8, 4),
    "lora": Case("images", "lora", 100, 2, 4),
    "zero_shot": Case("templates", "zero_shot", 100, 0, 1),
}
"""By method: the case of `--method` alone, and the sizes where none are given."""

TABLE = [
    *(Case("text", "coop", n, m, 32) for n in (100, 50, 10) for m in (4, 16)),
    *(Case("text", "coop", 50, m, 32) for m in (1, 32)),
    Case("step", "coop", 100, 4, 32),
    *(Case(case, "cocoop", n, 4, 1) for case in ("images", "banked") for n in (50, 100)),
    Case("memory", "cocoop", 100, 4, 1),
    *(Case("images", "maple", n, 2, 4) for n in (50, 100)),
    Case("images", "ivlp", 50, 2, 4),
    Case("images", "vpt_deep", 50, 8, 4),
    *(Case(case, "coop", 50, m, 32) for case in ("csc", "front") for m in (4, 16)),
    Case("templates", "zero_shot", 100, 0, 1),
]

MAKE: dict[str, Callable[..., Learner]] = {
    "coop": lambda clip, names, n: CoOp(clip, names, n_context=n),
    "csc": lambda clip, names, n: CoOp(clip, names, n_context=n, class_specific=True),
    "front": lambda clip, names, n: CoOp(clip, names, n_context=n, position="front"),
    "middle": lambda clip, names, n: CoOp(clip, names, n_context=n, position="middle"),
    "cocoop": lambda clip, names, n: CoCoOp(clip, names, n_context=n, ctx_init="" if n != 4 else "a photo of a"),
    "maple": lambda clip, names, n: MaPLe(clip, names, n_context=n, depth=min(9, clip.image.depth)),
    "ivlp": lambda clip, names, n: IVLP(
        clip, names, n_context=n, n_tokens=n, depth=clip.text.depth, image_depth=clip.image.depth
    ),
    "vpt_deep": lambda clip, names, n: VPT(clip, names, n_tokens=n, depth=clip.image.depth),
    "lora": lambda clip, names, n: scattered(LoRA(clip, names, rank=n)),
    "zero_shot": lambda clip, names, n: ZeroShot(clip, names, templates=list(ensemble("openai_80")[:N_TEMPLATES])),
}


def scattered(learner: Learner) -> Learner:
    """Its updates start at zero, where a wrong one would not show."""
    with torch.no_grad():
        for p in learner.parameters():
            if not p.any():
                p.normal_(0, 0.02)
    return learner


@dataclass(frozen=True)
class Sides:
    """Two ways to the same logits and gradients."""

    ours: Callable[[], Tensor]
    plain: Callable[[], Tensor]
    parameters: list[Tensor]
    frozen: list[Tensor]


@lru_cache(maxsize=1)
def random_clip(backbone: str, device: torch.device) -> Clip:
    """Random weights, norms and biases too, so that a wrongly folded one would show; logits at scale 100."""
    clip = load_clip(str(demo.BACKBONES.get(backbone, backbone)))
    generator = torch.Generator().manual_seed(1)
    model: Any = clip.weights.root
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 1:
                p.add_(0.1 * torch.randn(p.shape, generator=generator))
        model.logit_scale.fill_(math.log(100))
    return replace(clip, scale=math.exp(float(model.logit_scale))).to(device)


def class_names(n: int, backbone: str) -> list[str]:
    """Every k-th of ImageNet's; of the demo's, whose backbone knows no other words."""
    known = shapes.load().classes if backbone in demo.BACKBONES else IMAGENET_CLASSNAMES
    return list(known[:: len(known) // n][:n])


def sides(case: Case, device: torch.device) -> Sides:
    """Both sides of a case; each call is one step, or one forward pass where nothing is trained."""
    clip = random_clip(case.backbone, device)
    torch.manual_seed(0)
    names = class_names(case.classes, case.backbone)
    learner = MAKE[case.case if case.case in MAKE else case.method](clip, names, case.context).to(device)
    generator = torch.Generator().manual_seed(2)
    labels = torch.randint(case.classes, (case.batch,), generator=generator).to(device)
    wanted = given = draw_images(case, clip, generator)
    if case.case == "banked" or (case.case == "step" and case.method in FROM_FEATURES):
        with torch.no_grad():
            given = Images(features=clip.image(wanted))
    ours, plain = partial(logits_of, learner, given), partial(plain_logits(learner), wanted)
    parameters = list(learner.parameters())
    return Sides(
        ours=partial(step, ours, labels, parameters),
        plain=partial(step, plain, labels, parameters),
        parameters=parameters,
        frozen=list(clip.weights.root.parameters()),
    )


def logits_of(learner: Learner, images: Images) -> Tensor:
    """Logits, from the class names on where nothing is trained: what a learner would keep of them is what is timed."""
    if not any(p.requires_grad for p in learner.parameters()):
        learner.forget()
    return learner(images, learner.encode_classes())


def draw_images(case: Case, clip: Clip, generator: torch.Generator) -> Images:
    """A batch of noise: features where a case is about the text alone, else pixels."""
    if case.case in TEXT_ALONE:
        return Images(features=torch.randn(case.batch, clip.image.embed_dim, generator=generator).to(clip.device))
    shape = (case.batch, 3, clip.preprocess.size, clip.preprocess.size)
    return Images(torch.randn(shape, generator=generator).to(clip.device))


def step(logits: Callable[[], Tensor], labels: Tensor, parameters: list[Tensor]) -> Tensor:
    """Logits; the gradients of their mean cross-entropy are left in the parameters."""
    if not parameters:
        with torch.no_grad():
            return logits()
    for p in parameters:
        p.grad = None
    predicted = logits()
    F.cross_entropy(predicted, labels).backward()
    return predicted.detach()


def count_tokens(n_templates: int) -> float:
    """Tokens of ImageNet's classes in some templates, padded to 77, over those that the text tower computes."""
    text = random_clip("ViT-B-16-quickgelu", torch.device("cpu")).text
    assert text is not None
    computed = 0
    for template in ensemble("openai_80")[:n_templates]:
        prompts = text.prompts(list(IMAGENET_CLASSNAMES), template=template)
        computed += len(prompts.shared) + int((prompts.eot + 1).sum())
    return n_templates * len(IMAGENET_CLASSNAMES) * 77 / computed
