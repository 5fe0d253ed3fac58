"""The search for one method's settings: trials on few-shot validation images, a choice, and its tests."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import OutOfMemoryError

from vlprompt.config import build
from vlprompt.config.compose import read_reference, read_run
from vlprompt.config.paths import results_root
from vlprompt.config.spec import RunSpec, check_name
from vlprompt.errors import DamagedError, NonFiniteError, UserError
from vlprompt.jobs.failures import run_or_record_failure
from vlprompt.jobs.single import is_comparable
from vlprompt.results.record import Record, Selection, most_seen
from vlprompt.results.store import TRIALS, stored_run
from vlprompt.training.progress import Reporter
from vlprompt.tuning.sampler import optuna, sampler, search
from vlprompt.tuning.space import Space, read_space, value_at
from vlprompt.tuning.study import Setting, Study, Trial, best, in_words

VALIDATION = "protocol.part=few_shot_val"


@dataclass(frozen=True)
class Search:
    """One method's search, planned: `base` is the run whose settings are searched."""

    overrides: list[str]
    base: RunSpec
    space: Space
    default: Setting
    budget: int

    @property
    def folder(self) -> Path:
        root = results_root()
        return root / TRIALS / self.base.key.folder(root).relative_to(root / "runs")

    @classmethod
    def plan(cls, method: str, overrides: Sequence[str], budget: int) -> "Search":
        """Check all that can be checked before the first trial. Raises: UserError."""
        optuna()
        overrides = [f"method={method}", *overrides]
        base = read_run(overrides)
        space = read_space(base.settings)
        if not base.trained:
            raise UserError(f"{method} is not trained: there is nothing to choose for it, leave it out")
        if not space:
            do = "add `search` to its YAML, or +search.fit.lr={low: 1e-4, high: 0.1, log: true} here"
            raise UserError(f"{method} declares no search space: {do}")
        check_classes(base)
        settings = base.settings.model_dump()
        plan = cls(overrides, base, space, {name: value_at(settings, name) for name in space}, budget)
        check_classes(plan.trial(plan.default))  # there are validation images
        return plan

    def trial(self, setting: Setting) -> RunSpec:
        """The run that tries a setting; its record lies next to the study."""
        spec = read_run([*self.overrides, VALIDATION, *as_overrides(setting)])
        return replace(spec, folder=self.folder / "trials" / str(spec.key.variant))

    def choose(self) -> Study:
        """Make all trials, or read those that are there. No test image is read."""
        seed = self.base.settings.seed
        study = Study(
            cell=self.base.key, overrides=self.overrides, budget=self.budget, sampler=sampler(seed),
            space={name: dimension.model_dump() for name, dimension in self.space.items()},
        )  # fmt: skip

        def evaluate(number: int, setting: Setting) -> Trial:
            Reporter().say(f"\n{self.base.key.learner}, trial {number + 1} of {self.budget}: {in_words(setting)}")
            study.add(self.evaluate(number, setting), self.folder)
            Reporter().say(f"{self.base.key.learner}, {study.progress()}")
            return study.trials[-1]

        search(self.space, self.default, budget=self.budget, seed=seed, evaluate=evaluate)
        study.chosen, study.status = best(study.trials), "chosen"
        study.write(self.folder)
        return study

    def evaluate(self, number: int, setting: Setting) -> Trial:
        """Try one setting. What fails in the first trial alone is a mistake, unless it is the loss."""
        spec = self.trial(setting)
        try:
            run = stored_run(spec.folder)
        except DamagedError:  # which the new run says
            run = None
        record = run[1] if run and run[1].status != "finished" and spec.matches(run[1]) else None
        if record is None or spec.settings.force:
            caught = (OutOfMemoryError, UserError if number else NonFiniteError)
            record = run_or_record_failure(spec, caught=caught)
        return Trial(
            number=number,
            setting=setting,
            record=str(spec.folder.relative_to(self.folder)),
            accuracy=next((scores["accuracy"] for scores in record.scores.values()), None),
            reason=record.reason,
            seconds=sum(record.cost.get(name) or 0.0 for name in ("train_seconds", "test_seconds")),
        )

    @property
    def selection(self) -> Selection:
        """On what the choice was made, or a recipe's settings if that saw more."""
        return most_seen("few_shot_val", self.base.settings.selection or "fixed")

    def test(self, study: Study, seeds: Sequence[int]) -> list[Record]:
        """The default and the chosen setting on the test images, as ordinary runs, after the zero-shot run if any."""
        if study.chosen is None:
            return []
        name = "tuned" if study.cell.variant is None else f"tuned-{study.cell.variant}"
        tuned = [*as_overrides(study.chosen.setting), f"name={name}", f"selection={self.selection}"]
        specs = [read_run([*self.overrides, *more, f"seed={seed}"]) for seed in seeds for more in ([], tuned)]
        records = [run_or_record_failure(instead_of_earlier(spec)) for spec in specs]
        fields = {"variant", "seed", "status", "reason", "scores"}
        study.tests, study.status = [record.model_dump(include=fields) for record in records], "tested"
        study.write(self.folder)
        reference = read_reference(self.overrides)
        return [run_or_record_failure(reference), *records] if is_comparable(reference) else records


def instead_of_earlier(spec: RunSpec) -> RunSpec:
    """The run, which replaces that of an earlier choice where one has its name."""
    try:
        check_name(spec)
    except UserError:
        return replace(spec, settings=spec.settings.model_copy(update={"force": True}))
    return spec


def check_classes(spec: RunSpec) -> None:
    """Build the learner and bind it to every test's class names, so that what cannot be tested is not trained.

    Raises: ClassBoundError.
    """
    build.make_learner(spec, build.make_clip(spec), build.make_episode(spec))


def as_overrides(setting: Mapping[str, Any]) -> list[str]:
    """A setting as on the command line. Quotes, lists, numbers and null read alike in JSON and there."""
    return [f"{name}={json.dumps(value)}" for name, value in setting.items()]
