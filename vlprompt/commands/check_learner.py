"""`vlprompt check-learner`: does a method keep the contract of learners?"""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import yaml

from vlprompt.errors import UserError


def register(commands: Any) -> None:
    """Add `check-learner` to the sub-commands."""
    text = "check a learner against the contract that all methods keep, on a small random model"
    parser = commands.add_parser("check-learner", help=text, description=text)
    parser.add_argument("path", metavar="CLASS", help="its import path: my_methods.x.X")
    parser.add_argument("overrides", metavar="KEY=VALUE", nargs="*", help="arguments of its constructor: depth=3")
    parser.set_defaults(command=check)


def check(options: argparse.Namespace) -> int:
    """0: every check holds; 1: some do not."""
    from vlprompt.config.locate import locate
    from vlprompt.learners.base import Learner
    from vlprompt.learners.checks import Candidate, run_checks

    kind, settings = locate({**read_settings(options.overrides), "_target_": options.path}, Learner, "method")
    candidate, failed = Candidate(kind, settings), 0
    candidate.build()  # a mistake in the settings is told before any check
    for name, problem in run_checks(candidate):
        sys.stdout.write(f"failed  {name}: {problem}\n" if problem else f"ok      {name}\n")
        failed += bool(problem)
    sys.stdout.write(f"\n{options.path}: {f'{failed} checks failed' if failed else 'every check holds'}\n")
    return int(failed > 0)


def read_settings(given: Sequence[str]) -> dict[str, Any]:
    """key=value, values as in YAML."""
    pairs = [text.partition("=") for text in given]
    if wrong := [key for key, equals, _ in pairs if not (key and equals)]:
        raise UserError(f"'{wrong[0]}' is no setting: give it as key=value")
    try:
        return {key: yaml.safe_load(value) for key, _, value in pairs}
    except yaml.YAMLError as error:
        raise UserError(f"a value of {' '.join(given)} is no YAML: {' '.join(str(error).split())}") from None
