"""From the name of a model and of its weights to a frozen CLIP: open_clip's and timm's models, folders and files."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import open_clip
import timm
import torch
from open_clip.pretrained import download_pretrained_from_hf
from open_clip.tokenizer import HFTokenizer
from pydantic import BaseModel, ConfigDict, PositiveInt, ValidationError
from torch import Tensor, nn

from vlprompt.errors import UserError, unknown
from vlprompt.textfiles import path_of, read_json
from vlprompt.towers import timm_models
from vlprompt.towers.block import Weights
from vlprompt.towers.clip import Clip, build
from vlprompt.towers.preprocess import Preprocess, preprocess_of
from vlprompt.towers.weights import WordTable, check_finite, fetch, fit, read_state, reason_of

RANDOM, PRETRAINED = "random", "pretrained"
CONFIG_FILE = "open_clip_config.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "vocab.txt", "spiece.model")  # any of them
TOKENIZER_SETTINGS = {"clean", "strip_sep_token", "language"}  # others may have code of the model's authors run
N_WORDS = 49408  # of CLIP's tokenizer
WEIGHTS_FILE = "open_clip_model.safetensors"  # of a model in a folder


def load_clip(
    model: str, weights: str = RANDOM, *, seed: int = 0, images: Mapping[str, Any] = MappingProxyType({})
) -> Clip:
    """A frozen CLIP in float32 on the CPU.

    `model` is an open_clip architecture, `hf-hub:owner/name`, a folder with `open_clip_config.json` and
    `open_clip_model.safetensors`, or a vision transformer of timm's without a text tower: NAME, `timm:NAME`, or a
    folder with `config.json` and `model.safetensors`. `weights` is one of the architecture's tags, `pretrained` (a
    folder's or timm's own), the path of a file (open_clip's, OpenAI's or timm's format; safetensors, a state dict,
    OpenAI's TorchScript archive, or a NumPy archive of a ViT in JAX), or `random`. `images`: fields of `Preprocess`
    other than the model's own; `size` is for timm's alone.

    Raises:
        UserError: an unknown model or tag, weights that cannot be fetched or read, that do not fit, or that were
            trained with another activation; a size that the model does not take.
    """
    more = dict(images)
    size = more.pop("size", None)
    if holds_timm(model):
        clip = load_timm(model, weights, seed, size)
    else:
        clip = _load_open_clip(model, weights, seed)
        if size not in (None, clip.preprocess.size):
            raise UserError(
                f"backbone.images.size is {size}, and {model} takes images of {clip.preprocess.size} pixels: drop it "
                "(timm's models take other sizes)"
            )
    return replace(clip, preprocess=replace(clip.preprocess, **more)) if more else clip


def is_timm_folder(folder: Path) -> bool:
    """Whether a folder holds a model in timm's form rather than in open_clip's."""
    return timm_models.is_timm_folder(folder) and not (folder / CONFIG_FILE).is_file()


def files_of(folder: Path) -> tuple[Path, tuple[Path, ...]]:
    """What a folder of a model is built of: its own file of weights, and its other files that count."""
    if is_timm_folder(folder):
        return timm_models.weights_in(folder), (folder / timm_models.CONFIG,)
    return folder / WEIGHTS_FILE, tuple(folder / name for name in (CONFIG_FILE, *TOKENIZER_FILES))


def _load_open_clip(model: str, weights: str, seed: int) -> Clip:
    if Path(model).is_dir():
        return _load_folder(Path(model), weights, seed)
    if model.startswith("hf-hub:"):
        path = fetch(lambda: download_pretrained_from_hf(model.removeprefix("hf-hub:"), filename=CONFIG_FILE), model)
        read_config(Path(path))
        net = fetch(lambda: open_clip.create_model(model), model)
        check_finite(net.state_dict(), model)
        return clip_of(
            net, name=model, preprocess=preprocess_of(net.visual.preprocess_cfg), tokenizer=_tokenizer(model)
        )
    config = open_clip.get_model_config(model)
    if config is None:
        raise unknown_model(model)
    tags = open_clip.list_pretrained_tags_by_model(model)
    settings = open_clip.get_pretrained_cfg(model, weights if weights in tags else tags[0]) if tags else {}
    quick = bool(config.get("quick_gelu", False))
    if weights in tags:
        _check_activation(model, weights, quick, bool(settings.get("quick_gelu", False)))
    elif weights != RANDOM and not Path(weights).is_file():  # said before a large model is built
        raise unknown("weights", weights, [*tags, RANDOM], do="The path of a file is allowed too.")
    net = make_model(config, seed)
    if weights in tags:
        path = fetch(lambda: open_clip.download_pretrained(settings), f"{model}/{weights}")
        try:
            open_clip.load_checkpoint(net, path, strict=True, weights_only=True)
        except Exception as error:  # as for what cannot be fetched
            raise UserError(
                f"{path}, the weights {model}/{weights}, cannot be read ({reason_of(error)}): "
                "delete the file, so that it is fetched again"
            ) from None
        check_finite(net.state_dict(), f"{model}/{weights}")
    elif Path(weights).is_file():
        state, openai = read_state(Path(weights))
        if openai:
            _check_activation(model, weights, quick, True)
        fit(net, state, weights, model)
    preprocess = preprocess_of({**settings, "size": net.visual.image_size})
    return clip_of(net, name=f"{model}/{Path(weights).name}", preprocess=preprocess, tokenizer=_tokenizer(model))


def holds_timm(model: str) -> bool:
    """Whether a name or a folder is of a model of timm."""
    return is_timm_folder(Path(model)) if Path(model).is_dir() else timm_models.is_timm(model)


def has_text(model: str) -> bool:
    """Whether `load_clip` gives a text tower for a name, or for a folder, be it below ~; nothing is loaded."""
    return not holds_timm(str(path_of(model)))


def check_model(model: str) -> None:
    """Refuse a name or a folder of no model, be it below ~; nothing is loaded, nor is the hub asked for its names."""
    model = str(path_of(model))
    known = Path(model).is_dir() or model.startswith("hf-hub:") or holds_timm(model)
    if not known and open_clip.get_model_config(model) is None:
        raise unknown_model(model)


def unknown_model(model: str) -> UserError:
    """A path where no folder is, or a name that neither library has, with those near it of the one it is spelt like."""
    if Path(model).is_absolute() or model.startswith("."):
        return UserError(f"there is no folder '{model}': give one with {CONFIG_FILE} or timm's config.json, or a name")
    if model == model.lower() and "_" in model:
        do = "These are timm's; open_clip.list_models() lists CLIPs, and a folder or hf-hub:owner/name is allowed too."
        return unknown("model", model, timm_models.near(model), do=do)
    do = "open_clip.list_models() lists all; timm's names, a folder and hf-hub:owner/name will do, too."
    return unknown("model", model, open_clip.list_models(), do=do, most=12)


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
        if not timm.is_model(name := config["vision_cfg"]["timm_model_name"]):  # such as one of a hub, to be fetched
            raise UserError(f"the image tower is '{name}', allowed is a name that timm.list_models() has")
        config["vision_cfg"]["timm_model_pretrained"] = False
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return (open_clip.CustomTextCLIP if custom else open_clip.CLIP)(**config)


def load_timm(model: str, weights: str, seed: int, size: int | None) -> Clip:
    """timm's vision transformer with its classifier taken off; the features are what it would read."""
    net, preprocess = timm_models.make(model, weights, seed=seed, pretrained=PRETRAINED, random=RANDOM, size=size)
    name = Path(model).name if Path(model).is_dir() else model.removeprefix(timm_models.PREFIX)
    return build(Weights(net), name=f"{name}/{Path(weights).name}", preprocess=preprocess, words=None)


def _load_folder(folder: Path, weights: str, seed: int) -> Clip:
    config, settings = read_folder(folder)
    try:
        net = make_model(config, seed)
    except UserError:
        raise
    except Exception as error:  # open_clip takes any mapping, and fails in as many ways
        raise wrong_folder(folder, " ".join(f"{type(error).__name__}: {error}".split())[:200].rstrip(":")) from None
    preprocess = preprocess_of({**settings, "size": net.visual.image_size})
    conv = getattr(net.visual, "conv1", None)
    if conv is not None and max(conv.kernel_size) > preprocess.size:
        raise wrong_folder(folder, f"its patches are larger than its images of {preprocess.size} pixels")
    tokenizer = tokenizer_in(folder, config["text_cfg"])
    n_words, needed = config["text_cfg"].get("vocab_size", N_WORDS), getattr(tokenizer, "vocab_size", 0)
    if n_words < needed:
        raise wrong_folder(folder, f"text_cfg.vocab_size is {n_words}, and the tokenizer has {needed} words")
    words = None
    if weights != RANDOM:
        file = folder / WEIGHTS_FILE if weights == PRETRAINED else Path(weights)
        if weights != PRETRAINED and not file.is_file():
            raise unknown("weights", weights, [PRETRAINED, RANDOM], do="The path of a file is allowed too.")
        if not file.is_file():
            raise UserError(f"{file} is missing: put the weights there, or use backbone.weights=random")
        state, openai = read_state(file)
        if openai and not config.get("quick_gelu"):
            raise wrong_folder(folder, f"quick_gelu is not true, and {file} was trained with QuickGELU")
        words = state.pop("token_embedding.ids", None)
        if words is not None:  # only the rows in use are stored
            state["token_embedding.weight"] = whole_table(state, words, n_words, file)
        fit(net, state, str(file), folder.name)
    return clip_of(net, name=folder.name, preprocess=preprocess, tokenizer=tokenizer, words=words)


def whole_table(state: Mapping[str, Tensor], words: Tensor, n_words: int, file: Path) -> Tensor:
    """The table of token embeddings [n_words, d] that a part of its rows belongs to, zeros elsewhere."""
    rows = state.get("token_embedding.weight")
    if rows is None or rows.ndim != 2 or words.shape != rows.shape[:1] or not 0 <= words.min() <= words.max() < n_words:
        raise UserError(f"token_embedding.ids in {file} are not {n_words} words' at most: fetch the file again")
    return torch.zeros(n_words, rows.shape[1]).index_copy(0, words.long(), rows.float())


def read_folder(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The configurations of a model in a folder and of its images. Raises: UserError where a CLIP needs others."""
    config, settings = read_config(folder / CONFIG_FILE)
    if config["text_cfg"].get("hf_tokenizer_name") and not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise wrong_folder(folder, f"it names a tokenizer, whose files are not there: {', '.join(TOKENIZER_FILES)}")
    return config, settings


def read_config(file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The configurations of a model and of its images. Raises: UserError where a CLIP needs others."""
    content = read_json(file)
    try:
        _File.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"] if str(part).isidentifier() and part != "int")
        what = "it should be an object" if first["type"] in ("model_type", "dict_type") else first["msg"]
        raise wrong_folder(file.parent, f"{where}: {what}".removeprefix(": ")) from None
    config, settings = content["model_cfg"], content.get("preprocess_cfg", {})
    if more := set(config["text_cfg"].get("tokenizer_kwargs", {})) - TOKENIZER_SETTINGS:  # trust_remote_code is one
        raise wrong_folder(file.parent, f"text_cfg.tokenizer_kwargs has {', '.join(sorted(more))}, not supported")
    return config, settings


def tokenizer_in(folder: Path, config: Mapping[str, Any]) -> Any:
    """The tokenizer of a model in a folder: CLIP's, or that of the folder's files. Raises: UserError."""
    settings: dict[str, Any] = {
        "context_length": config.get("context_length", 77),
        **config.get("tokenizer_kwargs", {}),
    }
    try:
        if config.get("hf_tokenizer_name"):
            settings["trust_remote_code"] = False  # else Transformers asks whether to run the folder's code
            return HFTokenizer(str(folder), tokenizer_mode=config.get("tokenizer_mode"), **settings)
        return open_clip.SimpleTokenizer(**settings)
    except Exception as error:  # as for what cannot be fetched
        raise UserError(f"the tokenizer in {folder} cannot be used ({reason_of(error)}): correct its files") from None


def wrong_folder(folder: Path, why: str) -> UserError:
    return UserError(f"{folder} is no open_clip folder: {CONFIG_FILE} cannot be used ({why}); correct it")


class _Part(BaseModel):
    """What is checked of a part of `open_clip_config.json`; open_clip knows the other keys."""

    model_config = ConfigDict(strict=True, extra="allow")


class _Vision(_Part):
    image_size: PositiveInt | list[PositiveInt] = 224
    patch_size: PositiveInt | list[PositiveInt] | None = None
    width: PositiveInt = 768
    layers: PositiveInt | list[PositiveInt] = 12


class _Text(_Part):
    context_length: PositiveInt = 77
    vocab_size: PositiveInt = N_WORDS
    width: PositiveInt = 512
    heads: PositiveInt = 8
    layers: PositiveInt = 12
    tokenizer_kwargs: dict[str, Any] = {}


class _Model(_Part):
    embed_dim: PositiveInt
    vision_cfg: _Vision
    text_cfg: _Text


class _File(_Part):
    model_cfg: _Model
    preprocess_cfg: dict[str, Any] = {}


def _check_activation(model: str, weights: str, have: bool, need: bool) -> None:
    if have != need:
        names = ("GELU", "QuickGELU")
        other = model + "-quickgelu" if need else model.removesuffix("-quickgelu")
        raise UserError(
            f"{model} computes {names[have]}, but the weights '{weights}' were trained with {names[need]}, which would "
            f"silently cost accuracy: use backbone.model={other}"
        )


def _tokenizer(model: str) -> Any:
    try:
        text = (open_clip.get_model_config(model) or {}).get("text_cfg", {})
        # a folder's or a hub's configuration could have Transformers run code that lies next to it
        more = {"trust_remote_code": False} if text.get("hf_tokenizer_name") else {}
        return open_clip.get_tokenizer(model, **more)
    except ModuleNotFoundError as error:
        raise UserError(f"the tokenizer of {model} needs {error.name}: pip install {error.name}") from None
    except Exception as error:  # as above
        raise UserError(f"the tokenizer of {model} could not be fetched ({type(error).__name__})") from error
