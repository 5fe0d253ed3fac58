"""`vlprompt compare` and `vlprompt plot`: which learner is better, and figures."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlprompt.commands.output import add_output, show, show_notes
from vlprompt.commands.selection import add_selection, naming_left_out, selected
from vlprompt.errors import UserError, first_names
from vlprompt.textfiles import path_of

if TYPE_CHECKING:
    import pandas as pd

    from vlprompt.reports.grid import Grid
    from vlprompt.reports.significance import Ranking
    from vlprompt.results.record import Record

PAIRED_NOTE = (
    "difference: first less second, in points; low, high: its 95 % interval by a paired bootstrap over images; p: "
    "McNemar's exact test of one seed. Seeds share their images: their p-values must not be combined."
)
RANK_NOTE = (
    "wins, losses: data sets on which the first is better, worse; p_holm: Wilcoxon's signed-rank p, Holm's correction."
)


def register(commands: Any) -> None:
    """Add `compare` and `plot` to the sub-commands."""
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
    plot = commands.add_parser("plot", help="figures: reliability, critical-difference, few-shot")
    plot.add_argument("figure", choices=tuple(FIGURES))
    add_selection(plot)
    plot.add_argument("--split", help="base, novel, all or test")
    plot.add_argument("--output", type=path_of, required=True, help="a file that ends with .png, .pdf or .svg")
    plot.set_defaults(command=draw)


def show_comparison(options: argparse.Namespace) -> int:
    from vlprompt.reports.averages import across_datasets
    from vlprompt.reports.significance import paired, rankings, runs_of
    from vlprompt.results.metrics import complete

    if len(options.learners) not in (0, 2):
        raise UserError(f"compare takes two learners or none, not {len(options.learners)}: vlprompt compare coop maple")
    options.where += [f"{name}={value}" for name in ("protocol", "dataset") if (value := getattr(options, name))]
    runs, notes = selected(options)
    tables: list[pd.DataFrame] = []
    drawn: list[Grid] = []
    if options.learners:
        with naming_left_out(notes):
            table, gaps = paired(*(runs_of(runs, name) for name in options.learners))
        tables.append(table)
        drawn.append(_paired_grid(table, options.learners))
        notes += [PAIRED_NOTE, *gaps]
        notes += unfinished(runs, options.learners)
    results, _ = across_datasets(complete(runs, options.metric, notes), metric=options.metric)
    for ranking in rankings(results, options.metric, options.split):
        tables.append(ranking.pairs.assign(of=ranking.title))
        drawn += _ranking_grids(ranking)
        notes += [*ranking.notes, RANK_NOTE]
    if not drawn:
        raise UserError("ranks need two learners with results on two data sets or more: name two learners instead")
    if options.format == "csv":
        notes = [note for note in notes if note not in (PAIRED_NOTE, RANK_NOTE)]
    show(drawn, notes, options, tables)
    return 0


def _paired_grid(table: "pd.DataFrame", learners: Sequence[str]) -> "Grid":
    from vlprompt.reports.grid import Grid

    forms = {"first": ".2f", "second": ".2f", "difference": "+.2f", "low": "+.2f", "high": "+.2f", "p": ".2g"}
    forms |= {"images": ",.0f", "only_first": ",.0f", "only_second": ",.0f"}
    blocks = table[["protocol", "dataset", "shots"]].astype(str).agg(" ".join, axis=1).tolist()
    keys = ["seed", "protocol", "dataset", "shots", "split"]
    return Grid(
        f"first: {learners[0]}, second: {learners[1]}", _as_text(table, forms), blocks=blocks, keys=keys,
        extras=["only_first", "only_second", "images"], order=[*keys, "difference", "low", "high", "p"],
        unit="accuracy (%)",
    )  # fmt: skip


def _ranking_grids(ranking: "Ranking") -> list["Grid"]:
    import pandas as pd

    from vlprompt.reports.grid import Grid
    from vlprompt.reports.significance import critical_difference

    n = len(ranking.scores)
    width = critical_difference(len(ranking.ranks), n)
    title = f"{ranking.title}: mean ranks over {n} data sets, critical difference {width:.2f} (Nemenyi)"
    title += f", Friedman's p {ranking.friedman:.2g}" if pd.notna(ranking.friedman) else ""
    ranks = pd.DataFrame({"learner": ranking.ranks.index, "mean rank": [f"{rank:.2f}" for rank in ranking.ranks]})
    forms = {"median_difference": "+.2f", "p": ".2g", "p_holm": ".2g"}
    return [Grid(title, ranks), Grid("Wilcoxon's signed-rank test of each pair", _as_text(ranking.pairs, forms))]


def _as_text(table: "pd.DataFrame", forms: Mapping[str, str]) -> "pd.DataFrame":
    from vlprompt.reports.render import number

    shown = table.astype(object)
    for name in table:
        form = forms.get(str(name))
        shown[name] = [number(float(value), form) if form else str(value) for value in table[name]]
    return shown


def unfinished(runs: Mapping[Path, "Record"], learners: Sequence[str]) -> list[str]:
    """A note on runs that have no result, of these learners."""
    from vlprompt.reports.variants import labels

    names = labels(list(runs.values()))
    stopped = [
        f"{name} on {record.dataset}, {record.protocol}, {record.shots} shots, seed {record.seed}"
        for name, record in zip(names, runs.values(), strict=True)
        if record.status != "finished" and (name in learners or record.learner in learners)
    ]
    return [f"Without a result, so left out: {first_names(stopped)}."] if stopped else []


def draw(options: argparse.Namespace) -> int:
    from vlprompt.reports import plots as figures

    runs, notes = selected(options)
    figures.new_figure(1.0, 1.0)  # whether matplotlib is there, before anything is computed
    figure = FIGURES[options.figure](runs, options, notes)
    figures.save(figure, options.output)
    show_notes(notes)
    return 0


def _reliability(runs: Mapping[Path, "Record"], options: argparse.Namespace, notes: list[str]) -> Any:
    """One curve a learner, from the images of all its seeds; the error next to its name is the mean of the seeds'."""
    from vlprompt.reports import plots as figures
    from vlprompt.reports.variants import labels
    from vlprompt.results.metrics import calibration_error, reliability
    from vlprompt.results.predictions import pool

    names = dict(zip(runs, labels(list(runs.values())), strict=True))
    notes += unfinished(runs, [*names.values()])
    of_runs = with_predictions({f: r for f, r in runs.items() if r.status == "finished"}, notes)
    runs = {folder: runs[folder] for folder in of_runs}
    _only_one(runs.values(), ("protocol", "dataset", "backbone", "weights"), notes)
    trained = {record.shots for record in runs.values() if record.shots}
    if len(trained) > 1:
        raise UserError(f"runs have {', '.join(map(str, trained))} shots: choose one with --where shots=16")
    of_learners: dict[str, list[Any]] = {}
    split = options.split
    for folder, splits in of_runs.items():
        split = split or next((name for name in ("all", "test") if name in splits), next(iter(splits)))
        if split not in splits:
            raise UserError(f"there is no test split '{split}' in {folder}: known are {', '.join(splits)}")
        of_learners.setdefault(names[folder], []).append(splits[split])
    first = next(iter(runs.values()))
    curves = {}
    for name, predictions in sorted(of_learners.items()):
        errors = [calibration_error(reliability(one)) for one in predictions]
        curves[f"{name} (ECE {100 * sum(errors) / len(errors):.2f} %)"] = reliability(pool(predictions))
    return figures.reliability(curves, f"{first.protocol}, {first.dataset}, {split}")


def with_predictions(runs: Mapping[Path, "Record"], notes: list[str]) -> dict[Path, Any]:
    """The predictions of each run by test split; `notes` name the runs that have none, and why."""
    from vlprompt.results.predictions import PREDICTIONS, load_predictions

    loaded = {}
    for folder, record in runs.items():
        which = f"Left out: {record.learner}, {record.shots} shots, seed {record.seed}"
        if not (folder / PREDICTIONS).exists():
            notes.append(f"{which}: {folder} holds no {PREDICTIONS}.")
            continue
        try:
            loaded[folder] = load_predictions(folder / PREDICTIONS)
        except UserError as error:
            notes.append(f"{which}: {error}")
            continue
        if not loaded[folder]:
            notes.append(f"{which}: {folder / PREDICTIONS} holds no test.")
            del loaded[folder]
    return loaded


def _critical_difference(runs: Mapping[Path, "Record"], options: argparse.Namespace, notes: list[str]) -> Any:
    from vlprompt.reports import plots as figures
    from vlprompt.reports.averages import across_datasets
    from vlprompt.reports.significance import rankings
    from vlprompt.reports.summary import missing_metric
    from vlprompt.results.metrics import complete

    records = complete(runs, options.metric, notes)
    notes += [*unfinished(runs, [record.learner for record in records]), *missing_metric(records, options.metric)]
    results, _ = across_datasets(records, metric=options.metric)
    known = rankings(results, options.metric, options.split)
    if len(known) != 1:
        titles = "; ".join(ranking.title for ranking in known) or "none with two learners on two data sets"
        raise UserError(f"a critical-difference diagram shows one comparison, and there are {titles}: use --where")
    (ranking,) = known
    notes += ranking.notes
    return figures.critical_difference_diagram(ranking.ranks, len(ranking.scores), ranking.title)


def _few_shot(runs: Mapping[Path, "Record"], options: argparse.Namespace, notes: list[str]) -> Any:
    from vlprompt.reports import plots as figures
    from vlprompt.reports.averages import across_datasets
    from vlprompt.reports.summary import missing_metric
    from vlprompt.results.metrics import complete

    runs = {folder: record for folder, record in runs.items() if record.protocol == "few_shot"}
    records = complete(runs, options.metric, notes)
    _only_one(records, ("backbone", "weights"), notes)
    notes += [*unfinished(runs, [record.learner for record in records]), *missing_metric(records, options.metric)]
    results, gaps = across_datasets(records, metric=options.metric)
    notes += gaps
    return figures.few_shot(results, options.metric)


def _only_one(records: Any, names: Sequence[str], notes: Sequence[str]) -> None:
    """Raises: UserError where there are none, or records differ in what a figure cannot show."""
    records = list(records)
    if not records:
        needs = "none of the runs can be drawn: this figure needs finished runs with predictions or scores."
        raise UserError(" ".join([needs, *notes]))
    for name in names:
        values = sorted({str(getattr(record, name)) for record in records})
        if len(values) > 1:
            raise UserError(f"runs differ in {name} ({', '.join(values)}): choose one with --where {name}={values[0]}")


FIGURES: dict[str, Callable[[Mapping[Path, "Record"], argparse.Namespace, list[str]], Any]] = {
    "reliability": _reliability,
    "critical-difference": _critical_difference,
    "few-shot": _few_shot,
}
