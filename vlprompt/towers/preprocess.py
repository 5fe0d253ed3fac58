"""How a model wants its images, from the settings of open_clip, of timm, or of the user."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from vlprompt.errors import UserError, unknown

CHOICES = {"interpolation": ("bicubic", "bilinear", "random"), "resize_mode": ("shortest", "squash")}
CROP_MODES = {"center": "shortest", "squash": "squash"}  # timm's words for the same


@dataclass(frozen=True)
class Preprocess:
    """How the model wants its images: size in pixels, channel mean and deviation on [0, 1], and the way to resize.

    The test's centre crop keeps `crop_pct` of the resized image's side: it is resized to size / crop_pct before.
    """

    size: int = 224
    mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    resize: Literal["shortest", "squash"] = "shortest"
    crop_pct: float = 1.0

    def __str__(self) -> str:
        """Names caches: without what came later, where that is as it was."""
        return repr(self).replace(", crop_pct=1.0)", ")")


def preprocess_of(settings: Mapping[str, Any]) -> Preprocess:
    """How images are prepared, from open_clip's or timm's settings of a model; CLIP's own where they are silent.

    Raises:
        UserError: images that are not square, or another setting that is not supported.
    """
    size = settings.get("size", 224)
    sides = list(size) if isinstance(size, Sequence) else [size]
    if len(set(sides)) != 1:
        raise UserError(f"the model's images are of {sides} pixels, allowed are square ones: choose another model")
    default = Preprocess()
    mean, std = (settings.get(name) or getattr(default, name) for name in ("mean", "std"))
    for name, values in (("mean", mean), ("std", std)):
        numbers = [v for v in values if isinstance(v, int | float)] if isinstance(values, Sequence) else []
        if len(numbers) != 3 or not all(map(math.isfinite, numbers)) or (name == "std" and min(numbers) <= 0):
            raise UserError(f"the model's {name} is {values}, allowed are three numbers: of red, green and blue")
    for name, choices in CHOICES.items():
        if settings.get(name) not in (None, *choices):
            raise unknown(f"{name} of the model's images", settings[name], choices)
    crop_pct = settings.get("crop_pct") or default.crop_pct
    if not isinstance(crop_pct, int | float) or not 0 < crop_pct <= 1:
        raise UserError(f"the model's crop_pct is {crop_pct}, allowed is a share: above 0, at most 1")
    return Preprocess(
        size=int(sides[0]),
        mean=tuple(mean),
        std=tuple(std),
        interpolation="bilinear" if settings.get("interpolation") == "bilinear" else "bicubic",
        resize="squash" if settings.get("resize_mode") == "squash" else "shortest",
        crop_pct=float(crop_pct),
    )


def from_timm(settings: Mapping[str, Any]) -> dict[str, Any]:
    """timm's settings of a model's images under open_clip's names. Raises: UserError for another `crop_mode`."""
    mode = settings["crop_mode"]
    if mode not in CROP_MODES:
        raise unknown("crop_mode of the model's images", mode, CROP_MODES)
    same = {name: settings[name] for name in ("mean", "std", "interpolation", "crop_pct")}
    return same | {"size": settings["input_size"][1:], "resize_mode": CROP_MODES[mode]}
