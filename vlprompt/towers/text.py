"""Frozen text towers: class prompts, split where causal attention lets them be, and an explicit loop over blocks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from vlprompt.errors import UserError
from vlprompt.towers.block import Block, Map, attend_all
from vlprompt.towers.edits import NO_EDITS, NONE, Edit, Edits, check_layers, drops, mixed
from vlprompt.towers.packing import packing

ROWS_AT_ONCE = 4096
"""Tokens that pass the text tower together where no gradients are kept: a bound on its memory."""

Position = Literal["end", "middle", "front"]
"""Where the class name stands among the context tokens (Zhou et al., IJCV 2022, section 3.2)."""


@dataclass(frozen=True)
class Prompts:
    """Class names within a text, embedded, without positions.

    What all classes begin with is `shared`; what differs is the `suffix`, padded to one length. A context begins after
    the `n_prefix_tokens` leading ones (the start token, if the tower has one). It is the slot that deep prompts are
    written into; a text without a context (`slot` 0) has an empty one.
    """

    shared: Float[Tensor, "P d"] | Float[Tensor, "B P d"]
    suffix: Float[Tensor, "C S d"]
    eot: Int[Tensor, " C"]  # where the token to be read out stands in the suffix
    name_lengths: tuple[int, ...]  # tokens of each class name
    n_prefix_tokens: int
    slot: int = 0  # tokens of the context

    def with_context(
        self, context: Float[Tensor, "n d"] | Float[Tensor, "B n d"], position: Position = "end"
    ) -> "Prompts":
        """The first n tokens after the prefix replaced by a context, and the class name moved to `position` in it."""
        self._check(context)
        n = context.shape[-2]
        if position == "end" and self.shared.shape[-2]:
            lead = context.shape[:-2]
            head = self.shared[..., : self.n_prefix_tokens, :].expand(*lead, -1, -1)
            tail = self.shared[..., self.n_prefix_tokens + n :, :].expand(*lead, -1, -1)
            return replace(self, shared=torch.cat([head, context.to(head.dtype), tail], -2), slot=n)
        if context.ndim == 3:
            raise UserError(f"a context per image needs the class name at the end, got position '{position}'")
        return self._arranged(context.expand(len(self.suffix), -1, -1), position, before_name(n, position))

    def with_class_context(self, context: Float[Tensor, "C n d"], position: Position = "end") -> "Prompts":
        """The same with a context of its own for each class, so that only the start token stays shared."""
        self._check(context)
        return self._arranged(context, position, 0)

    def _check(self, context: Tensor) -> None:
        n, width = context.shape[-2:]
        if width != self.suffix.shape[-1]:
            raise UserError(f"the context has width {width}, the text tower needs {self.suffix.shape[-1]}")
        n_shared = self.shared.shape[-2]
        if 0 < n_shared < self.n_prefix_tokens + n:
            raise UserError(
                f"a context of {n} tokens does not fit: the text has {n_shared - self.n_prefix_tokens} tokens before "
                "the names"
            )

    def subset(self, classes: Int[Tensor, " c"]) -> "Prompts":
        """Those of some of the classes."""
        at = classes.tolist()
        lengths = tuple(self.name_lengths[c] for c in at)
        return replace(self, suffix=self.suffix[at], eot=self.eot[at], name_lengths=lengths)

    def whole(self) -> Float[Tensor, "C T d"]:
        """The unsplit sequences."""
        return torch.cat([self.shared.expand(len(self.suffix), -1, -1), self.suffix], 1)

    def _arranged(self, context: Float[Tensor, "C n d"], position: Position, n_shared: int) -> "Prompts":
        """Sequences with the context written in and reordered; its first `n_shared` tokens are the same in all."""
        n, tokens = context.shape[1], self.whole()
        tokens = torch.cat(
            [tokens[:, : self.n_prefix_tokens], context.to(tokens.dtype), tokens[:, self.n_prefix_tokens + n :]], 1
        )
        before = before_name(n, position)
        rest = tokens.shape[1] - self.n_prefix_tokens
        orders = []
        for length in self.name_lengths:
            name, tail = range(n, n + length), range(n + length, rest)
            order = [*range(before), *name, *range(before, n), *tail]
            orders.append([*range(self.n_prefix_tokens), *(self.n_prefix_tokens + i for i in order)])
        index = torch.tensor(orders, device=tokens.device)
        if position != "end":
            tokens = tokens.take_along_dim(index[:, :, None], 1)
        cut = self.n_prefix_tokens + n_shared
        eot = self.eot + self.shared.shape[-2] - cut
        return replace(self, shared=tokens[0, :cut], suffix=tokens[:, cut:], eot=eot, slot=n)


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class TextTower:
    """Prompts -> un-normalised class features. A plain object without parameters of its own.

    Because attention is causal, the shared tokens run once for all classes, and whatever follows the last token that
    is read is never computed. Both are exact. A tower without a causal mask (SigLIP) runs every padded sequence whole.

    `chunk` classes at a time (None: all) keep their activations for backward; the others' are computed again there.
    """

    tokenize: Callable[[list[str]], Int[Tensor, "C L"]]
    count: Callable[[str], int]  # tokens of a bare text
    embed: Callable[[Tensor], Tensor]  # ids [.., L] -> embeddings [.., L, d], without positions
    positions: Float[Tensor, "L d"]
    blocks: tuple[Block, ...]
    project: Map  # [.., d] -> [.., e], final norm included
    read: Callable[[Tensor], Tensor]  # ids [C, L] -> index of the token whose output is the feature [C]
    causal: bool
    n_prefix_tokens: int  # the start token, if there is one
    width: int
    embed_dim: int
    chunk: int | None = None

    @property
    def depth(self) -> int:
        return len(self.blocks)

    @property
    def heads(self) -> int:
        return self.blocks[0].heads

    def prompts(self, classes: Sequence[str], *, template: str = "{}.", n_context: int = 0) -> Prompts:
        """Embed `n_context` placeholders and the template with each class name; underscores in names become spaces.

        Raises:
            UserError: no classes; a template without exactly one `{}`; a text that does not fit the tower.
        """
        if not classes:
            raise UserError("no class names: a classifier needs at least one")
        names = [name.replace("_", " ") for name in classes]
        lead = "X " * n_context
        ids = self.tokenize([lead + format_template(template, name) for name in names])
        eot = self.read(ids)
        end = int(eot.max()) + 1 if self.causal else ids.shape[1]
        ids = ids[:, :end]
        n_shared = common_prefix(ids, int(eot.min())) if self.causal else 0
        tokens = self.embed(ids)
        lengths = tuple(self.count(name) for name in names)
        return Prompts(tokens[0, :n_shared], tokens[:, n_shared:], eot - n_shared, lengths, self.n_prefix_tokens)

    def embed_phrase(self, phrase: str) -> Float[Tensor, "n d"]:
        """Embeddings of a phrase's first tokens, one for each of its words (the rule of CoOp's `CTX_INIT`)."""
        phrase = phrase.replace("_", " ")
        n = len(phrase.split())
        ids = self.tokenize([phrase])
        return self.embed(ids[0, self.n_prefix_tokens : self.n_prefix_tokens + n])

    def __call__(self, prompts: Prompts, edits: Edits = NO_EDITS) -> Float[Tensor, "C e"] | Float[Tensor, "B C e"]:
        """Features of all classes, [C, e], or [B, C, e] where the shared tokens come per image.

        Raises:
            UserError: edits of blocks that do not exist, or of layer 0's tokens (a context enters by `prompts`).
        """
        check_layers(edits, self.depth, "the text tower")
        if edits.get(0, NONE).tokens is not None:
            raise UserError("tokens of the text tower's layer 0 enter through Prompts.with_context, not as an edit")
        run = (
            self._run_packed
            if self.causal and not drops(edits) and not self._parts(prompts, edits)
            else self._run_whole
        )
        chunks = self._chunks(prompts)
        if len(chunks) == 1:
            return run(prompts, edits)
        if torch.is_grad_enabled():
            run = partial(checkpoint, run, use_reentrant=False)
        features = torch.cat([run(prompts.subset(chunk), subset(edits, chunk)) for chunk in chunks], -2)
        return features.index_select(-2, torch.cat(chunks).argsort().to(features.device))

    def _chunks(self, prompts: Prompts) -> tuple[Int[Tensor, " c"], ...]:
        """The classes in parts that run one after the other, those with short prompts first."""
        order = prompts.eot.argsort()
        if torch.is_grad_enabled():
            return order.split(self.chunk or len(order))
        n_images = len(prompts.shared) if prompts.shared.ndim == 3 else 1
        rows = (n_images * (prompts.eot[order] + 1)).cumsum(0)
        counts = (rows // ROWS_AT_ONCE).unique_consecutive(return_counts=True)[1]
        return order.split(counts.tolist())

    def _run_packed(self, prompts: Prompts, edits: Edits) -> Tensor:
        lead, P, suffix = prompts.shared.shape[:-2], prompts.shared.shape[-2], prompts.suffix
        packed = packing(tuple((prompts.eot + 1).tolist()), suffix.shape[1], P, suffix.device)
        x = packed.pack(prompts.shared if lead else prompts.shared[None], suffix, self.positions)
        for layer, block in enumerate(self.blocks):
            edit = edits.get(layer, NONE)
            x = self._write(x, edit, P)
            x = block(x, edit, attend=packed.attend, read=packed.read if layer == self.depth - 1 else None)
        return self.project(packed.unpack(x).reshape(*lead, len(suffix), -1))

    def _run_whole(self, prompts: Prompts, edits: Edits) -> Tensor:
        lead = prompts.shared.shape[:-2]
        shared, suffix = prompts.shared if lead else prompts.shared[None], prompts.suffix
        (B, P, _), (C, S, _) = shared.shape, suffix.shape
        x = torch.cat([_repeat(shared[:, None], C, 1), _repeat(suffix[None], B, 0)], 1)
        x, width = x + self.positions[: P + S], prompts.slot
        for layer, block in enumerate(self.blocks):
            edit = edits.get(layer, NONE)
            if edit.tokens is not None and not prompts.slot:
                x, width = self._open(x, edit, width)
            else:
                x = self._write(x, edit, P + S)
            T = x.shape[1]
            mask = torch.ones(T, T, dtype=torch.bool, device=x.device).tril() if self.causal else None
            x = block(x, edit, attend=partial(attend_all, mask=mask))
        x, eot = x.view(B, C, x.shape[1], -1), prompts.eot + P + width - prompts.slot
        return self.project(x[:, torch.arange(C, device=x.device), eot].reshape(*lead, C, -1))

    def _parts(self, prompts: Prompts, edits: Edits) -> bool:
        """Whether deep prompts end the sharing: one for each class, or a slot that opens among shared tokens."""
        deep = [edit.tokens for edit in edits.values() if edit.tokens is not None]
        return any(tokens.ndim == 4 or not prompts.slot for tokens in deep)

    def _open(self, x: Float[Tensor, "R T d"], edit: Edit, width: int) -> tuple[Float[Tensor, "R U d"], int]:
        """Write deep prompts into the slot of a text without a context: empty at first, after the start token."""
        assert edit.tokens is not None
        tokens, first = edit.tokens, self.n_prefix_tokens
        n, d = tokens.shape[-2:]
        if d != self.width or tokens.ndim != 2:
            raise UserError(f"deep text prompts {list(tokens.shape)} do not fit: [n, {self.width}] is needed")
        tokens = mixed(tokens.to(x.dtype).expand(len(x), n, d), x[:, first : first + width], edit.share)
        return torch.cat([x[:, :first], tokens, x[:, first + width :]], 1), n

    def _write(self, x: Float[Tensor, "R T d"], edit: Edit, n_shared: int) -> Float[Tensor, "R T d"]:
        """Write deep prompts over the tokens that the context occupies; they get no positions."""
        if edit.tokens is None:
            return x
        (n, d), first = edit.tokens.shape[-2:], self.n_prefix_tokens
        if d != self.width or first + n > n_shared:
            raise UserError(
                f"deep text prompts [{n}, {d}] do not fit: the text tower has width {self.width} and "
                f"{n_shared - first} tokens common to all classes after the start token"
            )
        tokens = edit.tokens.to(x.dtype)
        if tokens.ndim == 4:  # rows are images times classes
            B = len(x) // tokens.shape[1]
            tokens = tokens.expand(B, -1, -1, -1).flatten(0, 1)
        tokens = _repeat(tokens[:, None], len(x) // len(tokens), 1) if tokens.ndim == 3 else tokens.expand(len(x), n, d)
        tokens = mixed(tokens, x[:, first : first + n], edit.share)
        return torch.cat([x[:, :first], tokens, x[:, first + n :]], 1)


def format_template(template: str, name: str) -> str:
    """The template with the class name filled in.

    Raises:
        UserError: the template has no `{}`, or several.
    """
    if template.count("{}") != 1:
        raise UserError(f"a template has exactly one {{}} for the class name, got '{template}'")
    return template.replace("{}", name)


def before_name(n_context: int, position: Position) -> int:
    """How many of the context tokens stand before the class name."""
    return {"end": n_context, "middle": n_context // 2, "front": 0}[position]


def common_prefix(ids: Int[Tensor, "C L"], limit: int) -> int:
    """How many leading tokens all rows have in common, at most `limit`."""
    same = (ids[:, :limit] == ids[:1, :limit]).all(0)
    return int(same.int().cumprod(0).sum())


def subset(edits: Edits, classes: Int[Tensor, " c"]) -> Edits:
    """The edits for some of the classes, where deep prompts differ between them."""
    return {
        layer: replace(edit, tokens=edit.tokens.index_select(-3, classes.to(edit.tokens.device)))
        if edit.tokens is not None and edit.tokens.ndim == 4
        else edit
        for layer, edit in edits.items()
    }


def _repeat(x: Tensor, times: int, dim: int) -> Tensor:
    """[.., 1, ..] (`dim` is 0 or 1) repeated, and the first two dims made one: [B, C, *] -> [B*C, *]."""
    shape = list(x.shape)
    shape[dim] = times
    return x.expand(shape).flatten(0, 1)
