"""What Python gets: trained models, a training on batches of one's own, benchmarks and their results."""

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import yaml
from jaxtyping import Float
from pydantic import ValidationError
from torch import Tensor

from vlprompt.config import build
from vlprompt.config.schema import Fit, explain, read_backbone
from vlprompt.data.given import Given, GivenBatches, GivenLoader
from vlprompt.data.photos import BATCH, Photo, PhotoTransform, listed, prepared, read_photos
from vlprompt.data.transforms import normalise
from vlprompt.errors import UserError
from vlprompt.inference.calibration import Calibrator, calibrator
from vlprompt.learners.base import Learner, check_classes
from vlprompt.protocols.base import Episode
from vlprompt.results import learner_files, metrics
from vlprompt.results.predictions import Predictions
from vlprompt.textfiles import absolute
from vlprompt.towers import Clip, Images
from vlprompt.towers.precision import autocast
from vlprompt.train import Epoch, train
from vlprompt.training.device import default_workers, resolve_device, same_randomness
from vlprompt.training.optim import n_steps
from vlprompt.training.precision import precision_again, resolve_precision
from vlprompt.training.progress import Reporter

if TYPE_CHECKING:
    import pandas as pd

    from vlprompt.results.record import Record

FEW = 64  # pictures that are read without further processes
HUB = "hf://"
Photos = Photo | Iterable[Photo] | np.ndarray | Tensor
Damaged = Callable[[int, UserError], object]


@dataclass(frozen=True, eq=False)
class Model:
    """A trained learner that classifies pictures. `load` gives one; it never changes.

    Pictures are paths, PIL images, arrays uint8 [H, W, 3] or [H, W], tensors uint8 [3, H, W]; one, several in any
    mixture, or a batch with N in front. Or they are all floats [3, H, W] as `preprocess` gives them.

    Args:
        learner: bound to its classes.
        precision: fp32, tf32, bf16 or fp16, the arithmetic of the run that trained it.
        as_shown: turn pictures as their EXIF data says and put transparent ones on white; else pixels as they are
            stored.
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
    def preprocess(self) -> PhotoTransform:
        """PIL image -> tensor [3, H, W], as the frozen model reads it."""
        return PhotoTransform(self.clip.preprocess, self.as_shown)

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
        if not isinstance(top, int | np.integer) or top < 1:
            raise UserError(f"top is {top!r}, allowed is a number of classes: 1 or more")
        photos, one = listed(images)
        best = self.probabilities(photos).topk(min(int(top), len(self.classes)))
        pairs = [
            [(self.classes[i], p) for i, p in zip(of_row.tolist(), values.tolist(), strict=True)]
            for of_row, values in zip(best.indices, best.values, strict=True)
        ]
        return pairs[0] if one else pairs

    def probabilities(self, images: Photos) -> Float[Tensor, "N C"]:
        """Softmax of the logits, on the CPU. Raises: UserError as `predict`."""
        return self.logits(images).softmax(-1).cpu()

    def logits(self, images: Photos) -> Float[Tensor, "N C"]:
        """Logits in float32, calibrated as the run was, on the model's device. Raises: UserError as `predict`."""
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

        Raises:
            UserError: as `predict`, where `damaged` is None.
        """
        return self._each(
            images, lambda batch: self._calibrate(self.learner.logits(batch, self._class_features)), damaged
        )

    def _each(
        self, images: Photos, compute: Callable[[Images], Tensor], damaged: Damaged | None = None
    ) -> Iterable[tuple[list[int], Tensor]]:
        self.learner.eval()  # it is in training after a loop of one's own
        for indices, pixels in self._batches(images, damaged):
            with torch.no_grad(), autocast(self.clip.device, self.precision):
                rows = compute(Images(pixels)).float()
            yield indices, rows

    def _batches(self, images: Photos, damaged: Damaged | None) -> Iterable[tuple[list[int], Tensor]]:
        """Normalised pixels on the model's device."""
        photos, _ = listed(images)
        if not photos:
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
    def _class_features(self) -> Float[Tensor, "C *e"] | None:
        self.learner.eval()
        with torch.no_grad(), autocast(self.clip.device, self.precision):
            return self.learner.encode_classes()

    @cached_property
    def _calibrate(self) -> Calibrator:
        """What is done to the logits."""
        return calibrator(self.learner, self._class_features)


def load(
    source: "str | Path | Record", *, device: str = "auto", precision: str | None = None, allow: Sequence[str] = ()
) -> Model:
    """A trained model: from a run's folder, its record, a learner's folder, or `hf://owner/name`, `hf://owner/name@revision`.

    Args:
        source: the folder; the name of a repository on the hub after `hf://`, of which tensors and JSON are fetched; or
            what `benchmark` gave.
        device: auto, cpu, cuda, cuda:1, mps.
        precision: fp32, tf32, bf16 or fp16; None: that of the run (of one in tf32 on another device than CUDA's: fp32).
        allow: modules that the files may name in addition to the package's own.

    Raises:
        UserError: no run there, files that are damaged, weights that cannot be fetched or that do not fit.
    """
    folder = folder_of(source)
    place = resolve_device(device)
    allow = [allow] if isinstance(allow, str) else allow
    learner, trained_in, as_shown = build.saved_learner(folder, allow, device=place, quantized=True)
    same = precision_again(trained_in or "auto", place)
    return Model(learner, same if precision is None else resolve_precision(precision, place), as_shown)


def folder_of(source: "str | Path | Record") -> Path:
    """Where the files of a saved learner are. Raises: UserError where there are none."""
    from vlprompt.config.paths import results_root
    from vlprompt.results.record import Record
    from vlprompt.results.store import stored_run

    if str(source).startswith(HUB.removesuffix("/")):  # a path that was made of such a name has a slash less
        from vlprompt.interop.hub import fetch_learner

        return fetch_learner(str(source))
    if not isinstance(source, str | Path | Record) or not str(source):
        raise UserError(f"{source!r} is no trained model: give a run's folder, as in results/runs/.../seed1")
    folder = absolute(source.folder(results_root()) if isinstance(source, Record) else source)
    run = stored_run(folder)
    folder = run[0] if run else folder
    if not run and not (folder / learner_files.CONFIG).is_file():
        what = f"no run and no learner lies in '{folder}'" if folder.is_dir() else f"there is no folder '{folder}'"
        raise UserError(f"{what}: give a run's folder, as in results/runs/.../seed1, or {HUB}owner/name")
    return folder


def load_clip(model: str, weights: str | None = None, *, device: str = "auto", seed: int = 0) -> Clip:
    """A frozen model.

    Args:
        model: a name that `vlprompt list backbones` gives, open_clip's, timm's, a folder, or `hf-hub:owner/name`.
        weights: a tag of open_clip's, a file, pretrained, or random; None: those that go with the name.
        device: auto, cpu, cuda, cuda:1, mps.
        seed: of random weights.

    Raises:
        UserError: an unknown model or tag, weights that cannot be fetched or do not fit.
    """
    from vlprompt import demo
    from vlprompt.config.about import paths
    from vlprompt.towers import load_clip as load_towers

    if file := paths("backbone").get(model):
        named = read_backbone(yaml.safe_load(file.read_text(encoding="utf-8")))
        model, weights = named.model, weights or named.weights
    folder = demo.BACKBONES.get(model)
    return load_towers(str(folder or model), weights or "pretrained", seed=seed).to(resolve_device(device))


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
        epochs: how long, or `steps`; 0 for methods that are fitted without steps.
        steps: how long, in steps of the optimiser.
        lr: the highest learning rate.
        val: batches for methods and settings that choose something on validation images.
        seed: of dropout and the like; initial values are the learner's own.
        precision: auto (bf16 on an NVIDIA GPU, else fp32), fp32, tf32, bf16, fp16.
        progress: whether to show it, on stderr.
        **settings: what else `fit.*` can be told: optimizer, momentum, weight_decay, schedule, keep, ... As in CoOp,
            the first epoch is warm-up, unless `schedule={"warmup": "none"}` says otherwise.

    Raises:
        UserError: a setting or a batch that is wrong, or a loss that is not finite.
    """
    check_learner(learner)
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
    check_warmup(wanted, len(given["train"]))  # type: ignore[arg-type]
    episode = Episode(loader.split("train"), None if val is None else loader.split("val"), {})
    precision = resolve_precision(precision, clip.device)
    reporter = Reporter(aside=True, quiet=not progress)
    with same_randomness(clip.device):
        return train(learner, episode, loader, wanted, precision=precision, reporter=reporter)


def check_learner(learner: object) -> None:
    """Raises: UserError for what is no learner."""
    if not isinstance(learner, Learner):
        kind = learner.__name__ if isinstance(learner, type) else type(learner).__name__
        raise UserError(f"{kind} is no learner: give one such as vlprompt.learners.CoOp(clip, classes)")


def check_warmup(fit: Fit, per_epoch: int) -> None:
    """Refuse a training without batches, or one that ends before the learning rate that was asked for is reached."""
    if not per_epoch:
        raise UserError("there are no batches: give some (images, labels)")
    total, schedule = n_steps(per_epoch, fit), fit.schedule
    if schedule.warmup == "constant" and 0 < total <= schedule.warmup_epochs * per_epoch:
        raise UserError(
            f"lr={fit.lr} has no effect, as all {total} steps are warm-up at {schedule.warmup_lr}: train longer than "
            f'{schedule.warmup_epochs} epochs, or give schedule={{"warmup": "none"}}'
        )


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
    ace: float
    mce: float
    brier: float
    refinement: float
    confidence: float
    overconfidence: float
    classwise_ece: float


@torch.no_grad()
def score(learner: Learner | Model, batches: Given, *, precision: str = "auto") -> Score:
    """How well a learner, or a loaded model, classifies labelled batches, among the classes it is bound to.

    `batches`: (pixels [B, 3, H, W] as `preprocess` gives them, labels [B]).

    Raises:
        UserError: a batch that is wrong, or logits that are not finite.
    """
    if not isinstance(learner, Model):
        check_learner(learner)
    model = learner if isinstance(learner, Model) else Model(learner, resolve_precision(precision, learner.clip.device))
    learner, device = model.learner, model.clip.device
    learner.to(device).eval()
    logits, labels = [], []
    with autocast(device, model.precision):
        classes = learner.encode_classes()
        calibrate = calibrator(learner, classes)
        for images, of_batch in GivenBatches(batches, learner.clip, len(learner.classes)):
            logits.append(calibrate(learner.logits(images, classes)).float().cpu())
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

    if wrong := [setting for setting in settings if not isinstance(setting, str)]:
        raise UserError(f"{wrong[0]!r} is no setting: give texts, as in benchmark('method=coop', 'dataset=digits')")
    spec = read_run(settings)
    with same_randomness(spec.device):
        return run(spec)


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
