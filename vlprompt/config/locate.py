"""From checked settings to the classes that they name."""

import inspect
import pydoc
from collections.abc import Mapping
from typing import Any

from vlprompt.config.schema import Settings, check_arguments
from vlprompt.data.lists import ListSampler
from vlprompt.data.sampling import SAMPLERS, ImbalancedSampler, Sampler
from vlprompt.errors import UserError, unknown
from vlprompt.protocols.base import Protocol
from vlprompt.textfiles import path_of


def locate(config: Mapping[str, Any], kind: type, where: str) -> tuple[Any, dict[str, Any]]:
    """The class that `_target_` names, and its checked arguments.

    Raises:
        UserError: nothing importable of that name, something of another kind, or a wrong argument.
    """
    target = config.get("_target_", "")
    located = import_named(target, where)
    if not (isinstance(located, type) and issubclass(located, kind)) or inspect.isabstract(located):
        raise UserError(f"{where}._target_ is '{target}', allowed is the import path of a {kind.__name__}")
    arguments = {key: value for key, value in config.items() if key != "_target_"}
    check_arguments(located, arguments, where)
    if around := located.built_around(arguments) if hasattr(located, "built_around") else None:
        check_arguments(around[0], around[1], f"{where}.arguments")
    return located, arguments


def make_named(config: Mapping[str, Any], known: Mapping[str, Any], where: str) -> Any:
    """What `name` stands for among those that are known, made with the other settings as its checked arguments.

    Raises:
        UserError: no such name, or a wrong argument.
    """
    if config["name"] not in known:
        raise unknown(where, config["name"], known)
    arguments = {key: value for key, value in config.items() if key != "name"}
    check_arguments(known[config["name"]], arguments, where)
    return known[config["name"]](**arguments)


def import_named(target: object, where: str) -> Any:
    """What a dotted name stands for. Raises: UserError where that cannot be imported."""
    try:
        located = pydoc.locate(target) if isinstance(target, str) else None
    except pydoc.ErrorDuringImport as error:
        raise UserError(f"{where}._target_={target} cannot be imported: {error}") from error
    if located is None:
        raise UserError(
            f"{where}._target_={target} cannot be imported: correct its name, or put its folder into PYTHONPATH"
        )
    return located


def make_protocol(settings: Settings) -> Protocol:
    without_ood = {name: value for name, value in settings.protocol.items() if name != "ood"}
    protocol, arguments = locate(without_ood, Protocol, "protocol")
    return protocol(**arguments)


def make_sampler(settings: Settings) -> Sampler:
    """The rule that draws the few-shot images."""
    if settings.sampler.file is not None:
        return ListSampler(path_of(settings.sampler.file))
    if settings.sampler.total is not None:
        return ImbalancedSampler(settings.sampler.total, settings.sampler.every_class)
    return SAMPLERS[settings.sampler.name]
