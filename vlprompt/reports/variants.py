"""How variants of a method are told from each other: by the settings that are not the default's, in words."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from vlprompt.config.changes import MOST_WORDS, Changes, value_text, words
from vlprompt.config.schema import Fit, Schedule
from vlprompt.errors import Note, first_names
from vlprompt.reports.filters import value_of
from vlprompt.results.record import Record

HASH = re.compile("[0-9a-f]{8}")
MOST_COLUMNS = 4  # settings that get columns by themselves
PLAIN = (str, int, float, type(None))
SECTIONS = ("method", "fit", "bank", "augment", "sampler", "backbone", "protocol")  # of what a row's seeds share
WITHOUT_EFFECT = ("bank.use", "bank.gb", "backbone.weights", "backbone.model")  # weights have columns
FIT = {f"fit.{name}": field.default for name, field in Fit.model_fields.items()}
FIT |= {f"fit.schedule.{name}": value for name, value in Schedule().model_dump().items()}  # their defaults, by key


def has_name(record: Record) -> bool:
    """Whether the user named this variant (`name=`), or an import did; else it is a hash of its changes."""
    variant = record.variant
    return variant is not None and (record.config.get("name") == variant or not HASH.fullmatch(variant))


def variant_texts(records: Sequence[Record], columns: Sequence[str] = ()) -> list[str]:
    """What a table shows as the variant of each record: its name, or the changes that have no column; "" of a default.

    A name that stands for several settings in one cell is followed by these. A hash stays where nothing else tells a
    variant from another.
    """
    changes = shared_changes(records)
    several = names_of_several(records)
    texts = []
    for record, changed in zip(records, changes, strict=True):
        in_words = words({key: value for key, value in (changed or {}).items() if key not in columns})
        if has_name(record):
            split = (record.method, record.variant) in several and in_words
            texts.append(f"{record.variant}: {in_words}" if split else str(record.variant))
        else:
            texts.append(in_words if changed else record.variant or "")
    cells = [
        (record.protocol, record.method, text, *(value_text(shown_value(record, key)) for key in columns))
        for record, text in zip(records, texts, strict=True)
    ]
    variants: dict[tuple[str, ...], set[str | None]] = {}
    for cell, record in zip(cells, records, strict=True):
        variants.setdefault(cell, set()).add(record.variant)
    return [
        f"{text} ({record.variant})".strip() if len(variants[cell]) > 1 and record.variant else text
        for text, cell, record in zip(texts, cells, records, strict=True)
    ]


def shared_changes(records: Sequence[Record]) -> list[Changes | None]:
    """The changes of each record; of one that has none, those of another with the same hash."""
    of_hash: dict[tuple[str | None, ...], Changes] = {}
    for record in records:
        if record.changes is not None and not has_name(record):
            of_hash.setdefault((record.protocol, record.method, record.variant), record.changes)
    return [
        record.changes if has_name(record) else of_hash.get((record.protocol, record.method, record.variant))
        for record in records
    ]


def names_of_several(records: Sequence[Record]) -> set[tuple[str, str | None]]:
    """Methods with names under which one cell has runs of other settings."""
    cells: dict[tuple[Any, ...], set[str]] = {}
    for record in records:
        if has_name(record) and record.changes is not None:
            cell = record.method, record.variant, record.protocol, record.dataset, record.backbone, record.weights
            cells.setdefault((*cell, record.shots), set()).add(json.dumps(record.changes, sort_keys=True))
    return {cell[:2] for cell, known in cells.items() if len(known) > 1}


def labels(records: Sequence[Record]) -> list[str]:
    """The learner of each record with what tells it from the others: coop, coop@fit.lr=0.01, coop@NAME."""
    return [
        f"{record.method}@{text.replace(', ', ',')}" if text else record.method  # no spaces: as a command takes it
        for record, text in zip(records, variant_texts(records), strict=True)
    ]


def shown_value(record: Record, key: str) -> Any:
    """A setting as a column shows it: a file by its name, what is not given of the training by its default."""
    if key in (record.changes or {}):
        return (record.changes or {})[key]
    value = value_of(record, key)
    if value is None and record.config.get("fit"):
        value = FIT.get(key)
    return file_name(value)


def distinguishing(records: Iterable[Record], *, across: bool = False) -> list[str]:
    """The settings that should have columns: those in which variants of one method differ, and that most rows have.

    `across` data sets: only settings that are the same in all of them, since a row is a learner on all.
    """
    records = list(records)
    several = names_of_several(records)
    keys: Counter[str] = Counter()
    for changes in {
        (record.method, record.variant): changed
        for record, changed in zip(records, shared_changes(records), strict=True)
        if changed and (not has_name(record) or (record.method, record.variant) in several)
    }.values():
        keys.update(changes.keys())
    tests = {name for record in records for name in (*record.scores, *record.headline)}
    possible = [
        key for key, _ in keys.most_common() if "." in key and key not in tests
    ]  # other columns have names, too
    return [key for key in possible if _distinguishes(key, records, across)][:MOST_COLUMNS]


def _distinguishes(key: str, records: Sequence[Record], across: bool) -> bool:
    rows: dict[tuple[str, Any, str | None], set[str]] = {}
    for record in records:
        value = shown_value(record, key)
        cell = "" if across else (record.protocol, record.dataset, record.backbone, record.shots)
        rows.setdefault((record.method, cell, record.variant), set()).add("" if value is None else value_text(value))
    if across and any(len(values) > 1 for values in rows.values()):
        return False
    of_methods: dict[tuple[str, Any], set[str]] = {}
    for (method, cell, _), values in rows.items():
        of_methods.setdefault((method, cell), set()).update(values)
    filled = sum("" not in values for values in rows.values())
    return any(len(values) > 1 for values in of_methods.values()) and 2 * filled >= len(rows)


def single_class_notes(records: Iterable[Record]) -> list[str]:
    """On tests of one class: every learner is right there."""
    single = {
        (record.protocol, record.dataset, test): None
        for record in records
        for test, n_classes in record.n_classes.items()
        if n_classes == 1
    }
    says = "so that every learner has 100 there; it says nothing, nor does a mean that it enters."
    return [
        Note(f"{protocol}, {{}}: the test {test} has one class, {says}", dataset) for protocol, dataset, test in single
    ]


def mixed_settings(records: Sequence[Record]) -> list[str]:
    """Notes on rows whose seeds have other settings than each other, and on data sets that were split in several ways.

    A default may have changed between two versions; a setting that not all of a row's records keep is passed over.
    """
    rows: dict[tuple[Any, ...], list[Record]] = {}
    splits: dict[tuple[str, str], set[str]] = {}
    for record, label in zip(records, labels(records), strict=True):
        row = label, record.dataset, record.protocol, record.backbone, record.weights, record.precision, record.shots
        rows.setdefault(row, []).append(record)
        if record.split_hash and record.status == "finished":
            splits.setdefault((record.dataset, record.protocol), set()).add(record.split_hash)
    notes: list[str] = []
    for (label, dataset, protocol, *_, shots), members in rows.items():
        if differing := differences([record for record in members if record.config]):
            what = f"Seeds of one row differ in their settings: {{}}: {first_names(differing, MOST_WORDS)}."
            notes.append(Note(what, f"{label} on {dataset}, {protocol}, {shots} shots"))
    return notes + [
        Note(f"Runs on {{}} ({protocol}) are of {len(hashes)} splits of its images: compare them with care.", dataset)
        for (dataset, protocol), hashes in splits.items()
        if len(hashes) > 1
    ]


def differences(records: Sequence[Record]) -> list[str]:
    """The settings that all of these records keep, and not with the same value: fit.lr (0.002, 0.01)."""
    if len({repr([record.config.get(name) for name in SECTIONS]) for record in records}) < 2:
        return []  # the most, soon told
    flat = [
        {key: leaf for name in SECTIONS for key, leaf in leaves(record.config.get(name), name)} for record in records
    ]
    shared = [key for key in (flat[0] if flat else {}) if all(key in other for other in flat)]
    differing = []
    for key in shared:
        first = flat[0][key]
        if isinstance(first, PLAIN) and all(type(other[key]) is type(first) and other[key] == first for other in flat):
            continue  # most are alike, and their texts would take long
        values = dict.fromkeys(value_text(file_name(of_record[key])) for of_record in flat)
        if len(values) > 1:
            differing.append(f"{key} ({', '.join(values)})")
    return differing


def leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from leaves(inner, f"{name}.{key}")
    elif name not in WITHOUT_EFFECT:
        yield name, value


def file_name(value: Any) -> Any:
    """A file by its name, wherever it lay; anything else as it is."""
    return PurePath(value).name if isinstance(value, str) and "/" in value and PurePath(value).suffix else value
