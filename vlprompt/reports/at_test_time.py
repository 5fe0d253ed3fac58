"""Learners by what is done with them at test time: scores, and what an image costs."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean

import pandas as pd

from vlprompt.config.changes import Changes, value_text
from vlprompt.config.hashing import config_hash
from vlprompt.errors import Note, UserError, unknown
from vlprompt.reports.averages import CONTEXT, across_datasets, in_papers_order, in_parts_order, numbers
from vlprompt.reports.grid import FAILED, NOT_APPLICABLE, Grid
from vlprompt.reports.layouts import headings, in_learners_order, learners_by
from vlprompt.reports.render import flops_unit, number, spread_text
from vlprompt.reports.summary import TOLD, H, Interval
from vlprompt.reports.variants import has_name, shared_changes
from vlprompt.results.metrics import Metric, find_metric
from vlprompt.results.record import INFERENCES, Record

TEST_TIME, NONE = "test_time", "none"
ORDER = (NONE, "tpt", "c_tpt", "zero", "mta", "tda")  # others come after these
STATES = {"not_applicable": NOT_APPLICABLE, "failed": FAILED}
HOW_NOTE = "Columns: what is done at test time. Marked: the best of each learner."
COSTS_NOTE = (
    "Costs are of one test image with all its views, from pixels; of none: of each of four at once. What is computed "
    "once for all images of a test is left out."
)


def tables(
    records: Sequence[Record], metric: str, interval: Interval = "none", tests: Sequence[str] = ()
) -> tuple[list[Grid], list[Grid], pd.DataFrame, list[str]]:
    """The scores, a table for each protocol, backbone and number of shots; the costs; the raw numbers; and notes.

    A row is a learner without what is done at test time, which has the columns. `tests`: base, novel, H, ...; by
    default what the protocol is judged by. Of several data sets their average is shown where there is one.
    Raises: UserError: a test that no run has.
    """
    records = trained_alone(records)
    results, gaps = across_datasets(records, metric=metric, interval=interval, columns=[TEST_TIME])
    known = in_parts_order(results[results["n"] > 0]["part"])
    for test in tests:
        if test not in known:
            raise unknown("test", test, known)
    states = states_of(records)
    contexts = results.groupby(CONTEXT, sort=False)
    grids = [grid for _, members in contexts if (grid := _scores(members, metric, tests, states))]
    if not grids:
        raise UserError(f"no run here has a result by {metric}: see vlprompt table for what there is")
    notes = [HOW_NOTE, *_inferences(records), *gaps, *_without_number(records)]
    costs = _costs(results)
    return grids, costs, numbers(results), [*notes, *[COSTS_NOTE] * bool(costs)]


def trained_alone(records: Sequence[Record]) -> list[Record]:
    """The records with the variants of their training alone; `test_time` of the configuration is what its column says.

    A hash is one of the other changes, so that what is tested in several ways has one variant.
    """
    plain = []
    for record, changes in zip(records, shared_changes(records), strict=True):
        at_test, rest = _divided(changes or {})
        variant = record.variant
        if changes is not None and not has_name(record):
            variant = config_hash(rest)[:8] if rest else None
        elif at_test and variant and variant[-9:-8] == "+":  # as `vlprompt evaluate` names what it makes
            variant = variant[:-9]
        update = {"variant": variant, "changes": rest if changes is not None else None}
        config = {**record.config, "name": variant if has_name(record) else None, TEST_TIME: _name(record, at_test)}
        plain.append(record.model_copy(update={**update, "config": config}))
    return plain


def _divided(changes: Changes) -> tuple[dict[str, object], dict[str, object]]:
    """The changes at test time, and the others."""
    at_test = {key: value for key, value in changes.items() if key.partition(".")[0] == TEST_TIME}
    return at_test, {key: value for key, value in changes.items() if key not in at_test}


def _name(record: Record, at_test: Mapping[str, object]) -> str:
    """zero, or `zero views=16` where settings are not the default's."""
    chosen = record.config.get(TEST_TIME)
    chosen = chosen.get("name") if isinstance(chosen, Mapping) else None
    name = record.test_time.get("name") or at_test.get(TEST_TIME) or chosen or NONE
    settings = (f"{key.partition('.')[2]}={value_text(v)}" for key, v in at_test.items() if key != TEST_TIME)
    return " ".join([str(name), *settings])


def in_order(names: Iterable[str]) -> list[str]:
    """none first, then as papers came, others by name."""

    def rank(name: str) -> tuple[int, str]:
        method = name.partition(" ")[0]
        return (ORDER.index(method) if method in ORDER else len(ORDER), name)

    return sorted(set(names), key=rank)


def states_of(records: Sequence[Record]) -> dict[tuple[str, ...], str]:
    """Why a cell has no number, where all of its runs say so."""
    states: dict[tuple[str, ...], set[str]] = {}
    for record in records:
        key = record.protocol, record.backbone, record.method, record.variant or "", record.config[TEST_TIME]
        states.setdefault(key, set()).add(STATES.get(record.status, ""))
    return {key: min(of) for key, of in states.items() if "" not in of}


def _scores(
    members: pd.DataFrame, metric: str, tests: Sequence[str], states: Mapping[tuple[str, ...], str]
) -> Grid | None:
    """Of one protocol, source, backbone and number of shots; a block for each test, and each data set without an
    average."""
    filled = members[members["n"] > 0]
    averages = filled[filled["dataset"].str.startswith("average_")]
    filled = averages if len(averages) else filled
    there = in_parts_order(filled["part"])
    judged = [H] if H in there else ["base", "novel"] if {"base", "novel"} <= {*there} else ["test"]
    chosen = [test for test in tests or judged if test in there] or ([] if tests else there)
    filled = filled[filled["part"].isin(chosen)]
    if filled.empty:
        return None
    datasets = in_papers_order(filled["dataset"], filled["source"].iloc[0])
    several = len(datasets) > 1 or filled["source"].iloc[0]
    orders = {"dataset": datasets, "part": chosen}
    filled = filled.sort_values([*orders], key=lambda names: names.map(orders[str(names.name)].index), kind="stable")
    filled = filled.assign(test=headings(filled) if several else filled["part"])
    blocks = list(dict.fromkeys(filled["test"]))
    keys = members[["protocol", "backbone", "method", "variant", TEST_TIME]].itertuples(index=False, name=None)
    refused = members.assign(state=[states.get(key, "") for key in keys])
    refused = refused[refused["state"] != ""].drop_duplicates(["precision", "method", "variant", "named", TEST_TIME])
    rows = in_learners_order(pd.concat([filled, *(refused.assign(test=block) for block in blocks)]))
    shown, spreads = find_metric(metric), rows[["mean", "deviation", "half_width"]].to_numpy()
    texts = [spread_text(*values, decimals=shown.decimals) for values in spreads]
    columns = dict.fromkeys(in_order(rows[TEST_TIME]), shown)
    rows = rows.assign(text=texts).assign(text=lambda table: table["text"].where(table["n"] > 0, table["state"]))
    return _learners_by_test_time(rows, columns, "test", blocks, unit=shown.label)


def _costs(results: pd.DataFrame) -> list[Grid]:
    """A table for each backbone, with a block for each kind of cost: means over runs."""
    grids = []
    for _, members in results[results["n"] > 0].groupby(["backbone", "weights"], sort=False):
        members = in_learners_order(members).assign(protocol="", source="", shots="")
        learner = ["precision", "method", "variant", "named", TEST_TIME]
        of_learners = members.groupby(learner, sort=False)["records"].agg(lambda parts: [r for of in parts for r in of])
        rows = members.drop_duplicates(learner)
        records = [of_learners[key] for key in rows[learner].itertuples(index=False, name=None)]
        blocks = {title: texts for title, texts in _cost_texts(records).items() if any(texts)}
        if not blocks:
            continue
        rows = pd.concat([_at_once(rows.assign(cost=title, text=texts)) for title, texts in blocks.items()])
        columns = dict.fromkeys(in_order(rows[TEST_TIME]))
        grid = _learners_by_test_time(rows, columns, "cost", list(blocks))
        title = f"Costs of a test image, {grid.title}"
        grids.append(replace(grid, title=title, rows=grid.rows.drop(columns=["n", *({*TOLD} & {*grid.rows})])))
    return grids


def _at_once(rows: pd.DataFrame) -> pd.DataFrame:
    """One row for all learners, where they have the same."""
    if rows.groupby(TEST_TIME)["text"].nunique().max() > 1 or rows["method"].nunique() == 1:
        return rows
    return rows.drop_duplicates(TEST_TIME).assign(
        method="all", variant="", named="", precision=rows["precision"].iloc[0]
    )


def _cost_texts(records: Sequence[Sequence[Record]]) -> dict[str, list[str]]:
    """Of the runs of each cell, by the kind of cost."""

    def means(name: str, default: float | None = None) -> list[float]:
        values = [[v for r in of if (v := r.cost.get(name, default)) is not None] for of in records]
        return [fmean(of) if of else float("nan") for of in values]

    views = [
        1.0 if all(not r.test_time for r in of) else value for of, value in zip(records, means("views"), strict=True)
    ]
    milliseconds = [1000 * value for value in means("seconds_per_image")]
    flops = means("flops_per_image")
    unit, factor = flops_unit(flops)
    return {
        "views": [number(value, ",.0f") for value in views],
        "ms": [number(value, ",.1f" if any(v >= 100 for v in milliseconds) else ".2f") for value in milliseconds],
        unit: [number(value / factor, ",.1f") for value in flops],
    }


def _learners_by_test_time(
    rows: pd.DataFrame, columns: Mapping[str, Metric | None], block: str, blocks: Sequence[str], *, unit: str = ""
) -> Grid:
    rows = rows.assign(column=rows[TEST_TIME], inference="").drop(columns=TEST_TIME)
    return learners_by(rows, block, columns, blocks=blocks, unit=unit, across=True)


def _without_number(records: Sequence[Record]) -> list[Note]:
    """Why cells have none, each reason once."""
    notes = {}
    for record in records:
        if state := STATES.get(record.status):
            name = f"{record.learner}, {record.config[TEST_TIME]}"
            why = " ".join((record.reason or "no reason kept").split())
            notes[name, why] = Note(f"{state}: {{}}: {why.rstrip('.')}.", name)
    return list(notes.values())


def _inferences(records: Sequence[Record]) -> list[str]:
    """What each column saw of the test, and what that means."""
    seen: dict[str, str] = {record.config[TEST_TIME]: record.inference for record in records if record.scores}
    of = {name: [column for column in in_order(seen) if seen[column] == name] for name in INFERENCES}
    told = "; ".join(f"{', '.join(names)}: {name}, {INFERENCES[name]}" for name, names in of.items() if names)
    return [f"{told}."] if {*seen.values()} - {"inductive"} else []
