"""What a learner hands to the frozen towers, seen while it classifies: contexts, edits, and how much branches add.

Whatever a method is, its prompts and edits enter the towers here, so that this needs to know no method.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from vlprompt.learners.base import Learner
from vlprompt.towers import NO_EDITS, Edits, Images, ImageTower, Prompts, TextTower

Added = dict[tuple[str, int, str], list[float]]
Tower = TypeVar("Tower", ImageTower, TextTower)


@dataclass
class Seen:
    """`prompts` and `text` of the last call of the text tower with a context or edits; `image` alike."""

    prompts: Prompts | None = None
    text: Edits = field(default_factory=dict)
    image: Edits = field(default_factory=dict)
    added: Added = field(default_factory=dict)  # by tower, layer and branch: mean of |what is added| / |the output|


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class SeenText(TextTower):
    seen: Seen

    def __call__(self, prompts: Prompts, edits: Edits = NO_EDITS) -> Tensor:
        if edits or prompts.slot:
            self.seen.prompts, self.seen.text = prompts, edits
        return super().__call__(prompts, measured(edits, "text", self.seen.added))


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class SeenImage(ImageTower):
    seen: Seen

    def _run(self, images: Images, edits: Edits, **how: Any) -> tuple[Tensor, int]:
        if edits:
            self.seen.image = edits
        return super()._run(images, measured(edits, "image", self.seen.added), **how)


def watching(kind: type[Tower], tower: Tower, seen: Seen) -> Tower:
    values = {f.name: getattr(tower, f.name) for f in fields(tower)}
    return kind(**values, seen=seen)  # type: ignore[call-arg]


def measured(edits: Edits, tower: str, added: Added) -> dict[int, Any]:
    """The same edits, whose branches tell how much they change what they are given."""

    def meter(branch: Callable[[Tensor, Tensor], Tensor], key: tuple[str, int, str]) -> Any:
        def run(h: Tensor, stream: Tensor) -> Tensor:
            out = branch(h, stream)
            ratio = (out - h).norm(dim=-1) / h.norm(dim=-1).clamp(min=1e-12)
            added.setdefault(key, []).append(float(ratio.mean()))
            return out

        return run

    return {
        layer: replace(edit, **{
            site: meter(getattr(edit, site), (tower, layer, site))
            for site in ("attn", "mlp") if getattr(edit, site) is not None
        })
        for layer, edit in edits.items()
    }  # fmt: skip


@torch.no_grad()
def observe(learner: Learner, pixels: Float[Tensor, "B 3 H W"]) -> Seen:
    """What a learner hands to the towers while it classifies these images."""
    seen, clip = Seen(), learner.clip
    learners = [part for part in learner.modules() if isinstance(part, Learner)]  # one may be built around another
    text = None if clip.text is None else watching(SeenText, clip.text, seen)
    watched = replace(clip, image=watching(SeenImage, clip.image, seen), text=text)
    for part in learners:
        part.clip = watched
    learner.forget()
    try:
        learner.logits(Images(pixels), learner.encode_classes())
    finally:
        for part in learners:
            part.clip = clip
        learner.forget()
    return seen
