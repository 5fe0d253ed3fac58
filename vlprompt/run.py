"""One run, top to bottom: load, train, evaluate, record."""

import logging
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml

from vlprompt.config import build
from vlprompt.config.paths import results_root
from vlprompt.config.spec import RunSpec, check_name
from vlprompt.data.dataset import Split
from vlprompt.data.loader import Loader
from vlprompt.evaluate import Outside, evaluate, fit_calibration
from vlprompt.inference import Calibration
from vlprompt.learners.base import Learner
from vlprompt.protocols.base import Episode
from vlprompt.results import learner_files
from vlprompt.results.costs import costs_of_adapting, costs_of_use, timed
from vlprompt.results.metrics import score
from vlprompt.results.ood import OOD, save_ood, score_ood
from vlprompt.results.predictions import PREDICTIONS, Predictions, save_predictions
from vlprompt.results.record import Record, Selection, git_commit, most_seen, selected_on, versions
from vlprompt.results.store import LOG, OpenRun, finished_run, open_run, tidy
from vlprompt.towers.precision import autocast
from vlprompt.train import Epoch, train
from vlprompt.training.device import default_threads, device_name, jobs_at_once, peak_memory, reset_peak_memory
from vlprompt.training.lease import lease
from vlprompt.training.optim import n_steps, steps_per_epoch
from vlprompt.training.progress import Reporter
from vlprompt.training.state import State
from vlprompt.training.stops import heard
from vlprompt.training.tracking import track

logger = logging.getLogger(__name__)

Scores = dict[str, dict[str, int | float]]  # by test split


def run(spec: RunSpec, *, wait: bool = True) -> Record:
    """The record of a run: the one that is there, where the run is finished, or a new one.

    Raises:
        InUseError: another process is making it, and `wait` is false.
        UserError: more shots than images, a class-bound method, a loss that is not finite, a full disk, ...
        Stopped: a signal came; what was kept of the training is resumed by the next call.
    """
    if record := existing_record(spec):  # without the lock: it may lie where nothing can be written
        tidy(spec.folder.parent)
        return told(spec, record)
    if spec.settings.device == "auto":
        spec = replace(spec, device=lease(spec.device, spec.settings.jobs_per_gpu, reporter_of(spec).say))
    with heard(), open_run(spec.folder, on_wait=reporter_of(spec).say, wait=wait) as folder:
        if record := existing_record(spec):
            return told(spec, record)
        check_name(spec)
        with closing(folder.write(lambda: reporter_of(spec, folder.path / LOG))) as reporter:
            reporter.say(str(spec))
            return make_record(spec, folder, reporter)


def existing_record(spec: RunSpec) -> Record | None:
    """The record of this run, if it is finished and not to be made again."""
    return None if spec.settings.force else finished_run(spec.folder, spec.matches)


def reporter_of(spec: RunSpec, log: Path | None = None) -> Reporter:
    """What a run says, under its cell's name where several run at once."""
    key = spec.key
    name = f"{key.learner} {key.dataset} shots{key.shots} seed{key.seed}"
    return Reporter(log, cell=name if jobs_at_once() > 1 else None)


def told(spec: RunSpec, record: Record) -> Record:
    reporter_of(spec).say(f"{spec.folder} is finished already (force=true runs it again)")
    return record


def make_record(spec: RunSpec, folder: OpenRun, reporter: Reporter) -> Record:
    """Load, train, evaluate, record."""
    if threads := spec.settings.threads or default_threads():
        torch.set_num_threads(threads)
    origin = provenance(spec)
    with (
        track(spec.settings.wandb, key=spec.key, origin=origin, folder=results_root()) as tracker,
        state_of(spec, folder, reporter) as state,
    ):
        episode, outside = build.make_episode(spec), Outside(build.ood_splits(spec))
        warn_of_single_classes(episode)
        clip = build.make_clip(spec)
        learner = build.make_learner(spec, clip, episode)  # what cannot be tested is refused before it is trained
        calibration = build.make_calibration(spec, learner, episode)
        loader = build.make_loader(spec, learner)

        curve, train_seconds = fit(spec, learner, episode, loader, state, reporter)
        for line in curve:
            tracker.log({"loss": line.loss, "accuracy": line.accuracy, "lr": line.lr}, line.epoch + 1)

        if calibration:
            calibrate(spec, calibration, learner, episode, loader, reporter)
        predictions, test_seconds = timed(test, spec, learner, episode.tests, loader, reporter, outside)
        peak = peak_memory(spec.device)
        scores = all_scores(predictions, outside)
        log_scores(scores, reporter)

        record = Record(
            **spec.key.model_dump(),
            status="finished",
            **origin,
            selection=selection(spec, learner, episode),
            **at_test_time(spec),
            scores=scores,
            calibration=calibration.told if calibration else {},
            n_classes={name: len(split.classes) for name, split in episode.tests.items()},
            headline=spec.protocol.summary({name: of_split["accuracy"] for name, of_split in scores.items()}),
            curve=[asdict(line) for line in curve],
            preprocess=asdict(learner.clip.preprocess),
            bank=features_used(loader),
            cost={
                "trained_parameters": learner.n_trained,
                "train_seconds": train_seconds,
                "test_seconds": test_seconds,
                "peak_memory_bytes": peak,
                **({"stops": state.stops} if state.stops else {}),
                **costs(spec, learner, episode, train_seconds),
            },
        )
        reporter.log(f"finished; record of {spec.folder}")
        reporter.close()  # its file is among those that are published
        record = folder.write(lambda: save(spec, learner, predictions, outside, record, folder, reporter))
        tracker.finish(record, predictions, {name: split.classes for name, split in episode.tests.items()})
    return record


def fit(
    spec: RunSpec, learner: Learner, episode: Episode, loader: Loader, state: State, reporter: Reporter
) -> tuple[list[Epoch], float]:
    """Train the learner, or take over what a finished run of the same training holds; -> the curve, and seconds.

    Raises: DamagedError where that is needed and cannot be read.
    """
    settings, training = spec.settings, spec.training
    reset_peak_memory(spec.device)
    if settings.fit is None:
        return [], 0.0
    record = None
    if training and training.needed:
        record = Record.read(training.folder)
    elif training and not settings.force and (training.folder / learner_files.TENSORS).is_file():
        record = finished_run(training.folder, training.matches)
    if training and record:
        learner_files.load_tensors(learner, training.folder)
        reporter.say(f"trained already: {training.folder}")
        curve: list[Any] = [Epoch(**line) for line in record.curve]  # type: ignore[arg-type]  # as they were written
        return curve, float(record.cost.get("train_seconds") or 0)
    curve, seconds = timed(
        *(train, learner, episode, loader, settings.fit),
        precision=spec.precision,
        reporter=reporter,
        compile=settings.compile,
        state=state,
    )
    return curve, seconds + state.seconds


def at_test_time(spec: RunSpec) -> dict[str, Any]:
    """What a record says of a method at test time, if there is one."""
    if (adaptation := spec.adaptation) is None:
        return {}
    about = {"name": adaptation.name, "views": adaptation.views, "seed": spec.settings.seed}
    return {"inference": adaptation.inference, "test_time": about}


def state_of(spec: RunSpec, folder: OpenRun, reporter: Reporter) -> State:
    """What an earlier process kept of this run's training, and where this one keeps it."""
    settings = spec.settings
    resume = not settings.force if settings.resume is None else settings.resume
    return State(
        folder,
        run_hash=spec.hash,
        resume=resume,
        minutes=settings.state_minutes,
        device=spec.device,
        reporter=reporter,
    )


def warn_of_single_classes(episode: Episode) -> None:
    for name, split in episode.tests.items():
        if len(split.classes) == 1:
            logger.warning(
                "the test '%s' has one class (%s): its accuracy is 100 %% whatever the learner. That says nothing, "
                "nor does a mean that it enters (H): use more classes, or another protocol",
                *(name, split.classes[0]),
            )


def test(
    spec: RunSpec,
    learner: Learner,
    tests: Mapping[str, Split],
    loader: Loader,
    reporter: Reporter,
    outside: Outside,
) -> dict[str, Predictions]:
    """Predictions on each test, in the words of its data set; in the source's where something is learned a class.

    What is `outside` gets its scores.
    """

    def judge(learner: Learner, tests: Mapping[str, Split]) -> dict[str, Predictions]:
        how: Any = {"precision": spec.precision, "reporter": reporter}
        return evaluate(learner, tests, loader, adaptation=spec.adaptation, outside=outside, **how)

    names = () if learner.class_bound else tests
    wordings = {name: wording for name in names if (wording := build.target_wording(spec, name))}
    same = {name: split for name, split in tests.items() if name not in wordings}
    predictions = judge(learner, same)
    for name, wording in wordings.items():
        reworded = build.reword_learner(spec, learner, wording)
        predictions |= judge(reworded, {name: tests[name]})
    return {name: predictions[name] for name in tests}


def all_scores(predictions: Mapping[str, Predictions], outside: Outside) -> Scores:
    """Scores on each test, those of what is out of distribution among them."""
    of_ood = {name: score_ood(scores) for name, scores in outside.scores.items()}
    return {name: score(of_split) | of_ood.get(name, {}) for name, of_split in predictions.items()}


def calibrate(
    spec: RunSpec, calibration: Calibration, learner: Learner, episode: Episode, loader: Loader, reporter: Reporter
) -> None:
    """Fit a calibration, and give it to the trained learner."""
    how: Any = {"precision": spec.precision, "reporter": reporter, "adaptation": spec.adaptation}
    fit_calibration(calibration, learner, episode.train, episode.val, loader, **how)
    if calibration.fitted:
        numbers = ", ".join(f"{name} {value:.4f}" for name, value in calibration.fitted.items())
        reporter.say(f"calibration: {calibration.name}, {numbers}")


def selection(spec: RunSpec, learner: Learner, episode: Episode) -> Selection:
    """How settings were chosen: as their files say, or as the run chose an epoch, or searched, if that saw more."""
    settings = spec.settings
    fit, of_files = settings.fit, settings.selection or "fixed"
    chosen = fit is not None and (fit.keep == "best" or learner.uses_validation)
    if learner.calibration is not None and learner.calibration.on_images:
        of_files = most_seen(of_files, selected_on("val", settings.sampler.name, settings.shots))
    if not (fit and chosen and episode.selection_split(fit.select_on)):
        return of_files
    of_run = selected_on(fit.select_on, settings.sampler.name, settings.shots)
    return most_seen(of_files, of_run)


def provenance(spec: RunSpec) -> dict[str, Any]:
    """Where a record comes from: settings, versions, hashes of the data."""
    return {
        "weights": spec.settings.backbone.weights,
        "precision": spec.precision,
        "device": device_name(spec.device),
        "config": spec.config,
        "config_hash": spec.hash,
        "changes": spec.changes,
        "recipe": spec.recipes,
        "versions": versions(),
        "git": git_commit(),
        "split_hash": spec.dataset.fingerprint(),
        "target_hashes": {name: target.fingerprint() for name, target in spec.others.items()},
    }


def costs(spec: RunSpec, learner: Learner, episode: Episode, train_seconds: float) -> dict[str, Any]:
    """Costs of a step, of the frozen model, and of use. Binds the learner to the classes that it was trained on."""
    fit, clip = spec.settings.fit, learner.clip
    steps = n_steps(steps_per_epoch(len(episode.train), fit), fit) if fit else 0
    learner.bind(episode.train.classes)
    how = partial(autocast, clip.device, spec.precision)
    return {
        "steps": steps,
        "seconds_per_step": train_seconds / steps if steps else None,
        "backbone_bytes": clip.n_bytes,
        "quantization_error": clip.quantization_error,
        "mergeable": learner.mergeable if fit else None,
        **costs_of_use(learner, autocast=how),
        **(costs_of_adapting(learner, spec.adaptation, autocast=how) if spec.adaptation else {}),
    }


def features_used(loader: Loader) -> dict[str, Any]:
    """What of the feature bank was used: k views an image (None: one for each epoch), read and computed features."""
    if loader.features is None:
        return {"test_features": False, "views": loader.n_views}
    return {"test_features": True, "views": loader.n_views, **asdict(loader.features.use)}


def save(
    spec: RunSpec,
    learner: Learner,
    predictions: Mapping[str, Predictions],
    outside: Outside,
    record: Record,
    folder: OpenRun,
    reporter: Reporter,
) -> Record:
    """Write all files of the run and publish them; -> the record, with what the learner takes on the disk."""
    reporter.restore_log()
    stored_bytes = save_files(spec, learner, predictions, outside, folder.path)
    record = record.model_copy(update={"cost": {**record.cost, "stored_bytes": stored_bytes}})
    folder.publish(record)
    return record


def save_files(
    spec: RunSpec, learner: Learner, predictions: Mapping[str, Predictions], outside: Outside, folder: Path
) -> int:
    """All files of the run but its record; -> bytes of the trained tensors."""
    save_predictions(folder / PREDICTIONS, predictions)
    if outside.scores:
        save_ood(folder / OOD, outside.scores)
    config = yaml.safe_dump(spec.config, sort_keys=False, allow_unicode=True)
    (folder / "config.yaml").write_text(config, encoding="utf-8")
    about = {
        "method": spec.key.method,
        "target": spec.settings.method["_target_"],
        "arguments": spec.arguments,
        "backbone": spec.settings.backbone.model_dump(exclude_none=True),
        "dataset": spec.key.dataset,
        "protocol": spec.key.protocol,
        "split_hash": spec.dataset.fingerprint(),
        "precision": spec.precision,
        "as_shown": getattr(spec.dataset.open_image, "as_shown", True),
        **({"test_time": spec.adaptation.name} if spec.adaptation else {}),
    }
    if not spec.trained:
        learner_files.describe(learner, folder, about)
        return 0
    return learner_files.save(learner, folder, about)


def log_scores(scores: Mapping[str, Mapping[str, float]], reporter: Reporter) -> None:
    """In the words of CoOp's logs, so that scripts which read those read these."""
    for name, of_split in scores.items():
        reporter.log(f"Evaluate on the *test* set ({name})")
        for line in (
            f"=> result\n* total: {of_split['total']:,}\n* correct: {of_split['correct']:,}",
            f"* accuracy: {100 * of_split['accuracy']:.2f}%\n* error: {100 - 100 * of_split['accuracy']:.2f}%",
            f"* macro_f1: {100 * of_split['macro_f1']:.2f}%",
        ):
            reporter.log(line)
