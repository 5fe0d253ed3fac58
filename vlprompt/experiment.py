"""One cell of a benchmark: a method on a data set under a protocol, from checked settings to a record."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import yaml

from vlprompt.config.hashing import config_hash, variant_of
from vlprompt.config.paths import results_root
from vlprompt.config.schema import Settings, read_settings
from vlprompt.data.dataset import Dataset
from vlprompt.data.sampling import sample_few_shot
from vlprompt.data.transforms import seed_of
from vlprompt.errors import NonFiniteError, UserError
from vlprompt.learners.base import Learner
from vlprompt.plan import load_datasets, locate, make_protocol, make_sampler, result_relevant
from vlprompt.protocols.base import FEW_SHOT_VAL, Episode, Protocol
from vlprompt.reports.render import render
from vlprompt.reports.summary import summarise
from vlprompt.results import learner_files as saved
from vlprompt.results.metrics import score
from vlprompt.results.record import Record, RunKey
from vlprompt.results.store import OpenRun, is_finished, open_run
from vlprompt.session import Session, clip_at, evaluate, make_trainer, train
from vlprompt.towers import Clip
from vlprompt.training.device import device_name, resolve_device, resolve_precision
from vlprompt.training.progress import Reporter
from vlprompt.training.tracking import Tracker, track


@dataclass(frozen=True)
class Experiment:
    """A run, checked and ready, with nothing heavy loaded yet."""

    settings: Settings
    config: dict[str, Any]  # as composed, resolved; without what only a search for settings reads
    key: RunKey
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
        return self.place or self.key.folder(results_root())

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
        key = RunKey(
            protocol=choices["protocol"],
            dataset=dataset.name,
            backbone=choices["backbone"],
            method=choices["method"],
            variant=variant,
            shots=settings.shots if settings.fit else 0,
            seed=settings.seed if settings.fit else 0,
        )
        key.folder(results_root())  # a name that cannot be a folder's is refused here
        return cls(
            settings=settings,
            config=recorded(config),
            key=key,
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

    @classmethod
    def of_record(cls, folder: Path, record: Record, *, device: str = "auto") -> "Experiment":
        """A finished run as it was, to be tested once more.

        Raises:
            UserError: its configuration is gone, or its data set is another one now.
        """
        try:
            config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        except OSError as error:
            raise UserError(f"{folder} cannot be tested again: {error.filename} is missing") from None
        config |= {"device": device, "precision": record.precision}
        choices = record.model_dump(include={"protocol", "backbone", "method"})
        experiment = cls.read(config, choices=choices, default=lambda: config)
        if experiment.dataset.fingerprint() != record.split_hash:
            raise UserError(f"{folder} was trained on another split of {record.dataset}: run it again with force=true")
        return experiment

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

    def open(self) -> AbstractContextManager[OpenRun]:
        """Hold this cell's folder."""
        wait = f"another process is running {self.folder}: waiting for it"
        return open_run(self.folder, on_wait=lambda: Reporter().say(wait))

    def found(self) -> Record | None:
        """The record of this cell, if it is finished and not to be run again."""
        done = not self.settings.force and is_finished(self.folder, self.hash)
        return Record.read(self.folder) if done else None

    def obtain(self) -> Record:
        """The record of this cell: found, if it is finished, or made."""
        with self.open() as run:
            if record := self.found():
                Reporter().say(f"{self.folder} is finished already (force=true runs it again)")
                return record
            reporter = Reporter(run.folder / "log.txt")
            try:
                with track(self.settings.wandb, key=self.key, config=self.config, folder=results_root()) as tracker:
                    return self._make(run, reporter, tracker)
            finally:
                reporter.close()

    def _make(self, run: OpenRun, reporter: Reporter, tracker: Tracker) -> Record:
        session = Session.open(self, run, reporter)
        (trained,) = train([session])
        if isinstance(trained, NonFiniteError):
            raise trained
        return session.finish(trained, tracker=tracker)

    def test_again(self, folder: Path, changed: Mapping[str, Any]) -> dict[str, dict[str, float]]:
        """Scores on each test of the tensors in a run's folder, with settings replaced that need no training.

        Raises:
            UserError: an unknown setting, a wrong value, or one that other tensors belong to.
        """
        kind, arguments = locate({**self.settings.method, **changed}, Learner, "method")
        again, clip, episode = replace(self, learner=kind, arguments=arguments), self.clip(), self.episode()
        learner = again.build(clip, episode)
        saved.load_tensors(learner, folder)
        trainer = make_trainer(self.settings, clip, self.precision, Reporter(aside=True))
        predictions = evaluate(again, trainer, learner, episode)
        return {name: score(kept) for name, kept in predictions.items()}

    def headline(self) -> str:
        key, backbone = self.key, self.settings.backbone
        train = f", {key.shots} shots, seed {key.seed}" if self.trained else ""
        return (
            f"{key.learner} on {key.dataset}: {key.protocol}{train}; {key.backbone} ({backbone.weights}), "
            f"{self.precision} on {device_name(self.device)}"
        )

    def episode(self) -> Episode:
        shots, sample = self.settings.shots, make_sampler(self.settings)
        if not self.trained:
            shots, sample = "all", sample_few_shot  # no images are drawn
        chooses = self.settings.protocol.get("part") == FEW_SHOT_VAL
        dataset = replace(self.dataset, test=()) if chooses else self.dataset  # out of reach while settings are chosen
        (episode,) = self.protocol.episodes(
            dataset, shots=shots, seed=self.settings.seed, sample=sample, targets=self.targets
        )
        return episode

    def clip(self) -> Clip:
        """The frozen model."""
        backbone = self.settings.backbone
        return clip_at(backbone.model, backbone.weights, self.device, self.settings.text_chunk, backbone.quantize)

    def check_classes(self) -> None:
        """Build the learner and bind it to every test's class names, so that what cannot be tested is not trained.

        Raises: ClassBoundError.
        """
        self.build(self.clip(), self.episode())

    def build(self, clip: Clip, episode: Episode) -> Learner:
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


def obtain_together(experiments: Sequence[Experiment]) -> list[Record | NonFiniteError]:
    """Records of cells that differ in seeds or learning rates alone: found, or trained on one pass of the towers.

    Each has its folder and its record; one whose numbers are not finite ends alone.
    """
    found: dict[int, Record | NonFiniteError] = {}
    with ExitStack() as held:
        sessions: dict[int, Session] = {}
        for place in sorted(range(len(experiments)), key=lambda i: experiments[i].folder):  # no two wait for each other
            experiment = experiments[place]
            run = held.enter_context(experiment.open())
            if record := experiment.found():
                found[place] = record
                continue
            reporter = Reporter(run.folder / "log.txt")
            held.callback(reporter.close)
            sessions[place] = Session.open(experiment, run, reporter)
        if found:
            Reporter().say(f"{len(found)} of {len(experiments)} runs are finished already (force=true runs them again)")
        trained = train(list(sessions.values())) if sessions else []
        for (place, session), of_it in zip(sessions.items(), trained, strict=True):
            if isinstance(of_it, NonFiniteError):
                found[place] = of_it
                continue
            own = session.experiment
            with track(own.settings.wandb, key=own.key, config=own.config, folder=results_root()) as tracker:
                found[place] = session.finish(of_it, tracker=tracker)
    return [found[place] for place in range(len(experiments))]


def recorded(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration as records keep it: without the search space, which changes no run."""
    return {key: value for key, value in config.items() if key != "search"}


def record_failure(
    config: Any,
    choices: Mapping[str, str],
    status: Literal["failed", "not_applicable"],
    reason: str,
    *,
    cell: RunKey | None = None,
) -> None:
    """Leave a record of a sweep's run that did not finish, where its cell is known or the configuration tells it."""
    shots = config["shots"] if config.get("fit") else 0
    try:
        cell = cell or RunKey(**{group: choices[group] for group in ("protocol", "dataset", "backbone", "method")},
                    variant=config["name"], shots=shots, seed=config["seed"] if shots else 0)  # fmt: skip
        with open_run(cell.folder(results_root())) as run:
            run.publish(Record(**cell.model_dump(), status=status, reason=reason, config=recorded(config)))
    except ValueError:
        return  # not even the cell has a name
