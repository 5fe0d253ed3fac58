"""`vlprompt evaluate`: trained learners tested again, without training."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlprompt.commands.output import add_output, show
from vlprompt.commands.selection import add_selection, selected
from vlprompt.errors import Note, UserError

if TYPE_CHECKING:
    import pandas as pd

    from vlprompt.results.record import Record


def register(commands: Any) -> None:
    """Add it to the sub-commands."""
    text = "test finished runs again with another value of a setting that needs no training, as in method.test_rank=1,2"
    parser = commands.add_parser("evaluate", help=text, description=text)
    parser.add_argument(
        "setting", metavar="method.NAME=VALUES", help="one setting and its values: method.test_rank=1,2,4"
    )
    add_selection(parser, positional=False)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    add_output(parser)
    parser.set_defaults(command=evaluate)


def evaluate(options: argparse.Namespace) -> int:
    import pandas as pd

    from vlprompt.reports.grid import Grid
    from vlprompt.reports.render import general_notes
    from vlprompt.results.learner_files import TENSORS

    name, values = read_setting(options.setting)
    runs, notes = selected(options)
    runs = {folder: run for folder, run in runs.items() if run.status == "finished" and has_setting(run, name)}
    if not runs:
        raise UserError(f"no finished run has the setting method.{name}: see vlprompt table for what there is")
    testable = {folder: run for folder, run in runs.items() if (folder / TENSORS).is_file()}
    if not testable:
        raise UserError(f"{next(iter(runs))} holds no {TENSORS}, so it cannot be tested: run it again with force=true")
    if len(testable) < len(runs):
        notes += [f"{len(runs) - len(testable)} of {len(runs)} runs hold no {TENSORS} and are left out."]
    rows = pd.DataFrame(rows_of(testable, name, values, options, notes))
    context, keys = ["protocol", "dataset", "backbone", "precision"], ["method", "variant", "shots", name]
    grids = [
        Grid(
            ", ".join(f"{k} {v}" for k, v in zip(context, key, strict=True)),
            over_seeds(group, name, options.metric), keys=keys, order=[keys[0], keys[-1]],
        )
        for key, group in rows.groupby(context, sort=False)
    ]  # fmt: skip
    show(grids, [*notes, *general_notes(rows)], options, [rows.drop(columns="named")])
    return 0


def rows_of(
    runs: Mapping[Path, "Record"], name: str, values: Sequence[Any], options: argparse.Namespace, notes: list[str]
) -> list[dict[str, Any]]:
    """The rows of all runs; `notes` name those that cannot be tested. Raises: UserError where none can."""
    from vlprompt.config.changes import words
    from vlprompt.reports.variants import shared_changes, variant_texts

    records = list(runs.values())
    in_words = zip(variant_texts(records), [words(c or {}, whole=True) for c in shared_changes(records)], strict=True)
    texts = [{"variant": record.variant, "named": named, "changes": changes}
             for record, (named, changes) in zip(records, in_words, strict=True)]  # fmt: skip
    rows: list[dict[str, Any]] = []
    reasons: list[UserError] = []
    for (folder, run), text in zip(runs.items(), texts, strict=True):
        try:
            rows += tested(folder, run, name, values, options, text)
        except UserError as error:
            reasons.append(error)
            notes.append(Note(f"Left out: {{}}: {error}", folder))
    if not rows:
        raise reasons[0]
    return rows


def read_setting(text: str) -> tuple[str, list[Any]]:
    """The name below `method`, and the values. Raises: UserError where it is none of a method."""
    import yaml

    key, equals, values = text.partition("=")
    if not equals or not values or not key.startswith("method."):
        raise UserError(f"'{text}' is no setting of a method with values: write it as in method.test_rank=1,2,4")
    return key.removeprefix("method."), [yaml.safe_load(value) for value in values.split(",")]


def has_setting(run: "Record", name: str) -> bool:
    return name in run.config.get("method", {})


def tested(
    folder: Path,
    run: "Record",
    name: str,
    values: Sequence[Any],
    options: argparse.Namespace,
    texts: Mapping[str, str | None],
) -> list[dict[str, Any]]:
    """A row for each value: what the run is, and its scores in percent."""
    from vlprompt.config.spec import spec_of_record
    from vlprompt.results.metrics import find_metric
    from vlprompt.run import test_again

    spec = spec_of_record(folder, run, device=options.device)
    metric = options.metric
    rows: list[dict[str, Any]] = []
    for value in values:
        scores = test_again(spec, folder, {name: value})
        row = {key: getattr(run, key) for key in ("protocol", "dataset", "backbone", "method")}
        row |= {**texts, "shots": run.shots, "seed": run.seed, "precision": spec.precision, name: value}
        rows.append(row | {split: find_metric(metric).factor * of_split[metric] for split, of_split in scores.items()})
    return rows


def over_seeds(rows: "pd.DataFrame", name: str, metric: str) -> "pd.DataFrame":
    """Mean and deviation over seeds, one row a learner, number of shots and value."""
    import pandas as pd

    from vlprompt.reports.render import spread_text
    from vlprompt.reports.summary import spread
    from vlprompt.results.metrics import find_metric

    keys = ["method", "named", "shots", name]
    splits = [column for column in rows.columns[list(rows.columns).index(name) + 1 :] if rows[column].notna().any()]
    shown = []
    for key, group in rows.groupby(keys, sort=False):
        row = {k: str(v) for k, v in zip(keys, key, strict=True)} | {"n": str(len(group))}
        for split in splits:
            value = spread(group[split])
            row[split] = spread_text(value.mean, value.deviation, decimals=find_metric(metric).decimals)
        shown.append(row)
    table = pd.DataFrame(shown).rename(columns={"named": "variant"})
    return table.drop(columns=[key for key in ("variant",) if not table[key].any()])
