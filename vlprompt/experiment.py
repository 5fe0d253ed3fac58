"""One cell of a benchmark: a method on a data set under a protocol, from checked settings to a record."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
import yaml

from vlprompt import demo, saved
from vlprompt.data.cache import Bank
from vlprompt.data.dataset import Dataset
from vlprompt.data.image_cache import ImageCache
from vlprompt.data.images import Augment, seed_of
from vlprompt.data.sampling import sample_few_shot
from vlprompt.learners.base import Learner
from vlprompt.locations import data_root
from vlprompt.machine import (
    default_workers,
    device_name,
    peak_memory,
    reset_peak_memory,
    resolve_device,
    resolve_precision,
)
from vlprompt.metrics import Predictions, save_predictions, score
from vlprompt.plan import load_datasets, locate, make_protocol, make_sampler, result_relevant
from vlprompt.progress import Reporter
from vlprompt.protocols.base import FEW_SHOT_VAL, Episode, Protocol
from vlprompt.records import (
    Cell,
    OpenRun,
    Record,
    config_hash,
    git_commit,
    is_finished,
    open_run,
    results_root,
    variant_of,
    versions,
)
from vlprompt.settings import Settings, read_settings
from vlprompt.tables import render, summarise
from vlprompt.towers import Clip, load_clip
from vlprompt.tracking import Tracker, track
from vlprompt.trainer import Epoch, Trainer, measure


@dataclass(frozen=True)
class Experiment:
    """A run, checked and ready, with nothing heavy loaded yet."""

    settings: Settings
    config: dict[str, Any]  # as composed, resolved; without what only a search for settings reads
    cell: Cell
    hash: str  # of every setting that can change the result
    recipes: list[str]
    dataset: Dataset
    targets: Mapping[str, Dataset]  # tested beside it
    protocol: Protocol
    learner: type[Learner]
    arguments: dict[str, Any]
    device: torch.device
    precision: str
    place: Path | None = None  # where its record lies, if not among the runs: a trial's

    @property
    def trained(self) -> bool:
        return self.settings.fit is not None

    @property
    def folder(self) -> Path:
        return self.place or self.cell.folder(results_root())

    @classmethod
    def read(
        cls,
        config: Any,
        *,
        choices: Mapping[str, str],
        default: Callable[[], Any],
        recipes: list[str] | None = None,
    ) -> "Experiment":
        """Check a composed configuration.

        `choices` are the names of the chosen groups; `default()` is the configuration that these choices alone give.

        Raises:
            UserError: a wrong setting, a missing data set, a device that this machine lacks.
        """
        settings = read_settings(config)
        config = {**config, "dataset": {k: v for k, v in config["dataset"].items() if k != "about"}}
        device = resolve_device(settings.device)
        precision = resolve_precision(settings.precision, device)
        learner, arguments = locate(settings.method, Learner, "method")
        protocol = make_protocol(settings)
        dataset, targets = load_datasets(settings)
        relevant = result_relevant(settings, precision, dataset, targets)
        variant = settings.name or variant_of(
            relevant, result_relevant(read_settings(default()), resolve_precision("auto", device), dataset, targets)
        )
        cell = Cell(
            protocol=choices["protocol"],
            dataset=dataset.name,
            backbone=choices["backbone"],
            method=choices["method"],
            variant=variant,
            shots=settings.shots if settings.fit else 0,
            seed=settings.seed if settings.fit else 0,
        )
        cell.folder(results_root())  # a name that cannot be a folder's is refused here
        return cls(
            settings=settings,
            config=recorded(config),
            cell=cell,
            hash=config_hash(relevant),
            recipes=recipes or [],
            dataset=dataset,
            targets=targets,
            protocol=protocol,
            learner=learner,
            arguments=arguments,
            device=device,
            precision=precision,
        )

    def run(self, reference: "Experiment | None" = None, *, show: bool = True) -> Record:
        """Run, or find the finished run, and show its table beside the reference's.

        Raises:
            UserError: more shots than images, a class-bound method, a loss that is not finite, a full disk, ...
        """
        record = self.obtain()  # first: a mistake in it shows before the reference is computed
        beside = [reference.obtain()] if reference else []
        if show:
            Reporter().say("\n" + render(summarise([*beside, record])).rstrip())
        return record

    def obtain(self) -> Record:
        """The record of this cell: found, if it is finished, or made."""
        wait = f"another process is running {self.folder}: waiting for it"
        with open_run(self.folder, on_wait=lambda: Reporter().say(wait)) as run:
            if not self.settings.force and is_finished(self.folder, self.hash):
                record = Record.read(self.folder)
                assert record is not None
                Reporter().say(f"{self.folder} is finished already (force=true runs it again)")
                return record
            reporter = Reporter(run.folder / "log.txt")
            try:
                with track(self.settings.wandb, cell=self.cell, config=self.config, folder=results_root()) as tracker:
                    return self._make(run, reporter, tracker)
            finally:
                reporter.close()

    def _make(self, run: OpenRun, reporter: Reporter, tracker: Tracker) -> Record:
        reporter.say(self._headline())
        if self.settings.threads:
            torch.set_num_threads(self.settings.threads)
        episode = self._episode()
        clip = clip_at(self.settings.backbone.model, self.settings.backbone.weights, self.device)
        learner = self._build(clip, episode)
        trainer = Trainer(
            clip=clip,
            bank=bank_at(clip, self.precision, self._workers(), self._cache()),
            reporter=reporter,
            precision=self.precision,
            seed=self.settings.seed,
            workers=self._workers(),
            bank_views=self.settings.bank.views,
            augment=Augment(**self.settings.augment.model_dump()),
            cache=self._cache(),
        )
        reset_peak_memory(self.device)
        curve, train_seconds = self._fit(trainer, learner, episode, tracker)
        predictions, test_seconds = measure(self._evaluate, trainer, learner, episode)
        scores = {name: score(kept) for name, kept in predictions.items()}
        self._log_scores(reporter, scores)
        record = self._record(
            scores=scores,
            curve=[asdict(epoch) for epoch in curve],
            bank=bank_use(trainer, learner),
            cost={
                "trained_parameters": sum(p.numel() for p in learner.parameters()),
                "stored_bytes": self._save(run.folder, learner, predictions),
                "train_seconds": train_seconds,
                "test_seconds": test_seconds,
                "peak_memory_bytes": peak_memory(self.device),
            },
        )
        reporter.log(f"finished; record of {self.folder}")
        reporter.close()
        run.publish(record)
        tracker.finish(scores, predictions, {name: split.classes for name, split in episode.tests.items()})
        return record

    def _headline(self) -> str:
        cell, backbone = self.cell, self.settings.backbone
        train = f", {cell.shots} shots, seed {cell.seed}" if self.trained else ""
        return (
            f"{cell.learner} on {cell.dataset}: {cell.protocol}{train}; {cell.backbone} ({backbone.weights}), "
            f"{self.precision} on {device_name(self.device)}"
        )

    def _episode(self) -> Episode:
        shots, sample = self.settings.shots, make_sampler(self.settings)
        if not self.trained:
            shots, sample = "all", sample_few_shot  # no images are drawn
        chooses = self.settings.protocol.get("part") == FEW_SHOT_VAL
        dataset = replace(self.dataset, test=()) if chooses else self.dataset  # out of reach while settings are chosen
        (episode,) = self.protocol.episodes(
            dataset, shots=shots, seed=self.settings.seed, sample=sample, targets=self.targets
        )
        return episode

    def check_classes(self) -> None:
        """Build the learner and bind it to every test's class names, so that what cannot be tested is not trained.

        Raises: ClassBoundError.
        """
        clip = clip_at(self.settings.backbone.model, self.settings.backbone.weights, self.device)
        self._build(clip, self._episode())

    def _build(self, clip: Clip, episode: Episode) -> Learner:
        """A fresh learner, whose initial values depend on the seed alone.

        Raises:
            ClassBoundError: the protocol tests classes that the learner cannot know.
        """
        assert episode.train is not None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of("init", self.settings.seed))
            learner = self.learner(clip, episode.train.classes, **self.arguments).to(self.device)
        for split in episode.tests.values():
            learner.bind(split.classes, split.rows)
        learner.bind(episode.train.classes)
        return learner

    def _fit(self, trainer: Trainer, learner: Learner, episode: Episode, tracker: Tracker) -> tuple[list[Epoch], float]:
        if self.settings.fit is None:
            return [], 0.0
        torch.manual_seed(seed_of("train", self.settings.seed))  # dropout
        curve, seconds = measure(trainer.fit, learner, episode, self.settings.fit)
        for epoch in curve:
            values = {"train/loss": epoch.loss, "train/accuracy": epoch.accuracy, "train/lr": epoch.lr}
            tracker.log(values, epoch.epoch + 1)
        return curve, seconds

    def _evaluate(self, trainer: Trainer, learner: Learner, episode: Episode) -> dict[str, Predictions]:
        """Predictions on each test. A method that words classes as their data set does, does so on a target, too."""
        found: dict[str, Predictions] = {}
        for name, split in episode.tests.items():
            own = self.settings.targets[name].method if name in self.settings.targets else {}
            there = learner
            if not own.items() <= self.arguments.items():  # the same tensors in another text
                there = self.learner(trainer.clip, learner.trained_classes, **self.arguments | own).to(self.device)
                there.load_state_dict(learner.state_dict(), strict=True)
            found |= trainer.evaluate(there, {name: split})
        return found

    def _save(self, folder: Path, learner: Learner, predictions: Mapping[str, Predictions]) -> int:
        """All files of the run but its record; -> bytes of the trained tensors."""
        save_predictions(folder / "predictions.npz", predictions)
        (folder / "config.yaml").write_text(yaml.safe_dump(self.config, sort_keys=False, allow_unicode=True))
        if not self.trained:
            return 0
        about = {
            "method": self.cell.method,
            "target": self.settings.method["_target_"],
            "arguments": self.arguments,
            "backbone": self.settings.backbone.model_dump(),
            "dataset": self.cell.dataset,
            "protocol": self.cell.protocol,
            "split_hash": self.dataset.fingerprint(),
        }
        return saved.save(learner, folder, about)

    def _record(self, **found: Any) -> Record:
        return Record(
            **self.cell.model_dump(),
            status="finished",
            weights=self.settings.backbone.weights,
            precision=self.precision,
            device=device_name(self.device),
            config=self.config,
            config_hash=self.hash,
            recipe=self.recipes,
            selection=self.settings.fit.selection if self.settings.fit else "last",
            versions=versions(),
            git=git_commit(),
            split_hash=self.dataset.fingerprint(),
            target_hashes={name: target.fingerprint() for name, target in self.targets.items()},
            **found,
        )

    def _log_scores(self, reporter: Reporter, scores: Mapping[str, Mapping[str, float]]) -> None:
        """In the words of CoOp's logs, so that scripts which read those read these."""
        for name, kept in scores.items():
            reporter.log(f"Evaluate on the *test* set ({name})")
            for line in (
                f"=> result\n* total: {kept['total']:,}\n* correct: {kept['correct']:,}",
                f"* accuracy: {100 * kept['accuracy']:.2f}%\n* error: {100 - 100 * kept['accuracy']:.2f}%",
                f"* macro_f1: {100 * kept['macro_f1']:.2f}%",
            ):
                reporter.log(line)

    def _cache(self) -> ImageCache | None:
        if not self.settings.cache:
            return None
        return ImageCache(
            data_root(self.settings.data.root) / ".cache" / "images", int(self.settings.data.cache_gb * 1e9)
        )

    def _workers(self) -> int:
        return default_workers() if self.settings.workers is None else self.settings.workers


def recorded(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration as records keep it: without the search space, which changes no run."""
    return {key: value for key, value in config.items() if key != "search"}


def record_failure(
    config: Any,
    choices: Mapping[str, str],
    status: Literal["failed", "not_applicable"],
    reason: str,
    *,
    cell: Cell | None = None,
) -> None:
    """Leave a record of a sweep's run that did not finish, where its cell is known or the configuration tells it."""
    shots = config["shots"] if config.get("fit") else 0
    try:
        cell = cell or Cell(**{group: choices[group] for group in ("protocol", "dataset", "backbone", "method")},
                    variant=config["name"], shots=shots, seed=config["seed"] if shots else 0)  # fmt: skip
        with open_run(cell.folder(results_root())) as run:
            run.publish(Record(**cell.model_dump(), status=status, reason=reason, config=recorded(config)))
    except ValueError:
        return  # not even the cell has a name


def bank_use(trainer: Trainer, learner: Learner) -> dict[str, Any]:
    """What of the bank this run used, for its record."""
    banked = trainer.reads_features(learner)
    return {"test_features": banked, "views": trainer.bank_views if banked else None}


@lru_cache(maxsize=1)
def clip_at(model: str, weights: str, device: torch.device) -> Clip:
    """The frozen model on its device; the runs of a sweep share it."""
    bank_at.cache_clear()  # features of another model, which they would keep alive
    folder = demo.BACKBONES.get(model)
    return load_clip(str(folder) if folder else model, weights).to(device)


@cache
def bank_at(clip: Clip, precision: str, workers: int, cache: ImageCache | None) -> Bank:
    """The features of images in this process, shared like the model."""
    return Bank(clip, precision=precision, workers=workers, cache=cache)
