"""The commands that make runs and published numbers again."""

import json
import re
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from vlprompt.reports.filters import shots_of, value_of
from vlprompt.reports.summary import UNTRAINED
from vlprompt.reports.variants import has_name
from vlprompt.results.record import Record

PLAIN = re.compile(r"[\w./+-]+", re.ASCII)  # a value that Hydra reads without quotes


def command(records: Sequence[Record]) -> str:
    """What makes these runs, which differ in their seeds alone; empty where their settings are not known.

    Settings that are the default's need no words: the defaults of the version that made the runs.
    """
    first = records[0]
    if first.imported or (first.changes is None and first.variant is not None):
        return ""
    names = [f"{group}={hydra(getattr(first, group))}" for group in ("method", "dataset", "protocol", "backbone")]
    if first.shots != UNTRAINED:
        seeds = ",".join(str(record.seed) for record in records)
        names += [f"shots={shots_of(first)}", f"seed={seeds}"]
    changes = dict(first.changes or {})
    if "(absent)" in changes.values():
        return ""
    settings = [f"{key}={hydra(_whole(first, key, value))}" for key, value in changes.items()]
    named = [f"name={hydra(str(first.variant))}"] if has_name(first) else []
    several = ["-m"] if len(records) > 1 else []
    return shlex.join(["vlprompt", "run", *several, *names, *settings, *named])


def reproduction(method: str, protocol: str, backbone: str, datasets: Iterable[str], shots: Iterable[object]) -> str:
    """What compares with a paper's numbers."""
    numbers = [str(n) for n in dict.fromkeys(shots) if n != UNTRAINED]
    words = ["vlprompt", "reproduce", method, "--protocol", protocol, "--backbone", backbone]
    words += ["--datasets", ",".join(dict.fromkeys(datasets)), *(["--shots", ",".join(numbers)] if numbers else [])]
    return shlex.join(words)


def _whole(record: Record, key: str, value: Any) -> Any:
    """Changes name files without their folders, configurations with them."""
    configured = value_of(record, key)
    return configured if isinstance(configured, str) and Path(configured).name == value else value


def hydra(value: Any) -> str:
    """A value as an override has it: texts in quotes where they need them, mappings and lists inside of them, too."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{hydra(key)}:{hydra(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(hydra, value)) + "]"
    if not isinstance(value, str):
        return json.dumps(value)
    if PLAIN.fullmatch(value) and not re.fullmatch(r"(?i)null|true|false|nan|[+-]?inf|[\d.+-][\d.e+-]*", value):
        return value
    quoted = re.sub(r"(\\*)'", r"\1\1\\'", value)
    end = re.search(r"\\*$", quoted)
    return f"'{quoted}{end[0] if end else ''}'"
