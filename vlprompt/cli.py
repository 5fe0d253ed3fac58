"""The `vlprompt` command."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from vlprompt import __version__
from vlprompt.commands import reproduce, tune
from vlprompt.commands.arguments import is_override
from vlprompt.errors import UserError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a sub-command; -> exit code (2 for a mistake, which is told in one sentence)."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["run"]:  # everything behind it is Hydra's
        from vlprompt.run import main as run

        return run(given[1:])
    options = parse(given)
    try:
        return int(options.command(options))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted: finished runs are kept, the same command goes on from them", file=sys.stderr)  # noqa: T201
        return 130
    except BrokenPipeError:  # `vlprompt table | head`
        sys.stderr.close()
        return 0


def parse(given: Sequence[str]) -> argparse.Namespace:
    """The arguments; settings (key=value) may stand anywhere behind a command that takes them."""
    top = parser()
    options, rest = top.parse_known_args(given)
    if not hasattr(options, "overrides") or not all(map(is_override, rest)):
        if rest:
            top.error(f"unrecognized arguments: {' '.join(rest)}")
        return options
    options.overrides = [*options.overrides, *rest]
    return options


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="vlprompt", description="Adapt frozen vision-language models, and compare.")
    top.add_argument("--version", action="version", version=f"vlprompt {__version__}")
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    commands.add_parser("run", help="run one cell or a sweep: vlprompt run method=coop dataset=caltech101")
    table = commands.add_parser("table", help="a table of the runs so far, mean and deviation over seeds")
    table.add_argument("folders", nargs="*", type=Path, help="results folders (default: results, or VLPROMPT_RESULTS)")
    table.add_argument("--format", choices=("terminal", "markdown", "csv", "latex"), default="terminal")
    table.add_argument("--output", type=Path, help="write into this file instead of showing")
    table.set_defaults(command=show_table)
    tune.register(commands)
    reproduce.register(commands)
    return top


def show_table(options: argparse.Namespace) -> int:
    from vlprompt.records import find_records, results_root
    from vlprompt.tables import render, summarise

    roots = options.folders or [results_root()]
    missing = [str(root) for root in options.folders if not root.is_dir()]
    if missing:
        raise UserError(f"no such folder of results: {', '.join(missing)}")
    text = render(summarise(find_records(roots)), options.format)
    if options.output is None:
        sys.stdout.write(text)
        return 0
    try:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {options.output}: {error.strerror}") from None
    return 0
