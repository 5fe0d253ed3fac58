"""`vlprompt tune`: the same number of trials for each method, chosen on few-shot validation images, then tested."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlprompt.commands.arguments import add_config_dir, is_override, positive, refuse, searched, whole_numbers
from vlprompt.errors import NonFiniteError, UserError

if TYPE_CHECKING:
    from vlprompt.experiment import Experiment
    from vlprompt.results.record import Record
    from vlprompt.tuning.search import Setting, Study, Trial
    from vlprompt.tuning.space import Space

GROUPS = ("dataset", "protocol", "backbone", "shots", "seed")
VALIDATION = "protocol.part=few_shot_val"


def register(commands: Any) -> None:
    text = "choose the settings of methods on few-shot validation images, the same number of trials for each"
    parser = commands.add_parser("tune", help=text, description=text)
    parser.add_argument("methods", nargs="+", metavar="METHOD", help="and settings as for run: key=value")
    parser.add_argument("--trials", type=positive, default=12, help="for each method, the default setting among them")
    for name in GROUPS:
        parser.add_argument(f"--{name}", help=f"as {name}=")
    parser.add_argument("--final-seeds", type=whole_numbers, help="to test the choice with: 1,2,3 (default: the seed)")
    add_config_dir(parser)
    parser.set_defaults(command=tune, overrides=[])


def tune(options: argparse.Namespace) -> int:
    """-> exit code: 1 where no trial of a method, or no test of its choice, came to an end."""
    methods = dict.fromkeys(text for text in options.methods if not is_override(text))
    given = [text for text in [*options.methods, *options.overrides] if is_override(text)]
    refuse(given, ("name", "method", "protocol.part"), "tune names its runs, their method and their images itself")
    chosen = [f"{name}={getattr(options, name)}" for name in GROUPS if getattr(options, name) is not None]
    overrides = [*searched(options.config_dir), *chosen, *given]
    searches = [Search.plan(method, overrides, options.trials) for method in methods]
    if not searches:
        raise UserError("name at least one method to tune, as in: vlprompt tune coop lora")
    studies = [one.choose() for one in searches]
    records = [
        record
        for one, study in zip(searches, studies, strict=True)
        for record in one.test(study, options.final_seeds or [one.base.settings.seed])
    ]
    show(studies, records)
    unfinished = [record for record in records if record.status != "finished"]
    return int(bool(unfinished) or not all(study.chosen for study in studies))


@dataclass(frozen=True)
class Search:
    """One method's search, planned: `base` is the run whose settings are searched."""

    overrides: list[str]
    base: "Experiment"
    space: "Space"
    default: "Setting"
    budget: int

    @property
    def folder(self) -> Path:
        from vlprompt.config.paths import results_root
        from vlprompt.results.store import TRIALS

        root = results_root()
        return root / TRIALS / self.base.key.folder(root).relative_to(root / "runs")

    @classmethod
    def plan(cls, method: str, overrides: Sequence[str], budget: int) -> "Search":
        """Check all that can be checked before the first trial. Raises: UserError."""
        from vlprompt.sweep import prepare
        from vlprompt.tuning.search import optuna
        from vlprompt.tuning.space import value_at

        optuna()
        asked = [f"method={method}", *overrides]
        base = prepare(asked)
        space = base.settings.space()
        if not base.trained:
            raise UserError(f"{method} is not trained: there is nothing to choose for it, leave it out")
        if not space:
            do = "add `search` to its YAML, or +search.fit.lr={low: 1e-4, high: 0.1, log: true} here"
            raise UserError(f"{method} declares no search space: {do}")
        base.check_classes()
        settings = base.settings.model_dump()
        search = cls(asked, base, space, {name: value_at(settings, name) for name in space}, budget)
        search.trial(search.default).check_classes()  # there are validation images
        return search

    def trial(self, setting: "Setting") -> "Experiment":
        """The run that tries a setting; its record lies beside the study."""
        from vlprompt.sweep import prepare
        from vlprompt.tuning.search import as_overrides

        experiment = prepare([*self.overrides, VALIDATION, *as_overrides(setting)])
        return replace(experiment, place=self.folder / "trials" / str(experiment.key.variant))

    def choose(self) -> "Study":
        """Make or find all trials. No test image is read."""
        from vlprompt.tuning.search import Study, best, sampler, search

        seed = self.base.settings.seed
        study = Study(
            cell=self.base.key, overrides=self.overrides, budget=self.budget, sampler=sampler(seed),
            space={name: dimension.model_dump() for name, dimension in self.space.items()},
        )  # fmt: skip

        def evaluate(number: int, setting: "Setting") -> "Trial":
            study.add(self.evaluate(number, setting), self.folder)
            say(f"{self.base.key.learner}, {study.progress()}")
            return study.trials[-1]

        search(self.space, self.default, budget=self.budget, seed=seed, evaluate=evaluate)
        study.chosen, study.status = best(study.trials), "chosen"
        study.write(self.folder)
        return study

    def evaluate(self, number: int, setting: "Setting") -> "Trial":
        """Try one setting. What fails in the first trial alone is a mistake, unless it is the loss."""
        from torch import OutOfMemoryError

        from vlprompt.batch import attempt
        from vlprompt.results.record import Record
        from vlprompt.tuning.search import Trial, in_words

        say(f"\n{self.base.key.learner}, trial {number + 1} of {self.budget}: {in_words(setting)}")
        experiment = self.trial(setting)
        known = Record.read(experiment.folder)
        failed = known is not None and known.status != "finished" and known.config_hash == experiment.hash
        caught = (OutOfMemoryError, UserError if number else NonFiniteError)
        again = known is None or not failed or experiment.settings.force
        record = attempt(experiment, caught=caught) if again else known
        assert record is not None
        return Trial(
            number=number,
            setting=setting,
            record=str(experiment.folder.relative_to(self.folder)),
            accuracy=next((scores["accuracy"] for scores in record.scores.values()), None),
            reason=record.reason,
            seconds=sum(record.cost.get(name) or 0.0 for name in ("train_seconds", "test_seconds")),
        )

    def test(self, study: "Study", seeds: Sequence[int]) -> list["Record"]:
        """The default and the chosen setting on the test images, as ordinary runs, and zero-shot beside them."""
        from vlprompt.batch import attempt
        from vlprompt.sweep import prepare, prepare_beside
        from vlprompt.tuning.search import as_overrides

        if study.chosen is None:
            return []
        name = "tuned" if study.cell.variant is None else f"tuned-{study.cell.variant}"
        tuned = [*as_overrides(study.chosen.setting), f"name={name}"]
        records = [attempt(prepare([*self.overrides, *more, f"seed={seed}"])) for seed in seeds for more in ([], tuned)]
        kept = {"variant", "seed", "status", "reason", "scores"}
        study.tests, study.status = [record.model_dump(include=kept) for record in records], "tested"
        study.write(self.folder)
        return [attempt(prepare_beside(self.overrides)), *records]


def say(line: str) -> None:
    from vlprompt.training.progress import Reporter

    Reporter().say(line)


def show(studies: Sequence["Study"], records: Sequence["Record"]) -> None:
    """What was chosen, at what cost, and the tests of it."""
    from tabulate import tabulate

    from vlprompt.reports.render import render
    from vlprompt.reports.summary import summarise
    from vlprompt.tuning.search import row

    rows = [row(study) for study in studies]
    say("\nchosen on few-shot validation images (accuracy in %; the cost of the search is all trials)")
    say(tabulate(rows, headers="keys", tablefmt="simple", disable_numparse=True))
    if records:
        unique = {record.key: record for record in records}
        say("\n" + render(summarise(list(unique.values()))).rstrip())
    for record in records:
        if record.status != "finished":
            line = f"{record.learner}, seed {record.seed} ({record.status}): {record.reason}"
            print(line, file=sys.stderr)  # noqa: T201
