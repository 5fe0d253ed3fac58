"""Tables of results, derived from records: mean and deviation over seeds, for the terminal and for papers."""

import sys
from collections.abc import Sequence
from typing import Any

import pandas as pd

from vlprompt.errors import UserError, unknown
from vlprompt.protocols.base_to_novel import harmonic_mean
from vlprompt.protocols.cross_dataset import CrossDataset
from vlprompt.protocols.domain_generalization import DomainGeneralization
from vlprompt.protocols.transfer import average
from vlprompt.records import Record

FORMATS = ("terminal", "markdown", "csv", "latex")
CONTEXT = ["protocol", "dataset", "backbone", "weights", "precision"]  # what a table's rows often share
KEYS = [*CONTEXT, "method", "variant", "shots"]
COSTS = {"parameters": "trained_parameters", "train_s": "train_seconds", "test_s": "test_seconds",
         "peak_bytes": "peak_memory_bytes"}  # fmt: skip
TRANSFER = (CrossDataset.name, DomainGeneralization.name)
UNTRAINED = 0  # shots and seed of a learner that is not trained
DEMO_NOTE = "The demo world checks the software; it ranks nothing."
PRECISION_NOTE = "Rows differ in precision: compare them with care."
IMPORTED_NOTE = "Rows of the variant imported were read from logs of other software, most of them rounded to 0.1."
NO_RUNS = "there are no runs to show: `python run.py` makes the first one, on the demo, without any download."


def frame(records: Sequence[Record]) -> pd.DataFrame:
    """One row a run: its cell, weights, precision, status and cost, and each test split's accuracy in percent."""
    rows = []
    for record in records:
        row = {name: getattr(record, name) for name in (*KEYS, "seed", "status")}
        row |= {split: 100 * scores["accuracy"] for split, scores in record.scores.items()}
        rows.append(row | {name: record.cost.get(source, float("nan")) for name, source in COSTS.items()})
    return pd.DataFrame(rows)


def summarise(records: Sequence[Record]) -> pd.DataFrame:
    """One row a learner and number of shots: over its seeds, n and for each split the mean and sample deviation.

    Percent. `H` is the harmonic mean of the means of base and novel, `average` the plain mean of the means on the
    targets of a transfer. Costs are means. `failed` counts the seeds without a result (failed or not applicable),
    `missing` those that other learners of the same context and shots have. A learner that is not trained appears beside
    every number of shots.
    Raises: UserError where there are no runs.
    """
    if not records:
        raise UserError(NO_RUNS)
    found = dict.fromkeys(split for record in records for split in record.scores)
    splits = sorted(found, key=lambda split: split != "base")  # an imported record may have novel alone
    runs = frame(_beside_every_shots(records)).reindex(columns=[*KEYS, "seed", "status", *splits, *COSTS])
    seeds = runs[runs["seed"] != UNTRAINED].groupby([*CONTEXT[:3], "shots"], dropna=False)["seed"].agg(set).to_dict()
    rows: list[dict[str, Any]] = []
    for keys, group in runs.groupby(KEYS, dropna=False, sort=False):
        finished = group[group["status"] == "finished"]
        row: dict[str, Any] = {name: None if pd.isna(key) else key for name, key in zip(KEYS, keys, strict=True)}
        row["n"] = len(finished)
        for split in splits:
            row |= {split: finished[split].mean(), f"{split}_sd": finished[split].std(ddof=1)}
            if split == "novel" and "base" in splits:
                row["H"] = harmonic_mean(row["base"], row["novel"])
        if row["protocol"] in TRANSFER:
            mean = average({split: row[split] for split in splits if pd.notna(row[split])}, row["dataset"])
            row["average"] = float("nan") if mean is None else mean
        row |= {name: finished[name].mean() for name in COSTS}
        expected = seeds.get((*keys[:3], row["shots"]), set()) if UNTRAINED not in set(group["seed"]) else set()
        rows.append(row | {"failed": len(group) - len(finished), "missing": len(expected - set(group["seed"]))})
    rows.sort(key=_place)
    return pd.DataFrame(rows)


def _beside_every_shots(records: Sequence[Record]) -> list[Record]:
    """The records, those of untrained learners once for every number of shots that others of their context have."""

    def context(record: Record) -> tuple[str | None, ...]:
        return record.protocol, record.dataset, record.backbone, record.weights

    shots: dict[tuple[str | None, ...], dict[int | str, None]] = {}  # the inner one is an ordered set
    for record in records:
        if record.shots != UNTRAINED:
            shots.setdefault(context(record), {})[record.shots] = None
    return [
        record.model_copy(update={"shots": k})
        for record in records
        for k in ([record.shots] if record.shots != UNTRAINED else shots.get(context(record), [UNTRAINED]))
    ]


def _place(row: dict[str, Any]) -> tuple:
    """Sorts by context and shots ("all" last), then zero-shot first, then by name."""
    context = [str(row[name]) for name in ("protocol", "dataset", "backbone", "weights")]
    shots = float("inf") if row["shots"] == "all" else row["shots"]
    return (
        *context,
        shots,
        row["method"] != "zero_shot",
        row["method"],
        row["variant"] or "",
        str(row["precision"]),
    )


def render(table: pd.DataFrame, format: str = "terminal") -> str:
    """A summary as text, a table for each protocol. CSV is one table of the raw numbers; the others have two decimals,
    `mean ± deviation`, and what all rows of a table share above it (LaTeX: in columns).

    "terminal" is a rich table on a terminal; into a file or a pipe it is plain, never wrapped, never cut.
    """
    if format not in FORMATS:
        raise unknown("format", format, FORMATS)
    if table.empty:
        raise UserError(NO_RUNS)
    if format == "csv":
        return table.to_csv(index=False)
    parts = [part for _, part in table.groupby("protocol", sort=False)]
    return "\n\n".join([*(_table(_readable(part), format) for part in parts), *_notes(table)]) + "\n"


def _table(shown: pd.DataFrame, format: str) -> str:
    """One table of cells that are text already."""
    if format == "latex":
        return shown.to_latex(index=False, escape=True).replace("±", r"$\pm$").rstrip("\n")
    shared = [name for name in CONTEXT if name in shown and shown[name].nunique() == 1]
    title, rows = ", ".join(f"{name} {shown[name].iloc[0]}" for name in shared), shown.drop(columns=shared)
    if format == "markdown":
        return f"{title}\n\n{rows.to_markdown(index=False, disable_numparse=True)}".lstrip("\n")
    text = _rich(rows, title) if sys.stdout.isatty() else f"{title}\n{_plain(rows)}".lstrip("\n")
    return text.rstrip("\n")


def _readable(table: pd.DataFrame) -> pd.DataFrame:
    """The cells as text; columns that say nothing (no variants, none failed) left out."""
    shown = table[KEYS].map(lambda value: "" if pd.isna(value) else str(value))
    shown["n"] = table["n"].astype(str)
    for column in table.columns[len(KEYS) + 1 :]:
        if f"{column}_sd" in table:
            means = zip(table[column], table[f"{column}_sd"], strict=True)
            shown[column] = [_number(mean) + (f" ± {_number(sd)}" if pd.notna(sd) else "") for mean, sd in means]
        elif column in ("H", "average"):
            shown[column] = [_number(value) for value in table[column]]
    shown["parameters"] = [_number(value, ",.0f") for value in table["parameters"]]
    shown["train s"] = [_number(value, ".1f") for value in table["train_s"]]
    shown["peak MB"] = [_number(value / 2**20, ".0f") for value in table["peak_bytes"]]
    for column in ("failed", "missing"):
        if table[column].any():
            shown[column] = table[column].astype(str)
    return shown.drop(columns=[name for name in shown if (shown[name] == "").all()])


def _number(value: float, form: str = ".2f") -> str:
    return "" if pd.isna(value) else format(value, form)


def _notes(table: pd.DataFrame) -> list[str]:
    demo = table["dataset"].str.startswith("shapes") | (table["backbone"] == "shapes_vit")
    mixed = table["precision"].nunique() > 1
    imported = table["variant"].fillna("").str.match(r"imported(-|$)")
    notes = {DEMO_NOTE: demo.any(), PRECISION_NOTE: mixed, IMPORTED_NOTE: imported.any()}
    return [note for note, applies in notes.items() if applies]


def _plain(rows: pd.DataFrame) -> str:
    from tabulate import tabulate

    return tabulate(rows.values.tolist(), headers=list(rows), tablefmt="simple", disable_numparse=True)


def _rich(rows: pd.DataFrame, title: str) -> str:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    grid = Table(title=Text(title), title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for name in rows:
        grid.add_column(Text(str(name)), overflow="fold")
    for row in rows.values.tolist():
        grid.add_row(*map(Text, row))
    console = Console()
    with console.capture() as capture:
        console.print(grid)
    return capture.get()
