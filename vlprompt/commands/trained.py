"""`vlprompt evaluate`: trained learners tested again, without training."""

import argparse
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlprompt.commands.output import add_output, show
from vlprompt.commands.selection import add_selection, selected
from vlprompt.errors import NotApplicableError, Note, UserError, unknown
from vlprompt.textfiles import path_of

if TYPE_CHECKING:
    import pandas as pd

    from vlprompt.results.record import Record
    from vlprompt.run import Scores

INTERPOLATION = "interpolation"
TEST_TIME, CALIBRATION = "test_time", "calibration"
AFTER_TRAINING = (TEST_TIME, CALIBRATION)  # fields of a record, too
OF_ANY_RUN = (INTERPOLATION, *AFTER_TRAINING)
MOST = 1000  # values of a row


def register(commands: Any) -> None:
    """Add it to the sub-commands."""
    text = (
        "test finished runs again with another value of a setting that needs no training, as in method.test_rank=1,2, "
        "with weights between the frozen and the tuned model, as in interpolation=0,0.1,...,1, calibrated, as in "
        "calibration=none,temperature,dac, or adapted at test time, as in test_time=zero,tda, which makes a run of its "
        "own, with a record"
    )
    parser = commands.add_parser("evaluate", help=text, description=text)
    of_test = "test_time=zero,tda test_time.views=16,64"
    parser.add_argument(
        "setting",
        metavar="SETTING=VALUES",
        help="method.test_rank=1,2,4, interpolation=0,0.1,...,1 (WiSE-FT), calibration=none,temperature,dac, "
        f"or {of_test}",
    )
    parser.add_argument(
        "runs",
        nargs="*",
        metavar="RUN",
        help="folders of runs, or of results; before them, of test_time, more settings",
    )
    add_selection(parser, positional=False)
    parser.set_defaults(folders_anywhere=True)
    parser.add_argument("--plot", type=path_of, metavar="FILE", help="draw the values as a curve: .pdf, .svg, .png")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    add_output(parser)
    parser.set_defaults(command=evaluate)


def evaluate(options: argparse.Namespace) -> int:
    import pandas as pd

    from vlprompt.reports.figures import setting, style
    from vlprompt.reports.grid import Grid
    from vlprompt.reports.render import general_notes
    from vlprompt.results.learner_files import TENSORS
    from vlprompt.results.metrics import find_metric

    find_metric(options.metric)  # before anything is tested
    more = [text for text in options.runs if is_setting(text) and not path_of(text).is_dir()]
    options.runs = [path_of(text) for text in options.runs if text not in more]
    name, values = read_setting(options.setting)
    if others := [text for text in more if not text.startswith(f"{TEST_TIME}.")]:
        raise UserError(f"{others[0]} is a second setting next to {options.setting}: test with one after the other")
    if more and name != TEST_TIME:
        raise UserError(
            f"{more[0]} is a setting of {TEST_TIME}=NAME: give that first, as in {TEST_TIME}=zero {more[0]}"
        )
    if name == TEST_TIME:
        values = combinations(options.setting, more)
    if options.plot:
        style.check_suffix(options.plot)
        if not all(type(value) in (int, float) for value in values):
            raise UserError(f"a curve needs numbers, and {options.setting} has other values: leave --plot out")
        with style.styled():  # whether matplotlib is there, before anything is tested
            pass
    options.folders = [*options.folders, *options.runs]
    runs, notes = selected(options)
    runs = {folder: run for folder, run in runs.items() if run.status == "finished" and has_setting(run, name)}
    if not runs and name in OF_ANY_RUN:
        raise UserError("no run here is finished: see vlprompt table for what there is")
    if not runs:
        raise UserError(f"no finished run has the setting method.{name}: see vlprompt table for what there is")
    if name in AFTER_TRAINING:  # which a run has already is not what its learner is
        runs = {folder: run for folder, run in runs.items() if not getattr(run, name)} or without_setting(runs, name)
    without = {f for f, run in runs.items() if name in AFTER_TRAINING and run.config.get("fit") is None}
    testable = {folder: run for folder, run in runs.items() if folder in without or (folder / TENSORS).is_file()}
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
    if options.plot:
        with style.styled():
            style.save(setting.draw(rows, name, options.metric), options.plot)
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
            rows += tested(folder, run, name, values, options, text, notes)
        except UserError as error:
            reasons.append(error)
            notes.append(Note(f"Left out: {{}}: {error}", folder))
    if not rows:
        raise reasons[0]
    return rows


def read_setting(text: str) -> tuple[str, list[Any]]:
    """The name, without `method`, and the values. Raises: UserError where it is no method's and not interpolation."""
    import yaml

    key, equals, values = text.partition("=")
    if not equals or not values or not (key.startswith("method.") or key in OF_ANY_RUN):
        raise UserError(
            f"'{text}' is no setting of a method with values: write it as in method.test_rank=1,2,4, as in "
            f"interpolation=0,0.1,...,1, in {CALIBRATION}=none,temperature, or in {TEST_TIME}=zero,tda"
        )
    if key == CALIBRATION:
        return key, check_calibrations(values.split(","))
    if key == f"method.{INTERPOLATION}":
        raise UserError(
            f"{key} is a setting of the training (cross_modal's): train again with another one, or test what lies "
            "between frozen and tuned weights with interpolation=0,0.1,...,1"
        )
    read = [yaml.safe_load(value) for value in steps(values.split(","))]
    if key == INTERPOLATION and any(type(v) not in (int, float) or not 0 <= v <= 1 for v in read):
        raise UserError(f"{text}: allowed are numbers from 0, the frozen weights, to 1, the tuned ones")
    return key.removeprefix("method."), read


def is_setting(text: str) -> bool:
    """Whether it is like name=value or part.name=value."""
    name, equals, _ = text.partition("=")
    return bool(equals) and all(part.isidentifier() for part in name.split("."))


def check_calibrations(names: list[str]) -> list[str]:
    """Raises: UserError where one is none that there is."""
    from vlprompt.inference import CALIBRATIONS

    for name in names:
        if name not in (known := ("none", *CALIBRATIONS)):
            raise unknown(CALIBRATION, name, known)
    return names


def steps(values: Sequence[str]) -> list[str]:
    """Values with `...` between numbers filled in: 0, 0.1, ..., 1. Raises: UserError where no such row is meant."""
    if "..." not in values:
        return list(values)
    at = values.index("...")
    try:
        (first, second), last = map(Decimal, values[at - 2 : at]), Decimal(values[at + 1])
        step = second - first
        n = (last - second) / step - 1
        if n < 0 or n != int(n) or n > MOST or "..." in values[at + 1 :]:
            raise ValueError
    except (ValueError, IndexError, ArithmeticError):
        raise UserError(f"'{','.join(values)}' is no row of numbers: write it as in 0,0.1,...,1") from None
    return [*values[:at], *(str(second + step * i) for i in range(1, int(n) + 1)), *values[at + 1 :]]


def has_setting(run: "Record", name: str) -> bool:
    return name in OF_ANY_RUN or name in run.config.get("method", {})


def tested(
    folder: Path,
    run: "Record",
    name: str,
    values: Sequence[Any],
    options: argparse.Namespace,
    texts: Mapping[str, str | None],
    notes: list[str],
) -> list[dict[str, Any]]:
    """A row for each value: what the run is, and its scores in percent; `notes` name values that it cannot have.

    Raises: UserError: the run cannot be tested.
    """
    from vlprompt.commands.tested import test_adapted, test_again, test_calibrated, test_line
    from vlprompt.config.spec import spec_of_record
    from vlprompt.results.metrics import find_metric

    spec = spec_of_record(folder, run, device=options.device)
    metric = options.metric
    rows: list[dict[str, Any]] = []
    tests: Iterable[Scores]
    if name == INTERPOLATION:
        tests = test_line(spec, folder, values)
    elif name == CALIBRATION:
        values, tests = each(values, lambda value: test_calibrated(spec, folder, value), name, folder, notes)
    elif name == TEST_TIME:
        values, tests = each(
            values, lambda value: test_adapted(folder, value, device=options.device), name, folder, notes
        )
    else:
        tests = (test_again(spec, folder, {name: value}) for value in values)
    for value, scores in zip(values, tests, strict=True):
        row = {key: getattr(run, key) for key in ("protocol", "dataset", "backbone", "method")}
        if not any(metric in of_split for of_split in scores.values()):
            raise UserError(f"{folder} has no {metric}: choose another --metric, or runs that have it")
        row |= {**texts, "shots": run.shots, "seed": run.seed, "precision": spec.precision, name: value}
        factor = find_metric(metric).factor
        rows.append(row | {split: factor * of_split.get(metric, math.nan) for split, of_split in scores.items()})
    return rows


def combinations(first: str, more: Sequence[str]) -> list[str]:
    """Each combination of the values of settings at test time, in words: `zero views=16`. Raises: UserError."""
    from vlprompt.commands.tested import check_adaptation

    pairs = (text.removeprefix(f"{TEST_TIME}.").partition("=") for text in more)
    names = steps(first.partition("=")[2].split(","))
    choices = [names, *([f"{key}={value}" for value in steps(values.split(","))] for key, _, values in pairs)]
    rows = (row[:1] if row[0] == "none" else row for row in itertools.product(*choices))
    values = list(dict.fromkeys(map(" ".join, rows)))
    for value in values:  # before anything is tested
        check_adaptation(value)
    return values


def without_setting(runs: Mapping[Path, "Record"], name: str) -> dict[Path, "Record"]:
    """Of runs that have one of `AFTER_TRAINING` one for each training, with what the run without has for a variant."""
    from vlprompt.config.at_test import spec_at_test

    of_training: dict[Any, tuple[Path, Record]] = {}
    for folder, run in runs.items():
        try:
            spec = spec_at_test(folder, run, {name: None})
        except UserError:  # which is told when it is tested
            of_training[folder] = folder, run
            continue
        known = {"variant": spec.key.variant, "changes": spec.changes, "config": spec.config}
        of_training.setdefault(spec.folder, (folder, run.model_copy(update=known)))
    return dict(of_training.values())


def each(
    values: Sequence[str], test: Callable[[str], "Scores"], name: str, folder: Path, notes: list[str]
) -> tuple[list[str], list["Scores"]]:
    """The values that a run can have, and its scores with each; `notes` name the others.

    Raises: UserError where it can have none.
    """
    scores: dict[str, Scores] = {}
    refusals: list[UserError] = []
    for value in values:
        try:
            scores[value] = test(value)
        except NotApplicableError as error:
            refusals.append(error)
            notes.append(Note(f"Left out: {{}} with {name}={value}: {error}", folder))
    if not scores:
        raise refusals[0]
    return list(scores), list(scores.values())


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
        row = {k: f"{v:g}" if isinstance(v, float) else str(v) for k, v in zip(keys, key, strict=True)}
        row["n"] = str(len(group))
        for split in splits:
            value = spread(group[split])
            row[split] = spread_text(value.mean, value.deviation, decimals=find_metric(metric).decimals)
        shown.append(row)
    table = pd.DataFrame(shown).rename(columns={"named": "variant"})
    return table.drop(columns=[key for key in ("variant",) if not table[key].any()])
