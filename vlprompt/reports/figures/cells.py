"""Which runs a figure shows: one cell, its learners with their names, and their predictions."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from vlprompt.config.about import about, display_name
from vlprompt.errors import Note, UserError, first_names, unknown
from vlprompt.reports.averages import across_datasets
from vlprompt.reports.summary import UNTRAINED, H, missing_metric
from vlprompt.reports.variants import labels, variant_texts
from vlprompt.results.metrics import complete
from vlprompt.results.predictions import PREDICTIONS, Predictions, load_predictions
from vlprompt.results.record import FILE, Record, shots_order

Runs = Mapping[Path, Record]
CELL = ("protocol", "dataset", "backbone", "weights", "shots")
FOLDER = re.compile(r"folder-(.+)-[0-9a-f]+")
ZERO_SHOT = "zero_shot"
NO_PREDICTIONS = "no run has predictions, which this figure is made of"


def no_class_names(dataset: str) -> Mapping[str, str]:
    return {}


@dataclass(frozen=True)
class Request:
    """What a figure is to show."""

    metric: str = "accuracy"
    split: str | None = None  # None: the first of H, all and test that there is
    against: str | None = None  # the learner that others are compared with; None: zero-shot
    class_names: Callable[[str], Mapping[str, str]] = no_class_names  # of a data set: the class of each image


def one_cell(runs: Runs, names: Sequence[str], notes: list[str], *, needs: str = FILE) -> dict[Path, Record]:
    """The finished runs that share these fields, where the most learners have a file; a note says what else there is.

    A learner that is not trained belongs to every number of shots.
    Raises: UserError where no run is finished.
    """
    notes += (stopped := unfinished(runs))
    finished = {folder: record for folder, record in runs.items() if record.status == "finished"}
    if not finished:
        raise UserError(" ".join(["a figure needs finished runs.", *stopped]))
    cells: dict[tuple, dict[Path, Record]] = {}
    for folder, record in finished.items():
        if record.shots != UNTRAINED or "shots" not in names:
            cells.setdefault(tuple(getattr(record, name) for name in names), {})[folder] = record
    for folder, record in finished.items():
        if record.shots == UNTRAINED and "shots" in names:
            of_run = tuple(getattr(record, name) for name in names if name != "shots")
            at = names.index("shots")
            joined = [cell for cell in cells if cell[:at] + cell[at + 1 :] == of_run]
            for cell in joined or [(*of_run[:at], UNTRAINED, *of_run[at:])]:
                cells.setdefault(cell, {})[folder] = record
    ready = [{f: r for f, r in cell.items() if needs == FILE or (f / needs).exists()} for cell in cells.values()]
    sizes = [(len({r.learner for r in cell.values()}), len(cell), _most_shots(cell.values())) for cell in ready]
    chosen = [*cells][sizes.index(max(sizes))]
    notes += choice([dict(zip(names, cell, strict=True)) for cell in cells], dict(zip(names, chosen, strict=True)))
    return cells[chosen]


def choice(cells: Sequence[Mapping[str, object]], drawn: Mapping[str, object]) -> list[str]:
    """A note on the cell that is drawn, by the fields in which cells differ, and how the others are."""
    differing = [name for name in drawn if len({cell[name] for cell in cells}) > 1]
    texts = [" ".join(f"{name}={cell[name]}" for name in differing) for cell in (drawn, *cells)]
    first, *others = dict.fromkeys(texts)
    text = f"Drawn: {first}, with the most learners. --where draws another: {first_names(others, 4)}."
    return [text] if others else []


def _most_shots(records: Iterable[Record]) -> float:
    return max((shots_order(r.shots) for r in records), default=0.0)


def unfinished(runs: Runs, learners: Sequence[str] | None = None) -> list[str]:
    """A note on runs that have no result, of these learners (None: of all)."""
    names = labels(list(runs.values()))
    stopped = [
        f"{name} on {record.dataset}, {record.protocol}, {record.shots} shots, seed {record.seed}"
        for name, record in zip(names, runs.values(), strict=True)
        if record.status != "finished" and (learners is None or name in learners or record.learner in learners)
    ]
    return [f"Without a result, so left out: {first_names(stopped)}."] if stopped else []


def of_datasets(runs: Runs, request: Request, notes: list[str]) -> pd.DataFrame:
    """The rows of `across_datasets` that have a value, with the `name` of each learner; notes say what is missing."""
    records = complete(runs, request.metric, notes)
    notes += missing_metric(records, request.metric)
    results, gaps = across_datasets(records, metric=request.metric)
    lacking = [gap.partition(" of ")[2].partition(",")[0] for gap in gaps if gap.startswith("No average")]
    for gap in gaps:
        average, _, members = gap.partition(" is over ")
        if not gap.startswith("No average"):
            notes.append(f"The {dataset_name(average)}: {members}" if members else gap)
    notes += [f"No average over data sets of {first_names(lacking, 4)}: some are missing."] if lacking else []
    return with_names(results[results["n"] > 0].reset_index(drop=True))


def learners(runs: Runs) -> pd.DataFrame:
    """One row a run, by its folder: `learner`, `name`, `method`, `shots`, `seed`."""
    records = list(runs.values())
    fields = {name: [getattr(record, name) for record in records] for name in ("method", "precision", "shots", "seed")}
    texts = {"learner": labels(records), "named": variant_texts(records)}
    return with_names(pd.DataFrame({**fields, **texts}, index=pd.Index(runs, dtype=object)))


def with_names(table: pd.DataFrame) -> pd.DataFrame:
    """With the `name` of each learner as figures show it: both differ where learners, or their precisions, do."""
    table = table.copy()
    table["name"] = [
        display_name(method, named or None) for method, named in zip(table["method"], table["named"], strict=True)
    ]
    several = table.groupby("learner")["precision"].transform("nunique") > 1
    for column in ("learner", "name"):
        table.loc[several, column] += " (" + table["precision"][several].astype(str) + ")"
    alike = table.groupby("name")["learner"].transform("nunique") > 1
    table.loc[alike, "name"] += " (" + table["learner"][alike] + ")"
    return table


def dataset_name(name: str, drawn: Iterable[str] = ()) -> str:
    """Of a data set, or of an average over some, as papers print it: "DTD", "average of 11 data sets".

    A folder of images is called as it is, without its hash, unless another of that name is `drawn`, too.
    """
    folder = FOLDER.fullmatch(name)
    if folder and not any(other.startswith(f"folder-{folder[1]}-") for other in drawn if other != name):
        return folder[1]
    n = name.removeprefix("average_").partition("_")[0]
    return f"average of {n} data sets" if name.startswith("average_") else about("dataset", name).name


def part_of(results: pd.DataFrame, request: Request) -> str:
    """The part of a data set that counts. Raises: UserError where no run has it."""
    known = list(dict.fromkeys(results["part"]))
    if request.split is not None and request.split not in known:
        raise unknown("split", request.split, known)
    return request.split or next((name for name in (H, "all", "test", "corrupted", *known) if name in known), "test")


def one_dataset(results: pd.DataFrame, notes: list[str]) -> pd.DataFrame:
    """The rows of the average over data sets, where all learners have it, else of the data set with the most."""
    counts = results.groupby("dataset", sort=False)["learner"].nunique()
    most = counts[counts == counts.max()].index
    chosen = next((name for name in most if name.startswith("average_")), most[0])
    others = [name for name in counts.index if name != chosen]
    if others and not chosen.startswith("average_"):
        notes.append(f"Drawn: {chosen}, with the most learners; --where dataset=NAME draws another.")
    return results[results["dataset"] == chosen]


def with_predictions(runs: Runs, notes: list[str]) -> dict[Path, dict[str, Predictions]]:
    """The predictions of each run by test split; `notes` name the runs that have none, and why.

    Raises: UserError where no run has any.
    """
    loaded = {}
    for folder in have_predictions(runs, notes):
        try:
            splits = load_predictions(folder / PREDICTIONS)
        except UserError as error:
            notes.append(f"Left out: {str(error).rstrip('.')}.")
            continue
        if splits := {split: predictions for split, predictions in splits.items() if len(predictions)}:
            loaded[folder] = splits
        else:
            notes.append(f"Left out: {folder / PREDICTIONS}: no test in it.")
    if not loaded:
        raise UserError(NO_PREDICTIONS)
    return loaded


def have_predictions(runs: Runs, notes: list[str]) -> dict[Path, Record]:
    """The runs whose predictions lie next to their records; `notes` name the others. Raises: UserError without any."""
    having = {folder: record for folder, record in runs.items() if (folder / PREDICTIONS).exists()}
    notes += [Note(f"Left out: {{}}: no {PREDICTIONS}.", folder) for folder in runs if folder not in having]
    if not having:
        raise UserError(NO_PREDICTIONS)
    return having


def of_split(runs: Runs, request: Request, notes: list[str]) -> tuple[str, pd.DataFrame, dict[str, list[Predictions]]]:
    """One test split, the learners that have it, and each one's predictions on it, one a seed.

    Raises: UserError where no run has the split.
    """
    loaded = with_predictions(runs, notes)
    known = list(dict.fromkeys(split for splits in loaded.values() for split in splits))
    if request.split is not None and request.split not in known:
        raise unknown("test split", request.split, known)
    split = request.split or next((name for name in ("all", "test") if name in known), known[0])
    table = learners({folder: runs[folder] for folder, splits in loaded.items() if split in splits})
    of_learners: dict[str, list[Predictions]] = {}
    for folder, learner in zip(table.index.tolist(), table["learner"].tolist(), strict=True):
        of_learners.setdefault(learner, []).append(loaded[folder][split])
    return split, table.drop_duplicates("learner").set_index("learner"), of_learners


def reference(table: pd.DataFrame, request: Request) -> str:
    """The learner that others are compared with, of a table of `learners`. Raises: UserError where it is not there."""
    known = dict(zip(table["learner"], table["method"], strict=True))
    if request.against is not None:
        if request.against not in known:
            raise unknown("learner", request.against, known)
        return request.against
    candidates = [learner for learner, method in known.items() if method == ZERO_SHOT]
    if not candidates:
        raise UserError(
            f"there is no run of {ZERO_SHOT} here to compare with: run method={ZERO_SHOT}, or name another with "
            f"--against: {first_names(list(known))}"
        )
    return min(candidates, key=len)
