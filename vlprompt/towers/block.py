"""One frozen transformer block as a plain function with named edit sites.

The block's own norms, maps and weights do the work; nothing of them is copied, replaced or hooked.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from open_clip.transformer import LayerNorm, QuickGELU
from torch import Tensor, nn
from torch.func import functional_call

from vlprompt.errors import UserError
from vlprompt.towers.edits import NONE, Edit, Prefix

Map = Callable[[Tensor], Tensor]


class _Method(nn.Module):
    """A method of a module as a module, so that `functional_call` reaches it."""

    def __init__(self, owner: nn.Module, method: str) -> None:
        super().__init__()
        self.owner, self.method = owner, method

    def forward(self, *args: Any) -> Any:
        return getattr(self.owner, self.method)(*args)


@dataclass(frozen=True)
class Weights:
    """Read access to a frozen module by the names of its own state dict, some tensors of it replaced."""

    root: nn.Module
    replaced: Mapping[str, Tensor] = field(default_factory=dict)
    at: str = ""  # the part of the root that names are relative to, with its final dot

    def below(self, name: str) -> "Weights":
        """The same, with names relative to a sub-module."""
        return Weights(self.root, self.replaced, f"{self.at}{name}.")

    @property
    def module(self) -> nn.Module:
        return self.root.get_submodule(self.at.rstrip("."))

    def tensor(self, name: str) -> Tensor:
        """A parameter or buffer, or what replaces it."""
        return self.replaced.get(self.at + name, _attribute(self.module, name))

    def call(self, name: str, method: str | None = None) -> Callable[..., Any]:
        """A sub-module (`""`: this one), or one of its methods, as a function that reads the replaced tensors."""
        at = f"{self.at}{name}." if name else self.at
        module = self.root.get_submodule(at.rstrip("."))
        inside = {key[len(at) :]: tensor for key, tensor in self.replaced.items() if key.startswith(at)}
        if not inside:
            return module if method is None else getattr(module, method)
        if method is None:
            return partial(functional_call, module, inside)
        return partial(functional_call, _Method(module, method), {f"owner.{k}": t for k, t in inside.items()})


def _attribute(module: nn.Module, name: str) -> Any:
    for part in name.split("."):
        module = getattr(module, part)
    return module


@dataclass(frozen=True)
class Matrix:
    """Where the matrix of a linear map stands: rows of a weight of the model's state dict."""

    name: str
    rows: slice
    n_out: int
    n_in: int


KeysValues = tuple[Float[Tensor, "#B h p c"], Float[Tensor, "#B h p c"]]

Attend = Callable[[Tensor, Tensor, Tensor, KeysValues | None], Tensor]
"""(queries, keys, values [B, N, h, c], more keys and values that all queries see) -> [B, queries, h, c]."""


def attend_all(
    q: Float[Tensor, "B Q h c"],
    k: Float[Tensor, "B N h c"],
    v: Float[Tensor, "B N h c"],
    more: KeysValues | None = None,
    *,
    mask: Bool[Tensor, "Q N"] | None = None,
) -> Float[Tensor, "B Q h c"]:
    """Softmax attention within each sequence; `mask` says which keys a query sees (None: all)."""
    q, k, v = heads_first(q, k, v, more)
    if mask is not None and more is not None:
        mask = F.pad(mask, (more[0].shape[2], 0), value=True)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)


def heads_first(q: Tensor, k: Tensor, v: Tensor, more: KeysValues | None) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values as [B, h, N, c], the keys and values that all queries see in front."""
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    if more is not None:
        k, v = (torch.cat([t.expand(q.shape[0], -1, -1, -1), u], 2) for t, u in zip(more, (k, v), strict=True))
    return q, k, v


@dataclass(frozen=True)
class Block:
    """A pre-norm block, as maps. `kv` stacks two projections: [.., d] -> [.., 2d]."""

    norm1: Map
    q: Map
    kv: Map
    out: Map
    norm2: Map
    fc1: Map
    act: Map
    fc2: Map
    heads: int
    q_norm: Map
    k_norm: Map
    gain1: Map  # layer scale, or identity
    gain2: Map
    matrices: Mapping[str, Matrix]  # by edit site: q, k, v, o, fc1, fc2
    norm_heads: Map | None = None  # of the joined heads, before `out`
    fused: Map | None = None  # norm2 to fc2 and the sum with what entered, in fewer steps

    def __call__(
        self,
        x: Float[Tensor, "B N d"],
        edit: Edit = NONE,
        *,
        attend: Attend = attend_all,
        attend_gated: Attend = attend_all,
        read: Map | None = None,
    ) -> Float[Tensor, "B Q d"]:
        """Run the block on a table of rows.

        `attend` says which rows see each other; all else acts row by row. `attend_gated` is that of the rows to a
        prefix with a gate, before `attend`. `read` picks the rows whose output is needed, [B, N, d] -> [B, Q, d]
        (None: all); the others are keys and values only.
        """
        u = self.norm1(x)
        k, v = self.kv(u).chunk(2, dim=-1)
        k, v = self.k_norm(self._heads(_plus(k, edit.k, u))), self._heads(_plus(v, edit.v, u))
        if read is not None:
            x, u = read(x), read(u)
        skip = None if edit.skip is None else edit.skip(u)
        q = self.q_norm(self._heads(_plus(self.q(u), edit.q, u)))
        a = self._attend(q, k, v, edit.prefix, attend, attend_gated).flatten(-2)
        if self.norm_heads is not None:
            a = self.norm_heads(a)
        h = _plus(self.out(a), edit.o, a)
        if edit.attn is not None:
            h = edit.attn(h, x).to(h.dtype)
        x = x + self.gain1(h)
        if self.fused is not None and edit.fc1 is edit.fc2 is edit.mlp is None:
            return _add(self.fused(x), skip)
        u = self.norm2(x)
        a = self.act(_plus(self.fc1(u), edit.fc1, u))
        h = _plus(self.fc2(a), edit.fc2, a)
        if edit.mlp is not None:
            h = edit.mlp(h, x).to(h.dtype)
        return _add(x + self.gain2(h), skip)

    def _heads(self, t: Float[Tensor, "*B n d"]) -> Float[Tensor, "*B n h c"]:
        return t.unflatten(-1, (self.heads, -1))

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, prefix: Prefix | None, attend: Attend, attend_gated: Attend
    ) -> Tensor:
        if prefix is None:
            return attend(q, k, v, None)
        more = self._keys_values(prefix, k.dtype)
        if prefix.gate is None:
            return attend(q, k, v, more)
        keys, values = (t.expand(q.shape[0], -1, -1, -1).transpose(1, 2) for t in more)
        gated = attend_gated(q, keys, values, None)
        return attend(q, k, v, None) + prefix.gate.to(q.dtype)[:, None] * gated

    def _keys_values(self, prefix: Prefix, dtype: torch.dtype) -> KeysValues:
        if prefix.tokens is not None:
            k, v = self.kv(prefix.tokens.to(dtype)).chunk(2, dim=-1)
            k, v = self.k_norm(self._heads(k)).transpose(0, 1), self._heads(v).transpose(0, 1)
        else:
            assert prefix.key is not None
            assert prefix.value is not None
            k, v = prefix.key, prefix.value
        return k.to(dtype)[None], v.to(dtype)[None]


def _plus(y: Tensor, delta: Callable[[Tensor], Tensor] | None, x: Tensor) -> Tensor:
    return y if delta is None else _add(y, delta(x))


def _add(y: Tensor, more: Tensor | None) -> Tensor:
    return y if more is None else y + more.to(y.dtype)


def _identity(x: Tensor) -> Tensor:
    return x


def _gate(h: Float[Tensor, "*rows f"], act: Map, *, last: bool) -> Float[Tensor, "*rows g"]:
    """One half of the hidden units times the activations of the other: a gated linear unit."""
    a, b = h.chunk(2, dim=-1)
    return a * act(b) if last else act(a) * b


def _matrices(weights: Weights, qkv: str, out: str, fc1: str, fc2: str) -> dict[str, Matrix]:
    n, d = weights.tensor(qkv).shape
    third = {site: slice(i * n // 3, (i + 1) * n // 3) for i, site in enumerate("qkv")}
    matrices = {site: Matrix(weights.at + qkv, rows, n // 3, d) for site, rows in third.items()}
    for site, name in {"o": out, "fc1": fc1, "fc2": fc2}.items():
        n_out, n_in = weights.tensor(f"{name}.weight").shape
        matrices[site] = Matrix(f"{weights.at}{name}.weight", slice(None), n_out, n_in)
    return matrices


def _queries_and_keys(weights: Weights, matrix: str, bias: str) -> tuple[Map, Map]:
    """The maps to queries, and to keys and values, of a matrix that stacks the three."""
    d, biased = weights.tensor(matrix).shape[0] // 3, _attribute(weights.module, bias) is not None

    def project(u: Tensor, rows: slice) -> Tensor:
        return F.linear(u, weights.tensor(matrix)[rows], weights.tensor(bias)[rows] if biased else None)

    return partial(project, rows=slice(0, d)), partial(project, rows=slice(d, None))


def _fuse_quick_gelu(weights: Weights) -> Map | None:
    """x + fc2(act(fc1(norm2(x)))) by QuickGELU(y) = silu(f y) / f: one kernel instead of three, one tensor kept.

    The factors go into the norm, the biases and the sum, so that no matrix is copied. None where a part is of another
    kind (another activation, a layer scale, quantised maps), or is not the model's own.
    """
    block: Any = weights.module
    kinds = {"ln_2": LayerNorm, "mlp.c_fc": nn.Linear, "mlp.gelu": QuickGELU, "mlp.c_proj": nn.Linear}
    kinds["ls_2"] = nn.Identity
    if any(type(block.get_submodule(name)) is not kind for name, kind in kinds.items()):
        return None
    if any(name.startswith(weights.at) for name in weights.replaced):
        return None
    f, shape, eps = 1.702, block.ln_2.normalized_shape, block.ln_2.eps

    def fused(x: Tensor) -> Tensor:
        u = F.layer_norm(x, shape, f * weights.tensor("ln_2.weight"), f * weights.tensor("ln_2.bias"), eps)
        a = F.silu(F.linear(u, weights.tensor("mlp.c_fc.weight"), f * weights.tensor("mlp.c_fc.bias")))
        h = F.linear(a, weights.tensor("mlp.c_proj.weight"), f * weights.tensor("mlp.c_proj.bias"))
        return torch.add(x, h, alpha=1 / f)

    return fused


def view(weights: Weights) -> Block:
    """The block at `weights` as maps.

    Raises:
        UserError: a kind of block that this module does not know.
    """
    block = weights.module
    kind = type(block).__name__
    if kind == "ResidualAttentionBlock" and not hasattr(block, "ln_1_kv"):  # open_clip
        attn: Any = block.attn
        q, kv = _queries_and_keys(weights, "attn.in_proj_weight", "attn.in_proj_bias")
        return Block(
            norm1=weights.call("ln_1"),
            q=q,
            kv=kv,
            out=weights.call("attn.out_proj"),
            norm2=weights.call("ln_2"),
            fc1=weights.call("mlp.c_fc"),
            act=weights.call("mlp.gelu"),
            fc2=weights.call("mlp.c_proj"),
            heads=attn.num_heads,
            q_norm=weights.call("attn.ln_q") if hasattr(attn, "ln_q") else _identity,
            k_norm=weights.call("attn.ln_k") if hasattr(attn, "ln_k") else _identity,
            gain1=weights.call("ls_1"),
            gain2=weights.call("ls_2"),
            matrices=_matrices(weights, "attn.in_proj_weight", "attn.out_proj", "mlp.c_fc", "mlp.c_proj"),
            fused=_fuse_quick_gelu(weights),
        )
    if kind == "Block" and hasattr(getattr(block, "attn", None), "qkv"):  # timm's VisionTransformer
        parts = type(block.attn).__name__, type(block.mlp).__name__
        if parts[0] != "Attention" or getattr(block.attn, "gate", None) is not None:
            raise UserError(
                f"timm's blocks with {'gated attention' if parts[0] == 'Attention' else parts[0]} are not supported: "
                "allowed is its Attention without a gate; choose another model"
            )
        if parts[1] not in ("Mlp", "GluMlp"):
            raise UserError(
                f"timm's blocks with {parts[1]} are not supported: allowed are its Mlp and GluMlp; choose another model"
            )
        mlp_norm, act = weights.call("mlp.norm"), weights.call("mlp.act")
        gated, last = parts[1] == "GluMlp", getattr(block.mlp, "gate_last", False)
        q, kv = _queries_and_keys(weights, "attn.qkv.weight", "attn.qkv.bias")
        return Block(
            norm1=weights.call("norm1"),
            q=q,
            kv=kv,
            out=weights.call("attn.proj"),
            norm2=weights.call("norm2"),
            fc1=weights.call("mlp.fc1"),
            act=lambda h: mlp_norm(_gate(h, act, last=last) if gated else act(h)),
            fc2=weights.call("mlp.fc2"),
            heads=block.attn.num_heads,  # type: ignore[union-attr, arg-type]
            q_norm=weights.call("attn.q_norm"),
            k_norm=weights.call("attn.k_norm"),
            gain1=weights.call("ls1"),
            gain2=weights.call("ls2"),
            matrices=_matrices(weights, "attn.qkv.weight", "attn.proj", "mlp.fc1", "mlp.fc2"),
            norm_heads=weights.call("attn.norm") if hasattr(block.attn, "norm") else None,
        )
    raise UserError(
        f"blocks of kind {type(block).__module__}.{kind} are not supported: allowed are open_clip's "
        "ResidualAttentionBlock and timm's vision_transformer.Block; choose another model"
    )
