"""What differs from the default, in the words of the command line."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlprompt.config.hashing import ABSENT, changed
from vlprompt.config.schema import AT_TEST, Settings

MOST_WORDS = 6  # settings named in one cell
LONGEST = 60  # characters of a value
CHOICES = {f"{group}.name": group for group in AT_TEST}  # as they are given

Tree = Mapping[str, Any]
Changes = Mapping[str, Any]  # values by dotted key


def changes_of(settings: Settings, default: Settings, relevant: Tree, relevant_default: Tree) -> dict[str, Any]:
    """Each setting that can change the result and is not the default's: its dotted key and its value.

    `relevant` are the `result_settings` of both. Values are as they were given, files by their names alone; where only
    the default has a key, the value is "(absent)". Keys and values can be written as JSON.
    """
    new, old = (shown_tree(settings), shown_tree(default))
    changes: dict[str, Any] = {}
    for key in changed(relevant, relevant_default):
        key, value = value_at(new, target_list(key, relevant, relevant_default))
        if key == "precision":
            value = relevant["precision"]
        elif (key, value) == value_at(old, key):  # the same file, or what a parent that is null takes along
            continue
        changes[CHOICES.get(key, key)] = value
    for one, other in (("fit.steps", "fit.epochs"), ("fit.epochs", "fit.steps")):
        if changes.get(one) is not None and changes.get(other, "") is None:  # goes without saying
            del changes[other]
    return changes


def shown_tree(settings: Settings) -> dict[str, Any]:
    """Settings as JSON has them, with the names of files."""
    tree = settings.model_dump(mode="json")
    named: dict[str, Any] = with_file_names(tree)
    return named


def with_file_names(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: with_file_names(inner) for key, inner in value.items()}
    if isinstance(value, str) and ("/" in value or "." in value):
        try:
            path = Path(value).expanduser()
            return path.name if path.is_file() or ("/" in value and path.is_dir()) else value
        except (OSError, ValueError, RuntimeError):  # no path: too long, or a ~ that is no home folder
            return value
    return value


def target_list(key: str, relevant: Tree, default: Tree) -> str:
    """The key itself; of another data set that only one of the two reads, that of the list which names it."""
    part, _, rest = key.partition(".")
    if part not in ("targets", "ood"):
        return key
    of_both = set(relevant.get(part, {})) & set(default.get(part, {}))
    return key if any(f"{rest}.".startswith(f"{name}.") for name in of_both) else f"protocol.{part}"


def value_at(tree: Tree, key: str) -> tuple[str, Any]:
    """The value of a dotted key; where a part of the path is no mapping, this part's key and value."""
    node: Any = tree
    parts = key.split(".")
    for i, part in enumerate(parts):
        if not isinstance(node, Mapping):
            return ".".join(parts[:i]), node
        if part not in node:
            return key, ABSENT
        node = node[part]
    return key, node


def words(changes: Changes, *, whole: bool = False) -> str:
    """fit.lr=0.01, method.rank=2; unless `whole`, at most so many, and long values cut."""
    named = [f"{key}={value_text(value, whole=whole)}" for key, value in changes.items()]
    more = [] if whole or len(named) <= MOST_WORDS else [f"and {len(named) - MOST_WORDS} more"]
    return ", ".join([*(named[:MOST_WORDS] if more else named), *more])


def value_text(value: Any, *, whole: bool = False) -> str:
    """A value as on the command line."""
    text = (value or "''") if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if whole or len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."
