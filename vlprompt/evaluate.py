"""Predictions of a learner on test images."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from vlprompt.config.build import bind_to
from vlprompt.data.dataset import Split
from vlprompt.data.loader import TEST_BATCH, Loader
from vlprompt.data.transforms import seed_of
from vlprompt.inference import Adaptation, views_of
from vlprompt.inference.calibration import Calibration, calibrator
from vlprompt.learners.base import Learner
from vlprompt.results.ood import INSIDE, OodScores
from vlprompt.results.predictions import Predictions
from vlprompt.towers.precision import autocast
from vlprompt.training.progress import Reporter, Track

ImageName = tuple[str, str]  # the origin of its data set, and its name there
Shared = dict[ImageName, Float[Tensor, " e"] | None]


@dataclass(frozen=True)
class Outside:
    """Images out of distribution by the name of their data set, and what was scored on each test.

    `scores` has those of the test's own images next to those of each data set.
    """

    splits: Mapping[str, Split]
    scores: dict[str, dict[str, OodScores]] = field(default_factory=dict)

    def of(self, test: Split) -> dict[str, Split]:
        """Those that are no images of the test's own data set."""
        return {name: split for name, split in self.splits.items() if not test.origin or split.origin != test.origin}


@torch.no_grad()
def evaluate(
    learner: Learner,
    tests: Mapping[str, Split],
    loader: Loader,
    *,
    precision: str,
    reporter: Reporter,
    adaptation: Adaptation | None = None,
    outside: Outside | None = None,
) -> dict[str, Predictions]:
    """Predictions on each test split, among that split's classes; of the learner as the images adapt it, where they do.

    What is `outside` gets its scores.

    Images that several tests share (base classes' among all classes') pass the image tower once.
    """
    learner.eval()
    outside = outside or Outside({})
    others = {f"{test}/{name}": other for test, split in tests.items() for name, other in outside.of(split).items()}
    shared = {} if adaptation else shared_images(learner, {**tests, **others}, loader)

    def judge(split: Split, classes: Float[Tensor, "C *e"] | None, track: Track) -> Float[Tensor, "N C"]:
        if adaptation:
            logits = adapted_logits(learner, split, classes, loader, adaptation, precision, track)
        else:
            logits = logits_of(learner, split, classes, loader, shared, precision, track)
        return calibrator(learner, classes)(logits)

    predictions = {}
    for i, (name, split) in enumerate(tests.items(), 1):
        bind_to(learner, split)
        with autocast(loader.clip.device, precision):
            classes = learner.encode_classes()
        title = f"testing on {name}" + f" ({i} of {len(tests)})" * (len(tests) > 1)
        with reporter.track(title, len(split)) as track:
            logits = judge(split, classes, track)
        labels = torch.tensor([item.label for item in split.items])
        images, known = [item.image for item in split.items], known_columns(learner, split)
        predictions[name] = Predictions.from_logits(images, labels, logits, known)
        logits_by_set = {INSIDE: (split, logits)}
        for other, without in outside.of(split).items():
            with reporter.track(f"{name}: {other}, out of distribution", len(without)) as track:
                logits_by_set[other] = without, judge(without, classes, track)
        if len(logits_by_set) > 1:
            outside.scores[name] = {
                other: OodScores.from_logits([item.image for item in part.items], logits, scale=learner.cosine_scale)
                for other, (part, logits) in logits_by_set.items()
            }
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
    adaptation: Adaptation | None = None,
) -> None:
    """Fit it on the logits of the validation images, if it is fitted on any, and give it to the trained learner.

    Logits are those that are tested: of the learner as each image adapts it, where they do.
    """
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
            if adaptation:
                logits = adapted_logits(learner, val, classes, loader, adaptation, precision, track)
            else:
                logits = logits_of(learner, val, classes, loader, {}, precision, track)
        calibration.fit(logits, torch.tensor([item.label for item in val.items]), learner.clip.scale)
    learner.calibration = calibration


def known_columns(learner: Learner, split: Split) -> list[int] | None:
    """The labels of a test that were trained on, where these are all that were, and others are tested with them.

    None: no open world. A name that stands twice among the tested classes (ImageNet's cranes) is known as often as it
    was trained on, from the first.
    """
    left, known = Counter(learner.trained_classes), []
    for label, name in enumerate(split.classes):
        if left[name]:
            left[name] -= 1
            known.append(label)
    whole = len(known) == len(learner.trained_classes) < len(split.classes)
    return known if whole and not split.transfer else None


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


def adapted_logits(
    learner: Learner,
    split: Split,
    classes: Float[Tensor, "C *e"] | None,
    loader: Loader,
    adaptation: Adaptation,
    precision: str,
    track: Track,
) -> Float[Tensor, "N C"]:
    """Logits on the CPU in the order of the split, whose classes are bound, one image after the other.

    An online method sees them in an order that the loader's seed draws.
    """
    order = list(range(len(split)))
    if adaptation.inference == "online":
        generator = torch.Generator().manual_seed(seed_of("stream", loader.seed))
        order = torch.randperm(len(split), generator=generator).tolist()
    rows = []
    with torch.set_grad_enabled(adaptation.takes_gradients):
        with autocast(loader.clip.device, precision):
            adapter = adaptation.start(learner, classes)
        for images in loader.views(split, adaptation.views, order, augmix=adaptation.augmix):
            with autocast(loader.clip.device, precision):  # anew: it remembers parameters that may have changed
                rows.append(adapter(views_of(learner, images, classes, adaptation)).detach().float().cpu())
            track.advance(1)
    return torch.stack(rows)[torch.tensor(order).argsort()]
