"""Which runs a table shows, and which of their settings."""

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from vlprompt.errors import UserError, unknown
from vlprompt.results.record import Record, RunKey

FIELDS = (*RunKey.model_fields, "learner", "status", "weights", "precision", "device", "selection", "git", "split_hash")
"""What can be asked of a record itself; every other key is one of its configuration."""


def value_of(record: Record, key: str) -> Any:
    """A field of the record or a dotted key of its configuration; None where it has none.

    A setting that depends on shots (`fit.epochs`) is the one of this run's shots.
    """
    if key in FIELDS:
        return getattr(record, key)
    node: Any = record.config
    for part in key.removeprefix("config.").split("."):
        if not isinstance(node, Mapping) or part not in node:
            return None
        node = node[part]
    return at_shots(node, record.shots)


def at_shots(value: Any, shots: int | str) -> Any:
    """A setting by shots, as records keep it (JSON has texts for keys), at this number; anything else as it is."""
    if not isinstance(value, Mapping) or not value or not all(str(key).isdigit() for key in value):
        return value
    by_shots = {int(key): inner for key, inner in value.items()}
    wanted = float("inf") if shots == "all" else int(shots)
    return by_shots[next((key for key in sorted(by_shots) if key >= wanted), max(by_shots))]


def check_key(key: str, records: Sequence[Record]) -> None:
    """Raises: UserError where no record has such a key."""
    if key in FIELDS or any(_has(record, key) for record in records):
        return
    known = {name for record in records for name in _keys(record.config)}
    raise unknown("key", key, [*FIELDS, *known])


def _has(record: Record, key: str) -> bool:
    return key.removeprefix("config.") in _keys(record.config)


def _keys(config: Mapping[str, Any], prefix: str = "") -> set[str]:
    keys: set[str] = set()
    for key, value in config.items():
        keys.add(f"{prefix}{key}")
        if isinstance(value, Mapping):
            keys |= _keys(value, f"{prefix}{key}.")
    return keys


def select(runs: Mapping[Path, Record], conditions: Sequence[str]) -> tuple[dict[Path, Record], list[str]]:
    """The runs that meet all conditions KEY=VALUE, and a note that says how many do not.

    Conditions on one key are alternatives. A learner that is not trained meets every condition on shots and seed.
    Raises: UserError: a condition without "=", a key that no run has, or none left.
    """
    wanted: dict[str, list[Any]] = {}
    for condition in conditions:
        key, equals, text = condition.partition("=")
        if not equals:
            raise UserError(f"'{condition}' is no condition: write KEY=VALUE, as in --where method=coop")
        check_key(key, list(runs.values()))
        wanted.setdefault(key, []).append(_read(text))
    chosen = {folder: record for folder, record in runs.items() if all(_meets(record, k, v) for k, v in wanted.items())}
    if not wanted:
        return chosen, []
    if runs and not chosen:
        raise UserError(f"none of {len(runs)} runs has {' '.join(conditions)}: see vlprompt table for what there is")
    return chosen, [f"Only {' '.join(conditions)}: {len(chosen)} of {len(runs)} runs."]


def _read(text: str) -> Any:
    """A value as a configuration would have it; 2e-3 is a number, too, which YAML denies."""
    with contextlib.suppress(ValueError):
        return int(text) if text.lstrip("-").isdigit() else float(text)
    try:
        return yaml.safe_load(text) if text else None
    except yaml.YAMLError:
        return text


def _meets(record: Record, key: str, allowed: Sequence[Any]) -> bool:
    if key in ("shots", "seed") and record.shots == 0:
        return True
    got = value_of(record, key)
    return any(got == value or str(got) == str(value) for value in allowed)
