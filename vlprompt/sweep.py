"""One run, from its configuration to its record: what `python run.py` does. Hydra is used here and in cli.py only."""

import argparse
import json
import os
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import cache
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vlprompt.config.paths import config_dir
from vlprompt.errors import ClassBoundError, UserError, unknown

if TYPE_CHECKING:
    from vlprompt.experiment import Experiment

GROUPS = ("method", "dataset", "protocol", "backbone")
SHARED = (
    *("dataset", "protocol", "backbone", "precision", "device", "threads", "text_chunk", "workers", "data", "cache"),
    *("bank", "force", "wandb", "hydra"),
)
"""What a run and the zero-shot run beside it have in common."""
WORDING = ("template", "templates")  # arguments of a method that may be those of the data set
OWN = ("seed", "shots", "hydra")
"""What a run and its default have in common: a seed and shots of their own, and the folders they are composed from."""
TOGETHER = ("seed", "fit.lr")
"""Settings that may be lists: runs that differ in them alone are trained together."""
NULL_GROUP = "Config group override must be"  # how Hydra's ValueError for method=null begins
SWEEP_LOG = "VLPROMPT_SWEEP_LOG"  # a folder where the jobs of a sweep, in whatever process, leave their outcomes
_mistakes: list[UserError] = []  # of a single run; raised within Hydra, it would print them its own way


def config_dirs(arguments: Sequence[str] | None = None) -> list[Path]:
    """`conf` and the folder of --config-dir; within a run, without arguments, all that it was composed from."""
    if arguments is None:
        return [Path(source.path) for source in HydraConfig.get().runtime.config_sources if source.schema == "file"]
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config-dir", "-cd", type=Path)
    extra = parser.parse_known_args(arguments)[0].config_dir
    return [config_dir(), *([extra.absolute()] if extra else [])]


def names(group: str, folders: Sequence[Path]) -> list[str]:
    """What there is to choose in a group."""
    return sorted(path.stem for folder in folders for path in (folder / group).glob("*.yaml"))


def main(arguments: Sequence[str]) -> int:
    """Run what the arguments ask for; -> exit code (0 done, 1 a job of a sweep failed, 2 a mistake, 130 Ctrl-C)."""
    sys.argv = ["run.py", *arguments]
    trace = os.environ.get("HYDRA_FULL_ERROR", "0") not in ("", "0")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # so that errors reach this function whole
    _mistakes.clear()
    try:
        with tempfile.TemporaryDirectory() as log:
            os.environ[SWEEP_LOG] = log
            hydra.main(version_base="1.3", config_path=str(config_dir()), config_name="config")(job)()
            if _mistakes:
                raise _mistakes[0]
            return summarise_sweep(Path(log))
    except KeyboardInterrupt:
        print("\ninterrupted: this run left no record, earlier ones are untouched", file=sys.stderr)  # noqa: T201
        return 130
    except (UserError, HydraException, OmegaConfBaseException, ValueError) as error:
        if isinstance(error, ValueError) and not str(error).startswith(NULL_GROUP):
            raise
        if trace:
            traceback.print_exc()
        else:
            print(f"error: {error if isinstance(error, UserError) else explain(error, arguments)}", file=sys.stderr)  # noqa: T201
        return 2
    finally:
        os.environ["HYDRA_FULL_ERROR"] = str(int(trace))


def job(config: DictConfig) -> None:
    """One run as composed by Hydra. In a sweep whatever goes wrong becomes a record, and the sweep goes on."""
    from vlprompt.experiment import record_failure

    now = HydraConfig.get()
    sweep = now.mode == RunMode.MULTIRUN
    overrides, choices = list(now.overrides.task), dict(now.runtime.choices)
    members, configs = [overrides], [plain(config, config_dirs())]
    experiments: list[Experiment] = []
    outcome: dict[str, Any] = {"job": " ".join(overrides), "folders": []}
    try:
        members = expand(overrides)
        if members != [overrides]:
            configs = [compose(member) for member in members]
        experiments = [read(one, choices, member) for one, member in zip(configs, members, strict=True)]
        if len(experiments) > 1 and experiments[0].trained:
            outcome["folders"], reason = run_together(experiments, beside(choices, members[0]), choices, show=not sweep)
            if reason and not sweep:
                _mistakes.append(UserError(reason))
            elif reason:
                outcome |= {"status": "failed", "reason": reason}
        else:  # untrained, it is one run whatever the seeds
            reference = beside(choices, members[0]) if experiments[0].trained else None
            experiments[0].run(reference, show=not sweep)
            outcome["folders"] = [str(e.folder) for e in (reference, experiments[0]) if e]
    except Exception as error:
        if not sweep:
            if not isinstance(error, UserError):
                raise
            _mistakes.append(error)
            return
        reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        if not isinstance(error, UserError):
            traceback.print_exc()
        status: Any = "not_applicable" if isinstance(error, ClassBoundError) else "failed"
        for place, one in enumerate(configs):
            record_failure(one, choices, status, reason, cell=experiments[place].key if experiments else None)
        outcome |= {"status": status, "reason": reason}
    if sweep:
        path = Path(os.environ[SWEEP_LOG], f"{now.job.num:06d}.json")
        path.write_text(json.dumps(outcome), encoding="utf-8")


def expand(overrides: list[str]) -> list[list[str]]:
    """The runs of one job: one for each seed and learning rate, where these are lists."""
    parsed = OverridesParser.create().parse_overrides(overrides)
    given: dict[str, Any] = {o.key_or_group: o.value() for o in parsed if o.key_or_group in TOGETHER}
    several = {key: value for key, value in given.items() if isinstance(value, list)}
    if empty := [key for key, value in several.items() if not value]:
        raise UserError(f"{empty[0]}=[] holds no value: give one or more, as in '{empty[0]}=[1,2,3]'")
    if not several:
        return [overrides]
    kept = [text for text, o in zip(overrides, parsed, strict=True) if o.key_or_group not in several]
    pairs = [[f"{key}={value}" for value in dict.fromkeys(values)] for key, values in several.items()]
    return [[*kept, *values] for values in product(*pairs)]


def run_together(
    experiments: "Sequence[Experiment]", reference: "Experiment", choices: dict[str, Any], *, show: bool
) -> tuple[list[str], str]:
    """Runs that differ in seeds or learning rates as one; -> their folders, and what is wrong with some of them.

    Those whose numbers are not finite have their records then, and the others are finished.
    """
    from vlprompt.experiment import obtain_together, record_failure
    from vlprompt.reports.render import render
    from vlprompt.reports.summary import summarise
    from vlprompt.results.record import Record
    from vlprompt.training.progress import Reporter

    if len({experiment.folder for experiment in experiments}) < len(experiments):
        raise UserError(f"{len(experiments)} runs share the folder {experiments[0].folder}: leave name= out")
    found = obtain_together(experiments)
    records = [one for one in found if isinstance(one, Record)]
    if show:
        Reporter().say("\n" + render(summarise([reference.obtain(), *records])).rstrip())
    else:
        reference.obtain()
    for experiment, one in zip(experiments, found, strict=True):
        if not isinstance(one, Record):
            record_failure(experiment.config, choices, "failed", str(one), cell=experiment.key)
    failed = [one for one in found if not isinstance(one, Record)]
    reason = f"{len(failed)} of {len(found)} runs failed: {failed[0]}" if failed else ""
    return [str(e.folder) for e in (reference, *experiments)], reason


def read(config: Any, choices: dict[str, Any], overrides: list[str]) -> "Experiment":
    """The run that a composed configuration asks for, checked and not begun."""
    from vlprompt.experiment import Experiment

    check_recipes(overrides)
    check_targets(config)
    return Experiment.read(
        config, choices=choices, default=lambda: default(choices, overrides), recipes=recipes(choices)
    )


def beside(choices: dict[str, Any], overrides: list[str]) -> "Experiment":
    """The zero-shot run that a trained one is shown beside."""
    from vlprompt.experiment import Experiment

    asked = [f"{group}={choices[group]}" for group in GROUPS if group != "method"]
    asked += ["method=zero_shot", *kept(overrides, SHARED)]
    choices = {**choices, "method": "zero_shot"}
    return Experiment.read(compose(asked), choices=choices, default=lambda: default(choices, []))


def prepare(overrides: Sequence[str]) -> "Experiment":
    """The run that `python run.py` with these overrides would make, for commands that make several.

    Raises:
        UserError: what `python run.py` would answer.
    """
    with composed(overrides) as (config, choices):
        return read(config, choices, list(overrides))


def prepare_beside(overrides: Sequence[str]) -> "Experiment":
    """The zero-shot run that `python run.py` with these overrides would show beside."""
    with composed(overrides) as (_, choices):
        return beside(choices, list(overrides))


@contextmanager
def composed(overrides: Sequence[str]) -> Iterator[tuple[Any, dict[str, Any]]]:
    """The plain configuration and the choices of groups; Hydra stands as within a run."""
    before = HydraConfig.instance().cfg
    try:
        with hydra.initialize_config_dir(str(config_dir()), version_base="1.3"):
            whole = hydra.compose("config", list(overrides), return_hydra_config=True)
            HydraConfig.instance().set_config(whole)
            ours = OmegaConf.masked_copy(whole, [str(key) for key in whole if key != "hydra"])
            yield plain(ours, config_dirs()), dict(whole.hydra.runtime.choices)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        if isinstance(error, ValueError) and not str(error).startswith(NULL_GROUP):
            raise
        raise explain(error, overrides) from error
    finally:
        HydraConfig.instance().cfg = before


def summarise_sweep(log: Path) -> int:
    """Show what the jobs of a sweep came to (nothing for a single run); -> 1 if one failed."""
    from vlprompt.reports.render import render
    from vlprompt.reports.summary import summarise
    from vlprompt.results.record import Record

    outcomes = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(log.glob("*.json"))]
    folders = dict.fromkeys(folder for outcome in outcomes for folder in outcome["folders"])
    records = [record for folder in folders if (record := Record.read(Path(folder)))]
    if records:
        print("\n" + render(summarise(records)).rstrip())  # noqa: T201
    stopped = [outcome for outcome in outcomes if "status" in outcome]
    if stopped:
        print(f"{len(stopped)} of {len(outcomes)} runs did not finish:", file=sys.stderr)  # noqa: T201
        for outcome in stopped:
            print(f"  {outcome['job']} ({outcome['status']}): {outcome['reason']}", file=sys.stderr)  # noqa: T201
    return int(any(outcome["status"] == "failed" for outcome in stopped))


def compose(overrides: list[str]) -> Any:
    """The plain configuration that these overrides give."""
    if GlobalHydra.instance().is_initialized():
        folders = config_dirs() if HydraConfig.initialized() else [config_dir()]
        return plain(hydra.compose("config", overrides), folders)
    with hydra.initialize_config_dir(str(config_dir()), version_base="1.3"):
        return plain(hydra.compose("config", overrides), [config_dir()])


def plain(config: DictConfig, folders: Sequence[Path]) -> Any:
    """The resolved configuration, and in its `targets` what it is about the data sets that `protocol.targets` names."""
    found: Any = OmegaConf.to_container(config, resolve=True)
    known = names("dataset", folders)
    if targets := [name for name in named_targets(config) if name in known]:
        found["targets"] = {name: describe(config, name, tuple(folders)) for name in targets}
    return found


def named_targets(config: DictConfig) -> list[str]:
    listed = OmegaConf.select(config, "protocol.targets")
    return [name for name in listed if isinstance(name, str)] if isinstance(listed, ListConfig) else []


def describe(config: DictConfig, name: str, folders: tuple[Path, ...]) -> dict[str, Any]:
    """A data set by name, and how this configuration's method words classes there."""
    moved = deepcopy(config)
    OmegaConf.set_struct(moved, False)
    moved["dataset"] = dataset = dataset_node(name, folders)
    method: Any = OmegaConf.to_container(moved.get("method") or OmegaConf.create(), resolve=True)
    return {"dataset": dataset, "method": {key: method[key] for key in WORDING if key in method}}


@cache
def dataset_node(name: str, folders: tuple[Path, ...]) -> Any:
    """The settings of a data set by name; the folders they are looked for in are those of the running Hydra."""
    return compose([f"dataset={name}"])["dataset"]


def default(choices: dict[str, Any], overrides: list[str]) -> Any:
    """The configuration of these groups' choices, with nothing else changed but the seed and the shots."""
    return compose([f"{group}={choices[group]}" for group in GROUPS] + kept(overrides, OWN))


def kept(overrides: list[str], names: tuple[str, ...]) -> list[str]:
    """The overrides of these keys and of what is below them; the choices of groups are left out."""
    parsed = OverridesParser.create().parse_overrides(overrides)
    pairs = [(o.key_or_group.replace("/", ".").split("."), text) for o, text in zip(parsed, overrides, strict=True)]
    return [text for key, text in pairs if key[0] in names and (len(key) > 1 or key[0] not in GROUPS)]


def recipes(choices: dict[str, Any]) -> list[str]:
    """The recipes that took part, each a file below conf/recipe."""
    groups = ("recipe", "recipe/backbone", "recipe/dataset")
    folders = config_dirs()
    return [f"{group}/{choices[group]}" for group in groups if choices.get(group) in names(group, folders)]


def check_recipes(overrides: list[str]) -> None:
    """Refuse a recipe that is asked for and is not there; Hydra passes over it, for recipes are optional."""
    for override in OverridesParser.create().parse_overrides(overrides):
        group, name = override.key_or_group, override.value()
        known = names(group, config_dirs())
        if group.split("/")[0] == "recipe" and name is not None and name not in known:
            raise unknown(group, name, known)


def check_targets(config: Any) -> None:
    """Refuse a target that no file describes."""
    known, listed = names("dataset", config_dirs()), config["protocol"].get("targets")
    for name in listed if isinstance(listed, list) else []:
        if name not in known:
            raise unknown("data set in protocol.targets", name, known)


def explain(error: Exception, arguments: Sequence[str]) -> UserError:
    """Hydra's complaint about a command line as one sentence."""
    text = " ".join(str(error).split())
    if text.startswith("Ambiguous value for argument"):
        several = text.split("'")[1]
        return UserError(f"{several} is several values: give one here, or sweep over them with `python run.py -m`")
    if text.startswith(NULL_GROUP):
        return UserError("a group of settings cannot be null: leave one out with ~GROUP, as in ~recipe")
    if isinstance(error, OverrideParseException):
        return UserError(
            f"cannot read '{error.override}': a setting is NAME=VALUE, with quotes around special characters"
        )
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = error.missing_cfg_file.rpartition("/")
        if known := names(group, config_dirs(arguments)):
            return unknown(group, name, known)
    if isinstance(error, ConfigCompositionException) and "Could not override '" in text:
        folders = [f"file://{folder}" for folder in config_dirs(arguments)[1:]]
        choices = [a for a in arguments if a.partition("=")[0] in GROUPS and "," not in a]
        node = compose([*choices, f"hydra.searchpath={folders}"])
        path = ""
        for part in text.split("Could not override '")[1].split("'")[0].split("."):
            if not isinstance(node, dict):
                return UserError(f"unknown setting '{path}{part}': {path[:-1]} is {node} here, drop it")
            if part not in node:
                return unknown("setting", path + part, [path + str(key) for key in node])
            path, node = f"{path}{part}.", node[part]
    return UserError(text.removesuffix("Set the environment variable HYDRA_FULL_ERROR=1 for a complete stack trace."))
