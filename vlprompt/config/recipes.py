"""Recipes: files of settings that apply to a method by their names, and the names that they had before.

`conf/recipe/METHOD/` holds what papers state: PROTOCOL.yaml and PROTOCOL_DATASET.yaml apply by themselves, other names
where they are asked for. `conf/demo/METHOD/` holds what the demo needs: BACKBONE.yaml and PROTOCOL_DATASET.yaml.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from vlprompt.config.paths import config_dir
from vlprompt.errors import UserError, unknown

GROUPS = ("recipe", "demo@_global_", "recipe@_global_", "demo")
"""Their entries in conf/config.yaml, the last wins. `@_global_` tells the second entry of a folder from the first."""
REPLACED = {"recipe/backbone": ("demo@_global_",), "recipe/dataset": ("demo", "recipe@_global_")}
"""Groups of before, and the entries that choose among their files now."""


def modernize(overrides: Iterable[str]) -> tuple[list[str], list[str]]:
    """Overrides in which recipes are spelled as today; -> these, and a line for each that was spelled otherwise."""
    modern, notices = [], []
    for override in overrides:
        now = _modern(override)
        modern += now
        if now != [override] and override not in ("recipe=null", "demo=null"):
            notices.append(f"{override} is spelled {' '.join(now)} now")
    return modern, notices


def _modern(override: str) -> list[str]:
    key, _, value = override.partition("=")
    group = key.removeprefix("~")
    if group not in (*GROUPS, *REPLACED):
        return [override]
    if key != group or value == "null":
        return [f"~{entry}" for entry in REPLACED.get(group, [group])]
    names = [renamed(name) for name in value.split(",")]  # several in a sweep
    names = [new if _is_ours(new) else old for old, new in zip(value.split(","), names, strict=True)]
    if group == "recipe/dataset":
        of_demo = (config_dir() / "demo" / f"{names[0]}.yaml").is_file()
        group, other = ("demo", "recipe@_global_") if of_demo else ("recipe@_global_", "demo")
        return [f"{group}={','.join(names)}", f"~{other}"]
    return [f"{REPLACED.get(group, [group])[0]}={','.join(names)}"]


def renamed(name: str, folders: Sequence[Path] = ()) -> str:
    """METHOD/REST of a recipe that was METHOD_REST, methods of these folders of settings included; else the name."""
    if "/" in name or "_" not in name:
        return name
    paths = [
        path for folder in (config_dir(), *folders) for path in (*folder.glob("method/*"), *folder.glob("recipe/*"))
    ]
    method = max((path.stem for path in paths if name.startswith(f"{path.stem}_")), key=len, default="")
    return f"{method}/{name.removeprefix(f'{method}_')}" if method else name


def of_record(name: str) -> str:
    """A recipe as today's records name it; earlier ones say recipe/coop_ijcv, recipe/dataset/coop_few_shot_imagenet."""
    *parents, last = name.split("/")
    if parents not in (["recipe"], ["recipe", "backbone"], ["recipe", "dataset"]):
        return name
    new = renamed(last)
    return f"demo/{new}" if (config_dir() / "demo" / f"{new}.yaml").is_file() else f"recipe/{new}"


def applied(choices: Mapping[str, str], folders: Iterable[Path]) -> list[str]:
    """The recipes that applied to a run, each a file below one of the folders of settings.

    `choices` are Hydra's choices of groups, which hold names of optional files that are not there, too.
    """
    folders = list(folders)
    names = [f"{_folder(group)}/{choices[group]}" for group in GROUPS if choices.get(group)]
    return [name for name in names if any((folder / f"{name}.yaml").is_file() for folder in folders)]


def origin(name: str, choices: Mapping[str, str], folders: Iterable[Path]) -> str | None:
    """The file that a setting of a run comes from, of those of its method and its recipes; the last one wins."""
    folders = list(folders)
    files = [f"method/{choices['method']}", *applied(choices, folders)]
    return next((file for file in reversed(files) if _sets(file, name, folders)), None)


def _sets(file: str, name: str, folders: Sequence[Path]) -> bool:
    """Whether a file of settings, or one that it is based on, has this setting."""
    path = next((path for folder in reversed(folders) if (path := folder / f"{file}.yaml").is_file()), None)
    node: Any = yaml.safe_load(path.read_text(encoding="utf-8")) if path else {}
    bases = [base for base in (node or {}).get("defaults", ()) if isinstance(base, str) and base != "_self_"]
    for part in name.split("."):
        node = node.get(part, {}) if isinstance(node, Mapping) else {}
    group = file.rpartition("/")[0]
    return node != {} or any(_sets(b[1:] if b[0] == "/" else f"{group}/{b}", name, folders) for b in bases)


def known(group: str, folders: Iterable[Path]) -> list[str]:
    """What there is to choose in recipe or demo: METHOD/NAME."""
    files = [path.relative_to(folder / group) for folder in folders for path in (folder / group).rglob("*.yaml")]
    return sorted({path.with_suffix("").as_posix() for path in files})


def check(overrides: Iterable[str], folders: Sequence[Path]) -> None:
    """Refuse a recipe that is asked for and is not there, for Hydra passes over it: they are all optional.

    Raises:
        UserError: an unknown recipe, or a file of a user's own that lies where recipes lay before.
    """
    for folder in folders:
        _check_places(folder)
    for override in overrides:
        key, equals, value = override.partition("=")
        name = value.strip("'\"")
        if key in GROUPS and equals and name not in (names := known(_folder(key), folders)):
            method = renamed(name, folders).partition("/")[0]
            raise unknown(_folder(key), name, [one for one in names if one.startswith(f"{method}/")] or names)


def _check_places(folder: Path) -> None:
    protocols = [path.stem for conf in (config_dir(), folder) for path in conf.glob("protocol/*.yaml")]
    for path in (
        *folder.glob("recipe/*.yaml"),
        *folder.glob("recipe/dataset/*.yaml"),
        *folder.glob("recipe/backbone/*.yaml"),
    ):
        new = renamed(path.stem, [folder])
        if path.parent.name != "recipe" or new.partition("/")[2] in protocols:
            top = "demo" if path.parent.name == "backbone" else "recipe"
            raise UserError(f"{path} does not apply where it lies: move it to {folder / top / new}.yaml")


def _folder(group: str) -> str:
    return group.partition("@")[0]


def _is_ours(name: str) -> bool:
    return any((config_dir() / group / f"{name}.yaml").is_file() for group in ("recipe", "demo"))
