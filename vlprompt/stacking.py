"""Several learners of one kind as one: their parameters stacked, the frozen towers passed once for all."""

import logging
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call, vmap

from vlprompt.learners.base import Learner
from vlprompt.towers import Images

Batch = tuple[Images, Int[Tensor, " B"]]
logger = logging.getLogger(__name__)


class Stacked(NamedTuple):
    """What one pass gives to each of S members."""

    losses: Float[Tensor, " S"]
    logits: Float[Tensor, "S B C"]


class Stack:
    """Learners that differ in the values of their parameters alone.

    A learner with a backward pass of its own, or that draws random numbers while training (dropout), is not stacked:
    its numbers would be others than alone; nor is one whose activations are computed again in backward (`text_chunk`).
    What fails to stack for another reason is trained one by one, too.
    """

    def __init__(self, learners: Sequence[Learner]) -> None:
        kinds = {type(learner) for learner in learners}
        self.works = len(kinds) == 1 and all(kind.backward is Learner.backward for kind in kinds)
        self.works = self.works and len({learner.classes for learner in learners}) == 1
        self.works = self.works and learners[0].clip.text_chunk is None
        self.tried = False

    def backward(self, learners: Sequence[Learner], batches: Sequence[Batch]) -> Stacked | None:
        """Gradients of each member's loss in its own parameters; None where they cannot be stacked."""
        if not self.works:
            return None
        if not self.tried:
            self.tried, obstacle = True, self._obstacle(learners, batches)
            if obstacle:
                self.works = False
                logger.info("%s cannot be stacked: %s", type(learners[0]).__name__, obstacle)
                return None
        found = self._forward(learners, batches)
        found.losses.sum().backward()
        return Stacked(found.losses.detach(), found.logits.detach())

    @torch.no_grad()
    def _obstacle(self, learners: Sequence[Learner], batches: Sequence[Batch]) -> str:
        """Why learners cannot be stacked: a first pass in full precision is held against their own; empty: they can."""
        device = learners[0].clip.device.type
        try:
            with torch.autocast(device, enabled=False):
                found = self._forward(learners, batches).losses
                alone = torch.stack([learner.loss(*batch) for learner, batch in zip(learners, batches, strict=True)])
        except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
            return " ".join(str(error).split())[:120]
        same = torch.allclose(found.float(), alone.float(), rtol=1e-3, atol=1e-4, equal_nan=True)
        return "" if same else f"losses are {found.tolist()} together, {alone.tolist()} alone"

    def _forward(self, learners: Sequence[Learner], batches: Sequence[Batch]) -> Stacked:
        parameters = stack(dict(learner.named_parameters()) for learner in learners)
        buffers = stack(dict(learner.named_buffers()) for learner in learners)
        step = _Step(learners[0])
        tensors = torch.stack([_tensor(images) for images, _ in batches])
        labels = torch.stack([labels for _, labels in batches])
        banked = batches[0][0].features is not None

        def one(
            parameters: dict[str, Tensor], buffers: dict[str, Tensor], tensor: Tensor, labels: Tensor
        ) -> tuple[Tensor, Tensor]:
            images = Images(features=tensor) if banked else Images(tensor)
            named = {f"learner.{name}": value for name, value in {**parameters, **buffers}.items()}
            return functional_call(step, named, (images, labels))

        with warnings.catch_warnings():  # an attention kernel that vmap calls once a member is what it costs anyway
            warnings.filterwarnings("ignore", "There is a performance drop")
            return Stacked(*vmap(one, randomness="error")(parameters, buffers, tensors, labels))


class _Step(nn.Module):
    """A learner's loss as a module, which also tells the logits."""

    def __init__(self, learner: Learner) -> None:
        super().__init__()
        self.learner = learner

    def forward(self, images: Images, labels: Tensor) -> tuple[Tensor, Tensor]:
        seen: list[Tensor] = []

        def see(module: nn.Module, args: tuple[Any, ...], logits: Tensor) -> None:
            seen.append(logits)

        hook = self.learner.register_forward_hook(see)
        try:
            loss = self.learner.loss(images, labels)
        finally:
            hook.remove()
        return loss, seen[-1].detach()


def stack(members: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Tensors of the same names, one behind the other; gradients flow back to each."""
    first, *others = members
    return {name: torch.stack([tensor, *(member[name] for member in others)]) for name, tensor in first.items()}


def _tensor(images: Images) -> Tensor:
    found = images.features if images.features is not None else images.pixels
    assert found is not None
    return found
