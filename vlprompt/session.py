"""A run under way: what it trains, on what, and what it leaves behind."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
import yaml

from vlprompt import demo
from vlprompt.config.paths import bank_folder, data_root
from vlprompt.config.schema import Settings
from vlprompt.data.cache.feature_files import FeatureFiles
from vlprompt.data.cache.features import FeatureCache, tower_key
from vlprompt.data.cache.images import ImageCache
from vlprompt.data.dataset import Split
from vlprompt.data.transforms import Augment
from vlprompt.errors import NonFiniteError
from vlprompt.fitting import Epoch, Fitting, fit_together, selection
from vlprompt.learners.base import Learner
from vlprompt.plan import locate
from vlprompt.protocols.base import Episode
from vlprompt.results import learner_files as saved
from vlprompt.results.costs import costs_of_use
from vlprompt.results.metrics import score
from vlprompt.results.predictions import Predictions, save_predictions
from vlprompt.results.record import Record, git_commit, versions
from vlprompt.results.store import OpenRun
from vlprompt.towers import Clip, load_clip
from vlprompt.trainer import Trainer, measure
from vlprompt.training.device import default_workers, device_name, peak_memory, reset_peak_memory
from vlprompt.training.optim import n_steps
from vlprompt.training.progress import Reporter
from vlprompt.training.tracking import Tracker

if TYPE_CHECKING:
    from vlprompt.experiment import Experiment


Parts = list[tuple[Split, list[int | None]]]  # images, and their views


class Trained(NamedTuple):
    """What a training came to; of `together` that shared the passes of the towers, `seconds` are its part."""

    curve: Sequence[Epoch] = ()
    seconds: float = 0.0
    together: int = 1


@dataclass(frozen=True)
class Session:
    """An experiment with everything loaded."""

    experiment: "Experiment"
    run: OpenRun
    trainer: Trainer
    learner: Learner
    episode: Episode

    @classmethod
    def open(cls, experiment: "Experiment", run: OpenRun, reporter: Reporter) -> "Session":
        settings = experiment.settings
        reporter.say(experiment.headline())
        if settings.threads:
            torch.set_num_threads(settings.threads)
        episode = experiment.episode()
        clip = experiment.clip()
        learner = experiment.build(clip, episode)
        return cls(experiment, run, make_trainer(settings, clip, experiment.precision, reporter), learner, episode)

    @property
    def reporter(self) -> Reporter:
        return self.trainer.reporter

    def banked_parts(self) -> Parts:
        """The images that training and tests read, each with its views, where features are enough."""
        parts: Parts = [(split, [None]) for split in self.episode.tests.values()]
        if self.experiment.trained:
            fitting = self.fitting()
            train, val = fitting.passes
            self.learner.prepare(train, val)
            prepared = range(next(train.views)) if train.views else ()  # the views that it went through
            parts += [(fitting.split, [None, *sorted({*prepared, *fitting.views})])]
            parts += [(val.split, [None])] if val else []
        return parts

    def fitting(self) -> Fitting:
        """Its training, about to start."""
        assert self.experiment.settings.fit is not None
        return Fitting(self.trainer, self.learner, self.episode, self.experiment.settings.fit)

    def finish(self, trained: Trained, *, tracker: Tracker) -> Record:
        """Test what was trained, and publish the record."""
        for epoch in trained.curve:
            values = {"train/loss": epoch.loss, "train/accuracy": epoch.accuracy, "train/lr": epoch.lr}
            tracker.log(values, epoch.epoch + 1)
        predictions, test_seconds = measure(evaluate, self.experiment, self.trainer, self.learner, self.episode)
        peak = peak_memory(self.experiment.device)
        scores = {name: score(kept) for name, kept in predictions.items()}
        self._log_scores(scores)
        cost: dict[str, Any] = {
            "trained_parameters": self.learner.n_trained,
            "stored_bytes": self._save(predictions),
            "train_seconds": trained.seconds,
            "test_seconds": test_seconds,
            "peak_memory_bytes": peak,
            **self._costs(trained.seconds),
        }
        if trained.together > 1:
            cost["trained_together"] = trained.together
        record = self._record(
            scores=scores,
            curve=[asdict(epoch) for epoch in trained.curve],
            bank=bank_use(self.trainer, self.learner),
            cost=cost,
        )
        self.reporter.log(f"finished; record of {self.experiment.folder}")
        self.reporter.close()
        self.run.publish(record)
        tracker.finish(scores, predictions, {name: split.classes for name, split in self.episode.tests.items()})
        return record

    def _costs(self, seconds: float) -> dict[str, Any]:
        """Of a step, of the frozen model, and of use with the classes that were trained on."""
        assert self.episode.train is not None
        fit, trainer, learner = self.experiment.settings.fit, self.trainer, self.learner
        steps = n_steps(len(self.episode.train), fit) if fit else 0
        learner.bind(self.episode.train.classes)
        return {
            "steps": steps,
            "seconds_per_step": seconds / steps if steps else None,
            "backbone_bytes": trainer.clip.n_bytes,
            "quantization_error": trainer.clip.quantization_error,
            "mergeable": learner.mergeable if fit else None,
            **costs_of_use(learner, autocast=trainer.autocast),
        }

    def _save(self, predictions: Mapping[str, Predictions]) -> int:
        """All files of the run but its record; -> bytes of the trained tensors."""
        experiment, folder = self.experiment, self.run.folder
        save_predictions(folder / "predictions.npz", predictions)
        config = yaml.safe_dump(experiment.config, sort_keys=False, allow_unicode=True)
        (folder / "config.yaml").write_text(config)
        if not experiment.trained:
            return 0
        about = {
            "method": experiment.key.method,
            "target": experiment.settings.method["_target_"],
            "arguments": experiment.arguments,
            "backbone": experiment.settings.backbone.model_dump(exclude_none=True),
            "dataset": experiment.key.dataset,
            "protocol": experiment.key.protocol,
            "split_hash": experiment.dataset.fingerprint(),
        }
        return saved.save(self.learner, folder, about)

    def _record(self, **found: Any) -> Record:
        experiment, fit = self.experiment, self.experiment.settings.fit
        return Record(
            **experiment.key.model_dump(),
            status="finished",
            weights=experiment.settings.backbone.weights,
            precision=experiment.precision,
            device=device_name(experiment.device),
            config=experiment.config,
            config_hash=experiment.hash,
            recipe=experiment.recipes,
            selection=selection(self.learner, self.episode, fit) if fit else "last",
            versions=versions(),
            git=git_commit(),
            split_hash=experiment.dataset.fingerprint(),
            target_hashes={name: target.fingerprint() for name, target in experiment.targets.items()},
            **found,
        )

    def _log_scores(self, scores: Mapping[str, Mapping[str, float]]) -> None:
        """In the words of CoOp's logs, so that scripts which read those read these."""
        for name, kept in scores.items():
            self.reporter.log(f"Evaluate on the *test* set ({name})")
            for line in (
                f"=> result\n* total: {kept['total']:,}\n* correct: {kept['correct']:,}",
                f"* accuracy: {100 * kept['accuracy']:.2f}%\n* error: {100 - 100 * kept['accuracy']:.2f}%",
                f"* macro_f1: {100 * kept['macro_f1']:.2f}%",
            ):
                self.reporter.log(line)


def train(sessions: Sequence[Session]) -> list[Trained | NonFiniteError]:
    """Train one, or several at once; -> what each came to, or what ended it."""
    if not sessions[0].experiment.trained:
        return [Trained() for _ in sessions]
    reset_peak_memory(sessions[0].experiment.device)
    fittings = [session.fitting() for session in sessions]
    _, seconds = measure(fit_together, fittings)
    share = seconds / len(sessions)
    return [fitting.error or Trained(fitting.meter.curve, share, fitting.together) for fitting in fittings]


def evaluate(experiment: "Experiment", trainer: Trainer, learner: Learner, episode: Episode) -> dict[str, Predictions]:
    """Predictions on each test. A method that words classes as their data set does, does so on a target, too."""
    own = {name: target.method for name, target in experiment.settings.targets.items()}
    apart = [name for name in episode.tests if not own.get(name, {}).items() <= experiment.arguments.items()]
    found = trainer.evaluate(learner, {name: split for name, split in episode.tests.items() if name not in apart})
    for name in apart:  # the same tensors in another text
        arguments = experiment.arguments | own[name]
        there = experiment.learner(trainer.clip, learner.trained_classes, **arguments).to(experiment.device)
        there.load_state_dict(learner.state_dict(), strict=True)
        found |= trainer.evaluate(there, {name: episode.tests[name]})
    return {name: found[name] for name in episode.tests}


def make_trainer(settings: Settings, clip: Clip, precision: str, reporter: Reporter) -> Trainer:
    root = data_root(settings.data.root)
    workers = default_workers() if settings.workers is None else settings.workers
    images = ImageCache(root / ".cache" / "images", int(settings.data.cache_gb * 1e9)) if settings.cache else None
    features = bank_folder(root) if settings.bank.gb else None
    limit = int(settings.bank.gb * 1e9)
    bank = bank_at(clip, precision, workers, images, features, limit) if settings.bank.use else None
    return Trainer(
        clip=clip,
        bank=bank.with_new_counts() if bank else None,
        reporter=reporter,
        precision=precision,
        seed=settings.seed,
        workers=workers,
        bank_views=settings.bank.views,
        augment=Augment(**settings.augment.model_dump()),
        cache=images,
    )


def bank_use(trainer: Trainer, learner: Learner) -> dict[str, Any]:
    """What of the bank this run used, for its record: k views an image (None: one for each epoch), and from where."""
    banked = trainer.reads_features(learner)
    found: dict[str, Any] = {"test_features": banked, "views": trainer.bank_views if banked else None}
    return found | (asdict(trainer.bank.use) if banked and trainer.bank is not None else {})


def restore(folder: Path) -> Learner:
    """The trained learner in a run's folder, on the CPU and bound to the classes it was trained on.

    Raises:
        UserError: no saved learner there, or one that does not fit its own settings.
    """
    about = saved.read_config(folder)
    kind, arguments = locate({"_target_": about["target"], **about["arguments"]}, Learner, "method")
    clip = clip_at(about["backbone"]["model"], about["backbone"]["weights"], torch.device("cpu"))
    learner: Learner = kind(clip, about["classes"], **arguments)
    saved.load_tensors(learner, folder)
    return learner.eval()


@lru_cache(maxsize=1)
def clip_at(
    model: str,
    weights: str,
    device: torch.device,
    text_chunk: int | None = None,
    quantize: Literal["nf4"] | None = None,
) -> Clip:
    """The frozen model on its device; the runs of a sweep share it."""
    bank_at.cache_clear()  # features of another model, which they would keep alive
    folder = demo.BACKBONES.get(model)
    clip = load_clip(str(folder) if folder else model, weights).to(device).with_text_chunk(text_chunk)
    return clip.quantized(quantize) if quantize else clip


@cache
def bank_at(
    clip: Clip, precision: str, workers: int, cache: ImageCache | None, folder: Path | None = None, limit: int = 0
) -> FeatureCache:
    """The features of images in this process, shared like the model; on disk below `folder`, up to `limit` bytes."""
    about = {"model": clip.name, "precision": precision, **asdict(clip.preprocess)}
    files = FeatureFiles(folder / tower_key(clip, precision), limit, about) if folder else None
    return FeatureCache(clip, precision=precision, workers=workers, cache=cache, files=files)
