"""What figures of predictions show, as tidy tables: `reliability`, `confusion`, `class_gains`, `forest`.

As in `data.py`: each takes runs by their folders, what is asked for and a list that it adds notes to.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import PurePath

import numpy as np
import pandas as pd

from vlprompt.errors import Note, UserError, unknown
from vlprompt.reports.averages import in_papers_order, in_parts_order
from vlprompt.reports.figures.cells import (
    CELL,
    Request,
    Runs,
    have_predictions,
    learners,
    of_split,
    one_cell,
    reference,
)
from vlprompt.reports.figures.data import COLUMNS, titled
from vlprompt.reports.significance import paired
from vlprompt.reports.summary import is_transfer, summed_up
from vlprompt.results.metrics import calibration_error, per_class_accuracy
from vlprompt.results.metrics import reliability as curve_of
from vlprompt.results.predictions import PREDICTIONS, Predictions, pool
from vlprompt.results.record import Record


def reliability(runs: Runs, request: Request, notes: list[str]) -> pd.DataFrame:
    """A row a learner, test and bin of confidence: `split`, `low`, `high`, `confidence`, `accuracy`, `share`, `ece`.

    Fractions; of the images of all its seeds, `share` of these; `ece` is the mean of the seeds' errors. An empty bin
    has no confidence. The request may name several tests: base,novel.
    """
    runs = one_cell(runs, CELL, notes, needs=PREDICTIONS)
    curves, splits = [], list[str]()
    for asked in request.split.split(",") if request.split else [None]:
        split, table, of_learners = of_split(runs, replace(request, split=asked), notes)
        splits.append(split)
        for learner, predictions in of_learners.items():
            curve = curve_of(pool(predictions))
            ece = float(np.mean([calibration_error(curve_of(one)) for one in predictions]))
            shared = {"learner": learner, **table.loc[learner, ["name", "method"]], "split": split}
            curves.append(curve.assign(share=curve["images"] / curve["images"].sum(), ece=ece, **shared))
    return titled(pd.concat(curves, ignore_index=True), runs, request, CELL, splits[0] if len(splits) == 1 else "")


def confusion(runs: Runs, request: Request, notes: list[str], *, most: int = 20) -> pd.DataFrame:
    """A row a learner and pair of classes: `true` and `predicted` (names), `share` (%) of the images of the true class.

    The `most` pairs with the largest mean share over the learners, the worst first; `images`: how many, of all seeds.
    """
    runs = one_cell(runs, CELL, notes, needs=PREDICTIONS)
    split, table, of_learners = of_split(runs, request, notes)
    pooled = {learner: pool(predictions) for learner, predictions in of_learners.items()}
    shares = pd.DataFrame({learner: _confused(predictions) for learner, predictions in pooled.items()}).fillna(0.0)
    if shares.empty:
        raise UserError("no learner confuses any two classes here: every image is right")
    shares = shares.rename_axis(["label", "predicted_label"])
    mean = shares.mean(axis=1).rename("mean").reset_index()
    worst = mean.sort_values(["mean", "label", "predicted_label"], ascending=[False, True, True]).head(most)
    names = class_namer(next(iter(runs.values())), split, next(iter(pooled.values())), request)
    rows = []
    for label, predicted in worst[["label", "predicted_label"]].itertuples(index=False):
        for learner, predictions in pooled.items():
            of_pair = {
                "true": names(label),
                "predicted": names(predicted),
                "label": label,
                "predicted_label": predicted,
            }
            share, n = float(shares.loc[(label, predicted), learner]), int((predictions.labels == label).sum())
            rows.append({"learner": learner, **table.loc[learner, ["name", "method"]], **of_pair,
                         "share": 100 * share, "images": round(share * n)})  # fmt: skip
    return titled(pd.DataFrame(rows), runs, request, CELL, split)


def _confused(predictions: Predictions) -> pd.Series:
    """By true and predicted label, where they differ: the share of the images of the true one."""
    pairs = pd.DataFrame({"label": predictions.labels, "predicted": predictions.predicted})
    n = pairs.groupby("label").size()
    counts = pairs[pairs["label"] != pairs["predicted"]].groupby(["label", "predicted"]).size()
    return counts / n.reindex(counts.index.get_level_values("label")).to_numpy()


def class_gains(runs: Runs, request: Request, notes: list[str]) -> pd.DataFrame:
    """A row a learner and class: `class_name`, `label`, `accuracy` (%), `gain` over the reference (points), `images`.

    The reference is zero-shot, or what is asked for; `attrs["against"]` is its name. Means over seeds.
    """
    runs = one_cell(runs, CELL, notes, needs=PREDICTIONS)
    split, table, of_learners = of_split(runs, request, notes)
    against = reference(table.reset_index(), request)
    if len(of_learners) < 2:
        raise UserError(f"there is nothing to compare with {against}: no other learner has predictions here")
    pooled = {learner: pool(predictions) for learner, predictions in of_learners.items()}
    names = class_namer(next(iter(runs.values())), split, next(iter(pooled.values())), request)
    before = per_class_accuracy(pooled[against])
    rows = []
    for learner, predictions in pooled.items():
        if learner == against:
            continue
        classes = per_class_accuracy(predictions)
        shared = {"learner": learner, **table.loc[learner, ["name", "method"]]}
        gains = 100 * (classes["accuracy"] - before["accuracy"].reindex(classes.index))
        rows.append(classes.assign(accuracy=100 * classes["accuracy"], gain=gains, **shared).reset_index())
    gained = pd.concat(rows, ignore_index=True)
    gained.insert(0, "class_name", [names(label) for label in gained["label"]])
    gained = titled(gained, runs, request, CELL, split)
    gained.attrs["against"] = table.loc[against, "name"]
    return gained


def forest(runs: Runs, request: Request, notes: list[str]) -> pd.DataFrame:
    """A row a learner, data set and split: `difference` to the reference on the same images, in points, `low`, `high`.

    As `significance.paired`: a 95 % interval by a paired bootstrap over images, of the mean over `seeds` of them.
    `attrs["against"]` is the name of the reference: zero-shot, or what is asked for.
    """
    runs = one_cell(runs, ("protocol", "backbone", "weights", "shots"), notes, needs=PREDICTIONS)
    runs = have_predictions(runs, notes)
    table = learners(runs)
    against = reference(table, request)
    of_learners = {
        learner: {folder: runs[folder] for folder in folders}
        for learner, folders in table.groupby("learner", sort=False).groups.items()
    }
    if len(of_learners) < 2:
        raise UserError(f"there is nothing to compare with {against}: there is no other learner here")
    compared = []
    for learner, of_learner in of_learners.items():
        if learner != against:
            try:
                rows, gaps = paired(of_learner, of_learners[against])
            except UserError as error:
                notes.append(Note(f"Left out: {{}}: {str(error).rstrip('.')}.", learner))
                continue
            first = table[table["learner"] == learner].iloc[0]
            notes += gaps
            compared.append(rows.assign(**first[COLUMNS]))
    if not compared:
        raise UserError(f"no learner can be compared with {against} on the same images")
    rows = pd.concat(compared, ignore_index=True)
    seeds = rows[rows["seed"].str.isdigit()].groupby(["learner", "dataset", "split"])["seed"].nunique()
    last = rows.drop_duplicates(["learner", "dataset", "split"], keep="last")  # of all seeds, where there are several
    last = last.join(seeds.rename("seeds"), on=["learner", "dataset", "split"])
    if request.split is not None:
        last = last[last["split"] == request.split]
        if last.empty:
            raise unknown("test split", request.split, rows["split"].unique())
    elif {"base", "novel"} & {*last["split"]}:
        last = last[last["split"] != "all"]
    else:  # those of which there are too many to show each
        protocol = next(iter(runs.values())).protocol
        last = last[~last["split"].isin(summed_up(protocol, last["split"]))]
    datasets, splits = in_papers_order(last["dataset"]), in_parts_order(last["split"])
    orders = {"dataset": datasets, "split": splits}
    last = last.sort_values([*orders], key=lambda of: of.map(orders[of.name].index), kind="stable")
    names = [*COLUMNS, "dataset", "split", "seeds", "images", "difference", "low", "high"]
    last = titled(last[names].reset_index(drop=True), runs, request, ("protocol", "backbone", "shots"))
    last.attrs["against"] = table[table["learner"] == against]["name"].iloc[0]
    return last


def class_namer(record: Record, split: str, predictions: Predictions, request: Request) -> Callable[[int], str]:
    """The name of the class with a label: as the data set has it, else the folder of its images, else "class 3"."""
    of_images = request.class_names(split if is_transfer(record.protocol) else record.dataset)
    images = pd.DataFrame({"label": predictions.labels, "image": predictions.images.tolist()})
    known: dict[int, str] = {}
    for names in (images["image"].map(lambda image: of_images.get(image, "")),
                  images["image"].map(lambda image: PurePath(image).parent.name)):  # fmt: skip
        of_label = names.groupby(images["label"]).unique()
        single = {int(label): values[0] for label, values in of_label.items() if len(values) == 1 and values[0]}
        if len(single) == len(of_label) == len({*single.values()}):
            known = single
            break
    return lambda label: known.get(int(label), f"class {label}").replace("_", " ")
