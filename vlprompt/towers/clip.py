"""A frozen CLIP: two towers, the scale of their cosine, and how images are prepared for it."""

import copy
import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vlprompt.errors import UserError, unknown
from vlprompt.towers.block import Weights, view
from vlprompt.towers.image import ImageTower, image_tower, timm_vit
from vlprompt.towers.preprocess import Preprocess
from vlprompt.towers.quantization import Format, Quantized, count_bytes, quantize
from vlprompt.towers.text import TextTower
from vlprompt.towers.weights import WordTable

SCALES = ("logit_scale", "logit_bias")  # parameters of no tower


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
    quantization_error: float | None = None  # relative L2 error of the matrices that are kept in 4 bits; None: none are

    def tensors(self, tower: Literal["image", "text"]) -> dict[str, Tensor]:
        """All parameters of one tower, under the names of the model's own state dict."""
        names = [name for name, _ in self.weights.root.named_parameters() if name not in SCALES]
        return {name: self.weights.tensor(name) for name in names if self._is_image(name) == (tower == "image")}

    def vocabulary(self) -> tuple[tuple[str, ...], Float[Tensor, "V d"]]:
        """The tokens that have an embedding, special ones left out, and their embeddings without positions.

        Raises:
            UserError: a model without a text tower.
        """
        if self.text is None or self.words is None:
            raise UserError(f"{self.name} has no text tower, hence no words: choose a CLIP")
        table = next(t for name, t in self.tensors("text").items() if name.endswith("token_embedding.weight"))
        tokens = self.words.vocabulary(len(table))
        return tuple(tokens.values()), table[torch.tensor(list(tokens), device=table.device)]

    def _is_image(self, name: str) -> bool:
        return self.words is None or name.startswith("visual.")

    def with_weights(self, tensors: Mapping[str, Tensor], *, any_shape: bool = False) -> "Clip":
        """The same towers reading these tensors instead, under the names of the model's own state dict.

        `any_shape`: also such as the model has in another shape, as an identity instead of its last projection.

        Raises:
            UserError: a name or a shape that the model does not have.
        """
        known = self.weights.root.state_dict()
        for name, tensor in tensors.items():
            if name not in known:
                raise unknown("weight", name, known)
            if (old := self.weights.tensor(name)).shape != tensor.shape and not any_shape:
                raise UserError(f"weight '{name}' is {list(old.shape)} in the model, got {list(tensor.shape)}")
        return self._replacing(tensors, frozen=False)

    def _replacing(self, tensors: Mapping[str, Tensor], *, frozen: bool) -> "Clip":
        """The same model with these tensors instead of its own. A tower that has none of them stays as it is.

        `frozen`: whether they still are the frozen model's.
        """
        weights, image, text = (
            replace(self.weights, replaced={**self.weights.replaced, **tensors}),
            self.image,
            self.text,
        )
        if any(map(self._is_image, tensors)):
            image = _image_tower(weights, self.words, frozen=frozen and image.frozen)
        if text is not None and not all(map(self._is_image, tensors)):
            assert self.words is not None
            text = _text_tower(weights, self.words, text.chunk)
        return replace(self, image=image, text=text, weights=weights)

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
        return replace(self._replacing(tensors, frozen=True), quantization_error=error)

    def dequantized(self) -> "Clip":
        """The same model with its matrices of 4 bits as plain ones of the same values, for other libraries."""
        if not any(isinstance(tensor, Quantized) for tensor in self.weights.replaced.values()):
            return self
        return replace(self.materialized(), quantization_error=None)

    def materialized(self) -> "Clip":
        """The same model as a module that holds its tensors itself, those that replaced others too, as plain ones."""
        root = copy.deepcopy(self.weights.root)
        for name, tensor in self.weights.replaced.items():
            tensor = plain(tensor)
            part, _, last = name.rpartition(".")
            getattr(root.get_submodule(part), last).data = tensor.detach().clone()
        weights, text = Weights(root), None
        if self.text is not None and self.words is not None:
            text = _text_tower(weights, self.words, self.text.chunk)
        image = _image_tower(weights, self.words, frozen=self.image.frozen)
        return replace(self, image=image, text=text, weights=weights)

    def state_dict(self) -> dict[str, Tensor]:
        """All tensors of the model, under the names of its own state dict."""
        return {name: self.weights.tensor(name).detach() for name in self.weights.root.state_dict()}

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

    def toward(self, other: "Clip", share: float) -> "Clip":
        """The model on the straight line to another one with the same tensors: 0 is this one, 1 the other.

        The scale of the cosine is between the two in its logarithm, as it is trained.
        """
        if share in (0, 1):
            return other if share else self
        ours = {name: plain(self.weights.tensor(name)) for name in other.weights.replaced}
        theirs = {name: plain(tensor) for name, tensor in other.weights.replaced.items()}
        line = {name: torch.lerp(ours[name], theirs[name].to(ours[name].dtype), share) for name in ours}
        scale = self.scale ** (1 - share) * other.scale**share
        return replace(self.with_weights(line), scale=scale)

    def to(self, device: torch.device | str) -> "Clip":
        """The same model, moved (the borrowed modules move with it)."""
        self.weights.root.to(device)
        if torch.device(device).type == "cuda" and not self.image.blocks:  # a ResNet, whose convolutions ask for it
            self.weights.root.to(memory_format=torch.channels_last)
        replaced = self.weights.replaced.items()
        moved = {name: t.moved(device) if isinstance(t, Quantized) else t.to(device) for name, t in replaced}
        return self._replacing(moved, frozen=True) if moved else self

    def with_text_chunk(self, n_classes: int | None) -> "Clip":
        """The same model, whose text tower keeps the activations of so many classes at a time; None: of all."""
        return self if self.text is None else replace(self, text=replace(self.text, chunk=n_classes))

    @cached_property
    def image_fingerprint(self) -> str:
        """sha256 of the image tower: its modules as they print themselves, heads and pooling, and its weights."""
        visual = self.weights.below("visual") if self.words is not None else self.weights
        heads, pooling = [block.heads for block in self.image.blocks], getattr(visual.module, "pool_type", "")
        trunk: Any = getattr(visual.module, "trunk", visual.module)
        if hasattr(trunk, "global_pool"):  # timm's, which prints none of this
            pooling = f"{trunk.global_pool} {getattr(trunk, 'pool_include_prefix', False)}"
        digest = hashlib.sha256(f"{visual.module!r} {heads} {pooling}".encode())
        for name in visual.module.state_dict():
            tensor = visual.tensor(name)
            tensor = plain(tensor).detach().cpu().contiguous()
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
            digest.update(tensor.flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    @property
    def device(self) -> torch.device:
        return next(self.weights.root.parameters()).device


def plain(tensor: Tensor) -> Tensor:
    """A tensor of numbers, where it is kept in 4 bits."""
    return tensor.plain() if isinstance(tensor, Quantized) else tensor


def build(weights: Weights, *, name: str, preprocess: Preprocess, words: WordTable | None) -> Clip:
    """The towers over an open_clip or timm model, whose parameters no longer ask for gradients."""
    weights.root.eval().requires_grad_(False)
    model: Any = weights.root
    return Clip(
        image=_image_tower(weights, words),
        text=None if words is None else _text_tower(weights, words),
        scale=1.0 if words is None else math.exp(float(model.logit_scale)),
        name=name,
        preprocess=preprocess,
        weights=weights,
        words=words,
    )


def _image_tower(weights: Weights, words: WordTable | None, *, frozen: bool = True) -> ImageTower:
    return timm_vit(weights, frozen=frozen) if words is None else image_tower(weights.below("visual"), frozen=frozen)


def _text_tower(weights: Weights, words: WordTable, chunk: int | None = None) -> TextTower:
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
        n_prefix_tokens=1 if causal else 0,
        width=positions.shape[1],
        embed_dim=count_outputs(text.text_projection, positions.shape[1]),
        chunk=chunk,
    )


def count_outputs(projection: nn.Linear | Tensor | None, width: int) -> int:
    """Features that come out of a final projection, which may be a module, a matrix or missing."""
    if isinstance(projection, nn.Linear):
        return projection.out_features
    return width if projection is None else projection.shape[1]
