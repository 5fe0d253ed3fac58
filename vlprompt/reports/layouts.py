"""Tables as papers print them: base, novel and H of each data set; data sets side by side; averages."""

from collections.abc import Mapping, Sequence

import pandas as pd

from vlprompt.errors import UserError, unknown
from vlprompt.reports.averages import CONTEXT, identity, in_papers_order, in_parts_order, joined
from vlprompt.reports.grid import Grid
from vlprompt.reports.marks import best_and_second
from vlprompt.reports.render import spread_text
from vlprompt.reports.summary import MEAN_OF_H, TOLD, H, Interval, learner_order, sources, without_result, without_usual
from vlprompt.results.metrics import Metric, find_metric
from vlprompt.results.record import Record

PAPERS = ("base_to_novel", "few_shot", "cross_dataset", "domain_generalization")
LAYOUTS = ("runs", *PAPERS, "auto", "test_time", "calibration", "open_world", "ood", "published")
H_NOTE = (
    "H: harmonic mean of the means of base and novel, as published. mean of H: the mean of harmonic means, over seeds "
    "for a data set, over data sets for an average."
)
N_NOTE = "±: sample deviation over n seeds; of an average, that of the seeds' averages."


def of_layout(records: Sequence[Record], layout: str) -> tuple[list[Record], list[str]]:
    """The records that a layout shows, and a note on the others. Raises: UserError where it shows none."""
    if layout not in LAYOUTS:
        raise unknown("layout", layout, LAYOUTS)
    if layout not in PAPERS:
        return list(records), []
    shown = [record for record in records if record.protocol == layout]
    others = sorted({record.protocol for record in records} - {layout})
    if records and not shown:
        raise UserError(f"there are no runs of {layout} (but of {', '.join(others)}): use --layout auto")
    note = f"Not in this layout: {len(records) - len(shown)} runs of {', '.join(others)}."
    return shown, [note] if others else []


def notes_of(results: pd.DataFrame, records: Sequence[Record], interval: Interval = "none") -> list[str]:
    """What a reader must know: how H is made, and which runs have no result."""
    notes = [N_NOTE] if interval != "normal" and results["deviation"].notna().any() else []
    notes += [H_NOTE] if (results["part"] == H).any() else []
    return [*notes, *without_result(records)]


def grids(results: pd.DataFrame, metric: str = "accuracy", *, on_terminal: bool = False) -> list[Grid]:
    """A table for each protocol, source, backbone and weights (of base-to-novel: and number of shots).

    `results` are those of `across_datasets`. On a terminal rows without a result are left to the notes, if others have
    one.
    """
    drawn = []
    if on_terminal and (results["n"] > 0).any():
        results = results[results["n"] > 0]
    groups = results.groupby(CONTEXT[:-1], sort=False)
    for key, group in sorted(groups, key=lambda item: (*item[0][:3], item[0][3] == "", item[0][3])):
        tall = key[0] == "base_to_novel"
        tables = [members for _, members in group.groupby("shots", sort=False)] if tall else [group]
        drawn += [_grid(members, find_metric(metric), tall=tall) for members in tables]
    return drawn


def _grid(members: pd.DataFrame, shown: Metric, *, tall: bool) -> Grid:
    """Rows: the learners, in blocks of a data set each (`tall`; columns: the parts), or of a number of shots (columns:
    the data sets). Averages come last."""
    rows = in_learners_order(members)
    rows = rows.assign(
        column=rows["part"] if tall else headings(rows),
        text=[spread_text(*s, decimals=shown.decimals) for s in rows[["mean", "deviation", "half_width"]].to_numpy()],
    )
    datasets = in_papers_order(rows["dataset"], rows["source"].iloc[0])
    filled = rows[rows["n"] > 0]
    by_dataset = filled.sort_values("dataset", key=lambda names: names.map(datasets.index), kind="stable")
    columns = in_parts_order(filled["part"]) if tall else by_dataset["column"].tolist()
    return learners_by(
        rows, "dataset" if tall else "shots", dict.fromkeys(columns, shown), blocks=datasets if tall else (),
        extras=("all", MEAN_OF_H), unit=shown.label,
    )  # fmt: skip


def in_learners_order(members: pd.DataFrame) -> pd.DataFrame:
    """Rows of `across_datasets` by shots, zero-shot first, then by name and settings."""
    asked = identity(members)[identity(members).index("named") + 1 :]
    order = [learner_order(row, asked) for row in members.to_dict("records")]
    return members.iloc[sorted(range(len(members)), key=order.__getitem__)]


def learners_by(
    rows: pd.DataFrame,
    block: str,
    columns: Mapping[str, Metric | None],
    *,
    blocks: Sequence[str] = (),
    extras: Sequence[str] = (),
    first: Sequence[str] = (),
    unit: str = "",
    across: bool = False,
) -> Grid:
    """A table of learners, in `blocks` (default: as they come) by a column of this name.

    `rows` are results as of `across_datasets`, each with its `text` and the name of its `column`. The best of a column
    is marked within its block, where the column has a metric; `across`: the best of each row. `extras` are columns that
    only a wide terminal shows, `first` those that a narrow one shows rather than others.
    """
    rows = rows.assign(variant=rows["named"])
    index = [block, *(name for name in identity(rows) if name not in ("named", block))]
    rows = rows.astype(dict.fromkeys(index, str))
    shape = rows[index].drop_duplicates()
    if blocks:
        shape = shape.sort_values(block, key=lambda names: names.map([*blocks].index), kind="stable")
    members = list(shape.itertuples(index=False, name=None))
    filled = rows[rows["text"] != ""].drop_duplicates([*index, "column"])

    def cells(name: str) -> pd.DataFrame:
        table = filled.pivot(index=index, columns="column", values=name)
        return table.reindex(index=pd.MultiIndex.from_frame(shape), columns=[*columns])

    table = shape.reset_index(drop=True)
    low, high = (cells("n").where(lambda n: n > 0).agg(of, axis=1).fillna(0) for of in ("min", "max"))
    table["n"] = [f"{a:.0f}" if a == b else f"{a:.0f} to {b:.0f}" for a, b in zip(low, high, strict=True)]
    printed = set(rows[rows["records"].map(sources) != ""][index].itertuples(index=False, name=None))
    table["n"] = table["n"].mask([member in printed for member in members], "")
    told = [name for name in TOLD if name not in index]  # others are asked for
    for name in reversed(told):
        said = rows.groupby(index, sort=False)[name].agg(joined, name)
        table.insert(len(index), name, [said[member] for member in members])
    table = without_usual(table, index)
    if (table["n"] == "").all():  # papers alone
        del table["n"]
    table[[*columns]] = cells("text").astype(object).fillna("").to_numpy()
    context = {name: rows[name].iloc[0] for name in [*CONTEXT[:-1], *["shots"] * (block != "shots")]}
    averages = [name for name in columns if name == H or name.startswith("average_") or name.endswith("(corrupted)")]
    keys = ["method", *(name for name in dict.fromkeys([*index, *TOLD]) if name != "method" and name in table)]
    return Grid(
        ", ".join(f"{name} {value}" for name, value in context.items() if value != ""),
        table, _marks(cells("mean"), shape[block].tolist(), columns, across=across), shape[block].tolist(),
        keys=keys, shared=("precision", "variant", "shots", *TOLD),
        extras=[name for name in extras if name in columns],
        order=[keys[0], index[0], "inference", *first, *averages, *keys[1:], "n"], unit=unit,
    )  # fmt: skip


def _marks(
    means: pd.DataFrame, blocks: Sequence[str], columns: Mapping[str, Metric | None], *, across: bool
) -> dict[tuple[int, str], str]:
    if across:
        (shown,) = {*columns.values()}
        turned = best_and_second(means.T, [""] * len(columns), shown) if shown else {}
        names = list(columns)
        return {(list(means.index).index(row), names[i]): mark for (i, row), mark in turned.items()}
    marks: dict[tuple[int, str], str] = {}
    for metric in {metric for metric in columns.values() if metric}:
        of_metric = [name for name, of in columns.items() if of == metric]
        marks |= best_and_second(means[of_metric], blocks, metric)
    return marks


def headings(rows: pd.DataFrame) -> pd.Series:
    return rows["dataset"].where(rows["part"] == "test", rows["dataset"] + " (" + rows["part"] + ")")


def distance_grid(table: pd.DataFrame) -> Grid:
    """Published numbers, each followed by ours less theirs, as `published.distances` has them."""
    shown = pd.DataFrame(index=table.index)
    for name in map(str, table):
        part = name.removesuffix("_published")
        if name in ("recipe", "n", "variant") or name.endswith("_difference"):
            continue
        if part != name:
            gaps = table[f"{part}_difference"]
            pairs = zip(table[name], gaps, strict=True)
            shown[part] = [
                "" if pd.isna(value) else f"{value:.2f} ({round(gap, 2) + 0.0:+.2f})" for value, gap in pairs
            ]
        elif f"{name}_published" not in table:
            shown["variant" if name == "named" else name] = table[name].map(str)
    names = [name for name in ("dataset", "method", "shots", "precision", "variant") if name in shown]
    keys = ["method", *(name for name in [*names, "protocol", "backbone", "source"] if name != "method")]
    return Grid(
        "Distance to the papers", shown, blocks=table["dataset"].tolist(), keys=keys,
        shared=("protocol", "backbone", "variant", "source"), extras=["printed"],
        order=[*names, *(name for name in shown if name not in (*keys, "printed"))],
    )  # fmt: skip
