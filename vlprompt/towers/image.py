"""Frozen image towers: an explicit loop over borrowed blocks."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vlprompt.errors import UserError
from vlprompt.towers.attention import Weighed, as_table
from vlprompt.towers.block import Block, Map, Weights, attend_all, view
from vlprompt.towers.edits import NO_EDITS, NONE, Edit, Edits, Prefix, check_layers, mixed, overwrites

TIMM = ("VisionTransformer", "VisionTransformerDistilled")
"""timm's classes whose blocks are run here; the second reads two tokens."""


class NeedsPixels(Exception):
    """A tower that has to run was given images that came without pixels."""


@dataclass(frozen=True)
class Images:
    """A batch of images as a loader yields it. Learners pass it on and never open it."""

    pixels: Float[Tensor, "B 3 H W"] | None = None  # normalised by the model's own mean and deviation
    features: Float[Tensor, "B e"] | None = None  # un-normalised output of the unedited tower, if cached

    def __len__(self) -> int:
        known = self.pixels if self.pixels is not None else self.features
        return 0 if known is None else len(known)


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class ImageTower:
    """Images -> un-normalised features [B, e]. A plain object without parameters of its own; nothing in it is trained.

    Prompt tokens sit after the `n_prefix_tokens` leading tokens (class token, registers) and are dropped before
    pooling. Those of layer 0 are embeddings and pass the tower's first norm; later ones are written into the residual
    stream.
    """

    embed: Map  # pixels [B, 3, H, W] -> tokens [B, N, d], positions added
    norm_in: Map  # before the first block
    blocks: tuple[Block, ...]
    norm_out: Map  # the final norm, a part of `head`
    head: Map  # tokens without prompts [B, N, d] -> features [B, e]: pooling, final norm and projection
    projection: Float[Tensor, "d e"] | None = None  # the matrix that ends `head`; None: features are made otherwise
    read: Map | None = None  # tokens [B, N, d] -> those that `head` reads; None: all
    n_read: int = 0  # leading tokens that `head` reads; 0: it pools over patches
    n_prefix_tokens: int
    width: int
    embed_dim: int
    patch_size: int = 0  # side in pixels; 0 for a ResNet
    frozen: bool = True  # whether its weights are the frozen model's own, so that cached features are its output

    @property
    def depth(self) -> int:
        """Number of blocks that take edits; 0 for a ResNet."""
        return len(self.blocks)

    @property
    def heads(self) -> int:
        return self.blocks[0].heads if self.blocks else 0

    def require_blocks(self) -> None:
        """Refuse a tower without blocks, for methods that edit them."""
        if not self.blocks:
            raise UserError(
                "this method edits the blocks of the image tower and a ResNet has none: "
                "choose a backbone with a ViT (backbone=vit_b16)"
            )

    def __call__(self, images: Images, edits: Edits = NO_EDITS) -> Float[Tensor, "B e"]:
        """Features of the edited tower.

        Raises:
            UserError: edits of blocks that do not exist.
            NeedsPixels: edits or other weights require the tower to run, but the images are cached features only.
        """
        if not edits and self.frozen and images.features is not None:
            return images.features
        x, n_prompts = self._run(images, edits, read=self.read)
        return self.project(x, 0 if self.read else n_prompts)

    def tokens(self, images: Images, edits: Edits = NO_EDITS) -> Float[Tensor, "B N d"]:
        """The token table as the last block leaves it; prompts written by `edits` start at row `n_prefix_tokens`.

        Raises: as a call, and UserError for a ResNet, which has no tokens.
        """
        self.require_blocks()
        return self._run(images, edits, whole=True)[0]

    @torch.no_grad()
    def attention(self, images: Images, edits: Edits = NO_EDITS) -> Float[Tensor, "L B h N N"]:
        """The weights after the softmax, of every block: what each row (a query) takes from each column.

        Rows and columns are the prefix tokens, one slot for each token or key that `edits` adds (as many as the layer
        with the most has), and the patches: `attention.as_table` says what the slots hold.

        Raises: as a call, and UserError for a ResNet, which has none.
        """
        self.require_blocks()
        weighed = Weighed()
        self._run(images, edits, weighed=weighed)
        return as_table(weighed.weights, edits, self.depth, self.n_prefix_tokens)

    @torch.no_grad()
    def patches(self, images: Images, edits: Edits = NO_EDITS) -> Float[Tensor, "B n e"]:
        """Features of the patches as the last block leaves them: each read as if it were all that `head` reads.

        With a class token this is the final norm and the projection of each patch.

        Raises: as `tokens`.
        """
        self.require_blocks()
        x, n_prompts = self._run(images, edits, whole=True)
        x = x[:, self.n_prefix_tokens + n_prompts :]
        alone = x.flatten(0, 1)[:, None].expand(-1, self.n_prefix_tokens + 1, -1)
        return self.head(alone).unflatten(0, x.shape[:2])

    def project(self, tokens: Float[Tensor, "B *N d"], n_prompts: int = 0) -> Float[Tensor, "B e"]:
        """Features of a token table, of which the `n_prompts` rows after the prefix tokens are left out."""
        at = self.n_prefix_tokens
        return self.head(torch.cat([tokens[:, :at], tokens[:, at + n_prompts :]], 1) if n_prompts else tokens)

    def _run(
        self,
        images: Images,
        edits: Edits,
        *,
        read: Map | None = None,
        whole: bool = False,
        weighed: Weighed | None = None,
    ) -> tuple[Tensor, int]:
        """Tokens [B, N, d] as the last block leaves them (features of a ResNet), and how many of them are prompts.

        Of the last block only the rows that `read` chooses; the last layer's prompts are rows only where `whole`.
        `weighed` attends instead and keeps its weights; all prompts are rows then.
        """
        if edits:
            self.require_blocks()
            check_layers(edits, self.depth, "the image tower")
        if images.pixels is None:
            raise NeedsPixels("these images are cached features, which an edited image tower cannot read: "
                              "a learner that edits it has to declare `edits_image`")  # fmt: skip
        x, width = self.embed(images.pixels), 0
        for layer, block in enumerate(self.blocks):
            edit, last = edits.get(layer, NONE), layer == self.depth - 1
            if (tokens := edit.tokens) is not None:
                unread = (last and not whole) or overwrites(edits.get(layer + 1, NONE))
                alone = edit.share is None and replace(edit, tokens=None) == NONE
                if unread and weighed is None and tokens.ndim == 2 and alone:
                    # nothing reads what comes of them: they are keys and values only, computed once for all images
                    x, width = write(x, tokens[:0], self.n_prefix_tokens, width)
                    tokens = tokens.to(x.dtype)
                    edit = Edit(prefix=Prefix(tokens=block.norm1(self.norm_in(tokens) if layer == 0 else tokens)))
                else:
                    x, width = write(x, tokens, self.n_prefix_tokens, width, edit.share)
            if layer == 0:
                x = self.norm_in(x)
            attend = attend_all if weighed is None else weighed
            x = block(x, edit, attend=attend, attend_gated=attend, read=read if last else None)
        return x, width


def write(
    x: Float[Tensor, "B N d"],
    tokens: Float[Tensor, "n w"] | Float[Tensor, "B n w"],
    at: int,
    width: int,
    share: float | None = None,
) -> tuple[Float[Tensor, "B M d"], int]:
    """Write prompt tokens into the slot x[:, at : at+width] (width 0: open it). -> (x, the slot's new width).

    With a `share` an open slot keeps the rest of what it holds.
    """
    if tokens.shape[-1] != x.shape[-1]:
        raise UserError(f"prompt tokens have width {tokens.shape[-1]}, this tower needs {x.shape[-1]}")
    if width == tokens.shape[-2] == 0:
        return x, 0
    tokens = mixed(tokens.to(x.dtype).expand(x.shape[0], -1, -1), x[:, at : at + width], share)
    return torch.cat([x[:, :at], tokens, x[:, at + width :]], 1), tokens.shape[1]


def image_tower(weights: Weights, *, frozen: bool = True) -> ImageTower:
    """The tower over open_clip's VisionTransformer or ModifiedResNet, or a timm ViT within open_clip's TimmModel.

    Raises:
        UserError: another kind of tower.
    """
    visual: Any = weights.module
    kind = type(visual).__name__
    if kind == "ModifiedResNet":
        run = weights.call("")
        return ImageTower(
            embed=run, norm_in=_same, blocks=(), norm_out=_same, head=_same, n_prefix_tokens=0, width=0,
            embed_dim=visual.output_dim, frozen=frozen,
        )  # fmt: skip
    if kind == "VisionTransformer":
        return _open_clip_vit(weights, frozen)
    if kind == "TimmModel" and type(visual.trunk).__name__ in TIMM:
        return timm_vit(weights.below("trunk"), weights.call("head"), frozen=frozen)
    inner = f" ({type(visual.trunk).__name__})" if hasattr(visual, "trunk") else ""
    raise UserError(
        f"image towers of kind {kind}{inner} are not supported: allowed are open_clip's VisionTransformer and "
        "ModifiedResNet and timm's VisionTransformer; choose another model"
    )


def _same(x: Tensor) -> Tensor:
    return x


def _class_token(x: Float[Tensor, "B N d"]) -> Float[Tensor, "B 1 d"]:
    return x[:, :1]


def _open_clip_vit(weights: Weights, frozen: bool) -> ImageTower:
    visual: Any = weights.module
    if visual.attn_pool is not None or visual.pool_type not in ("tok", "avg"):
        raise UserError("image towers with attentional pooling (CoCa) are not supported: choose another model")
    conv, post = weights.call("conv1"), weights.call("ln_post")

    def embed(pixels: Tensor) -> Tensor:
        x = conv(pixels).flatten(2).mT
        cls = weights.tensor("class_embedding").to(x.dtype).expand(x.shape[0], 1, -1)
        return torch.cat([cls, x], 1) + weights.tensor("positional_embedding").to(x.dtype)

    def pool(x: Tensor) -> Tensor:
        return x[:, 0] if visual.pool_type == "tok" else x[:, 1:].mean(1)

    def head(x: Tensor) -> Tensor:
        x = post(pool(x)) if visual.final_ln_after_pool or visual.pool_type == "tok" else pool(post(x))
        return x if visual.proj is None else x @ weights.tensor("proj")

    blocks = tuple(view(weights.below(f"transformer.resblocks.{i}")) for i in range(len(visual.transformer.resblocks)))
    width = visual.class_embedding.shape[0]
    embed_dim = width if visual.proj is None else visual.proj.shape[1]
    return ImageTower(
        embed=embed,
        norm_in=weights.call("ln_pre"),
        blocks=blocks,
        norm_out=post,
        head=head,
        projection=weights.tensor("proj") if visual.pool_type == "tok" and visual.proj is not None else None,
        read=_class_token if visual.pool_type == "tok" else None,
        n_read=int(visual.pool_type == "tok"),
        n_prefix_tokens=1,
        width=width,
        embed_dim=embed_dim,
        patch_size=visual.conv1.kernel_size[0],
        frozen=frozen,
    )


def timm_vit(weights: Weights, last: Callable[[Tensor], Tensor] = _same, *, frozen: bool = True) -> ImageTower:
    """The tower over timm's VisionTransformer; `last` follows the trunk's own head.

    Raises:
        UserError: another kind of model.
    """
    trunk: Any = weights.module
    if (kind := type(trunk).__name__) not in TIMM:
        raise UserError(
            f"timm's models of kind {kind} are not supported: allowed are its VisionTransformer (ViT, DeiT, DINOv2, "
            "SigLIP, CLIP's image tower); choose another model"
        )
    patches, positions = weights.call("patch_embed"), weights.call("", "_pos_embed")
    norm, forward_head = weights.call("norm"), weights.call("", "forward_head")

    def embed(pixels: Tensor) -> Tensor:
        return positions(patches(pixels))

    def head(x: Tensor) -> Tensor:
        return last(forward_head(norm(x)))

    pools = trunk.attn_pool is not None or trunk.global_pool != "token"
    projections = [m for m in getattr(last, "children", list)() if hasattr(m, "out_features")]
    if projections:
        embed_dim = projections[-1].out_features
    else:
        embed_dim = trunk.num_classes or trunk.num_features
    return ImageTower(
        embed=embed,
        norm_in=weights.call("norm_pre"),
        blocks=tuple(view(weights.below(f"blocks.{i}")) for i in range(len(trunk.blocks))),
        norm_out=norm,
        head=head,
        read=None if pools or kind != TIMM[0] else _class_token,
        n_read=0 if pools else trunk.num_prefix_tokens if kind == TIMM[1] else 1,
        n_prefix_tokens=trunk.num_prefix_tokens,
        width=trunk.embed_dim,
        embed_dim=embed_dim,
        patch_size=trunk.patch_embed.patch_size[0],
        frozen=frozen,
    )
