"""All there is to look at in a trained learner: which view shows what."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vlprompt.data.transforms import seed_of
from vlprompt.errors import unknown
from vlprompt.interpret import cache, classes, images, parameters, weights, words
from vlprompt.interpret.observe import observe
from vlprompt.interpret.view import View
from vlprompt.learners.base import Learner
from vlprompt.learners.tip_adapter import TipAdapter
from vlprompt.results import learner_files
from vlprompt.results.record import Record

FEW_CONTEXTS, FEW_CLASSES = 3, 10
NOISE = "one image of noise (name images to measure on them)"


@dataclass(frozen=True)
class Asked:
    """What a reader wants: names of classes (None: a few), nearest words or images of each, all tensors too."""

    classes: Sequence[str] | None = None
    top: int = 3
    tensors: bool = False


def look(
    learner: Learner,
    asked: Asked,
    *,
    pixels: Tensor | None = None,
    names: Sequence[str] = (),
    cached: Sequence[str] | None = None,
    start: Learner | None = None,
) -> list[View]:
    """The views of a learner that is bound to its training classes; none where nothing is trained.

    Args:
        pixels, names: images [B, 3, H, W] that the reader named, and their names.
        cached: of a cache of training images, their names in its order.
        start: the same learner before training.

    Raises:
        UserError: a class that it was not trained on.
    """
    chosen = None if asked.classes is None else [index_of(name, learner.classes) for name in asked.classes]
    if not learner.state_dict():
        return []
    if pixels is not None:
        names = names or [f"image {i}" for i in range(1, len(pixels) + 1)]
    if isinstance(learner, TipAdapter):
        shown = [of_cache(learner, chosen, asked.top, pixels, names, cached)]
        return [*shown, *tensors(learner, None)] if asked.tensors else shown
    size, on = learner.clip.preprocess.size, NOISE if pixels is None else "the images named"
    noise = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    given = noise.to(learner.clip.device) if pixels is None else pixels
    seen = observe(learner, given)
    before = None if start is None else words.contexts(start, observe(start, given[:1]))
    few = range(min(FEW_CONTEXTS, len(learner.classes))) if chosen is None else chosen
    views = [
        words.view(learner, words.contexts(learner, seen), classes=few, top=asked.top, start=before),
        images.tokens_view(learner, seen, given, on),
        weights.changes_view(learner),
        weights.branches_view(seen, f"; images: {on}"),
        weights.prefixes_view(seen),
        images.features_view(learner, pixels, names) if pixels is not None else None,
        classes.view(learner, chosen, FEW_CLASSES),
    ]
    known = [view for view in views if view is not None]
    return [*known, *(tensors(learner, start) if asked.tensors or not known else [])]


def of_cache(
    learner: TipAdapter,
    chosen: Sequence[int] | None,
    top: int,
    pixels: Tensor | None,
    names: Sequence[str],
    cached: Sequence[str] | None,
) -> View:
    if cached is None:  # the data set is not there: a class, and a number in it
        labels = learner.labels.tolist()
        cached = [f"{learner.trained_classes[c]}, {labels[: i + 1].count(c)}" for i, c in enumerate(labels)]
    if pixels is not None:
        return cache.nearest_images(learner, pixels, names, cached, top)
    return cache.confusions(learner, cached, chosen, FEW_CLASSES)


def tensors(learner: Learner, start: Learner | None) -> list[View]:
    view = parameters.view(learner, None if start is None else start.state_dict())
    return [] if view is None else [view]


def index_of(name: str, known: Sequence[str]) -> int:
    if name not in known:
        raise unknown("class", name, known)
    return list(known).index(name)


def before_training(learner: Learner, folder: Path) -> Learner | None:
    """A run's learner with the values that its seed gives before training; None where these cannot be known."""
    record = Record.read(folder)
    if record is None or record.imported or not (folder / learner_files.CONFIG).is_file():
        return None
    about, kind = learner_files.read_config(folder), type(learner)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of("init", record.seed))
        start = kind(learner.clip, about["classes"], **kind.resolved(about["arguments"])).to(learner.clip.device)
    shapes = [{name: t.shape for name, t in each.state_dict().items()} for each in (start, learner)]
    return start.eval() if shapes[0] == shapes[1] else None
