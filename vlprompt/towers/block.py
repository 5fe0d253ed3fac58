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
from torch import Tensor, nn
from torch.func import functional_call

from vlprompt.errors import UserError
from vlprompt.towers.edits import NONE, Edit

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
        own = {key[len(at) :]: tensor for key, tensor in self.replaced.items() if key.startswith(at)}
        if not own:
            return module if method is None else getattr(module, method)
        if method is None:
            return partial(functional_call, module, own)
        return partial(functional_call, _Method(module, method), {f"owner.{k}": t for k, t in own.items()})


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


@dataclass(frozen=True)
class Block:
    """A pre-norm block, as maps. `qkv` stacks the three projections: [.., d] -> [.., 3d]."""

    norm1: Map
    qkv: Map
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

    def __call__(
        self,
        x: Float[Tensor, "B N d"],
        edit: Edit = NONE,
        *,
        mask: Bool[Tensor, "N M"] | None = None,
        past: tuple[Float[Tensor, "B h p c"], Float[Tensor, "B h p c"]] | None = None,
    ) -> tuple[Float[Tensor, "B N d"], tuple[Float[Tensor, "B h N c"], Float[Tensor, "B h N c"]]]:
        """Run the block.

        `past` are keys and values of earlier tokens, which these tokens see too; `mask` says which of past and own
        keys (M of them, past first) each token sees; None: all. Also returns the tokens' own keys and values.
        """
        u = self.norm1(x)
        q, k, v = self._heads(u, edit)
        own = (k, v)
        if past is not None:
            k, v = torch.cat([past[0], k], -2), torch.cat([past[1], v], -2)
        a = self._attend(q, k, v, edit, mask).transpose(-3, -2).flatten(-2)
        h = _plus(self.out(a), edit.o, a)
        if edit.attn is not None:
            h = edit.attn(h, x).to(h.dtype)
        x = x + self.gain1(h)
        u = self.norm2(x)
        a = self.act(_plus(self.fc1(u), edit.fc1, u))
        h = _plus(self.fc2(a), edit.fc2, a)
        if edit.mlp is not None:
            h = edit.mlp(h, x).to(h.dtype)
        return x + self.gain2(h), own

    def _split(self, t: Float[Tensor, "*B n d"]) -> Float[Tensor, "*B h n c"]:
        return t.unflatten(-1, (self.heads, -1)).transpose(-3, -2)

    def _heads(self, u: Float[Tensor, "B n d"], edit: Edit) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.qkv(u).chunk(3, dim=-1)
        q, k, v = _plus(q, edit.q, u), _plus(k, edit.k, u), _plus(v, edit.v, u)
        return self.q_norm(self._split(q)), self.k_norm(self._split(k)), self._split(v)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, edit: Edit, mask: Tensor | None) -> Float[Tensor, "B h N c"]:
        if edit.prefix is None:
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        prefix = edit.prefix
        if prefix.tokens is not None:
            _, pk, pv = self.qkv(prefix.tokens.to(q.dtype)).chunk(3, dim=-1)
            pk, pv = self.k_norm(self._split(pk)), self._split(pv)
        else:
            assert prefix.key is not None
            assert prefix.value is not None
            pk, pv = prefix.key, prefix.value
        pk, pv = (t.to(k.dtype).expand(q.shape[0], -1, -1, -1) for t in (pk, pv))
        if prefix.gate is not None:
            gate = prefix.gate.to(q.dtype)[:, None, None]
            a = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
            return a + gate * F.scaled_dot_product_attention(q, pk, pv)
        if mask is not None:
            mask = F.pad(mask, (pk.shape[-2], 0), value=True)
        k, v = torch.cat([pk, k], -2), torch.cat([pv, v], -2)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def _plus(y: Tensor, delta: Callable[[Tensor], Tensor] | None, x: Tensor) -> Tensor:
    return y if delta is None else y + delta(x).to(y.dtype)


def _identity(x: Tensor) -> Tensor:
    return x


def _matrices(weights: Weights, qkv: str, out: str, fc1: str, fc2: str) -> dict[str, Matrix]:
    n, d = weights.tensor(qkv).shape
    third = {site: slice(i * n // 3, (i + 1) * n // 3) for i, site in enumerate("qkv")}
    found = {site: Matrix(weights.at + qkv, rows, n // 3, d) for site, rows in third.items()}
    for site, name in {"o": out, "fc1": fc1, "fc2": fc2}.items():
        n_out, n_in = weights.tensor(f"{name}.weight").shape
        found[site] = Matrix(f"{weights.at}{name}.weight", slice(None), n_out, n_in)
    return found


def view(weights: Weights) -> Block:
    """The block at `weights` as maps.

    Raises:
        UserError: a kind of block that this module does not know.
    """
    block = weights.module
    kind = type(block).__name__
    if kind == "ResidualAttentionBlock" and not hasattr(block, "ln_1_kv"):  # open_clip
        attn: Any = block.attn

        def qkv(u: Tensor) -> Tensor:
            return F.linear(u, weights.tensor("attn.in_proj_weight"), weights.tensor("attn.in_proj_bias"))

        return Block(
            norm1=weights.call("ln_1"),
            qkv=qkv,
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
        )
    if kind == "Block" and hasattr(getattr(block, "attn", None), "qkv"):  # timm's VisionTransformer
        if getattr(block.attn, "gate", None) is not None:
            raise UserError("timm blocks with gated attention are not supported: choose another model")
        mlp_norm, act = weights.call("mlp.norm"), weights.call("mlp.act")
        attn_norm = weights.call("attn.norm") if hasattr(block.attn, "norm") else _identity
        proj = weights.call("attn.proj")
        return Block(
            norm1=weights.call("norm1"),
            qkv=weights.call("attn.qkv"),
            out=lambda a: proj(attn_norm(a)),
            norm2=weights.call("norm2"),
            fc1=weights.call("mlp.fc1"),
            act=lambda h: mlp_norm(act(h)),
            fc2=weights.call("mlp.fc2"),
            heads=block.attn.num_heads,  # type: ignore[union-attr, arg-type]
            q_norm=weights.call("attn.q_norm"),
            k_norm=weights.call("attn.k_norm"),
            gain1=weights.call("ls1"),
            gain2=weights.call("ls2"),
            matrices=_matrices(weights, "attn.qkv.weight", "attn.proj", "mlp.fc1", "mlp.fc2"),
        )
    raise UserError(
        f"blocks of kind {type(block).__module__}.{kind} are not supported: allowed are open_clip's "
        "ResidualAttentionBlock and timm's vision_transformer.Block; choose another model"
    )
