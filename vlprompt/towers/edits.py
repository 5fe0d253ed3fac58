"""What a method may do to one frozen block: the list of edit sites."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from types import MappingProxyType

from jaxtyping import Float
from torch import Tensor, nn

from vlprompt.errors import UserError

Delta = Callable[[Tensor], Tensor]
"""[*rows, d] -> [*rows, f]: added to the output of a linear map that reads the same rows."""

Branch = Callable[[Tensor, Tensor], Tensor]
"""(output of the branch, the residual stream that entered it, both [*rows, d]) -> what replaces the output."""


@dataclass(frozen=True, kw_only=True)
class Prefix:
    """Keys and values that every token attends to and that never attend themselves.

    Given either as `key` and `value`, or as `tokens` that the frozen projections of the block turn into both. Without
    `gate` they share the softmax of the other keys; with it they have a softmax of their own, times the gate (one
    number a head).
    """

    key: Float[Tensor, "h p c"] | None = None
    value: Float[Tensor, "h p c"] | None = None
    tokens: Float[Tensor, "p d"] | None = None
    gate: Float[Tensor, " h"] | None = None

    def __post_init__(self) -> None:
        if (self.key is None) != (self.value is None) or (self.key is None) == (self.tokens is None):
            raise TypeError("Prefix takes either key and value, or tokens")


@dataclass(frozen=True, kw_only=True)
class Edit:
    """Everything a method may do to ONE frozen block. A misspelt site is a `TypeError`."""

    # written into the prompt slot before the block; in the text tower also one for each class
    tokens: Float[Tensor, "n d"] | Float[Tensor, "B n d"] | Float[Tensor, "#B C n d"] | None = None
    share: float | None = None  # of `tokens` in what an open slot then holds; the rest stays as it was (None: nothing)
    prefix: Prefix | None = None
    q: Delta | None = None
    k: Delta | None = None
    v: Delta | None = None
    o: Delta | None = None
    fc1: Delta | None = None
    fc2: Delta | None = None
    attn: Branch | None = None
    mlp: Branch | None = None
    skip: Delta | None = None  # reads the output of norm 1, added to the block's output

    def __post_init__(self) -> None:
        if self.share is not None and self.tokens is None:
            raise TypeError("Edit takes share next to tokens alone")


SITES = tuple(field.name for field in fields(Edit) if field.name != "share")
NONE = Edit()

Edits = Mapping[int, Edit]
"""0-based layer -> what happens there. Layers that are not named are frozen as they are."""
NO_EDITS: Edits = MappingProxyType({})


def merge(first: Edits, second: Edits) -> dict[int, Edit]:
    """Both methods' edits of one tower.

    Raises:
        UserError: both edit the same site of the same layer.
    """
    merged = dict(first)
    for layer, edit in second.items():
        given = {f.name: value for f in fields(edit) if (value := getattr(edit, f.name)) is not None}
        old = merged.get(layer, NONE)
        clash = [site for site in SITES if site in given and getattr(old, site) is not None]
        if clash:
            raise UserError(f"two methods edit {', '.join(clash)} of layer {layer}: let one of them leave it alone")
        merged[layer] = replace(old, **given)
    return merged


def check_layers(edits: Edits, depth: int, tower: str) -> None:
    """Refuse edits of blocks that the tower does not have."""
    beyond = [layer for layer in edits if not 0 <= layer < depth]
    if beyond:
        raise UserError(f"{tower} has {depth} blocks (layers 0 to {depth - 1}), got an edit of layer {max(beyond)}")


def overwrites(edit: Edit) -> bool:
    """Whether nothing of what an open slot holds is left."""
    return edit.tokens is not None and edit.share is None


def mixed(tokens: Float[Tensor, "R n d"], slot: Float[Tensor, "R m d"], share: float | None) -> Float[Tensor, "R n d"]:
    """What a slot holds after tokens were written; an empty one takes all of them.

    Raises:
        UserError: a share of other tokens than there are.
    """
    if share is None or not slot.shape[1]:
        return tokens
    if tokens.shape[1] != slot.shape[1]:
        raise UserError(
            f"{tokens.shape[1]} tokens with a share cannot be mixed with the {slot.shape[1]} in the slot: give as many"
        )
    return share * tokens + (1 - share) * slot


def drops(edits: Edits) -> bool:
    """Whether a dropout in these edits is active, so that two identical rows may come out differently."""
    maps = (getattr(edit, site) for edit in edits.values() for site in SITES)
    modules = (module for map_ in maps if isinstance(map_, nn.Module) for module in map_.modules())
    return any(isinstance(m, nn.Dropout) and m.training and m.p > 0 for m in modules)
