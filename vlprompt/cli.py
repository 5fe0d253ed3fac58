"""The `vlprompt` command."""

import argparse
import signal
import sys
from collections.abc import Sequence

from vlprompt import __version__
from vlprompt.commands import (
    bank,
    check_learner,
    comparisons,
    curves,
    explain,
    export,
    interpret,
    listing,
    plots,
    predict,
    report,
    reproduce,
    status,
    tables,
    trained,
    tune,
)
from vlprompt.commands.arguments import is_override
from vlprompt.commands.data import add_commands as add_data_commands
from vlprompt.errors import UserError, drop_output, prepare_streams, printable
from vlprompt.interop.dassl.command import add_parser as add_import
from vlprompt.textfiles import path_of
from vlprompt.training.stops import Stopped


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a sub-command; -> exit code (2 for a mistake, which is told in one sentence)."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["run"]:  # everything after it is Hydra's
        from vlprompt.sweep import main as run

        return run(given[1:])
    resumes = True
    try:
        prepare_streams(given)
        options = parse(given)
        resumes = getattr(options, "resumes", True)
        code = int(options.command(options))
        sys.stdout.flush()
        return code
    except UserError as error:
        print(printable(f"error: {error}"), file=sys.stderr)  # noqa: T201
        return 2
    except KeyboardInterrupt as stop:
        why = "finished runs stay, the same command resumes from there" if resumes else "nothing was written"
        line = stop.line if isinstance(stop, Stopped) and stop.kept else f"\ninterrupted: {why}"
        print(printable(line), file=sys.stderr)  # noqa: T201
        return 128 + (stop.number if isinstance(stop, Stopped) else signal.SIGINT)
    except BrokenPipeError:  # `vlprompt table | head`
        drop_output()
        return 0


def parse(given: Sequence[str]) -> argparse.Namespace:
    """The arguments; settings (key=value) and folders may stand anywhere after a command that takes them."""
    top = parser()
    options, rest = top.parse_known_args(given)
    if hasattr(options, "folders_anywhere") and not any(text.startswith("-") for text in rest):
        options.folders = [*options.folders, *map(path_of, rest)]
        return options
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
    commands.add_parser("run", help="one run or a sweep: vlprompt run method=coop dataset=caltech101")
    listing.register(commands)
    tables.register(commands)
    curves.register(commands)
    comparisons.register(commands)
    plots.register(commands)
    report.register(commands)
    status.register(commands)
    bank.register(commands)
    tune.register(commands)
    reproduce.register(commands)
    trained.register(commands)
    predict.register(commands)
    interpret.register(commands)
    explain.register(commands)
    export.register(commands)
    check_learner.register(commands)
    add_data_commands(commands.add_parser("data", help="list, get, check and sample data sets"))
    add_import(commands)
    return top
