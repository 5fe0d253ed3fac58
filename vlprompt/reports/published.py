"""The papers' numbers, and how results differ from them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from vlprompt.config import recipes
from vlprompt.config.paths import published_dir
from vlprompt.reports.filters import at_shots
from vlprompt.reports.lines import ELEVEN, PARTS, TRANSFER, VARIANTS, Line
from vlprompt.reports.summaries import UNTRAINED
from vlprompt.results.record import Record

SECTIONS = ("method", "fit", "bank", "augment", "backbone", "protocol")
"""The parts of a configuration that a published setting is held against; precision and device are no part of it."""
UNKNOWN, SAME, DIFFER = "setting unknown", "as published", "settings differ"
TRAINED_ON = "imagenet"  # by what is published of transfer to other data sets
SHOWN = 6  # differences named in one cell

SettingsOf = Callable[[Record, str], Mapping[str, Any] | None]
"""The configuration that a recipe gives for a record's cell; None where it cannot be composed."""


@cache
def load(place: Path | None = None) -> pd.DataFrame:
    """All published rows; `part` is the metric in the words of tables, `shots` a number where it is one."""
    paths = sorted((place or published_dir()).glob("*.csv"))
    rows = pd.concat([pd.read_csv(path, dtype=str, keep_default_na=False) for path in paths], ignore_index=True)
    rows["value"] = rows["value"].astype(float)
    rows["shots"] = [int(shots) if shots.isdigit() else shots for shots in rows["shots"]]
    rows["recipe"] = rows["recipe"].map(recipes.renamed)  # files of before say coop_ijcv
    rows["part"] = rows["metric"].replace({"accuracy": "test"})
    return rows


def as_records(rows: pd.DataFrame) -> list[Record]:
    """Published numbers of single data sets as records without predictions, the source as their variant.

    Averages and H are left out: tables derive them, as the papers do.
    """
    single = rows[~rows["dataset"].str.startswith("average_") & (rows["metric"] != "H")]
    single = single[[isinstance(shots, int) for shots in single["shots"]]].copy()
    transfer = single["protocol"].isin(TRANSFER)
    single["trained_on"] = single["dataset"].where(~transfer, TRAINED_ON)
    single["split"] = single["dataset"].where(transfer, single["part"])
    keys = ["source", "printed", "protocol", "trained_on", "backbone", "method", "shots", "recipe"]
    records = []
    for found, group in single.groupby(keys, sort=False):
        source, printed, protocol, dataset, backbone, method, shots, recipe = found
        records.append(
            Record(
                protocol=protocol,
                dataset=dataset,
                backbone=backbone,
                method=method,
                variant=f"{printed}, {source}",
                shots=shots,
                seed=UNTRAINED if shots == UNTRAINED else 1,
                status="finished",
                weights="openai",
                recipe=[recipe] if recipe else [],
                scores={
                    split: {"accuracy": value / 100}
                    for split, value in zip(group["split"], group["value"], strict=True)
                },
            )
        )
    return records


def distances(lines: Sequence[Line], rows: pd.DataFrame, settings_of: SettingsOf) -> pd.DataFrame:
    """Each mean of ours beside each published number of the same cell: one row a cell and source.

    Columns: protocol, dataset, backbone, method, variant, shots, n; for each part ours, `<part>_published` and
    `<part>_difference` (ours less theirs, points); recipe, settings, printed, source. A learner that is not trained is
    compared once. A cell without a published number has no row.
    """
    found: dict[tuple, dict[str, Any]] = {}
    for line, row in _meeting(lines, rows):
        spread = line.spreads[row["dataset"], row["part"]]
        cell = {
            "protocol": line.protocol, "dataset": row["dataset"], "backbone": line.backbone, "method": line.method,
            "variant": line.variant, **line.extra, "shots": line.given_shots,
        }  # fmt: skip
        source = {name: row[name] for name in ("recipe", "printed", "source")}
        place = (*map(str, cell.values()), line.weights, line.precision, *source.values())
        if place not in found:
            settings = status(line.behind(row["dataset"]), row["recipe"], settings_of)
            found[place] = cell | {"n": spread.n} | source | {"settings": settings}
        found[place] |= {
            row["part"]: spread.mean,
            f"{row['part']}_published": row["value"],
            f"{row['part']}_difference": spread.mean - row["value"],
        }
    order = {name: i for i, name in enumerate((*ELEVEN, *VARIANTS))}
    ordered = sorted(found.values(), key=lambda row: (row["protocol"], row["backbone"], order.get(row["dataset"], 99)))
    table = pd.DataFrame(ordered)
    numbers = [f"{part}{end}" for part in PARTS for end in ("", "_published", "_difference")]
    last = ["recipe", "settings", "printed", "source"]
    first = [name for name in table if name not in (*numbers, *last)]
    return table.reindex(columns=[*first, *(name for name in numbers if name in table), *last])


def _meeting(lines: Sequence[Line], rows: pd.DataFrame) -> Iterator[tuple[Line, dict[str, Any]]]:
    """Lines with the published rows of what they have results for."""
    by_line: dict[tuple, list[Any]] = {}
    for row in rows.to_dict("records"):
        by_line.setdefault((row["protocol"], row["backbone"], row["method"], row["shots"]), []).append(row)
    for line in lines:
        if line.source in (None, TRAINED_ON):
            for found in by_line.get((line.protocol, line.backbone, line.method, line.given_shots), []):
                if (found["dataset"], found["part"]) in line.spreads:
                    yield line, found


def status(records: Sequence[Record], recipe: str, settings_of: SettingsOf) -> str:
    """Whether runs have the settings of a recipe, and if not, which are others."""
    if not recipe:
        return UNKNOWN
    differences: dict[str, None] = {}
    for record in records:
        if not record.config:
            return f"{UNKNOWN}: the runs keep none of theirs"
        if _is_default(record, recipe):
            continue
        if (published := settings_of(record, recipe)) is None:
            return f"{UNKNOWN}: no configuration of {recipe} for {record.dataset}"
        differences |= dict.fromkeys(differing(record.config, published, record.shots))
    if not differences:
        return f"{SAME} ({recipe})"
    named = ", ".join(list(differences)[:SHOWN])
    more = f", and {len(differences) - SHOWN} more" if len(differences) > SHOWN else ""
    return f"{DIFFER} from {recipe}: {named}{more}"


def _is_default(record: Record, recipe: str) -> bool:
    """Whether a run has the default settings of its method and protocol, with no recipe for a data set or backbone."""
    default = record.variant is None and recipe == f"{record.method}/{record.protocol}"
    return default and all(recipes.of_record(name) == f"recipe/{recipe}" for name in record.recipe)


def differing(ours: Mapping[str, Any], published: Mapping[str, Any], shots: int | str) -> list[str]:
    """The settings that are not the published ones, each as "KEY OURS (published THEIRS)"; absent counts as null."""
    a, b = ({k: v for name in SECTIONS for k, v in _flat(c.get(name), name, shots).items()} for c in (ours, published))
    keys = dict.fromkeys([*a, *b])
    return [f"{key} {_text(a.get(key))} (published {_text(b.get(key))})" for key in keys if a.get(key) != b.get(key)]


def _text(value: Any) -> str:
    return "null" if value is None else repr(value) if value == "" else str(value)


def _flat(value: Any, name: str, shots: int | str) -> dict[str, Any]:
    value = at_shots(value, shots if shots != UNTRAINED else "all")
    if isinstance(value, Mapping):
        return {key: leaf for inner in value for key, leaf in _flat(value[inner], f"{name}.{inner}", shots).items()}
    return {name: list(value) if isinstance(value, (list, tuple)) else value}
