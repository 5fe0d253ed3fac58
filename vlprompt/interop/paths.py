"""What in settings is a file of one machine, and so means nothing on another."""

from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from vlprompt import demo
from vlprompt.config.changes import with_file_names
from vlprompt.towers import RANDOM
from vlprompt.towers.loading import PRETRAINED
from vlprompt.towers.origin import origin_of

LEADS = ("~", "./", "../", ".\\", "..\\", "\\", "file:")


def is_path(text: str) -> bool:
    """Whether a text is a path as any system writes it, or names a file that is here."""
    absolute = PurePosixPath(text).is_absolute() or PureWindowsPath(text).is_absolute()
    return absolute or text.startswith(LEADS) or with_file_names(text) != text


def files_named(backbone: Mapping[str, Any], arguments: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The settings of a learner's description that name files, with these, as in ("backbone.weights", "/a/b.pt")."""
    model, weights = str(backbone["model"]), str(backbone["weights"])
    if model not in demo.BACKBONES and (is_path(model) or Path(model).is_dir()):
        yield "backbone.model", model
    named = weights in (RANDOM, PRETRAINED) or origin_of(model, weights).repository is not None
    if is_path(weights) or (not named and Path(weights).is_file()):
        yield "backbone.weights", weights
    yield from paths_in(arguments, "method")


def paths_in(value: Any, name: str) -> Iterator[tuple[str, str]]:
    """The texts in a setting, whatever is nested in it, that are paths."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from paths_in(inner, f"{name}.{key}")
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from paths_in(inner, name)
    elif isinstance(value, str) and is_path(value):
        yield name, value


def without_folders(value: Any) -> Any:
    """The same with the bare names of files where there are paths."""
    if isinstance(value, Mapping):
        return {key: without_folders(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_folders(inner) for inner in value]
    if isinstance(value, str) and is_path(value):
        return PureWindowsPath(value).name or PurePosixPath(value).name  # either separator
    return value
