"""The runs that a command on results reads: from which folders, which of them, and what must be said of them."""

import argparse
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlprompt.errors import Note, UserError, first_names, folded
from vlprompt.textfiles import path_of

if TYPE_CHECKING:
    from vlprompt.results.record import Record

TARGETS = ("method", "protocol", "dataset.source")  # what a configuration names to be imported


class MetricNames(str):
    """A help text that lists all metrics, which are read when it is shown: they need numpy."""

    __slots__ = ()

    def __mod__(self, values: Any) -> str:
        from vlprompt.results.metrics import METRICS

        return super().__mod__({**values, "metrics": ", ".join(METRICS)})


def add_selection(parser: argparse.ArgumentParser, *, positional: bool = True) -> None:
    """What commands on results share: folders, conditions, the metric."""
    text = "results folders (default: the runs of ./results, or of VLPROMPT_RESULTS)"
    if positional:
        parser.add_argument("folders", nargs="*", type=path_of, help=text)
        parser.set_defaults(folders_anywhere=True)
    else:
        parser.add_argument(
            "--results", dest="folders", nargs="+", type=path_of, default=[], metavar="FOLDER", help=text
        )
    parser.add_argument(
        "--where", nargs="+", default=[], metavar="KEY=VALUES", help="only these runs: method=coop,lora shots=16"
    )
    parser.add_argument("--metric", default="accuracy", help=MetricNames("%(metrics)s"))


def selected(options: argparse.Namespace, others: Sequence["Record"] = ()) -> tuple[dict[Path, "Record"], list[str]]:
    """The runs that are asked for, and notes on the others and on folders that are mixed.

    Raises: UserError where a folder is missing, or there are no runs, and no `others` that are shown next to them.
    """
    from vlprompt.reports.filters import select
    from vlprompt.reports.variants import mixed_settings, single_class_notes
    from vlprompt.results.store import find_runs

    missing = [str(root) for root in options.folders if not root.is_dir()]
    if missing:
        raise UserError(f"no such folder of results: {', '.join(missing)}")
    notes: list[str] = []
    runs = find_runs(roots(options.folders), notes.append)
    if not runs and others:
        return {}, notes
    if not runs:
        raise no_runs(options.folders, notes)
    with naming_left_out(notes):
        chosen, filtered = select(with_changes(runs), options.where, others)
    records = list(chosen.values())
    cautions = [*single_class_notes(records), *mixed_settings(records)]
    return chosen, [*filtered, *notes, *of_several_folders(chosen), *cautions]


@contextmanager
def naming_left_out(notes: Sequence[str]) -> Iterator[None]:
    """Say with a mistake which runs were left out: what was asked for may be one of them."""
    try:
        yield
    except UserError as error:
        if left_out := [note for note in notes if note.startswith("Left out")]:
            raise UserError(" ".join([f"{str(error).rstrip('.')}.", *folded(left_out)])) from None
        raise


def roots(folders: Sequence[Path]) -> list[Path]:
    """Where runs are looked for: of a results root in its `runs` alone; the shipped records have to be named."""
    from vlprompt.config.paths import results_root

    return [
        root / "runs" if (root / "runs").is_dir() or (root / "demo").is_dir() else root
        for root in folders or [results_root()]
    ]


def no_runs(folders: Sequence[Path], notes: Sequence[str] = ()) -> UserError:
    """Where nothing was found, what makes a run, and where the shipped ones are."""
    from vlprompt.config.paths import PACKAGE, results_root
    from vlprompt.reports.summary import NO_RUNS

    looked = ", ".join(map(str, roots(folders)))
    shipped = [path for path in (results_root() / "demo", PACKAGE.parent / "results" / "demo") if path.is_dir()]
    do = [f"Records that ship with vlprompt are read where they are named: vlprompt table {p}." for p in shipped[:1]]
    return UserError(" ".join([f"{NO_RUNS} Looked in {looked}.", *do, *folded(notes)]))


def of_several_folders(runs: Mapping[Path, "Record"]) -> list[str]:
    """Notes where runs lie in several folders, and on rows whose seeds do."""
    from vlprompt.reports.variants import labels
    from vlprompt.results.store import folder_of

    folders = [folder_of(path, record) for path, record in runs.items()]
    if len(counts := Counter(folders)) < 2:
        return []
    notes = [f"Runs of {len(counts)} folders: {first_names([f'{n} of {folder}' for folder, n in counts.items()])}."]
    rows: dict[tuple[Any, ...], dict[Path, list[str]]] = {}
    for record, label, folder in zip(runs.values(), labels(list(runs.values())), folders, strict=True):
        row = label, record.dataset, record.protocol, record.shots, record.backbone, record.weights, record.precision
        rows.setdefault(row, {}).setdefault(folder, []).append(str(record.seed))
    mixed = {row: by_folder for row, by_folder in rows.items() if len(by_folder) > 1}
    for (label, dataset, protocol, shots, *_), by_folder in mixed.items():
        seeds = "; ".join(f"seed {', '.join(seeds)} of {folder}" for folder, seeds in by_folder.items())
        name = f"{label} on {dataset}, {protocol}, {shots} shots"
        notes.append(Note(f"Seeds of several folders in one row: {{}}: {seeds}.", name))
    return notes


def with_changes(runs: Mapping[Path, "Record"]) -> dict[Path, "Record"]:
    """Records of earlier versions with the changes that their variant stands for, where these can be told."""
    from vlprompt.reports.variants import has_name, shared_changes

    known = dict(zip(runs, shared_changes(list(runs.values())), strict=True))
    told = {}
    for path, record in runs.items():
        if record.changes is None and record.variant is not None and not has_name(record):
            changes = known[path] if known[path] is not None else derived(record)
            record = record.model_copy(update={"changes": changes})
        told[path] = record
    return told


def derived(record: "Record") -> dict[str, Any] | None:
    """What differs from today's default configuration; None unless it is what the record's variant stands for.

    Nothing that the record names is imported: only what the default names, too.
    """
    from PIL import Image
    from pydantic import ValidationError

    from vlprompt.config.changes import changes_of
    from vlprompt.config.hashing import variant_of
    from vlprompt.config.identity import result_settings
    from vlprompt.config.schema import read_settings
    from vlprompt.data.dataset import Dataset
    from vlprompt.reports.filters import at_shots, shots_of

    default = default_of(record.method, record.dataset, record.protocol, record.backbone, record.shots)
    if default is None or any(target_of(record.config, path) != target_of(default, path) for path in TARGETS):
        return None
    parts = {name: record.config.get(name) for name in ("method", "fit")}
    by_shots = {  # JSON has texts for keys
        name: {key: at_shots(value, shots_of(record) or "all") for key, value in part.items()}
        for name, part in parts.items()
        if isinstance(part, Mapping)
    }
    try:
        settings, default_settings = (read_settings({**record.config, **by_shots}), read_settings(default))
    except (UserError, ValidationError, TypeError, ValueError):  # settings that are no more
        return None
    default_settings = default_settings.model_copy(update={"seed": settings.seed})
    nothing = Dataset(record.dataset, (), (), (), (), Image.open)  # the same images, whatever they are
    relevant = result_settings(settings, str(record.precision), nothing, {})
    for precision in dict.fromkeys((str(record.precision), "fp32", "bf16")):  # which the machine then had
        by_default = result_settings(default_settings, precision, nothing, {})
        if variant_of(relevant, by_default) == record.variant:
            return changes_of(settings, default_settings, relevant, by_default)
    return None


def target_of(config: Mapping[str, Any], path: str) -> Any:
    node: Any = config
    for part in (*path.split("."), "_target_"):
        node = node.get(part) if isinstance(node, Mapping) else None
    return node


@cache
def default_of(method: str, dataset: str, protocol: str, backbone: str, shots: int | str) -> Mapping[str, Any] | None:
    """The configuration that these choices alone give; None where one of them is not known here."""
    chosen = {"method": method, "dataset": dataset, "protocol": protocol, "backbone": backbone}
    if any(name not in known_names()[group] for group, name in chosen.items()):
        return None
    return composed(*(f"{group}={name}" for group, name in chosen.items()), *[f"shots={shots}"] * bool(shots))


@cache
def known_names() -> dict[str, list[str]]:
    """What there is to choose in each group, and the recipes."""
    from vlprompt.config import recipes
    from vlprompt.config.compose import GROUPS, names
    from vlprompt.config.paths import config_dir

    folders = [config_dir()]
    return {group: names(group, folders) for group in GROUPS} | {"recipe": recipes.known("recipe", folders)}


@cache
def composed(*overrides: str) -> Mapping[str, Any]:
    from vlprompt.config.compose import compose
    from vlprompt.config.spec import with_resolved_method

    return with_resolved_method(compose(list(overrides)))


def published_settings(record: "Record", recipe: str) -> Mapping[str, Any] | None:
    """What `published.distances` asks: the configuration that a recipe gives for a record's cell."""
    from vlprompt.config.compose import GROUPS

    chosen = {group: getattr(record, group) for group in GROUPS}
    if any(name not in known_names()[group] for group, name in chosen.items()):
        return None
    if recipe in known_names()["recipe"]:
        chosen["recipe"] = recipe
    elif recipe != f"{record.method}/{record.protocol}":  # the default of a pair may have no file
        return None
    shots = [f"shots={record.shots}"] if record.shots else []
    return composed(*(f"{group}={name}" for group, name in chosen.items()), *shots)
