"""Methods as an estimator of scikit-learn."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike
from PIL import Image
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from vlprompt.api import Model, Photos
from vlprompt.config import build
from vlprompt.config.compose import read_run
from vlprompt.config.spec import RunSpec
from vlprompt.data.dataset import Dataset, Item
from vlprompt.data.photos import Photo, listed, open_photo
from vlprompt.errors import UserError
from vlprompt.evaluate import fit_calibration
from vlprompt.train import Epoch, train
from vlprompt.training.device import same_randomness
from vlprompt.training.progress import Reporter

SETTINGS = ("dataset=folder", "protocol=few_shot", "shots=all", "cache=false", "bank.gb=0", "wandb=disabled")


class PromptClassifier(ClassifierMixin, BaseEstimator):
    """A method of the suite as scikit-learn has classifiers: `fit`, `predict`, `predict_proba`, `score`.

    Pictures are paths, PIL images, arrays uint8 [H, W, 3] or tensors uint8 [3, H, W]; all of a training's are used.
    What is not given is as in the method's own configuration.

    Args:
        method: a name that `vlprompt list methods` gives.
        backbone: a name that `vlprompt list backbones` gives.
        lr: highest learning rate.
        epochs: length of the training, or `steps`.
        steps: length in steps of the optimiser.
        batch_size: pictures in a step.
        template: the text around a class's name, with one {}.
        class_names: label -> name in the text, or a list of names for the labels 0, 1, ...; None: the labels
            themselves.
        settings: further settings as on the command line, such as ("method.n_context=8", "fit.weight_decay=0").
        seed: of initial values, order and views; two fits with the same arguments are equal.
        device: auto, cpu, cuda, cuda:1, mps.
        precision: auto, fp32, tf32, bf16, fp16.
        workers: processes that read pictures.
        verbose: whether to show the training's progress.

    Attributes:
        classes_: the labels in the order of `predict_proba`'s columns, sorted.
        model_: the trained `vlprompt.Model`.
        curve_: loss and accuracy by epoch.
    """

    def __init__(
        self,
        method: str = "coop",
        backbone: str = "vit_b16",
        *,
        lr: float | None = None,
        epochs: int | None = None,
        steps: int | None = None,
        batch_size: int | None = None,
        template: str = "a photo of a {}.",
        class_names: Mapping[Any, str] | Sequence[str] | None = None,
        settings: Sequence[str] = (),
        seed: int = 1,
        device: str = "auto",
        precision: str = "auto",
        workers: int = 0,
        verbose: bool = False,
    ) -> None:
        self.method, self.backbone = method, backbone
        self.lr, self.epochs, self.steps, self.batch_size = lr, epochs, steps, batch_size
        self.template, self.class_names, self.settings = template, class_names, settings
        self.seed, self.device, self.precision = seed, device, precision
        self.workers, self.verbose = workers, verbose

    def fit(self, images: Photos, labels: ArrayLike) -> "PromptClassifier":
        """Train on labelled pictures.

        Raises:
            UserError: pictures and labels of different numbers, a single class, a wrong setting, a damaged picture.
        """
        photos, one = listed(images)
        if one:
            shape = f" {list(images.shape)}" if isinstance(images, np.ndarray | Tensor) else ""
            kind = f"{type(images).__name__}{shape}"
            raise UserError(f"images are a single {kind}: give a list of pictures, or a batch with N in front")
        self.classes_, encoded = encode(labels, len(photos))
        spec = self._spec(photos, encoded)
        with same_randomness(spec.device):
            return self._fit(spec)

    def _fit(self, spec: RunSpec) -> "PromptClassifier":
        episode = build.make_episode(spec)
        learner = build.make_learner(spec, build.make_clip(spec), episode)
        reporter = Reporter(aside=True, quiet=not self.verbose)
        calibration = build.make_calibration(spec, learner, episode)
        loader, self.curve_ = build.make_loader(spec, learner), list[Epoch]()
        if fit := spec.settings.fit:  # zero-shot CLIP has none
            self.curve_ = train(learner, episode, loader, fit, precision=spec.precision, reporter=reporter)
        if calibration:
            fit_calibration(
                *(calibration, learner, episode.train, episode.val, loader), precision=spec.precision, reporter=reporter
            )
        self.model_ = Model(learner, spec.precision)
        return self

    def predict(self, images: Photos) -> np.ndarray:
        """The likeliest label of each picture. Raises: NotFittedError; UserError for a damaged picture."""
        best = self.predict_proba(images).argmax(1)
        labels: np.ndarray = self.classes_[best]
        return labels

    def predict_proba(self, images: Photos) -> Float[np.ndarray, "N C"]:
        """Probabilities of all labels, in the order of `classes_`. Raises: as `predict`."""
        check_is_fitted(self, "model_")
        return self.model_.probabilities(images).numpy()

    def _spec(self, photos: Sequence[Photo], labels: Sequence[int]) -> RunSpec:
        """The run that this training is."""
        hashes = list(map(content_hash, photos))
        items = tuple(Item(name, label) for name, label in zip(hashes, labels, strict=True))
        pictures = Pictures(dict(zip(hashes, photos, strict=True)))
        given = Dataset("given", self._names(), items, (), items, pictures, origin="given")
        numbers = {"lr": self.lr, "epochs": self.epochs, "steps": self.steps, "batch_size": self.batch_size}
        more = [self.settings] if isinstance(self.settings, str) else self.settings
        overrides = [
            f"method={self.method}",
            f"backbone={self.backbone}",
            *SETTINGS,
            f"seed={self.seed}",
            f"device={self.device}",
            f"precision={self.precision}",
            f"workers={self.workers}",
            f"dataset.template={json.dumps(self.template, ensure_ascii=False)}",
            *(f"fit.{name}={value}" for name, value in numbers.items() if value is not None),
            *more,
        ]
        return read_run(overrides, given)

    def _names(self) -> tuple[str, ...]:
        """What stands for the labels in texts. Raises: UserError for a list that has none for a label."""
        names, labels = {} if self.class_names is None else self.class_names, self.classes_.tolist()
        if isinstance(names, str) or not isinstance(names, Mapping | Sequence):
            raise UserError(f"class_names is {names!r}, allowed is a name by label, or a list of names")
        if not isinstance(names, Mapping):
            names = dict(enumerate(names))
            if missing := [label for label in labels if label not in names]:
                raise UserError(f"class_names are {len(names)} names, and none is of the label {missing[0]!r}")
        return tuple(str(names.get(label, label)) for label in labels)

    def __getstate__(self) -> dict[str, Any]:
        """Without the frozen model, which is loaded again."""
        state: dict[str, Any] = dict(super().__getstate__())
        if model := state.pop("model_", None):
            learner = model.learner
            tensors = {name: tensor.cpu() for name, tensor in learner.state_dict().items()}
            calibration = learner.calibration and learner.calibration.stored
            state["saved_"] = {"tensors": tensors, "names": learner.trained_classes, "calibration": calibration}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        saved = state.pop("saved_", None)
        super().__setstate__(state)
        if saved:
            labels = list(range(len(saved["names"])))
            blank = [Image.new("RGB", (8, 8), (label % 256, label // 256, 0)) for label in labels]
            spec = self._spec(blank, labels)
            learner = build.untrained(spec.learner, build.make_clip(spec), saved["names"], spec.arguments)
            learner.load_state_dict(saved["tensors"])
            build.restore_calibration(learner, saved.get("calibration"))
            self.model_ = Model(learner.eval(), spec.precision)


def encode(labels: ArrayLike, n: int) -> tuple[np.ndarray, list[int]]:
    """The classes of `n` pictures, sorted, and the index of each picture's. Raises: UserError."""
    given = np.asarray(labels)
    if given.shape != (n,) or not n:
        raise UserError(f"there are {n} pictures and labels {list(given.shape)}: give one for each")
    if given.dtype.kind == "f" and (given % 1 != 0).any():
        raise UserError(f"labels are {given.dtype} such as {given[given % 1 != 0][0]}, allowed are strings or integers")
    try:
        classes, encoded = np.unique(given, return_inverse=True)
    except TypeError:
        kinds = sorted({type(label).__name__ for label in given})
        raise UserError(f"labels are of the kinds {', '.join(kinds)}: give strings or integers") from None
    if len(classes) < 2:
        raise UserError(f"all pictures are of the class {classes[0]}: give at least two classes")
    return classes, encoded.tolist()


@dataclass(frozen=True)
class Pictures:
    """Opens pictures by the hash of what is in them."""

    photos: Mapping[str, Photo]

    def __call__(self, name: str) -> Image.Image:
        return open_photo(self.photos[name])


def content_hash(photo: Photo) -> str:
    """What a picture's random views and its cached features depend on. Raises: UserError for what is no picture."""
    image = open_photo(photo)
    return hashlib.sha256(f"{image.size}".encode() + image.tobytes()).hexdigest()
