"""`vlprompt tune`: the same number of trials for each method, chosen on few-shot validation images, then tested."""

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vlprompt.commands.arguments import add_config_dir, is_override, positive, refuse, searched, whole_numbers
from vlprompt.commands.output import show_rows
from vlprompt.config.recipes import modernize
from vlprompt.errors import UserError, printable

if TYPE_CHECKING:
    from vlprompt.results.record import Record
    from vlprompt.tuning.study import Study

GROUPS = ("dataset", "protocol", "backbone", "shots", "seed")


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
    if not methods:
        raise UserError("name at least one method to tune, as in: vlprompt tune coop lora")
    given, notices = modernize(text for text in [*options.methods, *options.overrides] if is_override(text))
    refuse(given, ("name", "method", "protocol.part"), "tune names its runs, their method and their images itself")
    for notice in notices:
        print(notice, file=sys.stderr)  # noqa: T201
    chosen = [f"{name}={getattr(options, name)}" for name in GROUPS if getattr(options, name) is not None]
    overrides = [*searched(options.config_dir), *chosen, *given]

    from vlprompt.tuning.search import Search

    searches = [Search.plan(method, overrides, options.trials) for method in methods]
    studies = [search.choose() for search in searches]
    records = [
        record
        for search, study in zip(searches, studies, strict=True)
        for record in search.test(study, options.final_seeds or [search.base.settings.seed])
    ]
    show(studies, records)
    unfinished = [record for record in records if record.status != "finished"]
    return int(bool(unfinished) or not all(study.chosen for study in studies))


def say(line: str) -> None:
    from vlprompt.training.progress import Reporter

    Reporter().say(line)


def show(studies: Sequence["Study"], records: Sequence["Record"]) -> None:
    """What was chosen, at what cost, and the tests of it."""
    from vlprompt.reports.endings import next_steps
    from vlprompt.reports.render import in_words
    from vlprompt.tuning.study import row

    title = "chosen on few-shot validation images (accuracy in %; the cost of the search is all trials)"
    say("")
    show_rows([row(study) for study in studies], title, ["method"], order=["method", "chosen", "setting", "default"])
    if records:
        unique = {record.key: record for record in records}
        say("\n" + in_words(list(unique.values())))
        say(next_steps(list(unique.values())))
    for record in records:
        if record.status != "finished":
            line = f"{record.learner}, seed {record.seed} ({record.status}): {record.reason}"
            print(printable(line), file=sys.stderr)  # noqa: T201
