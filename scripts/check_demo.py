"""Whether the records in results/demo are what the present code gives: runs them again and lists what differs.

    python scripts/check_demo.py                                  # the first seed of each learner, protocol and shots
    python scripts/check_demo.py --where method=coop method=lora protocol=few_shot
    python scripts/check_demo.py --seeds all --write --where method=dylora          # replace the records that differ

Runs are left below --folder and found there again, so that a check that is cut resumes. A record differs if its names
stand for other settings now, or if an accuracy is more than --bound points away. Exit code 1 if any differs.
"""

import argparse
import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from vlprompt.config.compose import GROUPS, compose, read_run
from vlprompt.config.hashing import canonical, flat
from vlprompt.config.spec import RunSpec, recorded
from vlprompt.jobs.failures import run_or_record_failure
from vlprompt.reports.filters import select
from vlprompt.results.predictions import PREDICTIONS
from vlprompt.results.record import FILE, Record
from vlprompt.results.store import find_runs

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "results" / "demo"
BOUND = 0.5  # points of accuracy
SET_BY_NAME = ("seed", "shots", "name")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, default=DEMO, help="the records (default: results/demo)")
    parser.add_argument("--folder", type=Path, default=ROOT / "results" / "check_demo", help="where the runs go")
    parser.add_argument("--where", nargs="+", default=[], metavar="KEY=VALUE")
    parser.add_argument("--seeds", choices=("first", "all"), default="first")
    parser.add_argument("--bound", type=float, default=BOUND, help="points of accuracy (default: %(default)s)")
    parser.add_argument("--write", action="store_true", help="replace the records that differ")
    options = parser.parse_args(arguments)
    options.demo, options.folder = options.demo.absolute(), options.folder.absolute()
    os.chdir(ROOT)  # records name files from here
    os.environ["VLPROMPT_RESULTS"] = str(options.folder)
    os.environ.setdefault("WANDB_MODE", "disabled")
    runs, _ = select(find_runs([options.demo]), options.where)
    if options.seeds == "first":
        first: dict[Any, tuple[Path, Record]] = {}
        for folder, record in sorted(runs.items(), key=lambda run: run[1].seed):
            first.setdefault(record.key.model_copy(update={"seed": 0}), (folder, record))
        runs = dict(first.values())
    rows = pd.DataFrame([checked(folder, record, options) for folder, record in runs.items()])
    differing = rows[rows["differs"] != ""]
    print(f"\n{len(rows)} records run again, {len(differing)} differ (bound: {options.bound} points)")
    if len(distances := rows["points"].dropna()):
        print(
            f"distance in points: {(distances == 0).sum()} of {len(distances)} none at all, "
            f"median {distances.median():.2f}, 90 % within {distances.quantile(0.9):.2f}, largest {distances.max():.2f}"
        )
    if len(differing):
        print(differing.drop(columns="folder").to_string(index=False, float_format="%.2f"))
    return int(bool(len(differing)) and not options.write)


def checked(folder: Path, record: Record, options: argparse.Namespace) -> dict[str, Any]:
    """What a record says against what its run gives now."""
    spec = spec_today(record)
    new = run_or_record_failure(spec)
    row = record.model_dump(include={"protocol", "dataset", "method", "variant", "shots", "seed"})
    row |= {"folder": folder, "differs": "", "points": float("nan"), "test": "", "record": None, "now": None}
    if new.status != "finished":
        return row | {"differs": f"{new.status}: {new.reason}"}
    gaps = {
        test: 100 * abs(scores["accuracy"] - record.scores[test]["accuracy"]) for test, scores in new.scores.items()
    }
    test = max(gaps, key=gaps.__getitem__)
    row |= {"points": gaps[test], "test": test}
    row |= {"record": 100 * record.scores[test]["accuracy"], "now": 100 * new.scores[test]["accuracy"]}
    if gaps[test] > options.bound:
        row["differs"] = "scores"
    elif not spec.matches(record):
        row["differs"] = "settings"
    if row["differs"] and options.write:
        for name in (FILE, PREDICTIONS):
            shutil.copyfile(spec.folder / name, folder / name)
    return row


def spec_today(record: Record) -> RunSpec:
    """The run that a record's names stand for today; a variant's with what it differs in from the default of then."""
    names = [f"{group}={getattr(record, group)}" for group in GROUPS]
    names += [f"shots={record.shots}", f"seed={record.seed}"] if record.shots else []
    if record.variant is None:
        return read_run(names)
    ignored = [*SET_BY_NAME]
    if (record.config["fit"] or {}).get("epochs") == 0:
        ignored.append("fit.lr")  # which earlier versions asked of closed forms, too
    default = flat(json.loads(canonical(recorded(compose(names)))))
    changed = {
        key: value
        for key, value in flat(record.config).items()
        if key not in ignored and canonical(value) != canonical(default.get(key))
    }
    named = [f"name={record.variant}"] if record.config.get("name") else []  # else it is a hash of the changes
    return read_run([*names, *named, *overrides(changed)])


def overrides(changed: Mapping[str, Any]) -> list[str]:
    return [f"++{key}={json.dumps(value, ensure_ascii=False)}" for key, value in changed.items()]


if __name__ == "__main__":
    sys.exit(main())
