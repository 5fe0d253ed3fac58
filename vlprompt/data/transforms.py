"""What happens to an image before a tower sees it, and the seeds of what is random in that."""

import hashlib
import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import v2 as transforms

from vlprompt.towers import Preprocess


def seed_of(*parts: object) -> int:
    """A 63-bit seed from values, the same on every machine; changing one part changes all."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def eval_transform(pre: Preprocess) -> transforms.Compose:
    """One centre crop, as bytes, of an image resized with antialiasing.

    Its shorter side (or both, where the model was trained so) becomes size / crop_pct, rounded down as in timm.
    """
    mode = InterpolationMode(pre.interpolation)
    side = math.floor(pre.size / pre.crop_pct)
    size = [side, side] if pre.resize == "squash" else side
    resize = transforms.Resize(size, interpolation=mode, antialias=True)
    return transforms.Compose([resize, transforms.CenterCrop(pre.size), transforms.PILToTensor()])


@dataclass(frozen=True)
class Augment:
    """Random views: share of the area that a crop keeps (at a shape of 3/4 to 4/3), and probability of a flip.

    `crop`: "center" keeps a test's centre crop, of which no share is drawn. `augmix`: the view is mixed with three
    chains of one to three operations at severity 1, as TPT has it (AugMix: Hendrycks et al., ICLR 2020). The defaults
    are those of CoOp and all that follow it; Tip-Adapter keeps at least half of the area.
    """

    scale: tuple[float, float] = (0.08, 1.0)
    flip: float = 0.5
    crop: Literal["random", "center"] = "random"
    augmix: bool = False


PUBLISHED = Augment()


def train_transform(pre: Preprocess, augment: Augment = PUBLISHED) -> transforms.Compose:
    """A random view, as bytes, resized as the model wants it; the share that a test crops is no part of it."""
    mode = InterpolationMode(pre.interpolation)
    crop = [transforms.RandomResizedCrop(pre.size, scale=augment.scale, interpolation=mode, antialias=True)]
    if augment.crop == "center":
        crop = eval_transform(pre).transforms[:-1]
    bilinear = InterpolationMode.BILINEAR  # bytes are not turned or sheared otherwise
    mixed = [transforms.AugMix(severity=1, all_ops=False, interpolation=bilinear)] if augment.augmix else []
    flip = transforms.RandomHorizontalFlip(augment.flip)
    return transforms.Compose([*crop, flip, transforms.PILToTensor(), *mixed])


def normalise(pixels: UInt8[Tensor, "B 3 H W"], pre: Preprocess) -> Float[Tensor, "B 3 H W"]:
    """Bytes to what the model was trained on. A batch at a time: the same numbers as image by image, much sooner."""
    mean, std = (torch.tensor(values, device=pixels.device)[:, None, None] for values in (pre.mean, pre.std))
    return pixels.to(torch.float32).div_(255).sub_(mean).div_(std)
