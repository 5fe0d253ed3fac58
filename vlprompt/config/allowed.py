"""What a file may name: checked before anything of that name is imported, called or fetched."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from vlprompt.config.locate import import_named
from vlprompt.config.schema import DataSource, Settings
from vlprompt.errors import UserError
from vlprompt.textfiles import path_of
from vlprompt.training.device import default_workers

ALLOW = "VLPROMPT_ALLOW"
"""An environment variable: the user's own modules that files may name, with commas between them."""
METHODS: tuple[str, ...] = ("learners",)
PROTOCOLS: tuple[str, ...] = ("protocols",)
SOURCES: tuple[str, ...] = ("data.sources", "demo")
"""Rooms of the package: any file may name the classes and the readers of data sets that their modules define."""
HUB = r"hf-hub:\w[\w.-]*/\w[\w.-]*"
Named = tuple[object, tuple[str, ...]]  # an import path as a file has it, and the rooms that it may lie in


def from_file(settings: Settings, file: Path, allow: Sequence[str] = ()) -> Settings:
    """The settings of a run as a file has them, held against what the package has and the user allows.

    Without addresses to fetch from: a file of somebody does not say what is downloaded to where.

    Raises:
        UserError: as `check_names` does; or the split of the images is not there, which would be written then.
    """
    sources = {"dataset.source": settings.dataset.source}
    sources |= {f"targets.{name}.dataset.source": target.dataset.source for name, target in settings.targets.items()}
    parts = {"method": (settings.method, METHODS), "protocol": (settings.protocol, PROTOCOLS)}
    parts |= {where: (source, SOURCES) for where, source in sources.items()}
    names = {f"{where}._target_": (part.get("_target_"), rooms) for where, (part, rooms) in parts.items()}
    names |= {f"method.{name}": named for name, named in named_by(settings.method).items()}
    check_names(names, settings.backbone.model, file, allow)
    for where, source in sources.items():
        if (stored := source.get("stored")) and not path_of(str(stored)).is_file():
            raise UserError(f"{where}.stored in {file} is '{stored}': there is no such file, put the split back")
    targets = {
        name: target.model_copy(update={"dataset": here(target.dataset)}) for name, target in settings.targets.items()
    }
    here_only: dict[str, object] = {"dataset": here(settings.dataset), "targets": targets}
    here_only["data"] = settings.data.model_copy(update={"download": False})
    if settings.workers is not None:
        here_only["workers"] = min(settings.workers, default_workers())  # of this machine, not of theirs
    return settings.model_copy(update=here_only)


def named_by(arguments: Mapping[str, object]) -> dict[str, Named]:
    """Import paths among a method's arguments: of the one that it is built around, where that is no plain name."""
    inner = arguments.get("inner")
    return {"inner": (inner, METHODS)} if isinstance(inner, str) and "." in inner else {}


def here(described: DataSource) -> DataSource:
    """A data set that is not fetched."""
    return described.model_copy(update={"about": None})


def check_names(names: Mapping[str, Named], model: str, file: Path, allow: Sequence[str] = ()) -> None:
    """Refuse what a file names, unless it is the package's own or lies in a module that the user allows.

    `names`: by setting, an import path and the rooms of the package that may have it. `model`: a backbone's name; one
    of a hub has to be allowed, too. `allow` adds to the environment's VLPROMPT_ALLOW.

    Raises:
        UserError: what would have to be allowed. Nothing is imported before all modules are.
    """
    allowed = allowed_names(allow)
    missing: dict[str, str] = {}  # by setting, the module or model that would have to be allowed
    for where, (target, rooms) in names.items():
        module = module_of(target)
        if is_own(module, rooms) or within(module, allowed):
            continue
        if not module or module.partition(".")[0] == "vlprompt":
            raise UserError(
                f"{where} in {file} is '{str(target)[:100]}', which was not imported: allowed is something in "
                f"{' or '.join(f'vlprompt.{room}' for room in rooms)}, or in a module of yours that {ALLOW} names"
            )
        missing[f"{where}={target}"] = module
    schema, colon, _ = model.partition(":")
    if colon and len(schema) > 1 and schema != "timm" and model not in allowed:  # C: is a drive
        if not re.fullmatch(HUB, model):
            raise UserError(f"backbone.model in {file} is '{model[:100]}': there is no such model")
        missing[f"backbone.model={model}"] = model
    if missing:
        value = ",".join(dict.fromkeys([*allowed, *missing.values()]))
        raise UserError(
            f"{file} names what is no part of vlprompt ({', '.join(missing)}) and was neither imported nor fetched: if "
            f"you trust it, set {ALLOW}={value}"
        )
    for where, (target, rooms) in names.items():
        check_origin(str(target), rooms, where, file, allowed)


def check_origin(target: str, rooms: Sequence[str], where: str, file: Path, allowed: Sequence[str]) -> None:
    """Refuse what a module has from elsewhere, such as the modules that it imports, and what reads no data set."""
    located, module = import_named(target, where), module_of(target)
    origin = str(getattr(located, "__module__", ""))
    if rooms is SOURCES:
        kind = "a function that reads a data set"
        fits = callable(located) and (not is_own(module, rooms) or target.rpartition(".")[2].startswith("load"))
    else:
        kind, fits = f"a class of {' or '.join(rooms)}", isinstance(located, type)
    if not fits or not (is_own(origin, rooms) or within(origin, allowed)):
        raise UserError(f"{where} in {file} is '{target}', allowed is {kind}, in the module that defines it")


def module_of(target: object) -> str:
    """The module in an import path, as in module.sub_module.Name; empty where it is none."""
    names = target.split(".") if isinstance(target, str) and len(target) < 200 else []
    return ".".join(names[:-1]) if all(name.isidentifier() for name in names) else ""


def is_own(module: str, rooms: Sequence[str]) -> bool:
    """Whether a module lies in one of these rooms of the package."""
    return module.rpartition(".")[0] in {f"vlprompt.{room}" for room in rooms}


def within(module: str, allowed: Sequence[str]) -> bool:
    return any(f"{module}.".startswith(f"{name}.") for name in allowed)


def allowed_names(allow: Sequence[str] = ()) -> list[str]:
    """Modules, and models of a hub, that files may name: those given and those of VLPROMPT_ALLOW.

    Raises: UserError for an entry that is neither.
    """
    given = [allow] if isinstance(allow, str) else allow
    names = [name.strip() for text in (*given, os.environ.get(ALLOW, "")) for name in text.split(",") if name.strip()]
    for name in names:
        if not (all(part.isidentifier() for part in name.split(".")) or re.fullmatch(HUB, name)):
            raise UserError(
                f"'{name}' cannot be allowed: give names of modules, as in {ALLOW}=my_methods,my_data.faces, or models "
                "of a hub, as in hf-hub:owner/name"
            )
    return names
