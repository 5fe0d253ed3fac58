"""From the name of a model and of its weights to a frozen CLIP: open_clip's and timm's models, folders and files."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import open_clip
import timm
import torch
from torch import Tensor, nn

from vlprompt.errors import UserError, unknown
from vlprompt.towers.block import Weights
from vlprompt.towers.clip import Clip, Preprocess, build
from vlprompt.towers.weights import WordTable, read_state

RANDOM, PRETRAINED = "random", "pretrained"
WEIGHTS_FILE = "open_clip_model.safetensors"  # of a model in a folder


def load_clip(model: str, weights: str = RANDOM, *, seed: int = 0) -> Clip:
    """A frozen CLIP in float32 on the CPU.

    `model` is an open_clip architecture, `hf-hub:owner/name`, a folder with `open_clip_config.json` and
    `open_clip_model.safetensors`, or `timm:NAME`, a vision transformer without a text tower. `weights` is one of the
    architecture's tags, `pretrained` (a folder's or timm's own), the path of a file (open_clip's or OpenAI's format;
    safetensors, a state dict, or OpenAI's TorchScript archive), or `random`.

    Raises:
        UserError: an unknown model or tag, weights that cannot be fetched or read, that do not fit, or that were
            trained with another activation.
    """
    if Path(model).is_dir():
        return _load_folder(Path(model), weights, seed)
    if model.startswith("timm:"):
        return _load_timm(model.removeprefix("timm:"), weights, seed)
    if model.startswith("hf-hub:"):
        net = _fetch(lambda: open_clip.create_model(model), model)
        return clip_of(
            net, name=model, preprocess=preprocess_of(net.visual.preprocess_cfg), tokenizer=_tokenizer(model)
        )
    config = open_clip.get_model_config(model)
    if config is None:
        raise unknown("model", model, open_clip.list_models(), do="A folder or hf-hub:owner/name is allowed too.")
    tags = open_clip.list_pretrained_tags_by_model(model)
    settings = open_clip.get_pretrained_cfg(model, weights if weights in tags else tags[0]) if tags else {}
    quick = bool(config.get("quick_gelu", False))
    if weights in tags:
        _check_activation(model, weights, quick, bool(settings.get("quick_gelu", False)))
    net = make_model(config, seed)
    if weights in tags:
        path = _fetch(lambda: open_clip.download_pretrained(settings), f"{model}/{weights}")
        open_clip.load_checkpoint(net, path, strict=True, weights_only=True)
    elif Path(weights).is_file():
        state, openai = read_state(Path(weights))
        if openai:
            _check_activation(model, weights, quick, True)
        fit(net, state, weights, model)
    elif weights != RANDOM:
        raise unknown("weights", weights, [*tags, RANDOM], do="The path of a file is allowed too.")
    preprocess = preprocess_of({**settings, "size": net.visual.image_size})
    return clip_of(net, name=f"{model}/{Path(weights).name}", preprocess=preprocess, tokenizer=_tokenizer(model))


def clip_of(net: nn.Module, *, name: str, preprocess: Preprocess, tokenizer: Any, words: Tensor | None = None) -> Clip:
    """A frozen CLIP over an open_clip model at hand. `words`: token ids that have embeddings (None: all)."""
    return build(Weights(net), name=name, preprocess=preprocess, words=WordTable(tokenizer, words))


def make_model(config: Mapping[str, Any], seed: int = 0) -> Any:
    """An open_clip model with random weights from its configuration, whatever the global random state."""
    config = json.loads(json.dumps(dict(config)))
    assert isinstance(config, dict)
    if "multimodal_cfg" in config or "hf_model_name" in config["text_cfg"]:
        raise UserError("models with a captioner (CoCa) or a Hugging Face text tower are not supported: choose another")
    custom = config.pop("custom_text", False)
    if "timm_model_name" in config["vision_cfg"]:
        config["vision_cfg"]["timm_model_pretrained"] = False
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return (open_clip.CustomTextCLIP if custom else open_clip.CLIP)(**config)


def _load_timm(name: str, weights: str, seed: int) -> Clip:
    """timm's vision transformer with its classifier taken off; the features are what it would read."""
    if not timm.is_model(name):
        near = timm.list_models(f"*{name.split('.')[0][:8]}*")
        raise unknown("timm model", name, near or ["vit_base_patch16_224"], do="timm.list_models() lists all.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = _fetch(lambda: timm.create_model(name, pretrained=weights == "pretrained", num_classes=0), name)
    if Path(weights).is_file():
        state, _ = read_state(Path(weights))
        fit(net, {k: t for k, t in state.items() if not k.startswith("head.")}, weights, name)
    elif weights not in ("pretrained", RANDOM):
        raise unknown("weights", weights, ["pretrained", RANDOM], do="The path of a file is allowed too.")
    settings = {**net.pretrained_cfg, "size": net.pretrained_cfg["input_size"][-1]}
    return build(Weights(net), name=f"{name}/{Path(weights).name}", preprocess=preprocess_of(settings), words=None)


def _load_folder(folder: Path, weights: str, seed: int) -> Clip:
    try:
        config = json.loads((folder / "open_clip_config.json").read_text(encoding="utf-8"))
        net = make_model(config["model_cfg"], seed)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder} is no open_clip folder: open_clip_config.json cannot be used ({error})") from None
    words = None
    if weights != RANDOM:
        file = folder / WEIGHTS_FILE if weights == PRETRAINED else Path(weights)
        if weights != PRETRAINED and not file.is_file():
            raise unknown("weights", weights, [PRETRAINED, RANDOM], do="The path of a file is allowed too.")
        if not file.is_file():
            raise UserError(f"{file} is missing: put the weights there, or use backbone.weights=random")
        state, _ = read_state(file)
        words = state.pop("token_embedding.ids", None)
        if words is not None:  # only the rows in use are stored
            rows = state["token_embedding.weight"]
            table = torch.zeros(config["model_cfg"]["text_cfg"]["vocab_size"], rows.shape[1])
            state["token_embedding.weight"] = table.index_copy(0, words.long(), rows.float())
        fit(net, state, str(file), folder.name)
    preprocess = preprocess_of({**config.get("preprocess_cfg", {}), "size": net.visual.image_size})
    return clip_of(
        net, name=folder.name, preprocess=preprocess, tokenizer=_tokenizer(f"local-dir:{folder}"), words=words
    )


def fit(net: nn.Module, state: Mapping[str, Tensor], weights: str, model: str) -> None:
    """Load a state dict strictly.

    Raises:
        UserError: naming the first tensors that are missing, unexpected or of another shape.
    """
    expected = net.state_dict()
    wrong = [f"'{k}' is {list(state[k].shape)}, needed {list(expected[k].shape)}" for k in expected
             if k in state and state[k].shape != expected[k].shape]  # fmt: skip
    wrong += [f"'{k}' is missing" for k in expected if k not in state]
    wrong += [f"'{k}' is not part of the model" for k in state if k not in expected]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise UserError(
            f"the weights {weights} do not fit {model}: {'; '.join(wrong[:3])}{more}; choose the architecture that "
            "they were made with (backbone.model)"
        )
    net.load_state_dict(state)


def _check_activation(model: str, weights: str, have: bool, need: bool) -> None:
    if have != need:
        names = ("GELU", "QuickGELU")
        other = model + "-quickgelu" if need else model.removesuffix("-quickgelu")
        raise UserError(
            f"{model} computes {names[have]}, but the weights '{weights}' were trained with {names[need]}, which would "
            f"silently cost accuracy: use backbone.model={other}"
        )


def _fetch(get: Callable[[], Any], what: str) -> Any:
    try:
        return get()
    except Exception as error:  # the hub's client raises dozens of kinds, all meaning the same here
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"the weights {what} could not be fetched ({reason}): connect this machine to the network, or give a "
            "file with backbone.weights=PATH"
        ) from error


def _tokenizer(model: str) -> Any:
    try:
        return open_clip.get_tokenizer(model)
    except Exception as error:  # as above
        raise UserError(f"the tokenizer of {model} could not be fetched ({type(error).__name__})") from error


def preprocess_of(settings: Mapping[str, Any]) -> Preprocess:
    """How images are prepared, from open_clip's or timm's settings of a model; CLIP's own where they are silent."""
    size = settings.get("size", 224)
    size = size[0] if isinstance(size, Sequence) else size
    default = Preprocess()
    return Preprocess(
        size=int(size),
        mean=tuple(settings.get("mean") or default.mean),
        std=tuple(settings.get("std") or default.std),
        interpolation="bilinear" if settings.get("interpolation") == "bilinear" else "bicubic",
        resize="squash" if settings.get("resize_mode") == "squash" else "shortest",
    )
