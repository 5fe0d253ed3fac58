"""The `vlprompt` command."""

import argparse
import sys
from collections.abc import Sequence

from vlprompt import __version__
from vlprompt.commands import comparisons, tables
from vlprompt.commands.data import add_commands as add_data_commands
from vlprompt.errors import UserError
from vlprompt.imports.command import add_parser as add_import


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a sub-command; -> exit code (2 for a mistake, which is told in one sentence)."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["run"]:  # everything behind it is Hydra's
        from vlprompt.run import main as run

        return run(given[1:])
    options = parser().parse_args(given)
    try:
        return int(options.command(options))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 2
    except BrokenPipeError:  # `vlprompt table | head`
        sys.stderr.close()
        return 0


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="vlprompt", description="Adapt frozen vision-language models, and compare.")
    top.add_argument("--version", action="version", version=f"vlprompt {__version__}")
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    commands.add_parser("run", help="run one cell or a sweep: vlprompt run method=coop dataset=caltech101")
    tables.register(commands)
    comparisons.register(commands)
    add_data_commands(commands.add_parser("data", help="list, get, check and sample data sets"))
    add_import(commands)
    return top
