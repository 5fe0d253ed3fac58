"""From a run's settings to its objects: the frozen model, the learner, the episode, the loader."""

import inspect
import logging
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import asdict, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Literal

import torch

from vlprompt import demo
from vlprompt.config.allowed import METHODS, check_names, named_by
from vlprompt.config.locate import locate, make_named, make_sampler
from vlprompt.config.paths import bank_folder, data_root
from vlprompt.config.schema import Preparation, Settings, read_backbone
from vlprompt.config.spec import RunSpec, spec_of_record
from vlprompt.data.cache.feature_files import FeatureFiles
from vlprompt.data.cache.features import FeatureCache, tower_key
from vlprompt.data.cache.images import ImageCache
from vlprompt.data.dataset import Split
from vlprompt.data.loader import Loader
from vlprompt.data.transforms import Augment, seed_of
from vlprompt.errors import NotApplicableError, UserError, printable
from vlprompt.inference import CALIBRATIONS, DAC, Calibration
from vlprompt.learners.base import Learner
from vlprompt.protocols.base import FEW_SHOT_VAL, Episode, check_images
from vlprompt.results import learner_files
from vlprompt.results.record import Record
from vlprompt.towers import Clip, load_clip
from vlprompt.training.device import default_workers

GB = 10**9
logger = logging.getLogger(__name__)


def make_episode(spec: RunSpec) -> Episode:
    """The images of a run: what is trained on, what is tested."""
    settings, dataset = spec.settings, spec.dataset
    if settings.protocol.get("part") == FEW_SHOT_VAL:
        dataset = replace(dataset, test=())  # out of reach while settings are chosen
    if spec.draws:
        sample = make_sampler(settings)(dataset, shots=settings.shots, seed=settings.seed)
    else:
        sample = list(dataset.train), list(dataset.val)  # nothing is trained
    episode = spec.protocol.episode(dataset, sample, targets=spec.targets)
    check_images(dataset, episode, trained=spec.trained, may_lack=settings.sampler.may_lack_classes)
    return episode


def ood_splits(spec: RunSpec) -> dict[str, Split]:
    """The images that are out of distribution, by their data set. Raises: UserError where one has no test images."""
    if empty := [name for name, dataset in spec.ood.items() if not dataset.test]:
        raise UserError(f"protocol.ood names {empty[0]}, which has no test images: leave it out")
    return {name: dataset.split("test") for name, dataset in spec.ood.items()}


def make_clip(spec: RunSpec) -> Clip:
    """The frozen model on its device."""
    backbone = spec.settings.backbone
    return clip_at(
        *(backbone.model, backbone.weights, spec.device, spec.settings.text_chunk, backbone.quantize, backbone.images)
    )


@lru_cache(maxsize=1)
def clip_at(
    model: str,
    weights: str,
    device: torch.device,
    text_chunk: int | None = None,
    quantize: Literal["nf4"] | None = None,
    images: Preparation | None = None,
) -> Clip:
    """The frozen model on its device; the runs of a sweep share it."""
    features_at.cache_clear()  # features of another model, which they would keep alive
    folder = demo.BACKBONES.get(model)
    more = images.of_tower() if images else {}
    clip = load_clip(str(folder) if folder else model, weights, images=more).to(device).with_text_chunk(text_chunk)
    return clip.quantized(quantize) if quantize else clip


def make_learner(spec: RunSpec, clip: Clip, episode: Episode) -> Learner:
    """A fresh learner, bound to its training classes, whose initial values depend on the seed alone.

    Raises:
        NotApplicableError: settings that this model or these classes do not allow.
        ClassBoundError: the protocol tests classes that the learner cannot know.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of("init", spec.settings.seed))
        try:
            learner = spec.learner(clip, episode.train.classes, **spec.arguments).to(spec.device)
            if spec.adaptation:
                spec.adaptation.check(learner)
            for target in spec.targets:  # words that do not fit are told before the training
                if wording := target_wording(spec, target):
                    spec.learner(clip, episode.train.classes, **{**spec.arguments, **wording})
        except UserError as error:
            raise NotApplicableError(str(error)) from error
    for split in episode.tests.values():
        bind_to(learner, split)
    learner.bind(episode.train.classes)
    return learner


def make_calibration(spec: RunSpec, learner: Learner, episode: Episode) -> Calibration | None:
    """What is to calibrate the trained learner, not fitted; None where nothing is.

    Raises:
        UserError: no validation images to fit it on.
        NotApplicableError: a learner that it cannot calibrate.
    """
    if not (given := spec.settings.calibration):
        return None
    calibration: Calibration = make_named(given, CALIBRATIONS, "calibration")
    if isinstance(calibration, DAC) and calibration.template is None:
        calibration = replace(calibration, template=spec.settings.dataset.template)
    if calibration.on_images and episode.val is None:
        raise UserError(
            f"calibration={calibration.name} is fitted on the validation images of the few-shot sample, and "
            f"{spec.dataset.name} gives none: choose a data set with a validation split, or leave calibration out"
        )
    try:
        calibration.check(learner)
    except UserError as error:
        raise NotApplicableError(str(error)) from error
    return calibration


def bind_to(learner: Learner, split: Split) -> None:
    """Classify among the classes of a test."""
    bind(learner, split.classes, rows=split.rows, transfer=split.transfer)


def bind(learner: Learner, classes: Sequence[str], *, rows: Sequence[int] | None, transfer: bool) -> None:
    """Classify among these classes. A learner whose own `bind` does not take `transfer` is not told it."""
    taken = inspect.signature(learner.bind).parameters
    learner.bind(classes, rows, **({"transfer": transfer} if "transfer" in taken else {}))


def target_wording(spec: RunSpec, target: str) -> dict[str, Any]:
    """Arguments of the method that differ on a target, e.g. its template."""
    described = spec.settings.targets.get(target)
    wording = described.method if described else {}
    return {} if wording.items() <= spec.arguments.items() else wording


def reword_learner(spec: RunSpec, learner: Learner, wording: Mapping[str, Any]) -> Learner:
    """The same tensors with other words around the classes."""
    reworded = spec.learner(learner.clip, learner.trained_classes, **{**spec.arguments, **wording}).to(spec.device)
    reworded.load_state_dict(learner.state_dict(), strict=True)
    return calibrated_like(reworded.eval(), learner)


def calibrated_like(learner: Learner, other: Learner) -> Learner:
    """A learner, bound to the classes it was trained on, with the calibration that another one carries."""
    if other.calibration is not None:
        learner.calibration = copy(other.calibration)
        learner.calibration.attach(learner)
    return learner


def restore_calibration(learner: Learner, stored: Mapping[str, Any] | None) -> None:
    """Give a learner, bound to the classes it was trained on, the calibration that a file describes, if any.

    Raises: UserError: what describes it does not.
    """
    if stored is None:
        return
    numbers = {name: value for name, value in stored.items() if name not in ("name", "arguments")}
    given = {**stored["arguments"], "name": stored["name"]}
    calibration: Calibration = make_named(given, CALIBRATIONS, "calibration")
    if set(numbers) != set(calibration.fitted):
        raise UserError(
            f"the saved calibration '{given['name']}' has the numbers {', '.join(numbers) or 'none'}, allowed are "
            f"{', '.join(calibration.fitted) or 'none'}: run it again with force=true"
        )
    for name, value in numbers.items():
        setattr(calibration, name, value)
    calibration.attach(learner.eval())
    learner.calibration = calibration


def make_loader(spec: RunSpec, learner: Learner) -> Loader:
    """What reads images for a learner: their features, unless it edits the image tower or `bank.use` is false."""
    settings, clip = spec.settings, learner.clip
    workers = default_workers() if settings.workers is None else settings.workers
    images = image_cache(settings)
    features = None
    if settings.bank.use and not learner.edits_image:
        folder = bank_folder(data_root(settings.data.root)) if settings.bank.gb else None
        limit = int(settings.bank.gb * GB)
        features = features_at(clip, spec.precision, workers, images, folder, limit).with_new_counts()
    return Loader(
        clip=clip,
        features=features,
        images=images,
        seed=settings.seed,
        workers=workers,
        n_views=settings.bank.views,
        pooled=settings.bank.pooled,
        augment=Augment(**settings.augment.model_dump()),
    )


def image_cache(settings: Settings) -> ImageCache | None:
    """Decoded images and test crops on disk."""
    folder = data_root(settings.data.root) / ".cache" / "images"
    return ImageCache(folder, int(settings.data.cache_gb * GB)) if settings.cache else None


@cache
def features_at(
    clip: Clip, precision: str, workers: int, images: ImageCache | None, folder: Path | None, limit: int
) -> FeatureCache:
    """Features of images in this process, shared like the model; on disk below `folder`, up to `limit` bytes."""
    about = {"model": clip.name, "precision": precision, **asdict(clip.preprocess)}
    if clip.preprocess.crop_pct == 1:
        del about["crop_pct"]  # which earlier versions do not read
    files = FeatureFiles(folder / tower_key(clip, precision), limit, about) if folder else None
    return FeatureCache(clip, precision=precision, workers=workers, cache=images, files=files)


def restore_learner(
    folder: Path,
    allow: Sequence[str] = (),
    *,
    device: torch.device | None = None,
    quantized: bool = False,
    plain: bool = False,
) -> Learner:
    """The trained learner in a run's folder, bound to the classes it was trained on; on the CPU unless said otherwise.

    `allow`: modules that its file may name in addition to the package's own, as in the environment's VLPROMPT_ALLOW.
    `quantized`: the frozen model keeps the matrices in 4 bits that it was trained with; `plain`: with their values as
    plain numbers, which other libraries read.

    Raises:
        UserError: no saved learner there, one whose class is not allowed, or that does not fit its own settings.
    """
    about = learner_files.read_config(folder)
    names = {"target": (about["target"], METHODS), **named_by(about["arguments"])}
    check_names(names, about["backbone"]["model"], folder / learner_files.CONFIG, allow)
    kind, arguments = locate({"_target_": about["target"], **about["arguments"]}, Learner, "method")
    backbone = read_backbone(about["backbone"] if quantized else {**about["backbone"], "quantize": None})
    device = device or torch.device("cpu")
    clip = clip_at(
        backbone.model, backbone.weights, device, quantize=backbone.quantize, images=backbone.images
    )  # fmt: skip
    clip = clip.dequantized() if plain else clip
    learner = untrained(kind, clip, about["classes"], arguments)
    if learner.state_dict() or (folder / learner_files.TENSORS).exists():
        learner_files.load_tensors(learner, folder)
    restore_calibration(learner, about.get("calibration"))
    return learner.eval()


def saved_learner(
    folder: Path,
    allow: Sequence[str] = (),
    *,
    device: torch.device | None = None,
    quantized: bool = False,
    plain: bool = False,
) -> tuple[Learner, str | None, bool]:
    """The learner of a run's or a learner's folder, be it one that trains nothing and is described by its record alone.

    -> the learner; the precision it was trained in, None where its file does not say; and whether its images were
    taken as they are shown. Arguments and errors as of `restore_learner`.
    """
    if (folder / learner_files.CONFIG).is_file():
        about = learner_files.read_config(folder)
        learner = restore_learner(folder, allow, device=device, quantized=quantized, plain=plain)
        if adapted_by := about.get("test_time"):
            logger.warning("%s was tested with test_time=%s: this is its learner without that", folder, adapted_by)
        return learner, about.get("precision"), about.get("as_shown", True)
    return rebuild(folder, device=str(device or "cpu"), allow=allow)


def untrained(kind: type[Learner], clip: Clip, classes: Sequence[str], arguments: Mapping[str, Any]) -> Learner:
    """A learner that saved tensors go into; the global random state stays as it is.

    Raises: UserError for arguments that would take more memory than there is.
    """
    with torch.random.fork_rng(devices=[]):
        try:
            return kind(clip, classes, **kind.resolved(arguments)).to(clip.device)
        except (RuntimeError, MemoryError) as error:
            if not isinstance(error, torch.OutOfMemoryError | MemoryError) and "allocate memory" not in str(error):
                raise
            given = printable(", ".join(f"{name}={value}" for name, value in arguments.items())[:200])
            raise UserError(f"a {kind.__name__} with {given} takes more memory than there is") from None


def rebuild(folder: Path, *, device: str = "auto", allow: Sequence[str] = ()) -> tuple[Learner, str, bool]:
    """The learner of a run that trains nothing, whose earlier records say its classes by their data set alone.

    -> the learner, its precision, and whether its images were taken as they are shown.

    Raises:
        UserError: no record, a run whose tensors were not kept, or a data set that is not there.
    """
    record = Record.read(folder)
    if record is None or record.status != "finished" or record.imported:
        raise UserError(f"{folder} holds no finished run: run it again")
    spec = spec_of_record(folder, record, device=device, allow=allow)
    if spec.trained:
        raise UserError(f"{folder} holds no {learner_files.CONFIG}: run it again with force=true")
    learner = make_learner(spec, make_clip(spec), make_episode(spec))
    return learner.eval(), spec.precision, getattr(spec.dataset.open_image, "as_shown", True)
