"""The shape of a CLIP, read from its configuration: no weights are loaded or fetched."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip

from vlprompt.towers.loading import is_timm_folder, read_folder, unknown_model
from vlprompt.towers.preprocess import Preprocess, preprocess_of
from vlprompt.towers.timm_models import is_timm


@dataclass(frozen=True)
class Geometry:
    """Widths and numbers of blocks. An image tower without blocks to edit (a ResNet) has no width and no depth here."""

    embed_dim: int
    text_width: int
    text_depth: int
    image_width: int | None
    image_depth: int | None
    preprocess: Preprocess


def read_geometry(model: str, weights: str) -> Geometry | None:
    """The shape of `model` as `load_clip` would build it; None where only its weights or a hub would tell.

    Raises:
        UserError: an unknown model, or a folder whose configuration cannot be read.
    """
    folder = Path(model)
    if (folder.is_dir() and is_timm_folder(folder)) or model.startswith("hf-hub:") or is_timm(model):
        return None
    if folder.is_dir():
        config, settings = read_folder(Path(model))
    else:
        config = open_clip.get_model_config(model)
        if config is None:
            raise unknown_model(model)
        tags = open_clip.list_pretrained_tags_by_model(model)
        settings = open_clip.get_pretrained_cfg(model, weights if weights in tags else tags[0]) if tags else {}
    return _measure(config, settings)


def _measure(config: dict[str, Any], settings: dict[str, Any]) -> Geometry | None:
    image, text = config["vision_cfg"], config["text_cfg"]
    if "hf_model_name" in text:
        return None
    # open_clip's own defaults, for the keys that a configuration may leave out
    layers = image.get("layers", 12)
    blocks = isinstance(layers, int) and "timm_model_name" not in image
    return Geometry(
        embed_dim=config["embed_dim"],
        text_width=text.get("width", 512),
        text_depth=text.get("layers", 12),
        image_width=image.get("width", 768) if blocks else None,
        image_depth=layers if blocks else None,
        preprocess=preprocess_of({**settings, "size": image.get("image_size", 224)}),
    )
