"""A learner's classes as a matrix, for those who have features of images and NumPy."""

import copy
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from vlprompt.errors import UserError
from vlprompt.inference.calibration import calibrator
from vlprompt.interop.folder import whole_folder
from vlprompt.learners.base import Learner, normalize
from vlprompt.learners.mmrl import MMRL
from vlprompt.towers import Images

CLASSIFIER, PREPROCESS = "classifier.npz", "preprocess.json"
TOLERANCE = 1e-4  # of the largest logit
Outputs = Mapping[str, Tensor]


@dataclass(frozen=True)
class Classifier:
    """logits = scale * f W^T + b, of features f [B, e] that have length one where `unit`, else as they are."""

    weight: Float[Tensor, "C e"]
    bias: Float[Tensor, " C"]
    scale: float = 1.0
    unit: bool = True

    def __call__(self, features: Float[Tensor, "B e"]) -> Float[Tensor, "B C"]:
        seen = normalize(features) if self.unit else features.float()
        return self.scale * seen @ self.weight.T + self.bias

    def save(self, path: Path, classes: tuple[str, ...]) -> None:
        """Write an npz without pickles: weight, bias, scale, unit, classes."""
        arrays = {"weight": self.weight.numpy(), "bias": self.bias.numpy(), "classes": np.array(classes, np.str_)}
        np.savez(path, scale=np.float32(self.scale), unit=np.bool_(self.unit), **arrays)  # type: ignore[arg-type]


def write_classifier(learner: Learner, folder: Path, *, force: bool = False) -> list[str]:
    """Write `classifier.npz`, which reads features of the plain frozen model, and `preprocess.json`; -> their names.

    Raises:
        UserError: a learner that changes the features of images, or whose logits are no linear function of them; files
            that are there already, unless `force`; a full disk.
    """
    name = type(learner).__name__
    if learner.edits_image:
        raise UserError(f"{name} changes the image tower, so that its classes go with no plain features: use --to onnx")
    classifier = classifier_of(learner)
    if classifier is not None and not _reads_plain_features(learner):
        raise UserError(f"{name} changes the features of images, so that no matrix reads plain ones: use --to onnx")
    if classifier is None:
        raise UserError(
            f"the logits of {name} are no linear function of an image's features, so that no matrix has its classes: "
            "use --to hub"
        )
    with whole_folder(folder, (CLASSIFIER, PREPROCESS), force=force) as draft:
        classifier.save(draft / CLASSIFIER, learner.classes)
        write_preprocess(draft / PREPROCESS, learner, classifier)
    return [CLASSIFIER, PREPROCESS]


@torch.no_grad()
def classifier_of(learner: Learner) -> Classifier | None:
    """The matrix that reads what `image_outputs` gives; None where the logits are no linear function of it.

    Whatever the method, what is returned gives the logits of random images, calibrated where the learner is.

    Raises:
        UserError: a calibration that no matrix holds.
    """
    classes = learner.encode_classes()
    images = random_images(learner)
    temperature = temperature_of(learner, classes)
    logits = calibrator(learner, classes)(learner.logits(images, classes).float())
    outputs, limit = image_outputs(learner, images), TOLERANCE * max(1.0, float(logits.abs().max()))
    for plain in _candidates(learner, classes):
        candidate = replace(plain, scale=temperature * plain.scale, bias=temperature * plain.bias)
        ours = mixed(candidate, outputs, shares(learner))
        if ours.shape == logits.shape and float((ours - logits).abs().max()) <= limit:
            return candidate
    return None


def temperature_of(learner: Learner, classes: Tensor | None) -> float:
    """The factor of all logits of a calibrated learner; 1 where it is not.

    Raises:
        UserError: a calibration in which a picture's factor depends on its class.
    """
    if learner.calibration is None:
        return 1.0
    n = len(learner.classes)
    factors = calibrator(learner, classes)(torch.eye(n)).diagonal()  # of a picture of each class
    if not torch.equal(factors, factors[:1].expand(n)):
        raise UserError(
            f"calibration={learner.calibration.name} multiplies a picture's logits by a factor of its predicted class, "
            "which no matrix does: export it among the classes that it was trained on, or use --to hub"
        )
    return float(factors[0])


def _candidates(learner: Learner, classes: Tensor | None) -> Iterator[Classifier]:
    e = learner.clip.image.embed_dim
    if learner.has_head:
        head = copy.deepcopy(learner.head).double()  # whose centring would cost digits
        bias = head(torch.zeros(1, e, dtype=torch.double))
        weight = (head(torch.eye(e, dtype=torch.double)) - bias).T
        yield Classifier(learner.select(weight).float(), learner.select(bias[0]).float(), unit=False)
    elif classes is not None and classes.ndim == 2:
        yield Classifier(normalize(classes), torch.zeros(len(classes)), learner.clip.scale)
        yield Classifier(classes.float(), learner.compare(torch.zeros(1, e), classes)[0].float())


def _reads_plain_features(learner: Learner) -> bool:
    features = random_images(learner).features
    return features is not None and torch.equal(learner.encode_images(Images(features=features)), features)


def random_images(learner: Learner, n: int = 4) -> Images:
    """Noise: features where these are enough, else pixels."""
    generator = torch.Generator().manual_seed(0)
    if not learner.edits_image:
        return Images(features=torch.randn(n, learner.clip.image.embed_dim, generator=generator))
    size = learner.clip.preprocess.size
    return Images(pixels=torch.randn(n, 3, size, size, generator=generator))


def shares(learner: Learner) -> dict[str, float]:
    """The features of an image by name, and the share of each in the logits."""
    if isinstance(learner, MMRL) and learner.mixes:
        return {"features": learner.alpha, "token_features": 1 - learner.alpha}
    return {"features": 1.0}


def image_outputs(learner: Learner, images: Images) -> Outputs:
    """Features [B, e] under the names of `shares`, un-normalised."""
    if isinstance(learner, MMRL) and learner.mixes:
        return dict(zip(shares(learner), learner.encode_both(images), strict=True))
    return {"features": learner.encode_images(images)}


def mixed(classifier: Classifier, outputs: Outputs, of: Mapping[str, float]) -> Float[Tensor, "B C"]:
    """Logits of one or more features of the same images."""
    logits = [share * classifier(outputs[name]) for name, share in of.items()]
    return sum(logits[1:], logits[0])


def write_preprocess(path: Path, learner: Learner, classifier: Classifier | None, **more: Any) -> None:
    """How pictures become pixels, and features become logits, as JSON; a matrix has the calibration in its numbers."""
    calibration = learner.calibration
    content = {
        "backbone": learner.clip.name,
        **asdict(learner.clip.preprocess),
        "classes": list(learner.classes),
        "scale": None if classifier is None else classifier.scale,
        "unit": None if classifier is None else classifier.unit,
        "shares": shares(learner),
        "classifier": None if classifier is None else CLASSIFIER,
        **({} if calibration is None else {"calibration": calibration.stored}),
        **more,
    }
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
