"""Predictions of a learner on test images."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from vlprompt.config.build import bind_to
from vlprompt.data.dataset import Split
from vlprompt.data.loader import TEST_BATCH, Loader
from vlprompt.inference.calibration import Calibration, calibrator
from vlprompt.learners.base import Learner
from vlprompt.results.predictions import Predictions
from vlprompt.towers.precision import autocast
from vlprompt.training.progress import Reporter, Track

ImageName = tuple[str, str]  # the origin of its data set, and its name there
Shared = dict[ImageName, Float[Tensor, " e"] | None]


@torch.no_grad()
def evaluate(
    learner: Learner, tests: Mapping[str, Split], loader: Loader, *, precision: str, reporter: Reporter
) -> dict[str, Predictions]:
    """Predictions on each test split, among that split's classes.

    Images that several tests share (base classes' among all classes') pass the image tower once.
    """
    learner.eval()
    shared = shared_images(learner, tests, loader)
    predictions = {}
    for name, split in tests.items():
        bind_to(learner, split)
        with autocast(loader.clip.device, precision):
            classes = learner.encode_classes()
        with reporter.track(f"testing on {name}", len(split)) as track:
            logits = logits_of(learner, split, classes, loader, shared, precision, track)
        logits = calibrator(learner, classes)(logits)
        labels = torch.tensor([item.label for item in split.items])
        predictions[name] = Predictions.from_logits([item.image for item in split.items], labels, logits)
    return predictions


@torch.no_grad()
def fit_calibration(
    calibration: Calibration,
    learner: Learner,
    train: Split,
    val: Split | None,
    loader: Loader,
    *,
    precision: str,
    reporter: Reporter,
) -> None:
    """Fit it on the logits of the validation images, if it is fitted on any, and give it to the trained learner."""
    learner.eval()
    learner.calibration = None
    bind_to(learner, train)
    with autocast(loader.clip.device, precision):
        calibration.attach(learner)
    if calibration.on_images:
        assert val is not None
        bind_to(learner, val)
        with autocast(loader.clip.device, precision):
            classes = learner.encode_classes()
        with reporter.track("calibrating", len(val)) as track:
            logits = logits_of(learner, val, classes, loader, {}, precision, track)
        calibration.fit(logits, torch.tensor([item.label for item in val.items]), learner.clip.scale)
    learner.calibration = calibration


def shared_images(learner: Learner, tests: Mapping[str, Split], loader: Loader) -> Shared:
    """Images of several tests, without a feature until one is encoded; none where cached features are read anyway, or
    where a learner has logits of its own.
    """
    if loader.features is not None or type(learner).logits is not Learner.logits:
        return {}
    counts = Counter(image for split in tests.values() for image in image_names(split))
    return {image: None for image, count in counts.items() if count > 1}


def image_names(split: Split) -> list[ImageName]:
    return [(split.origin, item.image) for item in split.items]


def logits_of(
    learner: Learner,
    split: Split,
    classes: Float[Tensor, "C *e"] | None,
    loader: Loader,
    shared: Shared,
    precision: str,
    track: Track,
) -> Float[Tensor, "N C"]:
    """Logits on the CPU in the order of the split, whose classes are bound; `shared` remembers features."""
    names = image_names(split)
    old = [i for i, name in enumerate(names) if shared.get(name) is not None]
    new = [i for i, name in enumerate(names) if shared.get(name) is None]
    if loader.features is not None:
        loader.features.fill(split, done=track.advance)
    rows = []
    for chosen in torch.tensor(old).split(TEST_BATCH) if old else ():
        features = torch.stack([feature for i in chosen.tolist() if (feature := shared[names[i]]) is not None])
        with autocast(loader.clip.device, precision):
            rows.append(learner.compare(features, classes).float().cpu())
        track.advance(len(chosen))
    unread = iter(new)
    for images, labels in loader.ordered(replace(split, items=tuple(split.items[i] for i in new))):
        with autocast(loader.clip.device, precision):
            if shared:
                features = learner.encode_images(images)
                batch = [names[next(unread)] for _ in labels]
                shared |= {name: f for name, f in zip(batch, features, strict=True) if name in shared}
                logits = learner.compare(features, classes)
            else:
                logits = learner.logits(images, classes)
        rows.append(logits.float().cpu())
        if loader.features is None:
            track.advance(len(labels))
    return torch.cat(rows)[torch.tensor([*old, *new]).argsort()]
