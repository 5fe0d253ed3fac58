"""A random CLIP that is built in memory within a second, for checks of methods and towers."""

from collections.abc import Mapping
from typing import Any

import open_clip
import torch

from vlprompt.towers.clip import Clip
from vlprompt.towers.loading import clip_of, make_model
from vlprompt.towers.preprocess import Preprocess

TEXT = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 3}
VISION = {"image_size": 32, "patch_size": 8, "width": 48, "head_width": 16, "layers": 3}
VIT = {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT, "quick_gelu": True}
RESNET = VIT | {"vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None}}


def with_layers(config: Mapping[str, Any], n: int) -> dict[str, Any]:
    """The configuration with `n` blocks in the text tower, and in the image tower where this is a ViT."""
    vision = config["vision_cfg"] | ({"layers": n} if isinstance(config["vision_cfg"]["layers"], int) else {})
    return {**config, "vision_cfg": vision, "text_cfg": config["text_cfg"] | {"layers": n}}


def tiny_clip(config: Mapping[str, Any] = VIT, *, name: str = "tiny", dtype: torch.dtype = torch.float32) -> Clip:
    """A CLIP of open_clip's configuration with random weights, norms and biases included, whatever the random state.

    Widths of image, text and embedding all differ, so that mixing them up shows.
    """
    model = make_model(config).eval().to(dtype)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter_name, p in model.named_parameters():
            if p.ndim == 1 and "logit" not in parameter_name:
                p.add_(0.1 * torch.randn(p.shape, generator=generator).to(p))
    size = model.visual.image_size
    preprocess = Preprocess(size=size[0] if isinstance(size, tuple) else size)
    tokenizer = open_clip.SimpleTokenizer(context_length=config["text_cfg"]["context_length"])
    return clip_of(model, name=name, preprocess=preprocess, tokenizer=tokenizer)
