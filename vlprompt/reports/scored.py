"""Tables of several metrics: a row a learner, for each test the numbers that answer one question."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import MappingProxyType

import pandas as pd

from vlprompt.errors import UserError
from vlprompt.reports.averages import CONTEXT, across_datasets, in_papers_order, in_parts_order, numbers
from vlprompt.reports.grid import Grid
from vlprompt.reports.layouts import in_learners_order, learners_by
from vlprompt.reports.render import number, spread_text
from vlprompt.reports.summary import Interval
from vlprompt.results.metrics import OF_IMAGES, Metric, complete, find_metric, interval
from vlprompt.results.predictions import PREDICTIONS, Predictions, load_predictions
from vlprompt.results.record import Record

BOOTSTRAP = "bootstrap"
BOOTSTRAP_NOTE = (
    "In brackets: 95 % percentile interval by a bootstrap over the test images (1,000 samples) of each seed, its ends "
    "averaged over seeds. It holds the chance of the images, not that of training; errors of calibration are larger in "
    "samples of samples, so that their interval may lie above the value."
)


@dataclass(frozen=True)
class Layout:
    """Metrics by their headings: `metrics` always, `more` where there is room.

    `tests` are those that are shown, of a protocol that has any of them; of others all. `unmarked` are headings of
    numbers of which neither more nor less is better.
    """

    metrics: Mapping[str, str]
    more: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    tests: Sequence[str] = ()
    unmarked: Sequence[str] = ()
    first: Sequence[str] = ()  # headings that matter most
    lacking: str = ""  # what to do where no run has these metrics

    @property
    def all(self) -> dict[str, str]:
        return {**self.metrics, **self.more}


LAYOUTS = {
    "calibration": Layout(
        {"acc": "accuracy", "conf": "confidence", "over": "overconfidence", "ECE": "ece"},
        {"ACE": "ace", "NLL": "nll", "Brier": "brier", "MCE": "mce", "cw-ECE": "classwise_ece", "refin": "refinement"},
        tests=("base", "novel", "test"),
        unmarked=("conf", "over"),
        first=("over", "ECE"),
        lacking="records without predictions next to them have no confidences: run them again with force=true",
    ),
    "open_world": Layout(
        {"AUROC": "open_auroc", "FPR95": "open_fpr95", "OpenworldAUC": "openworld_auc", "base": "open_base",
         "novel": "open_novel", "H": "open_H"},
        tests=("all",),
        lacking="they need the test all of base_to_novel; earlier records lack it: run them again with force=true",
    ),
    "ood": Layout(
        {"acc": "accuracy", "MCM AUROC": "mcm_auroc", "MCM FPR95": "mcm_fpr95", "energy AUROC": "energy_auroc",
         "energy FPR95": "energy_fpr95"},
        {"max-logit AUROC": "max_logit_auroc", "max-logit FPR95": "max_logit_fpr95", "MSP AUROC": "msp_auroc",
         "MSP FPR95": "msp_fpr95"},
        lacking="run with protocol.ood=[dtd] or other data sets",
    ),
}  # fmt: skip
"""By the name that `--layout` takes: a table more is an entry here, and one in `vlprompt/commands/tables.py`."""


def tables(
    runs: Mapping[Path, Record], name: str, *, how: Interval | str = "none", columns: Sequence[str] = ()
) -> tuple[list[Grid], pd.DataFrame, list[str]]:
    """A table for each protocol, backbone and number of shots, with a block for each data set; raw numbers; notes.

    `how`: as `--interval`; "bootstrap" resamples the test images of each run.
    Raises: UserError where no run has any of the metrics.
    """
    layout, notes = LAYOUTS[name], list[str]()
    records = list(runs.values())
    for metric in layout.all.values():
        records = complete(dict(zip(runs, records, strict=True)), metric, notes)
    over_seeds: Interval = "t" if how == "t" else "normal" if how == "normal" else "none"
    results, gaps = zip(
        *(across_datasets(records, metric=metric, interval=over_seeds, columns=columns)
          for metric in layout.all.values()), strict=True
    )  # fmt: skip
    rows = pd.concat([of.assign(heading=heading) for heading, of in zip(layout.all, results, strict=True)])
    special = rows[~rows["metric"].isin(["accuracy"])]
    if not (special["n"] > 0).any():
        raise UserError(f"no run here has the numbers of {name}: {layout.lacking}")
    rows = rows[rows["n"] > 0].reset_index(drop=True)
    rows["text"] = _texts(rows)
    if how == BOOTSTRAP:
        rows = _resampled(rows, dict(zip(map(id, records), runs, strict=True)))
    shown = [members for _, members in rows.groupby(CONTEXT, sort=False)]
    chosen = [_of_tests(members, layout) for members in shown]
    grids = [_grid(members, layout) for members in chosen if len(members)]
    raw = pd.concat([numbers(members) for members in chosen])
    if how == BOOTSTRAP:
        raw[["low", "high"]] = pd.concat(chosen)[["low", "high"]]
    notes = [*notes, *dict.fromkeys(gap for of in gaps for gap in of), _headings_note(layout, {*rows["heading"]})]
    return grids, raw, [*notes, *[BOOTSTRAP_NOTE] * (how == BOOTSTRAP)]


def _of_tests(members: pd.DataFrame, layout: Layout) -> pd.DataFrame:
    there = in_parts_order(members["part"])
    return members[members["part"].isin([test for test in layout.tests if test in there] or there)]


def _grid(members: pd.DataFrame, layout: Layout) -> Grid:
    parts = in_parts_order(members["part"])
    several = len(parts) > 1
    headings = [(part, heading) for of in (layout.metrics, layout.more) for part in parts for heading in of]
    there = {*zip(members["part"], members["heading"], strict=True)}
    columns: dict[str, Metric | None] = {}
    more = []
    for part, heading in headings:
        if (part, heading) in there:
            column = f"{part} {heading}" if several else heading
            columns[column] = None if heading in layout.unmarked else find_metric(layout.all[heading])
            more += [column] * (heading in layout.more)
    rows = in_learners_order(members)
    rows = rows.assign(column=rows["part"] + " " + rows["heading"] if several else rows["heading"])
    title = "" if several or parts == ["test"] else f"test {parts[0]}"
    blocks = in_papers_order(rows["dataset"], rows["source"].iloc[0])
    first = [column for column in columns if column not in more]
    first.sort(key=lambda column: not column.endswith(tuple(layout.first)))
    return learners_by(rows, "dataset", columns, blocks=blocks, extras=more, first=first, unit=title)


def _texts(rows: pd.DataFrame) -> list[str]:
    decimals = [find_metric(metric).decimals for metric in rows["metric"]]
    values = rows[["mean", "deviation", "half_width"]].to_numpy()
    return [spread_text(*v, decimals=n) for v, n in zip(values, decimals, strict=True)]


def _resampled(rows: pd.DataFrame, folders: Mapping[int, Path]) -> pd.DataFrame:
    """With the interval by a bootstrap over images instead of the deviation, where a row is of one test."""
    rows = rows.assign(low=float("nan"), high=float("nan"))
    for i, row in rows.iterrows():
        test = row["dataset"] if row["source"] else row["part"]
        if row["metric"] not in OF_IMAGES:
            continue
        shown, ends = find_metric(row["metric"]), []
        for record in row["records"]:
            if (of_test := _loaded(folders[id(record)]).get(test)) is not None and row["metric"] in record.scores[test]:
                ends.append(interval(of_test, row["metric"]))
        if ends:
            low, high = (shown.factor * sum(of) / len(ends) for of in zip(*ends, strict=True))
            form = f".{shown.decimals}f"
            text = f"{number(row['mean'], form)} [{number(low, form)}, {number(high, form)}]"
            rows.loc[i, ["low", "high", "text"]] = [low, high, text]
    return rows


@cache
def _loaded(folder: Path) -> dict[str, Predictions]:
    path = folder / PREDICTIONS
    return load_predictions(path) if path.exists() else {}


def _headings_note(layout: Layout, there: Collection[str]) -> str:
    means = (f"{heading}: {find_metric(of).label}" for heading, of in layout.all.items() if heading in there)
    return "; ".join(means) + "."
