"""Hashes of settings."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

ABSENT = "(absent)"


def config_hash(settings: Mapping[str, Any]) -> str:
    """sha256 of settings, the same whatever the order of keys and whether a whole number is written 1 or 1.0."""
    return hashlib.sha256(canonical(settings).encode()).hexdigest()


def variant_of(settings: Mapping[str, Any], default_settings: Mapping[str, Any]) -> str | None:
    """8 hex digits that stand for every setting that differs from the default; None where none does."""
    different = changed(settings, default_settings)
    return config_hash(different)[:8] if different else None


def changed(settings: Mapping[str, Any], default_settings: Mapping[str, Any]) -> dict[str, Any]:
    """Every setting that differs from the default, by dotted key; what only the default has is ABSENT."""
    new, old = _flat(settings), _flat(default_settings)
    return {
        key: new.get(key, ABSENT)
        for key in dict.fromkeys([*new, *old])
        if key not in new or key not in old or canonical(new[key]) != canonical(old[key])
    }


def canonical(value: object) -> str:
    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {str(key): plain(inner) for key, inner in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(inner) for inner in value]
        return int(value) if isinstance(value, float) and value.is_integer() else value

    return json.dumps(plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        nested = isinstance(value, Mapping) and bool(value)
        flat |= _flat(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return flat
