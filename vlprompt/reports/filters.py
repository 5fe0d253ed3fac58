"""Which runs a table shows, and which of their settings."""

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from vlprompt.config.changes import value_text
from vlprompt.errors import UserError, unknown
from vlprompt.results.record import Record, RunKey

FIELDS = (*RunKey.model_fields, "learner", "status", "weights", "precision", "device", "selection", "inference", "git",
          "split_hash")  # fmt: skip
"""What can be asked of a record itself; every other key is one of its configuration."""

MOST_NAMES = 10  # of those that a message lists
OF_TRAINING = ("shots", "seed")  # what a learner that is not trained has any of


def value_of(record: Record, key: str) -> Any:
    """A field of the record or a dotted key of its configuration; None where it has none.

    A setting that depends on shots (`fit.epochs`) is the one of this run's shots.
    """
    if key == "calibration":
        return record.calibration.get("name", "none")
    if key in FIELDS:
        return getattr(record, key)
    node: Any = record.config
    for part in key.removeprefix("config.").split("."):
        if not isinstance(node, Mapping) or part not in node:
            return None
        node = node[part]
    return at_shots(node, shots_of(record))


def shots_of(record: Record) -> int | str:
    """The number of shots that a record's settings are those of; of a number in all, the configuration tells it."""
    other = isinstance(record.shots, str) and record.shots != "all"
    return record.config.get("shots", "all") if other else record.shots


def at_shots(value: Any, shots: int | str) -> Any:
    """A setting by shots, as records keep it (JSON has texts for keys), at this number; anything else as it is."""
    if not isinstance(value, Mapping) or not value or not all(str(key).isdigit() for key in value):
        return value
    by_shots = {int(key): inner for key, inner in value.items()}
    wanted = float("inf") if shots == "all" else int(shots)
    return by_shots[next((key for key in sorted(by_shots) if key >= wanted), max(by_shots))]


def check_key(key: str, records: Iterable[Record]) -> None:
    """Raises: UserError where no record has such a key."""
    records = list(records)
    if any(has_key(record, key) for record in records) or key in FIELDS:
        return
    known = {name for record in records for name in _keys(record.config)}
    raise unknown("key", key, {*FIELDS, *known}, most=MOST_NAMES, do="All are in the result.json of a run.")


def has_key(record: Record, key: str) -> bool:
    """Whether a key is a field of a record or in its configuration."""
    return key in FIELDS or key.removeprefix("config.") in _keys(record.config)


def _keys(config: Mapping[str, Any], prefix: str = "") -> set[str]:
    keys: set[str] = set()
    for key, value in config.items():
        keys.add(f"{prefix}{key}")
        if isinstance(value, Mapping):
            keys |= _keys(value, f"{prefix}{key}.")
    return keys


def select(
    runs: Mapping[Path, Record], conditions: Sequence[str], others: Sequence[Record] = ()
) -> tuple[dict[Path, Record], list[str]]:
    """The runs that meet all conditions KEY=VALUE,VALUE, and a note that says how many do not.

    Values of one key are alternatives. A learner that is not trained meets every condition on shots and seed. `others`
    are shown next to the runs: a condition may be theirs alone.
    Raises: UserError: a condition without "=", a key or a value that no run has, or none left.
    """
    if not conditions:
        return dict(runs), []
    records = [*runs.values(), *others]
    wanted = conditions_of(conditions)
    for key, texts in wanted.items():
        check_key(key, records)
        wanted[key] = [value for text in texts for value in values_in(text, key, records)]
    chosen = {folder: record for folder, record in runs.items() if meets(record, wanted)}
    if runs and not chosen and not others:
        raise UserError(f"none of {len(runs)} runs has {' '.join(conditions)}: see vlprompt table for what there is")
    return chosen, [f"Only {' '.join(conditions)}: {len(chosen)} of {len(runs)} runs."]


def conditions_of(conditions: Sequence[str]) -> dict[str, list[str]]:
    """The texts that each key may have. Raises: UserError: a condition without "="."""
    wanted: dict[str, list[str]] = {}
    for condition in conditions:
        key, equals, text = condition.partition("=")
        if not equals:
            raise UserError(
                f"'{condition}' is no condition: write KEY=VALUE, as in --where method=coop,lora, and folders before"
            )
        wanted.setdefault(key, []).append(text)
    return wanted


def values_in(text: str, key: str, records: Sequence[Record]) -> list[str]:
    """The values in a list with commas; of one that has commas itself (a list, a variant) the longest that a run has.

    Raises: UserError: a value that no run has.
    """
    there = [value_of(record, key) for record in records]
    untrained = key in OF_TRAINING and all(record.shots == 0 for record in records)
    parts, values, i = text.split(","), [], 0
    while i < len(parts):
        longest_first = range(len(parts), i, -1)
        known = (j for j in longest_first if untrained or any(_is(value, ",".join(parts[i:j])) for value in there))
        if not (end := next(known, 0)):
            if not parts[i]:
                raise UserError(f"'{key}={text}' has an empty value, which no run has: write {key}=VALUE,VALUE")
            do = f"All: vlprompt table --columns {key}."
            raise unknown(f"value of {key}", parts[i], {*map(value_text, there)}, most=MOST_NAMES, do=do)
        values.append(",".join(parts[i:end]))
        i = end
    return values


def meets(record: Record, wanted: Mapping[str, Sequence[str]]) -> bool:
    """Whether a record has one of the values of each key."""
    return all(any(_meets(record, key, value) for value in values) for key, values in wanted.items())


@cache
def _read(text: str) -> Any:
    """A value as a configuration would have it; 2e-3 is a number, too, which YAML denies."""
    with contextlib.suppress(ValueError):
        return int(text) if text.lstrip("-").isdigit() else float(text)
    try:
        return yaml.safe_load(text) if text else None
    except yaml.YAMLError:
        return text


def _meets(record: Record, key: str, text: str) -> bool:
    return (key in OF_TRAINING and record.shots == 0) or _is(value_of(record, key), text)


def _is(got: Any, text: str) -> bool:
    return bool(got == _read(text)) or str(got) in (text, str(_read(text)))
