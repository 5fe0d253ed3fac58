"""`vlprompt compare`: which learner is better."""

import argparse
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vlprompt.commands.output import add_output, show
from vlprompt.commands.selection import add_selection, naming_left_out, selected
from vlprompt.errors import UserError, unknown

if TYPE_CHECKING:
    import pandas as pd

    from vlprompt.reports.grid import Grid
    from vlprompt.reports.significance import Ranking
    from vlprompt.results.metrics import Metric
    from vlprompt.results.record import Record

PAIRED_NOTE = "difference: first less second; low, high: its 95 % interval by a paired bootstrap over images."
P_NOTE = "p: McNemar's exact test of one seed. Seeds share their images: their p-values must not be combined."
RANK_NOTE = (
    "wins, losses: data sets on which the first is better, worse; p_holm: Wilcoxon's signed-rank p, Holm's correction."
)


def register(commands: Any) -> None:
    """Add `compare` to the sub-commands."""
    compare = commands.add_parser("compare", help="two learners on the same images; all learners across data sets")
    compare.add_argument(
        "learners", nargs="*", metavar="LEARNER", help="two: coop, coop@fit.lr=0.01, coop@NAME, or folders of runs"
    )
    add_selection(compare, positional=False)
    for name in ("protocol", "dataset"):
        compare.add_argument(f"--{name}", help=f"short for --where {name}=...")
    compare.add_argument("--split", help="what counts of a data set for ranks: base, novel, H, all, test")
    add_output(compare)
    compare.set_defaults(command=show_comparison)


def show_comparison(options: argparse.Namespace) -> int:
    from vlprompt.reports.averages import across_datasets
    from vlprompt.reports.figures.cells import unfinished
    from vlprompt.reports.significance import paired, rankings, runs_of
    from vlprompt.results.metrics import complete, find_metric

    if len(options.learners) not in (0, 2):
        raise UserError(f"compare takes two learners or none, not {len(options.learners)}: vlprompt compare coop maple")
    options.where += [f"{name}={value}" for name in ("protocol", "dataset") if (value := getattr(options, name))]
    runs, notes = selected(options)
    tables: list[pd.DataFrame] = []
    drawn: list[Grid] = []
    if options.learners:
        with naming_left_out(notes):
            first, second = (runs_of(runs, name) for name in options.learners)
            table, gaps = paired(first, second, options.metric)
        tables.append(table)
        drawn.append(_paired_grid(table, options.learners, find_metric(options.metric)))
        notes += [PAIRED_NOTE, *[P_NOTE] * ("p" in table), *gaps]
        notes += unfinished(runs, options.learners)
    results, _ = across_datasets(complete(runs, options.metric, notes), metric=options.metric)
    notes += _told(list(runs.values()), options.learners)
    if options.split and options.split not in (parts := {*results["part"]}):
        raise unknown("split", options.split, parts)
    for ranking in rankings(results, options.metric, options.split):
        tables.append(ranking.pairs.assign(of=ranking.title))
        drawn += _ranking_grids(ranking, find_metric(options.metric).label)
        notes += [*ranking.notes, RANK_NOTE]
    if not drawn:
        raise UserError("ranks need two learners with results on two data sets or more: name two learners instead")
    if options.format == "csv":
        notes = [note for note in notes if note not in (PAIRED_NOTE, P_NOTE, RANK_NOTE)]
    show(drawn, notes, options, tables)
    return 0


def _paired_grid(table: "pd.DataFrame", learners: Sequence[str], metric: "Metric") -> "Grid":
    from vlprompt.reports.grid import Grid

    forms = dict.fromkeys(("first", "second"), f".{metric.decimals}f") | {"p": ".2g"}
    forms |= dict.fromkeys(("difference", "low", "high"), f"+.{metric.decimals}f")
    forms |= {"images": ",.0f", "only_first": ",.0f", "only_second": ",.0f"}
    blocks = table[["protocol", "dataset", "shots"]].astype(str).agg(" ".join, axis=1).tolist()
    keys = ["seed", "protocol", "dataset", "shots", "split"]
    return Grid(
        f"first: {learners[0]}, second: {learners[1]}", _as_text(table, forms), blocks=blocks, keys=keys,
        extras=["only_first", "only_second", "images"],
        order=["seed", "difference", "split", "shots", "dataset", "protocol", "low", "high", "p"], unit=metric.label,
    )  # fmt: skip


def _told(records: Sequence["Record"], learners: Sequence[str]) -> list[str]:
    """How the test images of learners were judged, where not all were judged alike."""
    from vlprompt.reports.render import told_notes
    from vlprompt.reports.variants import labels

    by_learner = {
        label: record.inference
        for record, label in zip(records, labels(records), strict=True)
        if record.scores and (not learners or label in learners or record.learner in learners)
    }
    if not (means := told_notes(by_learner.values(), "inference")):
        return []
    of = {name: [label for label, seen in by_learner.items() if seen == name] for name in {*by_learner.values()}}
    adapted = (f"{', '.join(labels)}: {name}" for name, labels in sorted(of.items()) if name != "inductive")
    return [f"Adapted at test time: {'; '.join(adapted)}; all others inductive.", *means]


def _ranking_grids(ranking: "Ranking", unit: str) -> list["Grid"]:
    import pandas as pd

    from vlprompt.reports.grid import Grid
    from vlprompt.reports.significance import critical_difference

    n = len(ranking.scores)
    width = critical_difference(len(ranking.ranks), n)
    title = f"mean ranks by {ranking.part} over {n} data sets, critical difference {width:.2f} (Nemenyi)"
    title += f", Friedman's p {ranking.friedman:.2g}" if pd.notna(ranking.friedman) else ""
    title = ", ".join([title, *(f"{name} {value}" for name, value in ranking.cell.items())])
    ranks = pd.DataFrame({"learner": ranking.ranks.index, "mean rank": [f"{rank:.2f}" for rank in ranking.ranks]})
    forms = {"median_difference": "+.2f", "p": ".2g", "p_holm": ".2g"}
    return [
        Grid(title, ranks, unit=unit),
        Grid("Wilcoxon's signed-rank test of each pair", _as_text(ranking.pairs, forms)),
    ]


def _as_text(table: "pd.DataFrame", forms: Mapping[str, str]) -> "pd.DataFrame":
    from vlprompt.reports.render import number

    shown = table.astype(object)
    for name in table:
        form = forms.get(str(name))
        shown[name] = [number(float(value), form) if form else str(value) for value in table[name]]
    return shown
