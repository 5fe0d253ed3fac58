"""A frozen CLIP: two towers, the scale of their cosine, and how images are prepared for it."""

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import open_clip
import timm
import torch
from jaxtyping import Float
from torch import Tensor, nn

from vlprompt.errors import UserError, unknown
from vlprompt.towers.block import Weights, view
from vlprompt.towers.image import ImageTower, image_tower, timm_vit
from vlprompt.towers.quantization import Format, Quantized, count_bytes, quantize
from vlprompt.towers.text import TextTower
from vlprompt.towers.weights import WordTable, read_state

RANDOM, PRETRAINED = "random", "pretrained"
WEIGHTS_FILE = "open_clip_model.safetensors"  # of a model in a folder
SCALES = ("logit_scale", "logit_bias")  # parameters of no tower


@dataclass(frozen=True)
class Preprocess:
    """How the model wants its images: size in pixels, channel mean and deviation on [0, 1], and the way to resize."""

    size: int = 224
    mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    resize: Literal["shortest", "squash"] = "shortest"


@dataclass(frozen=True, eq=False)
class Clip:
    """A frozen model. A plain object: what a learner trains never includes any of it."""

    image: ImageTower
    text: TextTower | None  # None for a plain vision transformer
    scale: float  # exp(logit_scale)
    name: str
    preprocess: Preprocess
    weights: Weights
    words: WordTable | None = None  # None where there is no text tower
    text_chunk: int | None = None  # classes whose activations the text tower keeps for backward; None: all
    quantization_error: float | None = None  # relative L2 error of the matrices that are kept in 4 bits; None: none are

    def tensors(self, tower: Literal["image", "text"]) -> dict[str, Tensor]:
        """All parameters of one tower, under the names of the model's own state dict."""
        names = [name for name, _ in self.weights.root.named_parameters() if name not in SCALES]
        return {name: self.weights.tensor(name) for name in names if self._is_image(name) == (tower == "image")}

    def _is_image(self, name: str) -> bool:
        return self.words is None or name.startswith("visual.")

    def with_weights(self, tensors: Mapping[str, Tensor]) -> "Clip":
        """The same towers reading these tensors instead, under the names of the model's own state dict.

        Raises:
            UserError: a name or a shape that the model does not have.
        """
        known = self.weights.root.state_dict()
        for name, tensor in tensors.items():
            if name not in known:
                raise unknown("weight", name, known)
            if (own := self.weights.tensor(name)).shape != tensor.shape:
                raise UserError(f"weight '{name}' is {list(own.shape)} in the model, got {list(tensor.shape)}")
        changed = self._over({**self.weights.replaced, **tensors})
        changed.image.frozen = self.image.frozen and not any(map(self._is_image, tensors))
        return changed

    def _over(self, replaced: Mapping[str, Tensor]) -> "Clip":
        """The same model with these tensors in the place of its own."""
        weights = replace(self.weights, replaced=replaced)
        made = build(weights, name=self.name, preprocess=self.preprocess, words=self.words, text_chunk=self.text_chunk)
        return replace(made, quantization_error=self.quantization_error)

    def quantized(self, format: Format) -> "Clip":
        """The same model with the matrices of all blocks in 4 bits. Its own are let go, so this one is of no use then.

        Raises:
            UserError: bitsandbytes is not installed.
        """
        blocks = [*self.image.blocks, *(self.text.blocks if self.text else ())]
        names = dict.fromkeys(matrix.name for block in blocks for matrix in block.matrices.values())
        tensors, error = quantize({name: self.weights.tensor(name) for name in names}, format)
        for name in names:
            self.weights.root.get_parameter(name).data = torch.empty(0, device=self.device)
        return replace(self._over({**self.weights.replaced, **tensors}), quantization_error=error)

    @property
    def n_bytes(self) -> int:
        """Memory that the weights take."""
        return count_bytes([*self.weights.root.state_dict().values(), *self.weights.replaced.values()])

    def merge(self, deltas: Mapping[tuple[str, int, str], Float[Tensor, "n_out n_in"]]) -> "Clip":
        """The same towers with matrices added to linear maps, by tower ("image", "text"), layer and edit site."""
        tensors: dict[str, Tensor] = {}
        for (tower, layer, site), delta in deltas.items():
            blocks = self.image.blocks if tower == "image" or self.text is None else self.text.blocks
            matrix = blocks[layer].matrices[site]
            whole = tensors.setdefault(matrix.name, self.weights.tensor(matrix.name).clone())
            whole[matrix.rows] += delta.to(whole.dtype)
        return self.with_weights(tensors)

    def to(self, device: torch.device | str) -> "Clip":
        """The same model, moved (the borrowed modules move with it)."""
        self.weights.root.to(device)
        moved = self._over({
            name: t.moved(device) if isinstance(t, Quantized) else t.to(device)
            for name, t in self.weights.replaced.items()
        })  # fmt: skip
        moved.image.frozen = self.image.frozen
        return moved

    def with_text_chunk(self, n_classes: int | None) -> "Clip":
        """The same model, whose text tower keeps the activations of so many classes at a time; None: of all."""
        made = replace(self, text_chunk=n_classes)._over(self.weights.replaced)
        made.image.frozen = self.image.frozen
        return made

    @cached_property
    def image_fingerprint(self) -> str:
        """sha256 of the image tower's weights."""
        own = self.weights.below("visual") if self.words is not None else self.weights
        digest = hashlib.sha256(type(own.module).__name__.encode())
        for name in own.module.state_dict():
            tensor = own.tensor(name)
            tensor = (tensor.plain() if isinstance(tensor, Quantized) else tensor).detach().cpu().contiguous()
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
            digest.update(tensor.flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    @property
    def device(self) -> torch.device:
        return next(self.weights.root.parameters()).device


def build(
    weights: Weights, *, name: str, preprocess: Preprocess, words: WordTable | None, text_chunk: int | None = None
) -> Clip:
    """The towers over an open_clip or timm model, whose parameters no longer ask for gradients."""
    weights.root.eval().requires_grad_(False)
    model: Any = weights.root
    return Clip(
        image=timm_vit(weights) if words is None else image_tower(weights.below("visual")),
        text=None if words is None else _text_tower(weights, words, text_chunk),
        scale=1.0 if words is None else math.exp(float(model.logit_scale)),
        name=name,
        preprocess=preprocess,
        weights=weights,
        words=words,
        text_chunk=text_chunk,
    )


def _text_tower(weights: Weights, words: WordTable, chunk: int | None) -> TextTower:
    if hasattr(weights.root, "text"):
        weights = weights.below("text")
        text: Any = weights.module
        pool, eos = getattr(text, "pool_type", "?"), getattr(text, "eos_id", -1)
    else:
        text = weights.module
        pool, eos = getattr(text, "text_pool_type", "argmax"), getattr(text, "text_eos_id", -1)
    kind = type(text).__name__
    if kind not in ("CLIP", "TextTransformer") or getattr(text, "cls_emb", None) is not None:
        raise UserError(f"text towers of kind {kind} are not supported: choose a model with open_clip's own text tower")
    if getattr(text, "use_pad_mask", False) or pool not in ("argmax", "eos", "last"):
        raise UserError(f"text towers with padding masks or '{pool}' pooling are not supported: choose another model")
    causal = text.attn_mask is not None
    embed, final = weights.call("token_embedding"), weights.call("ln_final")
    linear = isinstance(text.text_projection, nn.Linear)

    def read(ids: Tensor) -> Tensor:
        if pool == "last":
            return torch.full((len(ids),), ids.shape[1] - 1)
        return ids.argmax(-1) if pool == "argmax" else ids.eq(eos).int().argmax(-1)

    def project(x: Tensor) -> Tensor:
        x = final(x)
        if linear:
            return weights.call("text_projection")(x)
        return x if text.text_projection is None else x @ weights.tensor("text_projection")

    positions = weights.tensor("positional_embedding")
    return TextTower(
        tokenize=words.tokenize,
        count=words.count,
        embed=lambda ids: embed(ids.to(positions.device)),
        positions=positions,
        blocks=tuple(view(weights.below(f"transformer.resblocks.{i}")) for i in range(len(text.transformer.resblocks))),
        project=project,
        read=read,
        causal=causal,
        first=1 if causal else 0,
        width=positions.shape[1],
        embed_dim=count_outputs(text.text_projection, positions.shape[1]),
        chunk=chunk,
    )


def count_outputs(projection: nn.Linear | Tensor | None, width: int) -> int:
    """Features that come out of a final projection, which may be a module, a matrix or missing."""
    if isinstance(projection, nn.Linear):
        return projection.out_features
    return width if projection is None else projection.shape[1]


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
        config = json.loads((folder / "open_clip_config.json").read_text())
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
    own = net.state_dict()
    wrong = [f"'{k}' is {list(state[k].shape)}, needed {list(own[k].shape)}" for k in own
             if k in state and state[k].shape != own[k].shape]  # fmt: skip
    wrong += [f"'{k}' is missing" for k in own if k not in state]
    wrong += [f"'{k}' is not part of the model" for k in state if k not in own]
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
