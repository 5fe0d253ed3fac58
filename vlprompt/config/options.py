"""The options of `python run.py`: which go together, whether they ask for a sweep, and where it leaves its outcomes."""

import os
import re
import shutil
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import setup_globals
from omegaconf import OmegaConf

from vlprompt.config.paths import results_root
from vlprompt.config.schema import OfSweep, read_sweep_settings
from vlprompt.errors import UserError
from vlprompt.textfiles import path_of

SWEEP_DIR, MODE = "hydra.sweep.dir", "hydra.mode"
OF_SWEEP = "sweep."  # how the names of settings begin that are about the whole sweep


def options_first(arguments: Sequence[str]) -> list[str]:
    """The arguments with all settings after the options, whose parser stops at the second group of settings."""
    arguments = [with_home(text) for text in arguments]
    options, unread = get_args_parser().parse_known_args(arguments)
    more = [text for text in unread if text.startswith("~") or ("=" in text and not text.startswith("-"))]
    if not more:
        return list(arguments)
    settings = [*options.overrides, *more]
    return [*(text for text in arguments if text not in settings), *settings]


def with_home(argument: str) -> str:
    """--config-dir=~/conf with the home folder, which shells fill in only after a space."""
    option, _, value = argument.partition("=")
    return f"{option}={path_of(value)}" if option in ("--config-dir", "-cd") and value.startswith("~") else argument


def read_options(arguments: Sequence[str]) -> Namespace:
    """Hydra's options. Raises: UserError for those that do not go together."""
    options = get_args_parser().parse_args(arguments)
    asked = {"-m": options.multirun, "--run": options.run, "--cfg": options.cfg, "--info": options.info}
    asked["--shell-completion"] = options.shell_completion
    if len(several := [name for name, value in asked.items() if value]) > 1:
        raise UserError(f"{' and '.join(several)} do not go together: {several[-1]} is about one run, give it alone")
    if options.resolve and not (options.cfg or options.help):
        raise UserError("--resolve is for what --cfg shows: add --cfg job")
    install = any(text.startswith(("install=", "uninstall=")) for text in options.overrides)
    if options.shell_completion and not install and "COMP_LINE" not in os.environ:  # which a shell sets that asks
        raise UserError("--shell-completion needs install=SHELL or uninstall=SHELL: bash, fish or zsh")
    if options.experimental_rerun:
        raise UserError("--experimental-rerun reads a pickle, which can run code: give the settings once more instead")
    for text in options.overrides:
        if text.startswith("hydra.run.dir=") and Path(text.partition("=")[2]).is_file():
            raise UserError(f"{text} is a file: name a folder")
    return options


def is_sweep(options: Namespace) -> bool:
    if options.help or options.hydra_help or options.cfg or options.info or options.shell_completion:
        return False
    asked = [text.lstrip("+") for text in options.overrides]
    of_sweep = any(text == f"{MODE}=MULTIRUN" or text.startswith(OF_SWEEP) or is_of_cluster(text) for text in asked)
    return options.multirun or of_sweep


def is_of_cluster(override: str) -> bool:
    """Whether a setting says where the jobs of a sweep run; no cell has it."""
    return override.lstrip("+~").startswith(("cluster=", "cluster."))


def with_any_option(of_cluster: Sequence[str]) -> list[str]:
    """Settings of a cluster, of which `cluster.options` takes names that are not there yet."""
    if not any(text.lstrip("+").startswith("cluster=") for text in of_cluster):
        return list(of_cluster)
    return [re.sub(r"^\+?(?=cluster\.options[.=])", "++", text) for text in of_cluster]


def sweep_settings(overrides: Sequence[str]) -> tuple[OfSweep, list[str]]:
    """The settings below `sweep`, which are no part of a cell, and the other overrides. Raises: UserError."""
    given = [text for text in overrides if text.lstrip("+").startswith(OF_SWEEP)]
    values = {}
    for override, text in zip(OverridesParser.create().parse_overrides(given), given, strict=True):
        if override.is_sweep_override() or override.is_delete():
            raise UserError(f"{text} is about the whole sweep: give it one value, true or false")
        values[override.key_or_group.removeprefix(OF_SWEEP)] = override.value()
    return read_sweep_settings(values), [text for text in overrides if text not in given]


@contextmanager
def sweep_folder(of_hydra: Sequence[str]) -> Iterator[Path]:
    """Where a sweep's jobs leave their outcomes, in whatever process or machine they run.

    Next to results that can only be read this is a temporary folder: what is finished there is shown all the same.
    """
    given = [text for text in of_hydra if text.lstrip("+").partition("=")[0] == SWEEP_DIR]
    if given:
        setup_globals()  # resolved here, so that a time in it is the same for all
        value = OverridesParser.create().parse_override(given[-1]).value()
        yield path_of(str(OmegaConf.create({"dir": value})["dir"]))
        return
    root = results_root().absolute()
    folder = root / "multirun"
    if root.is_dir() and not os.access(folder if folder.exists() else root, os.W_OK):
        with TemporaryDirectory(prefix="vlprompt-") as temporary:
            yield Path(temporary)
    else:
        yield folder / datetime.now().strftime("%Y-%m-%d_%H-%M-%S-%f")


def make_folder(folder: Path, outcomes: Path) -> None:
    """Make the sweep's folder, without outcomes of an earlier sweep. Raises: UserError."""
    shutil.rmtree(outcomes, ignore_errors=True)
    try:
        outcomes.mkdir(parents=True)
    except OSError as error:
        raise UserError(
            f"cannot write to '{folder}' ({error.strerror}): set VLPROMPT_RESULTS or {SWEEP_DIR} to another folder"
        ) from error
