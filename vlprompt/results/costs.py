"""What using a learner takes, compared with the frozen model: operations and time."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vlprompt.errors import UserError
from vlprompt.inference import Adaptation, views_of
from vlprompt.learners.base import Learner
from vlprompt.towers import Clip, Images

TIMED_IMAGES, TIMES, ENOUGH_SECONDS = 4, 3, 1.0
Result = TypeVar("Result")


@torch.no_grad()
def costs_of_use(learner: Learner, *, autocast: Callable[[], AbstractContextManager[Any]]) -> dict[str, int | float]:
    """Of the classes that it is bound to, once, and of each image then, which comes as pixels and not from a bank.

    FLOPs are those of products and convolutions, two for each multiplication with its addition. A learner that can be
    merged is counted as it is, not merged. The best of three times counts, of a batch of four images.
    """
    frozen = frozen_classifier(learner)
    one, some = (blank(learner.clip, n) for n in (1, TIMED_IMAGES))
    with autocast(), without_gradients(learner):
        learner.forget()
        classes = learner.eval().encode_classes()
        learner(one, classes)  # what is made once is no cost of an image
        costs = {
            "flops_per_image": count_flops(learner, one, classes),
            "flops_per_image_frozen": count_flops(frozen, one, frozen.encode_classes()) if frozen
            else count_flops(learner.clip.image, one),
            "flops_classes": count_flops(encode_anew, learner),
            "flops_classes_frozen": count_flops(encode_anew, frozen) if frozen else 0,
        }  # fmt: skip
        times: list[float] = []
        start = time.perf_counter()
        while len(times) < TIMES and time.perf_counter() - start < ENOUGH_SECONDS:
            times.append(timed(learner, some, classes)[1])
    return {**costs, "seconds_per_image": min(times) / TIMED_IMAGES}


@torch.no_grad()
def costs_of_adapting(
    learner: Learner, adaptation: Adaptation, *, autocast: Callable[[], AbstractContextManager[Any]]
) -> dict[str, int | float]:
    """Of each test image that adapts the learner to itself: its views, and the FLOPs and seconds of all that it takes.

    The views come as pixels. What is computed once for all images of a test is no cost of an image.
    """
    size = learner.clip.preprocess.size
    pixels = torch.rand(adaptation.views, 3, size, size, generator=torch.Generator().manual_seed(0))
    images = Images(pixels.to(learner.clip.device))
    classes = learner.eval().encode_classes()
    with torch.set_grad_enabled(adaptation.takes_gradients), autocast():
        adapter = adaptation.start(learner, classes)

        def adapt() -> Tensor:
            return adapter(views_of(learner, images, classes, adaptation))

        flops, seconds = count_flops(adapt), timed(adapt)[1]
    return {"views": adaptation.views, "flops_per_image": flops, "seconds_per_image": seconds}


def frozen_classifier(learner: Learner) -> Learner | None:
    """The frozen model with the same classes; None where it has no text tower, or no words for their names."""
    if learner.clip.text is None:
        return None
    frozen = Learner(learner.clip, learner.classes, template=learner.template)
    try:
        frozen.make_prompts()
    except UserError:  # which a learner without texts never comes across
        return None
    return frozen


@contextmanager
def without_gradients(learner: Learner) -> Iterator[None]:
    """No parameter asks for one: the counter of FLOPs would watch them, and stumbles over views of parameters."""
    asking = [p for p in learner.parameters() if p.requires_grad]
    for p in asking:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in asking:
            p.requires_grad_(True)


def encode_anew(learner: Learner) -> Tensor | None:
    """Class features, computed whether they are remembered or not."""
    learner.forget()
    return learner.encode_classes()


def count_flops(function: Callable[..., Tensor | None], *args: Any) -> int:
    """FLOPs of a call; attention is counted the same whatever kernel computes it."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        function(*args)
    return counter.get_total_flops()


def blank(clip: Clip, n: int) -> Images:
    """n images of the mean colour."""
    size = clip.preprocess.size
    return Images(torch.zeros(n, 3, size, size, device=clip.device))


def timed(function: Callable[..., Result], *args: Any, **keywords: Any) -> tuple[Result, float]:
    """A call's result and its wall time in seconds."""
    start = time.perf_counter()
    result = function(*args, **keywords)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return result, time.perf_counter() - start
