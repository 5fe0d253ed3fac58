"""From overrides, as on the command line, to a run's configuration. With its neighbours, all that knows Hydra."""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import hydra
from hydra import version
from hydra._internal.core_plugins import file_config_source
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vlprompt.config import recipes
from vlprompt.config.about import without_about
from vlprompt.config.paths import config_dir, unknown_dataset
from vlprompt.config.schema import AT_TEST
from vlprompt.data.dataset import Dataset
from vlprompt.errors import ChoiceError, UnknownSettingError, UserError, unknown, unknown_setting
from vlprompt.textfiles import path_of

if TYPE_CHECKING:
    from vlprompt.config.spec import RunSpec

GROUPS = ("method", "dataset", "protocol", "backbone")
SHARED_WITH_REFERENCE = (
    *("dataset", "protocol", "backbone", "precision", "device", "threads", "text_chunk", "workers", "data", "cache"),
    *("jobs_per_gpu", "compile", "bank", "force", "wandb", "debug", "hydra"),
)
"""What a run has in common with the zero-shot run that it is compared with."""
WORDING = ("template", "templates", "learned_template", "target_beta")
"""Arguments of a method that may be those of the data set that is tested."""
SHARED_WITH_DEFAULT = ("seed", "shots", "hydra")
"""What a run has in common with its default: seed and shots, and the folders that both are composed from."""
NAMING = ("targets", "ood")
"""Settings of a protocol that name data sets."""
SINGLE = ("seed", "fit.lr")  # earlier versions took lists of them
PATHS = (
    *("dataset.root", "dataset.labels", "dataset.names", "dataset.split", "data.root", "sampler.file"),
    *("backbone.model", "backbone.weights", "method.descriptions"),
)
"""Settings that are paths, or may be one."""
NULL_GROUP = "Config group override must be"  # how Hydra's ValueError for method=null begins
COMPOSITION_ERRORS = (HydraException, OmegaConfBaseException, ValueError)

file_config_source.open = partial(open, encoding="utf-8")  # type: ignore[attr-defined]  # else the locale's

Choices = dict[str, Any]  # the name that is chosen of each group


def read_run(overrides: Sequence[str], images: Dataset | None = None) -> "RunSpec":
    """The run that `python run.py` with these overrides would make, on a data set at hand where one is given.

    Raises:
        UserError: what `python run.py` would answer.
    """
    overrides = modernized(overrides)
    with composed(overrides) as (config, choices):
        return spec_of(config, choices, overrides, images)


def read_reference(overrides: Sequence[str]) -> "RunSpec":
    """The zero-shot run that the run with these overrides is compared with."""
    overrides = modernized(overrides)
    with composed(overrides) as (_, choices):
        return zero_shot_reference(choices, overrides)


def modernized(overrides: Sequence[str]) -> list[str]:
    """Overrides with recipes as they are spelled today, paths in quotes; what is spelled otherwise is told once."""
    overrides, notices = recipes.modernize(map(with_quotes, overrides))
    for notice in notices:
        tell(notice)
    return overrides


def with_quotes(override: str) -> str:
    """A path that Hydra cannot read (~/pets, /home/Jürgen/pets), with the quotes that it asks for.

    What could be several values, or has quotes of its own, is left as it is.
    """
    key, _, value = override.partition("=")
    if key.lstrip("+") not in PATHS or not value or value.endswith("\\") or set(value) & set("'\",[]{}$"):
        return override
    try:
        OverridesParser.create().parse_override(override)
    except HydraException:
        return f"{key}='{value}'"
    return override


@cache
def tell(notice: str) -> None:
    print(notice, file=sys.stderr)  # noqa: T201


def spec_of(config: Any, choices: Choices, overrides: list[str], images: Dataset | None = None) -> "RunSpec":
    """The run that a composed configuration asks for, validated and not started."""
    from vlprompt.config.spec import read_spec

    config = as_asked(config, overrides)
    check_asked(config, overrides)
    shots = [f"shots={config['shots']}"] if config.get("debug") else []  # which are the key's, and no change
    return read_spec(
        config,
        choices=choices,
        default=lambda: default(choices, [*overrides, *shots]),
        recipes=recipes.applied(choices, config_dirs()),
        given=given(overrides),
        origin=lambda name: recipes.origin(name, choices, config_dirs()),
        images=images,
    )


def given(overrides: Sequence[str]) -> list[str]:
    """The settings that these overrides give, by dotted names; of a tree its leaves."""

    def leaves(name: str, value: Any) -> list[str]:
        tree = isinstance(value, dict) and value and all(isinstance(key, str) for key in value)
        return [leaf for key in value for leaf in leaves(f"{name}.{key}", value[key])] if tree else [name]

    parsed = [one for one in OverridesParser.create().parse_overrides(list(overrides)) if not one.is_delete()]
    return [name for one in parsed for name in leaves(one.key_or_group, one.value())]


def made_choices(choices: Mapping[str, str | None]) -> Choices:
    """The name that is chosen of each group, without groups of which there is none."""
    return {group: name for group, name in choices.items() if name is not None}


def as_asked(config: Any, overrides: Sequence[str]) -> Any:
    """The configuration where a user's `fit.steps` alone replaces the epochs that a file has, or the other way round.

    So does `debug` where the user gives neither, and its images replace the shots.
    """
    asked, fit, debug = given(overrides), config.get("fit"), config.get("debug")
    lengths = {"fit.steps", "fit.epochs"} & set(asked)
    if isinstance(debug, dict) and "shots" not in asked:
        config = {**config, "shots": debug.get("images")}
    if not isinstance(fit, dict):
        return config
    method = config.get("method")
    if isinstance(debug, dict) and isinstance(method, dict) and fit.get("epochs") == 0 and "iterations" in method:
        few = {"iterations": debug.get("steps"), "n_views": 1}
        shorter = {key: n for key, n in few.items() if key in method and f"method.{key}" not in asked}
        config = {**config, "method": {**method, **shorter}}  # of a method that takes its steps in `prepare`
    if isinstance(debug, dict) and not lengths and fit.get("epochs") != 0:
        return {**config, "fit": {**fit, "epochs": None, "steps": debug.get("steps")}}
    if len(lengths) == 1:
        other = "epochs" if lengths == {"fit.steps"} else "steps"
        return {**config, "fit": {**fit, **({other: None} if other in fit else {})}}
    return config


def check_asked(config: Any, overrides: list[str]) -> None:
    """Refuse what no run can be asked for: a list of seeds, recipes and targets that are not there."""
    from vlprompt.config.spec import check_steps

    check_single(overrides)
    check_about(overrides)
    recipes.check(overrides, config_dirs())
    check_targets(config)
    check_steps(config)


def zero_shot_reference(choices: Choices, overrides: list[str]) -> "RunSpec":
    """The zero-shot run that a trained one is compared with."""
    from vlprompt.config.spec import read_spec

    wanted = [f"{group}={choices[group]}" for group in GROUPS if group != "method"]
    wanted += ["method=zero_shot", *chosen(overrides, SHARED_WITH_REFERENCE)]
    choices = {**choices, "method": "zero_shot"}
    return read_spec(compose(wanted), choices=choices, default=lambda: default(choices, chosen(overrides, ("hydra",))))


@contextmanager
def started(extra: Path | None = None) -> Iterator[Hydra]:
    """Hydra on `conf`, and on a folder of the user's own, which wins. Within a run or a sweep: theirs."""
    if GlobalHydra.instance().is_initialized():
        yield cast("Hydra", GlobalHydra.instance().hydra)
        return
    search_path = create_config_search_path(str(config_dir()))
    if extra:
        if not extra.is_dir():
            raise UserError(f"--config-dir={extra} is no folder")
        search_path.prepend("command-line", f"file://{extra.absolute()}", SearchPathQuery(provider="schema"))
    version.setbase("1.3")
    try:
        yield Hydra.create_main_hydra2("run", search_path)
    finally:
        GlobalHydra.instance().clear()


@contextmanager
def composed(overrides: Sequence[str], *, arguments: Sequence[str] = ()) -> Iterator[tuple[Any, Choices]]:
    """The plain configuration and the choices of groups, with Hydra's global state set as inside a run.

    `arguments` are those of the command line that name a folder of settings.
    """
    before = HydraConfig.instance().cfg
    try:
        with started():
            try:
                check_groups(overrides)
                whole = hydra.compose("config", list(overrides), return_hydra_config=True)
                HydraConfig.instance().set_config(whole)
                config = plain(
                    OmegaConf.masked_copy(whole, [str(key) for key in whole if key != "hydra"]), config_dirs()
                )
            except COMPOSITION_ERRORS as error:
                if (mistake := explained(error, [*overrides, *arguments])) is error:
                    raise
                raise mistake from error
            yield as_asked(config, overrides), made_choices(whole.hydra.runtime.choices)
    finally:
        HydraConfig.instance().cfg = before


def compose(overrides: list[str]) -> Any:
    """The plain configuration that these overrides give."""
    if GlobalHydra.instance().is_initialized():
        folders = config_dirs() if HydraConfig.initialized() else [config_dir()]
        return plain(hydra.compose("config", overrides), folders)
    with started():
        return plain(hydra.compose("config", overrides), [config_dir()])


def default(choices: Choices, overrides: list[str]) -> Any:
    """The configuration of these groups' choices, with nothing else changed but the seed and the shots."""
    return compose([f"{group}={choices[group]}" for group in GROUPS] + chosen(overrides, SHARED_WITH_DEFAULT))


def chosen(overrides: list[str], names: tuple[str, ...]) -> list[str]:
    """The overrides of these keys and of what is below them; the choices of groups are left out."""
    parsed = OverridesParser.create().parse_overrides(overrides)
    pairs = [(o.key_or_group.replace("/", ".").split("."), text) for o, text in zip(parsed, overrides, strict=True)]
    return [text for key, text in pairs if key[0] in names and (len(key) > 1 or key[0] not in GROUPS)]


def config_dirs(arguments: Sequence[str] | None = None) -> list[Path]:
    """`conf` and the folder of --config-dir; within a run, without arguments, all that it was composed from."""
    if arguments is None:
        return [Path(source.path) for source in HydraConfig.get().runtime.config_sources if source.schema == "file"]
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config-dir", "-cd", type=path_of)
    extra = parser.parse_known_args(arguments)[0].config_dir
    searched = [text for text in arguments if text.startswith("hydra.searchpath=")][-1:]
    listed = [OverridesParser.create().parse_override(text).value() for text in searched]
    paths = [Path(str(one).removeprefix("file://")) for value in listed if isinstance(value, list) for one in value]
    return [config_dir(), *([extra.absolute()] if extra else []), *paths]


def searched(folders: Sequence[Path]) -> list[str]:
    """Folders of settings in addition to `conf`, as an override."""
    extra = [f"file://{folder}" for folder in folders if folder != config_dir()]
    return [f"hydra.searchpath={json.dumps(extra)}"] if extra else []


def names(group: str, folders: Sequence[Path]) -> list[str]:
    """What there is to choose in a group."""
    return sorted(path.stem for folder in folders for path in (folder / group).glob("*.yaml"))


def plain(config: DictConfig, folders: Sequence[Path]) -> Any:
    """The resolved configuration, with `targets` filled in: the data sets that `protocol.targets` and `.ood` name."""
    whole: Any = OmegaConf.to_container(config, resolve=True)
    resolved = without_about(whole)
    known = names("dataset", folders)
    if targets := [name for name in named_targets(config) if name in known]:
        resolved["targets"] = {name: describe(config, name, tuple(folders)) for name in targets}
    return resolved


def named_targets(config: DictConfig) -> list[str]:
    lists = [OmegaConf.select(config, f"protocol.{key}") for key in NAMING]
    listed = [name for names in lists if isinstance(names, ListConfig) for name in names if isinstance(name, str)]
    return list(dict.fromkeys(listed))


def describe(config: DictConfig, name: str, folders: tuple[Path, ...]) -> dict[str, Any]:
    """A data set by name, and how this configuration's method words classes there."""
    moved = deepcopy(config)
    OmegaConf.set_struct(moved, False)
    moved["dataset"] = dataset = dataset_node(name, folders)
    method: Any = OmegaConf.to_container(moved.get("method") or OmegaConf.create(), resolve=True)
    return {"dataset": dataset, "method": {key: method[key] for key in WORDING if key in method}}


@cache
def dataset_node(name: str, folders: tuple[Path, ...]) -> Any:
    """The settings of a data set by name, which may lie in a folder of the user's own."""
    return compose([f"dataset={name}", *searched(folders)])["dataset"]


def check_groups(overrides: Sequence[str]) -> None:
    """Refuse a choice of a group that is no name, before Hydra stumbles over it."""
    for override, text in zip(OverridesParser.create().parse_overrides(list(overrides)), overrides, strict=True):
        if not override.key_or_group:
            raise OverrideParseException(override=text, message="no name")
        if override.key_or_group not in (*GROUPS, *recipes.GROUPS) or override.is_sweep_override():
            continue
        value = override.value()
        if isinstance(value, list | dict) or (override.is_delete() and not isinstance(value, str | None)):
            raise ChoiceError(f"{text} is no choice: {override.key_or_group} is one name, as in method=coop")


def check_single(overrides: list[str]) -> None:
    """Refuse a list where one run has one value."""
    for override, text in zip(OverridesParser.create().parse_overrides(overrides), overrides, strict=True):
        if override.key_or_group in SINGLE and isinstance(values := override.value(), list):
            several = ",".join(str(one) for one in values if not isinstance(one, list | dict)) or "1,2,3"
            raise UserError(
                f"{text} is a list, and a run has one {override.key_or_group}: sweep over them with "
                f"`python run.py -m {override.key_or_group}={several}`"
            )


def check_about(overrides: list[str]) -> None:
    """Refuse what no run reads."""
    for name in given(overrides):
        if f"{name}.".startswith(("about.", "backbone.about.", "protocol.about.")):
            raise UnknownSettingError(f"unknown setting '{name}': about is what a file says of itself, drop it", name)


def check_targets(config: Any) -> None:
    """Refuse a target, or a data set out of distribution, that no file describes."""
    known, protocol = names("dataset", config_dirs()), config["protocol"]
    for key, listed in ((key, protocol.get(key)) for key in NAMING):
        for name in listed if isinstance(listed, list) else []:
            if name not in known:
                raise unknown(f"data set in protocol.{key}", name, known)


def explained(error: Exception, arguments: Sequence[str]) -> Exception:
    """Hydra's complaint about a command line as one sentence; other errors unchanged."""
    if isinstance(error, ValueError) and not isinstance(error, HydraException | OmegaConfBaseException):
        if not str(error).startswith(NULL_GROUP):
            return error
        return ChoiceError("a group of settings cannot be null: leave one out with ~GROUP, as in ~recipe")
    return explain(error, arguments)


def explain(error: Exception, arguments: Sequence[str]) -> UserError:
    text = " ".join(str(error).split())
    quoted = text.split("'")[1] if text.count("'") > 1 else ""
    if text.startswith(("Ambiguous value for argument", "Sweep parameters")):
        several = text.split("'", 1)[1].rpartition("'")[0].split("' 1. To use")[0]
        return UserError(f"{several} is several values: give one here, or sweep over them with `python run.py -m`")
    if isinstance(error, OverrideParseException):
        name, _, value = str(error.override).partition("=")
        example = f""": "{name}='{value}'\"""" if name and value.startswith("~") else ""
        return UserError(
            f"cannot read '{error.override}': a setting is NAME=VALUE, with quotes around special characters{example}"
        )
    if isinstance(error, MissingConfigException) and "'hydra/launcher/" in text:
        launcher = text.partition("'hydra/launcher/")[2].partition("'")[0]
        extra = {"joblib": "sweep", "submitit_slurm": "slurm", "submitit_local": "slurm"}.get(launcher)
        do = f"pip install 'vlprompt[{extra}]'" if extra else "install its plugin of Hydra"
        return ChoiceError(f"hydra/launcher={launcher} is not installed: {do}, or leave it out")
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = error.missing_cfg_file.partition("/")
        if known := names(group, config_dirs(arguments)):
            return ChoiceError(str(unknown_dataset(name, known) if group == "dataset" else unknown(group, name, known)))
    if text.startswith("Error resolving interpolation '${"):
        return ChoiceError(f"each of {', '.join(GROUPS)} is one name, as in method=coop, and none can be left out")
    if text.endswith("appears more than once in the final defaults list"):
        return ChoiceError(f"{text.split()[0]} is chosen already: write {text.split()[0]}=NAME, without +")
    if text.startswith("Could not append to config. An item is already at"):
        return UserError(f"'{quoted}' is a setting already: write {quoted}=VALUE, without +")
    if text.startswith("Error merging override "):
        return UserError(
            f"{text.removeprefix('Error merging override ')} is a value of the wrong kind for this setting"
        )
    if text.startswith(("Could not override '", "Could not delete from config. '")):
        do = f"cannot set or drop '{quoted}' as a whole: name one of its settings, as in {quoted}.NAME=VALUE"
        return not_there(quoted, arguments) or UserError(do)
    text, _, where = text.partition(" full_key: ")
    return UserError(f"{where.split()[0]}: {text}" if where else text.partition(" Config search path:")[0])


def not_there(name: str, arguments: Sequence[str]) -> UserError | None:
    """What is wrong with a dotted name, by the first part of it that is not there."""
    choices = [a for a in arguments if a.partition("=")[0] in (*GROUPS, *AT_TEST) and not set(",[{") & set(a)]
    try:
        node, path = compose([*choices, *searched(config_dirs(arguments))]), ""
    except COMPOSITION_ERRORS:
        return None
    if name.split(".")[0] == "hydra":
        return UnknownSettingError(f"unknown setting '{name}': Hydra has none of this name", name)
    if name.split(".")[0] == "cluster":
        do = "its settings are in conf/cluster/slurm.yaml, and come with +cluster=slurm"
        return UnknownSettingError(f"unknown setting '{name}': {do}", name)
    for part in name.split("."):
        if not isinstance(node, dict):
            of_training = " (nothing is trained)" if path == "fit." and node is None else ""
            return UnknownSettingError(
                f"unknown setting '{path}{part}': {path[:-1]} is {node} here{of_training}, drop it", name
            )
        if path and not node:
            return UnknownSettingError(f"'{name}' needs a choice of {path[:-1]}: give {path[:-1]}=NAME, too", name)
        if part not in node:
            return unknown_setting(path + part, [path + str(key) for key in node])
        path, node = f"{path}{part}.", node[part]
    return None
