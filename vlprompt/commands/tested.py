"""A saved run's learner, tested once more in another way than the run did."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from vlprompt.config import build
from vlprompt.config.at_test import settings_at_test, spec_at_test
from vlprompt.config.locate import locate, make_named
from vlprompt.config.overridden import overridden, refuse
from vlprompt.config.spec import RunSpec
from vlprompt.errors import UserError
from vlprompt.evaluate import Outside
from vlprompt.inference import ADAPTATIONS
from vlprompt.learners.base import Learner
from vlprompt.learners.zero_shot import OtherModel
from vlprompt.protocols.base import Episode
from vlprompt.results import learner_files
from vlprompt.results.record import Record
from vlprompt.run import Scores, all_scores, calibrate, run, test
from vlprompt.training.progress import Reporter


def test_again(spec: RunSpec, folder: Path, changed: Mapping[str, Any]) -> Scores:
    """Scores on each test of a saved run, with some settings changed that need no training.

    Raises:
        UserError: an unknown setting, a wrong value, or one that other tensors belong to.
    """
    method = {**spec.settings.method, **changed}
    learner_class, arguments = locate(method, Learner, "method")
    settings = spec.settings.model_copy(update={"method": method})
    refuse(overridden(settings, learner_class, val=True), [f"method.{name}" for name in changed], settings)
    return scores_of(*saved(replace(spec, learner=learner_class, arguments=arguments), folder))


def test_line(spec: RunSpec, folder: Path, shares: Sequence[float | int]) -> list[Scores]:
    """Scores on each test of a saved run, with weights on the line from the frozen model (0) to the tuned one (1).

    Source: Wortsman et al., CVPR 2022, https://arxiv.org/abs/2109.01903, section 3 (WiSE-FT).

    Raises:
        UserError: a learner that leaves nothing but other weights is needed.
    """
    learner = None
    if spec.learner.mergeable:
        _, learner, episode = saved(spec, folder)
    if learner is None or not learner.mergeable:
        raise UserError(
            f"interpolation is between weights, and {spec.learner.__name__}, as it is set here, leaves no others than "
            "the frozen model's: choose runs of a mergeable method, such as full_finetune or lora"
        )
    tuned = learner.eval().merged()
    templates = list(getattr(learner, "templates", [learner.template]))  # one, but for prolip
    spec = replace(spec, learner=OtherModel, arguments={"templates": templates})
    models = (
        OtherModel(learner.clip.toward(tuned, float(share)), learner.classes, **spec.arguments) for share in shares
    )
    return [scores_of(spec, build.calibrated_like(model, learner), episode) for model in models]


def test_calibrated(spec: RunSpec, folder: Path, name: str) -> Scores:
    """Scores on each test of a saved run with another calibration, fitted anew, or with "none".

    Raises:
        UserError: no such calibration, no validation images, or a learner that it cannot calibrate.
    """
    given = None if name == "none" else {"name": name}
    spec = replace(spec, settings=spec.settings.model_copy(update={"calibration": given}))
    spec, learner, episode = saved(spec, folder)
    if calibration := build.make_calibration(spec, learner, episode):
        loader = build.make_loader(spec, learner)
        calibrate(spec, calibration, learner, episode, loader, Reporter(aside=True, quiet=True))
    return scores_of(spec, learner, episode)


def test_adapted(folder: Path, value: str, *, device: str) -> Scores:
    """Scores of a finished run's learner as `zero views=16` adapts it at test time: those of a run, made unless it is
    there. "none": of the learner as it was trained.

    Raises:
        UserError: as `spec_at_test`, and as `run`.
    """
    record, settings = Record.read(folder), of_adaptation(value)
    if record is None:
        raise UserError(f"{folder} holds no run any more")
    if not settings and not record.test_time:
        return record.scores
    return run(spec_at_test(folder, record, settings or {"test_time": None}, device=device)).scores


def check_adaptation(value: str) -> None:
    """Raises: UserError where `zero views=16` is no adaptation, or has a wrong argument."""
    for given in of_adaptation(value).values():
        make_named(given, ADAPTATIONS, "test_time")


@cache
def of_adaptation(value: str) -> dict[str, Any]:
    """What `zero views=16` stands for, as a configuration has it."""
    name, *more = value.split()
    return settings_at_test([f"test_time={name}", *(f"test_time.{setting}" for setting in more)])


def saved(spec: RunSpec, folder: Path) -> tuple[RunSpec, Learner, Episode]:
    """A saved run's learner, and its images."""
    episode = build.make_episode(spec)
    learner = build.make_learner(spec, build.make_clip(spec), episode)
    if spec.trained:
        learner_files.load_tensors(learner, folder)
    if spec.settings.calibration:
        build.restore_calibration(learner, learner_files.read_config(folder).get("calibration"))
    return spec, learner, episode


def scores_of(spec: RunSpec, learner: Learner, episode: Episode) -> Scores:
    """Scores of a learner on each test."""
    outside = Outside(build.ood_splits(spec))
    predictions = test(spec, learner, episode.tests, build.make_loader(spec, learner), Reporter(aside=True), outside)
    return all_scores(predictions, outside)
