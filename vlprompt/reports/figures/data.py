"""What figures of scores show, as tidy tables: one function a figure, one row a point.

They take runs by their folders, what is asked for and a list that they add notes to; what comes from predictions is in
`images.py`. All tables have `learner` (as commands
take it), `name` (as figures show it) and `method`, and `attrs["title"]`: what all rows share, in words. Percent where a
metric is a fraction. All raise UserError, in a sentence, where there is nothing to draw.
"""

from collections.abc import Sequence
from dataclasses import replace

import pandas as pd

from vlprompt.config.about import about
from vlprompt.errors import UserError, first_names
from vlprompt.reports.averages import in_papers_order
from vlprompt.reports.figures.cells import (
    CELL,
    Request,
    Runs,
    choice,
    dataset_name,
    learners,
    of_datasets,
    one_cell,
    one_dataset,
    part_of,
    unfinished,
)
from vlprompt.reports.significance import critical_difference as difference_of_ranks
from vlprompt.reports.significance import rankings
from vlprompt.reports.summary import UNTRAINED, H
from vlprompt.results.metrics import find_metric
from vlprompt.results.record import Record

COSTS = {"trained_parameters": "trained parameters", "train_seconds": "training time (s)",
         "flops_per_image": "FLOPs per image"}  # fmt: skip
COLUMNS = ["learner", "name", "method"]
NO_CURVES = "no run has a loss or an accuracy of its epochs: what is not trained, or was imported, has none"


def few_shot(runs: Runs, request: Request, notes: list[str]) -> pd.DataFrame:
    """`dataset` (averages last), `shots`, `trained`, `n` seeds, `mean`, `deviation` over seeds (nan for one).

    What is not trained has a row at every number of shots.
    """
    runs = {folder: record for folder, record in runs.items() if record.protocol == "few_shot"}
    if not runs:
        raise UserError("there are no few-shot results to draw: run protocol=few_shot first")
    runs = one_cell(runs, ("backbone", "weights"), notes)
    results = of_datasets(runs, request, notes)
    tests = results[results["part"] == (part := part_of(results, request))]
    order = in_papers_order(tests["dataset"])
    tests = tests.sort_values("dataset", key=lambda names: names.map(order.index), kind="stable")
    if tests["n"].max() == 1:
        notes.append("Every learner has one seed: there are no bands.")
    tests = tests.assign(trained=tests["given_shots"] != UNTRAINED)
    table = tests[["dataset", *COLUMNS, "shots", "trained", "n", "mean", "deviation"]].reset_index(drop=True)
    dataset = table["dataset"].iloc[0] if table["dataset"].nunique() == 1 else ""
    return titled(table, runs, request, ("protocol", "backbone"), part, dataset)


def base_novel(runs: Runs, request: Request, notes: list[str]) -> pd.DataFrame:
    """`dataset`, `base`, `novel`, `H` (of the means), `base_deviation`, `novel_deviation`; one row a learner."""
    runs = {folder: record for folder, record in runs.items() if record.protocol == "base_to_novel"}
    if not runs:
        raise UserError("there are no base-to-novel results to draw: run protocol=base_to_novel first")
    if not find_metric(request.metric).higher_is_better:
        raise UserError(f"a harmonic mean of {request.metric} says nothing: choose another --metric")
    runs = one_cell(runs, ("backbone", "weights", "shots"), notes)
    results = of_datasets(runs, request, notes)
    results = results[results["part"].isin(["base", "novel", H])]
    wide = results.pivot(index=["dataset", *COLUMNS], columns="part", values="mean").reindex(
        columns=["base", "novel", H]
    )
    spreads = results.pivot(index=["dataset", *COLUMNS], columns="part", values="deviation")
    for part in ("base", "novel"):
        wide[f"{part}_deviation"] = spreads[part] if part in spreads else float("nan")
    wide = wide.dropna(subset=["base", "novel"]).reset_index()
    if wide.empty:
        raise UserError("no run has results on both base and novel classes: run protocol=base_to_novel first")
    table = one_dataset(wide, notes).reset_index(drop=True)
    return titled(table, runs, request, ("protocol", "backbone", "shots"), "", table["dataset"].iloc[0])


def open_world(runs: Runs, request: Request, notes: list[str]) -> pd.DataFrame:
    """As `base_novel`, of the test of all classes: accuracy of base and of novel images, told from all classes.

    `H` is the mean of the seeds' harmonic means.
    """
    runs = {folder: record for folder, record in runs.items() if record.protocol == "base_to_novel"}
    if not runs:
        raise UserError("there are no base-to-novel results to draw: run protocol=base_to_novel first")
    runs = one_cell(runs, ("backbone", "weights", "shots"), notes)
    columns: dict[str, pd.Series] = {}
    for name, metric in {"base": "open_base", "novel": "open_novel", "H": "open_H"}.items():
        results = of_datasets(runs, replace(request, metric=metric), notes)
        of_all = results[results["part"] == "all"].set_index(["dataset", *COLUMNS])
        columns |= {name: of_all["mean"], f"{name}_deviation": of_all["deviation"]}
    wide = pd.DataFrame(columns).dropna(subset=["base", "novel"]).reset_index()
    if wide.empty:
        raise UserError("no run has its images of both kinds among all classes: earlier records lack them, run again")
    notes[:] = dict.fromkeys(notes)
    table = one_dataset(wide, notes).reset_index(drop=True)
    table = titled(table, runs, request, ("protocol", "backbone", "shots"), "all", table["dataset"].iloc[0])
    table.attrs["axes"] = "{} images"  # all classes are in the title
    return table


def cost(runs: Runs, request: Request, notes: list[str]) -> pd.DataFrame:
    """One row a learner: `dataset`, `part`, `mean` of the metric, and a column for each of `COSTS`.

    `<cost>_front` says that no other learner is better and costs less. nan: not recorded. Zero-shot trains nothing.
    """
    runs = one_cell(runs, ("protocol", "backbone", "weights", "shots"), notes)
    results = of_datasets(runs, request, notes)
    results = results[results["part"] == (part := part_of(results, request))]
    table = one_dataset(results, notes)[["dataset", "part", *COLUMNS, "n", "mean", "records"]].reset_index(drop=True)
    better = table["mean"] * (1 if find_metric(request.metric).higher_is_better else -1)
    for name in COSTS:
        table[name] = [mean_cost(records, name) for records in table["records"]]
        table[f"{name}_front"] = pareto_front(table[name], better)
    if not (table[[*COSTS]] > 0).any(axis=None):
        raise UserError("no run has its costs: records that were imported, or made by an early version, lack them")
    unknown = table[[*COSTS]].isna().all(axis=1)
    notes += [f"Left out: {first_names(table[unknown]['learner'].tolist())}: without costs."] if unknown.any() else []
    table = table[~unknown].drop(columns="records").reset_index(drop=True)
    return titled(table, runs, request, ("protocol", "backbone", "shots"), part, table["dataset"].iloc[0])


def mean_cost(records: Sequence[Record], name: str) -> float:
    """Over those that have it; what is not trained has no parameters, and takes no time."""
    trained = name != "flops_per_image"
    values = [record.cost.get(name, 0 if trained and record.shots == 0 else None) for record in records]
    return float(pd.Series(values, dtype=float).mean())


def pareto_front(costs: pd.Series, better: pd.Series) -> list[bool]:
    """Whether no other has at least this score for at most this cost, and one of both better."""

    def beaten(cost: float, score: float) -> bool:
        no_worse = (costs <= cost) & (better >= score)
        return bool((no_worse & ((costs < cost) | (better > score))).any())

    return [pd.notna(c) and pd.notna(b) and not beaten(c, b) for c, b in zip(costs, better, strict=True)]


def critical_difference(runs: Runs, request: Request, notes: list[str]) -> pd.DataFrame:
    """`rank`: the mean over data sets, 1 is best; `attrs`: `n_datasets` and `critical_difference` (Nemenyi, 5 %)."""
    notes += unfinished(runs)
    finished = {folder: record for folder, record in runs.items() if record.status == "finished"}
    results = of_datasets(finished, request, notes) if finished else pd.DataFrame()
    if len(results):
        part_of(results, request)
    known = rankings(results, request.metric, request.split) if len(results) else []
    if not known:
        raise UserError("mean ranks need two learners with results on the same two data sets or more: run more of them")
    ranking = max(known, key=lambda one: len(one.ranks))
    notes += choice([one.cell for one in known], ranking.cell)
    notes += ranking.notes
    of_learner = results.drop_duplicates("learner").set_index("learner")[["name", "method"]]
    table = ranking.ranks.rename("rank").rename_axis("learner").reset_index().join(of_learner, on="learner")
    of_cell = {f: r for f, r in finished.items() if all(getattr(r, name) == v for name, v in ranking.cell.items())}
    table = titled(table, of_cell, request, ("protocol", "backbone", "shots"), ranking.part)
    n = len(ranking.scores)
    table.attrs |= {"n_datasets": n, "critical_difference": difference_of_ranks(len(table), n)}
    return table


def training(runs: Runs, request: Request, notes: list[str]) -> pd.DataFrame:
    """`epoch` (from 1), `n` seeds, `loss` and `accuracy` on training images, and `<name>_deviation` over seeds."""
    runs = {folder: record for folder, record in runs.items() if record.curve or record.status != "finished"}
    if not runs:
        raise UserError(NO_CURVES)
    runs = one_cell(runs, CELL, notes)
    of_runs = learners(runs)[COLUMNS].to_dict("index")
    measured = ("epoch", "loss", "accuracy")
    rows = [
        {**of_runs[folder], **{name: point.get(name) for name in measured}}
        for folder, record in runs.items()
        for point in record.curve
    ]
    points = pd.DataFrame(rows).astype(dict.fromkeys(measured, float)).dropna(subset="epoch")
    points = points.dropna(subset=["loss", "accuracy"], how="all")
    if points.empty:
        raise UserError(NO_CURVES)
    points = points.assign(epoch=points["epoch"].astype(int) + 1, accuracy=100 * points["accuracy"])
    groups = points.groupby([*COLUMNS, "epoch"], sort=False)
    means = groups.agg(n=("loss", "size"), loss=("loss", "mean"), accuracy=("accuracy", "mean"))
    for name in ("loss", "accuracy"):
        means[f"{name}_deviation"] = groups[name].std()
    return titled(means.reset_index(), runs, request, CELL)


def titled(
    table: pd.DataFrame, runs: Runs, request: Request, names: Sequence[str], part: str = "", dataset: str = ""
) -> pd.DataFrame:
    """With what the rows share, in words, the protocol first, and the metric."""
    first = max(runs.values(), key=lambda record: str(record.shots) != "0")
    shots = {"1": "1 shot", "all": "all training images", "0": ""}.get(str(first.shots), f"{first.shots} shots")
    words = {"protocol": about("protocol", first.protocol).name, "dataset": dataset_name(first.dataset),
             "backbone": about("backbone", first.backbone).name, "shots": shots}  # fmt: skip
    shared = [words[name] for name in names if words.get(name)]
    if dataset:
        shared.insert(1, dataset_name(dataset))
    table.attrs |= {"metric": request.metric, "part": part}
    table.attrs["title"] = ", ".join([*shared, *([part] if part not in ("", "test") else [])])
    return table
