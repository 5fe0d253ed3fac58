"""What the page says, in the order of its parts."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from vlprompt.config.about import display_name
from vlprompt.reports.averages import across_datasets
from vlprompt.reports.figures.cells import Request
from vlprompt.reports.published import SettingsOf
from vlprompt.reports.render import general_notes, spread_text
from vlprompt.reports.report import runs as pages
from vlprompt.reports.report import tables
from vlprompt.reports.report.again import command as again
from vlprompt.reports.report.charts import Styles
from vlprompt.reports.report.distance import distances
from vlprompt.reports.report.figures import draw_all
from vlprompt.reports.report.images import ImagesOf, Thumbnails
from vlprompt.reports.report.layouts import sections
from vlprompt.reports.report.notes import in_print
from vlprompt.reports.report.runs import Group
from vlprompt.reports.summary import KEYS, UNTRAINED, frame, summarise
from vlprompt.results.metrics import complete, find_metric
from vlprompt.results.record import Record

COUNTED = {"protocol": "protocols", "dataset": "data sets", "method": "methods", "backbone": "backbones"}
Groups = dict[tuple[Any, ...], Group]  # by KEYS


@dataclass(frozen=True)
class Sources:
    """What the page takes from above this room."""

    settings_of: SettingsOf
    images_of: ImagesOf
    class_names: Callable[[str], Mapping[str, str]]


def content(runs: Mapping[Path, Record], metric: str, notes: Sequence[str], sources: Sources) -> dict[str, Any]:
    """By name, what the template shows."""
    notes = list(notes)
    records = complete(runs, metric, notes)
    by_folder = dict(zip(runs, records, strict=True))
    summary = summarise(records, metric=metric)
    results, gaps = across_datasets(records, metric=metric)
    groups, keys = groups_of(records)
    links = link_rows(summary, groups, metric)
    read = pages.read_predictions(by_folder, notes)
    request, styles = Request(metric=metric, class_names=sources.class_names), Styles(by_folder)
    charts, missing = draw_all(by_folder, {f: by_folder[f] for f in read}, request, styles)
    notes = in_print([*notes, *gaps])
    for chart in charts:
        chart.notes = [note for note in chart.notes if note not in notes]
    thumbnails = Thumbnails()
    for number, (folder, record) in enumerate(by_folder.items()):
        run = pages.describe(number, record, read.get(folder, {}), sources.images_of, thumbnails)
        groups[keys[number]].runs.append(run)
    for group in groups.values():
        group.command = again([run.record for run in group.runs])
    distance, reproduced = distances(records, sources.settings_of)
    return {
        "counts": counts(records),
        "winners": tables.winners(results, metric),
        "results": tables.results(summary, links),
        "sections": sections(by_folder, metric),
        "costs": tables.costs(summary, links),
        "charts": charts,
        "missing": missing,
        "styles": styles,
        "groups": by_protocol(groups.values()),
        "distance": distance,
        "reproduced": reproduced,
        "versions": versions(records),
        "splits": splits(records),
        "filters": filters(records),
        "pictures": thumbnails.sources,
        "cautions": general_notes(summary),
        "notes": notes,
        "metric": find_metric(metric).label,
    }


def counts(records: Sequence[Record]) -> list[tuple[int, str]]:
    """How many there are of what."""
    of = {words: len({getattr(record, name) for record in records}) for name, words in COUNTED.items()}
    status = Counter(record.status.replace("_", " ") for record in records)
    numbers = [(len(records), "runs"), *((n, words) for words, n in of.items())]
    numbers += [(n, words) for words, n in status.items() if words != "finished"]
    return [(n, words.removesuffix("s") if n == 1 and words.endswith("s") else words) for n, words in numbers]


def groups_of(records: Sequence[Record]) -> tuple[Groups, list[tuple[Any, ...]]]:
    """An empty group for each row of the tables, an untrained learner's once; and the key of each record's group."""
    rows = frame(records).drop_duplicates("run").assign(shots=lambda table: table["given_shots"])
    key_of = {id(row["record"]): tuple(row[name] for name in KEYS) for row in rows.to_dict("records")}
    keys = [key_of[id(record)] for record in records]
    groups: Groups = {}
    for record, key in zip(records, keys, strict=True):
        if key not in groups:
            row = dict(zip(KEYS, key, strict=True))
            shots = [] if record.shots == UNTRAINED else [f"{record.shots} shots"]
            learner = display_name(row["method"], row["named"])
            title = ", ".join([f"{learner} on {record.dataset}", record.backbone, *shots])
            groups[key] = Group(f"runs-{len(groups)}", title)
    return groups, keys


def link_rows(summary: pd.DataFrame, groups: Groups, metric: str) -> list[str]:
    """The id of the runs of each row; their group gets its scores."""
    decimals, links = find_metric(metric).decimals, []
    numbers = [name for name in tables.number_columns(summary) if name != "mean_H"]
    for row in summary.to_dict("records"):
        key = tuple(row[name] for name in KEYS)
        untrained = (*key[:-1], UNTRAINED)
        group = groups.get(key) or groups[untrained]
        texts = [(n, spread_text(row[n], row.get(f"{n}_sd", float("nan")), decimals=decimals)) for n in numbers]
        group.scores = ", ".join(f"{name} {text}" for name, text in texts if text)
        links.append(group.id)
    return links


def by_protocol(groups: Iterable[Group]) -> dict[str, list[Group]]:
    parts: dict[str, list[Group]] = {}
    for group in groups:
        parts.setdefault(group.runs[0].record.protocol, []).append(group)
    return parts


def versions(records: Sequence[Record]) -> tables.Table:
    """Which versions made the runs, on what."""
    made: dict[tuple[Any, ...], list[Record]] = {}
    packages = list(dict.fromkeys(name for record in records for name in record.versions))
    for record in records:
        versions = tuple(record.versions.get(name, "") for name in packages)
        made.setdefault((record.git or "not known", record.device or "", *versions), []).append(record)
    rows = []
    for key, of in made.items():
        dates = sorted(record.created[:10] for record in of)
        period = dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"
        rows.append(
            {"commit": short(key[0]), "runs": len(of), "made": period, "device": key[1]}
            | dict(zip(packages, key[2:], strict=True))
        )
    return tables.plain("Versions that made the runs", pd.DataFrame(rows), {"runs": "d"})


def short(commit: str) -> str:
    """The first 12 digits of a commit, and whether files differed."""
    commit, plus, dirty = commit.partition("+")
    return commit[:12] + plus + dirty


def splits(records: Sequence[Record]) -> tables.Table | None:
    """The data sets by the hash of their lists of images."""
    seen: Counter[tuple[str, str]] = Counter()
    for record in records:
        hashes = {record.dataset: record.split_hash, **record.target_hashes}
        seen.update((name, value) for name, value in hashes.items() if value)
    rows = [{"dataset": name, "sha256 of its lists": value, "runs": n} for (name, value), n in sorted(seen.items())]
    return tables.plain("Data sets as they were split", pd.DataFrame(rows), {"runs": "d"}) if rows else None


def filters(records: Sequence[Record]) -> dict[str, list[str]]:
    """What tables can be filtered by; what is the same everywhere is no choice."""
    known = {name: {str(getattr(record, name)) for record in records} for name in tables.FILTERS}
    known["shots"] -= {str(UNTRAINED)}
    return {
        name: sorted(values, key=lambda v: (len(v), v) if name == "shots" else v)
        for name, values in known.items()
        if len(values) > 1
    }
