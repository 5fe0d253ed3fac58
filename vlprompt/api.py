"""What Python gets: trained models, a training on batches of one's own, benchmarks and their results."""

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from pydantic import ValidationError
from torch import Tensor

from vlprompt.config import build
from vlprompt.config.schema import Fit, explain
from vlprompt.data.given import Given, GivenBatches, GivenLoader
from vlprompt.data.photos import BATCH, Photo, Preparation, prepared, read_photos
from vlprompt.data.transforms import normalise
from vlprompt.errors import UserError
from vlprompt.learners.base import Learner
from vlprompt.protocols.base import Episode
from vlprompt.results import learner_files, metrics
from vlprompt.results.predictions import Predictions
from vlprompt.textfiles import absolute
from vlprompt.towers import Clip, Images
from vlprompt.train import Epoch, train
from vlprompt.training.device import autocast, default_workers, resolve_device, resolve_precision
from vlprompt.training.progress import Reporter

if TYPE_CHECKING:
    import pandas as pd

    from vlprompt.results.record import Record

FEW = 64  # pictures that are read without further processes
HUB = "hf://"
Photos = Photo | Sequence[Photo] | np.ndarray | Tensor
Damaged = Callable[[int, UserError], object]


@dataclass(frozen=True, eq=False)
class Model:
    """A trained learner that classifies pictures. `load` gives one; it never changes.

    Pictures are paths, PIL images, arrays uint8 [H, W, 3], tensors uint8 [3, H, W], or floats [N, 3, H, W] as
    `preprocess` gives them; one, or a list of them in any mixture.

    Args:
        learner: bound to its classes.
        precision: fp32 or bf16, the arithmetic of the run that trained it.
        as_shown: turn files as their EXIF data says and put transparent ones on white; else pixels as they are stored.
    """

    learner: Learner
    precision: str = "fp32"
    as_shown: bool = True

    def __repr__(self) -> str:
        kind, n = type(self.learner).__name__, len(self.classes)
        return f"Model({kind} over {self.clip.name}, {n} classes, {self.precision} on {self.clip.device})"

    @property
    def clip(self) -> Clip:
        """The frozen model."""
        return self.learner.clip

    @property
    def classes(self) -> tuple[str, ...]:
        """The names that it chooses between, in the order of the logits."""
        return self.learner.classes

    @property
    def preprocess(self) -> Preparation:
        """PIL image -> tensor [3, H, W], as the frozen model reads it."""
        return Preparation(self.clip.preprocess)

    def with_classes(self, classes: Sequence[str], *, transfer: bool = False) -> "Model":
        """The same model choosing between other names.

        `transfer`: the pictures are of another kind than those trained on; a few methods then judge by other logits, as
        published for other data sets.

        Raises:
            ClassBoundError: the learner has parameters for each of its classes, and these are not among them.
            UserError: no names, or what is no list of them.
        """
        names = check_classes(classes)
        trained = self.learner.trained_classes
        rows = [trained.index(name) for name in names] if set(names) <= set(trained) else None
        learner = copy.deepcopy(self.learner, {id(self.clip): self.clip})
        build.bind(learner, names, rows=None if names == trained else rows, transfer=transfer)
        model = replace(self, learner=learner)
        _ = model._class_features  # which shows whether the names can be read
        return model

    def predict(self, images: Photos, *, top: int = 1) -> list[Any]:
        """The `top` likeliest classes of each picture with their probabilities, as (class, probability).

        A list of them for each picture of a list; for a single picture one such list.

        Raises:
            UserError: a damaged picture, an empty list, or a `top` below 1.
        """
        if not isinstance(top, int) or top < 1:
            raise UserError(f"top is {top}, allowed is a number of classes: 1 or more")
        one = not isinstance(images, list | tuple) and (not isinstance(images, np.ndarray | Tensor) or images.ndim < 4)
        rows = self.probabilities([images] if one else images)  # type: ignore[list-item]
        best = rows.topk(min(top, len(self.classes)))
        pairs = [
            [(self.classes[i], p) for i, p in zip(of_row.tolist(), values.tolist(), strict=True)]
            for of_row, values in zip(best.indices, best.values, strict=True)
        ]
        return pairs[0] if one else pairs

    def probabilities(self, images: Photos) -> Float[Tensor, "N C"]:
        """Softmax of the logits, on the CPU. Raises: UserError as `predict`."""
        return self.logits(images).softmax(-1).cpu()

    def logits(self, images: Photos) -> Float[Tensor, "N C"]:
        """Logits in float32, on the model's device. Raises: UserError as `predict`."""
        return torch.cat([rows for _, rows in self.iterate(images)])

    def features(self, images: Photos) -> Float[Tensor, "N e"]:
        """The adapted image tower's output, not normalised, on the model's device. Raises: UserError as `predict`."""
        return torch.cat([rows for _, rows in self._each(images, self.learner.encode_images)])

    def iterate(
        self, images: Photos, *, damaged: Damaged | None = None
    ) -> Iterable[tuple[list[int], Float[Tensor, "B C"]]]:
        """Logits batch after batch, with the indices of the pictures.

        `damaged` is told the index and the error of each picture that cannot be read, which is left out; None: the
        error is raised.
        """
        return self._each(images, lambda batch: self.learner.logits(batch, self._class_features), damaged)

    def _each(
        self, images: Photos, compute: Callable[[Images], Tensor], damaged: Damaged | None = None
    ) -> Iterable[tuple[list[int], Tensor]]:
        for indices, pixels in self._batches(images, damaged):
            with torch.no_grad(), autocast(self.clip.device, self.precision):
                rows = compute(Images(pixels)).float()
            yield indices, rows

    def _batches(self, images: Photos, damaged: Damaged | None) -> Iterable[tuple[list[int], Tensor]]:
        """Normalised pixels on the model's device."""
        photos: Any = images if isinstance(images, list | tuple | np.ndarray | Tensor) else [images]
        if not len(photos):
            raise UserError("there are no pictures: give at least one")
        pre, device = self.clip.preprocess, self.clip.device
        if (pixels := prepared(photos, pre)) is not None:
            first = 0
            for batch in pixels.split(BATCH):
                yield list(range(first, first + len(batch))), batch.to(device)
                first += len(batch)
            return
        workers = default_workers() if len(photos) > FEW else 0
        for indices, crops in read_photos(photos, pre, as_shown=self.as_shown, workers=workers, damaged=damaged):
            yield indices, normalise(crops.to(device, non_blocking=True), pre)

    @cached_property
    def _class_features(self) -> Float[Tensor, "C e"] | None:
        with torch.no_grad(), autocast(self.clip.device, self.precision):
            return self.learner.encode_classes()


def check_classes(classes: Sequence[str]) -> tuple[str, ...]:
    """Names of classes as a tuple. Raises: UserError for what is none."""
    names = (classes,) if isinstance(classes, str) else tuple(classes)
    if isinstance(classes, str) or not names or not all(isinstance(name, str) and name.strip() for name in names):
        raise UserError(f"the classes are {classes!r}, allowed is a list of names, at least one: ['zebra', 'okapi']")
    return names


def load(source: str | Path, *, device: str = "auto", precision: str | None = None, allow: Sequence[str] = ()) -> Model:
    """A trained model: from a run's folder, a learner's folder, or `hf://user/repo`, `hf://user/repo@revision`.

    Args:
        source: the folder, or the name of a repository on the hub after `hf://`; its tensors and its JSON are fetched.
        device: auto, cpu, cuda, cuda:1.
        precision: fp32 or bf16; None: that of the run.
        allow: modules that the files may name in addition to the package's own.

    Raises:
        UserError: no run there, files that are damaged, weights that cannot be fetched or that do not fit.
    """
    folder = folder_of(source)
    place = resolve_device(device)
    if (folder / learner_files.CONFIG).is_file():
        about = learner_files.read_config(folder)
        learner = build.restore_learner(folder, allow, device=place, quantized=True)
        trained_in, as_shown = about.get("precision"), bool(about.get("as_shown", True))
    else:
        learner, trained_in, as_shown = build.rebuild(folder, device=device, allow=allow)
    return Model(learner, resolve_precision(precision or trained_in or "auto", place), as_shown)


def folder_of(source: str | Path) -> Path:
    """Where the files of a saved learner are. Raises: UserError where there are none."""
    from vlprompt.results.store import stored_run

    if str(source).startswith(HUB.removesuffix("/")):  # a path that was made of such a name has a slash less
        from vlprompt.interop.hub import fetch_learner

        return fetch_learner(str(source))
    folder = absolute(source)
    run = stored_run(folder)
    folder = run[0] if run else folder
    if not run and not (folder / learner_files.CONFIG).is_file():
        what = "there is no folder" if not folder.is_dir() else "no run and no learner lies in"
        raise UserError(f"{what} '{folder}': give a run's folder, as in results/runs/.../seed1, or {HUB}user/repo")
    return folder


def load_clip(model: str, weights: str = "pretrained", *, device: str = "auto", seed: int = 0) -> Clip:
    """A frozen model: open_clip's name and tag, a folder, `hf-hub:owner/name`, one of timm's, or shapes_vit.

    Raises:
        UserError: an unknown model or tag, weights that cannot be fetched or do not fit.
    """
    from vlprompt import demo
    from vlprompt.towers import load_clip as load_towers

    folder = demo.BACKBONES.get(model)
    return load_towers(str(folder or model), weights, seed=seed).to(resolve_device(device))


def fit(
    learner: Learner,
    batches: Given,
    *,
    epochs: int | None = None,
    steps: int | None = None,
    lr: float | None = None,
    val: Given | None = None,
    seed: int = 1,
    precision: str = "auto",
    progress: bool = True,
    **settings: Any,
) -> list[Epoch]:
    """Train a learner on batches of one's own, by the loop that runs have; -> the curve.

    Args:
        learner: is changed.
        batches: (pixels [B, 3, H, W] as `preprocess` gives them, labels [B]), such as a DataLoader; read once an epoch.
        epochs, steps: how long, one of the two; epochs=0 for methods that are fitted without steps.
        lr: the highest learning rate.
        val: batches for methods and settings that choose something on validation images.
        settings: what else `fit.*` can be told: optimizer, momentum, weight_decay, schedule, keep, ...

    Raises:
        UserError: a setting or a batch that is wrong, or a loss that is not finite.
    """
    if "batch_size" in settings or "drop_last" in settings:
        raise UserError("batch_size and drop_last are those of the batches that you give: drop them")
    try:
        wanted = Fit(**{"epochs": epochs, "steps": steps, "lr": lr, **settings})
    except ValidationError as error:
        raise explain(error, "fit") from None
    clip = learner.to(learner.clip.device).clip
    n = len(learner.trained_classes)
    given = {"train": GivenBatches(batches, clip, n), "val": None if val is None else GivenBatches(val, clip, n)}
    loader = GivenLoader(clip, seed=seed, **given)  # type: ignore[arg-type]
    episode = Episode(loader.split("train"), None if val is None else loader.split("val"), {})
    precision = resolve_precision(precision, clip.device)
    reporter = Reporter(aside=True, quiet=not progress)
    with torch.random.fork_rng(devices=[]):  # the caller's random numbers stay as they are
        return train(learner, episode, loader, wanted, precision=precision, reporter=reporter)


@dataclass(frozen=True)
class Score:
    """What `results.metrics.score` says of predictions: fractions, numbers of images, nats."""

    accuracy: float
    correct: int
    total: int
    top5: float
    per_class: float
    macro_f1: float
    ece: float
    nll: float


@torch.no_grad()
def score(learner: Learner | Model, batches: Given, *, precision: str = "auto") -> Score:
    """How well a learner, or a loaded model, classifies labelled batches, among the classes it is bound to.

    `batches`: (pixels [B, 3, H, W] as `preprocess` gives them, labels [B]).

    Raises:
        UserError: a batch that is wrong, or logits that are not finite.
    """
    model = learner if isinstance(learner, Model) else Model(learner, resolve_precision(precision, learner.clip.device))
    learner, device = model.learner, model.clip.device
    learner.to(device).eval()
    logits, labels = [], []
    with autocast(device, model.precision):
        classes = learner.encode_classes()
        for images, of_batch in GivenBatches(batches, learner.clip, len(learner.classes)):
            logits.append(learner.logits(images, classes).float().cpu())
            labels.append(of_batch.cpu())
    names = [str(i) for i in range(sum(map(len, labels)))]
    return Score(**metrics.score(Predictions.from_logits(names, torch.cat(labels), torch.cat(logits))))  # type: ignore[arg-type]


def benchmark(*settings: str) -> "Record":
    """The record of the run that `python run.py` with these settings makes, or finds finished.

    Raises:
        UserError: what `python run.py` would answer.
    """
    from vlprompt.config.compose import read_run
    from vlprompt.run import run

    return run(read_run(settings))


def read_results(*folders: str | Path, metric: str = "accuracy") -> "pd.DataFrame":
    """All runs below folders as a tidy frame: one row a run and test, `value` in percent (nll: nats).

    Without folders those of `results/runs`. A run that did not finish has a row without a value.

    Raises:
        UserError: a metric or a folder that is not there, or no runs in it.
    """
    from vlprompt.config.paths import results_root
    from vlprompt.reports.summary import NO_RUNS, frame
    from vlprompt.results.store import find_runs

    roots = [absolute(folder) for folder in folders] or [results_root() / "runs"]
    for root in roots:
        if not root.is_dir():
            raise UserError(f"there is no folder '{root}': give one with results in it, such as results/runs")
    runs = find_runs(roots)
    if not runs:
        raise UserError(NO_RUNS)
    records = metrics.complete(runs, metric, [])
    table = frame(records, metric=metric)
    folder = {id(record): str(path) for path, record in zip(runs, records, strict=True)}
    table["folder"] = [folder[id(record)] for record in table["record"]]
    return table.drop(columns=["record", "run", "learner", "changes"]).rename(columns={"named": "settings"})
