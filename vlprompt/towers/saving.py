"""A model as a folder that open_clip reads."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import open_clip
import safetensors.torch

from vlprompt.errors import UserError
from vlprompt.towers.clip import Clip
from vlprompt.towers.loading import CONFIG_FILE, WEIGHTS_FILE, unknown_model
from vlprompt.towers.weights import fetch


def save_open_clip(clip: Clip, model: str, folder: Path, more: Mapping[str, Any]) -> None:
    """Write a CLIP's configuration, its weights and, where it is no CLIP's own, its tokenizer.

    `model` is what it was built by: a name of open_clip's, a folder, or `hf-hub:owner/name`. `more`: further objects of
    the configuration, which open_clip does not read.

    Raises:
        UserError: a model without a text tower, or with a tokenizer that open_clip would not find.
    """
    if clip.words is None:
        raise UserError(f"{clip.name} has no text tower, and open_clip's models have two: use --to onnx")
    pre, config = clip.preprocess, model_config(model)
    named, tokenizer = config["text_cfg"].get("hf_tokenizer_name"), clip.words.tokenizer
    if not named and not isinstance(tokenizer, open_clip.SimpleTokenizer):
        raise UserError(f"{clip.name} has a tokenizer of its own that open_clip reads from no folder: use --to hub")
    if named:
        tokenizer.save_pretrained(str(folder))
    images: dict[str, Any] = {"size": [pre.size, pre.size], "mean": pre.mean, "std": pre.std}
    images |= {"interpolation": pre.interpolation, "resize_mode": pre.resize}
    content = {"model_cfg": config, "preprocess_cfg": images, **more}
    (folder / CONFIG_FILE).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    tensors = {name: t.cpu().contiguous().clone() for name, t in clip.state_dict().items()}
    safetensors.torch.save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})


def model_config(model: str) -> dict[str, Any]:
    """open_clip's configuration of a model: of a name, a folder, or `hf-hub:owner/name`. Raises: UserError."""
    name = f"local-dir:{model}" if Path(model).is_dir() else model
    config: dict[str, Any] | None = fetch(lambda: open_clip.get_model_config(name), model)
    if config is None:
        raise unknown_model(model)
    return config
