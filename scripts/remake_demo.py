"""Make all demo records again: the cells of results/demo/sweeps.txt, with the settings that they have today.

    python scripts/remake_demo.py list        # what is done and what is to do, with the seconds that old records took
    python scripts/remake_demo.py run         # run what is to do: start it once for each core, as often as need be
    python scripts/remake_demo.py publish     # all done: replace results/demo, and write again what is made of it

Runs are left below --folder and read there again: a process that is killed loses its present cell alone, and several
processes share the cells. After a change of the code that changes no setting, delete the folders of the runs that it
concerns first. `publish` shows how far each row moved, replaces record by record, deletes those of cells that are not
in the list, has all of them checked by scripts/check_demo.py and writes the tables.
"""

import argparse
import contextlib
import math
import os
import shlex
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import check_demo
import pandas as pd
import refresh_tables

from vlprompt.cli import main as vlprompt
from vlprompt.config.cells import expand
from vlprompt.config.compose import read_run, started
from vlprompt.config.paths import results_root
from vlprompt.config.spec import RunSpec
from vlprompt.data.disk import Lock
from vlprompt.errors import UserError, drop_output
from vlprompt.jobs.failures import run_or_record_failure
from vlprompt.results.predictions import PREDICTIONS
from vlprompt.results.record import FILE, Record, RunKey
from vlprompt.results.store import TRIALS, find_runs, settle, stored_run
from vlprompt.run import existing_record
from vlprompt.tuning.search import Search, as_overrides
from vlprompt.tuning.space import read_space, value_at
from vlprompt.tuning.study import FILE as STUDY
from vlprompt.tuning.study import Setting, Study

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "results" / "demo"
SWEEPS = "sweeps.txt"  # in the folder of the records
TUNED = "name=tuned"
TRIALS_EACH = 12
PAUSE = 5  # seconds until another look at what other processes run
ROW = ["protocol", "dataset", "method", "variant", "shots"]  # what its seeds share
Runs = Mapping[RunKey, tuple[Path, Record]]


@dataclass(frozen=True)
class Cell:
    """One run of the list."""

    spec: RunSpec

    @property
    def label(self) -> str:
        return "/".join(self.spec.key.folder_names)

    def done(self) -> bool:
        return existing_record(self.spec) is not None

    def run(self) -> str | None:
        """-> why it failed."""
        return run_or_record_failure(self.spec).reason


@dataclass(frozen=True)
class Tuning:
    """A search for settings, with the runs that it ends with: those of the default and of the choice."""

    search: Search
    seeds: str

    @property
    def label(self) -> str:
        return f"{TRIALS}/{self.search.base.key.method}"

    def done(self) -> bool:
        return choice(self.search, self.search.folder) is not None

    def run(self) -> str | None:
        """-> why it failed."""
        method, *overrides = self.search.overrides
        words = [method.partition("=")[2], *overrides, f"--trials={self.search.budget}", f"--final-seeds={self.seeds}"]
        return "no choice came of it" if vlprompt(["tune", *words]) else None


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("do", choices=("list", "run", "publish"))
    parser.add_argument("--demo", type=Path, default=DEMO, help=f"records and {SWEEPS} (default: results/demo)")
    parser.add_argument("--folder", type=Path, default=ROOT / "results" / "demo_again", help="where the runs go")
    options = parser.parse_args(arguments)
    options.demo, options.folder = options.demo.absolute(), options.folder.absolute()
    os.chdir(ROOT)  # records name files from here
    os.environ["VLPROMPT_RESULTS"] = str(options.folder)
    os.environ.setdefault("WANDB_MODE", "disabled")
    try:
        code = {"list": show, "run": run, "publish": publish}[options.do](options.demo, options.folder)
        sys.stdout.flush()
        return code
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `list | head`
        drop_output()
        return int(options.do != "list")


def read_jobs(demo: Path) -> list[Cell | Tuning]:
    """What the list asks for, each run once; a search instead of the runs whose settings it is to choose."""
    jobs = []
    for line in (demo / SWEEPS).read_text(encoding="utf-8").splitlines():
        if asked := shlex.split(line, comments=True):
            seeds = next((text.partition("=")[2] for text in asked if text.startswith("seed=")), "1")
            with started() as hydra:
                for cell in expand(asked, hydra):
                    jobs.append(tuned(cell, seeds, demo) if TUNED in cell else Cell(read_run(cell)))
    return list({job.label: job for job in jobs}.values())


def tuned(overrides: list[str], seeds: str, demo: Path) -> Cell | Tuning:
    """The run with the settings that a search chose, if a search today would be the same one; else that search."""
    search, setting = searched(tuple(t for t in overrides if t != TUNED and not t.startswith("seed=")), demo)
    if setting is None:
        return Tuning(search, seeds)
    return Cell(read_run([*overrides, *as_overrides(setting), f"selection={search.selection}"]))


@cache
def searched(overrides: tuple[str, ...], demo: Path) -> tuple[Search, Setting | None]:
    """The search for the settings of these runs, and what it chose, if it is made."""
    ordered = sorted(overrides, key=lambda text: not text.startswith("method="))  # as `vlprompt tune` has them
    base = read_run(ordered)
    space, settings = read_space(base.settings), base.settings.model_dump()
    search = Search(ordered, base, space, {name: value_at(settings, name) for name in space}, TRIALS_EACH)
    return search, choice(search, search.folder) or choice(search, committed(search, demo))


def committed(search: Search, demo: Path) -> Path:
    """The folder of a search next to the records."""
    return demo.parent / "tuning" / search.folder.relative_to(results_root() / TRIALS)


def choice(search: Search, folder: Path) -> Setting | None:
    """What was chosen, if nothing of what was searched then is another today: space, default, run of the choice."""
    with contextlib.suppress(FileNotFoundError, UserError):
        study = Study.model_validate_json((folder / STUDY).read_text(encoding="utf-8"))
        space = {name: dimension.model_dump() for name, dimension in search.space.items()}
        if study.chosen and study.space == space and study.trials[0].setting == search.default:
            record = Record.read(folder / study.chosen.record)
            if record and search.trial(study.chosen.setting).matches(record):
                return study.chosen.setting
    return None


def show(demo: Path, folder: Path) -> int:
    """List what is done and what is to do."""
    jobs = read_jobs(demo)
    old = old_records(demo)
    columns = {"seconds before": [seconds(job, old) for job in jobs], "done": [job.done() for job in jobs]}
    table = pd.DataFrame({**columns, "cell": [job.label for job in jobs]})
    print(table.replace({"done": {True: "done", False: "to do"}}).to_string(index=False, float_format="%.1f"))
    left = table[~table["done"]]
    known, unknown = left["seconds before"].sum(), left["seconds before"].isna().sum()
    print(f"\n{len(jobs) - len(left)} of {len(jobs)} are done; the others took {known:.0f} s before, {unknown} are new")
    for label in sorted({"/".join(key.folder_names) for key in old} - {job.label for job in jobs}):
        print(f"`publish` will delete {label}, unless a search still to come makes it again")
    return 0


def run(demo: Path, folder: Path) -> int:
    """Run what is to do and what no other process is running, until all is done; -> 1 where something failed."""
    old = old_records(demo)
    jobs = sorted(read_jobs(demo), key=lambda job: -seconds(job, old, unknown=math.inf))
    failures: dict[str, str] = {}
    while left := [job for job in jobs if job.label not in failures and not job.done()]:
        held = [job for job in left if not attempt(job, folder / "claims", failures)]
        if len(held) == len(left):
            time.sleep(PAUSE)
    for label, reason in failures.items():
        print(f"{label}: {reason}", file=sys.stderr)
    return int(bool(failures))


def attempt(job: Cell | Tuning, claims: Path, failures: dict[str, str]) -> bool:
    """Run it, unless another process does or did; -> whether no other process does."""
    claims.mkdir(parents=True, exist_ok=True)
    claim = Lock(claims / job.label.replace("/", "+"))
    if not claim.try_acquire():
        return False
    try:
        if not job.done() and (reason := job.run()):
            failures[job.label] = reason
    finally:
        claim.release()
    return True


def publish(demo: Path, folder: Path) -> int:
    """Replace the records by those of the finished runs; -> 1 where some are not finished or one is wrong."""
    jobs = read_jobs(demo)
    if left := [job.label for job in jobs if not job.done()]:
        print(f"{len(left)} of {len(jobs)} are not done, {left[0]} the first: `run` comes before", file=sys.stderr)
        return 1
    old = old_records(demo)
    new = {job.spec.key: stored for job in jobs if isinstance(job, Cell) and (stored := stored_run(job.spec.folder))}
    print_moves(old, new)
    for key, (source, _) in new.items():
        replace(demo.joinpath(*key.folder_names), source)
    for key in sorted(old.keys() - new.keys(), key=lambda key: key.folder_names):
        print(f"deleted: {'/'.join(key.folder_names)}")
        shutil.rmtree(old[key][0])
    for path in sorted(demo.rglob("*"), reverse=True):  # what is below a folder comes before it
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()
    for study in (folder / TRIALS).rglob(STUDY):
        replace_study(demo.parent / "tuning" / study.parent.relative_to(folder / TRIALS), study.parent)
    code = check_demo.main([f"--demo={demo}", f"--folder={folder}", "--seeds=all", "--bound=0"])
    if demo == DEMO:
        refresh_tables.main()
    return code


def replace(target: Path, source: Path) -> None:
    """Give a folder the record and the predictions of a run; whoever reads it meanwhile reads the one or the other."""
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for name in (PREDICTIONS, FILE):  # a folder with a record is complete
        shutil.copyfile(source / name, partial / name)
    settle(target)


def replace_study(target: Path, source: Path) -> None:
    """Give a folder the study and the records of the trials."""
    shutil.rmtree(target, ignore_errors=True)
    for path in [*source.rglob(FILE), source / STUDY]:
        new = target / path.relative_to(source)
        new.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, new)


def old_records(demo: Path) -> Runs:
    return {record.key: (folder, record) for folder, record in find_runs([demo]).items()}


def seconds(job: Cell | Tuning, old: Runs, unknown: float = math.nan) -> float:
    """What the old record says that training and testing took."""
    if isinstance(job, Tuning) or job.spec.key not in old:
        return unknown
    cost = old[job.spec.key][1].cost
    return sum(cost.get(name) or 0.0 for name in ("train_seconds", "test_seconds"))


def print_moves(old: Runs, new: Runs) -> None:
    """Accuracy in the mean over seeds, for each row and test where it is another now."""
    means = []
    for runs in (old, new):
        scores = [
            {**key.model_dump(include=set(ROW)), "test": test, "accuracy": 100 * of_test["accuracy"]}
            for key, (_, record) in runs.items()
            for test, of_test in record.scores.items()
        ]
        means.append(pd.DataFrame(scores).fillna({"variant": ""}).groupby([*ROW, "test"])["accuracy"].mean())
    moves = pd.concat(means, axis=1, keys=["before", "now"])
    moves = moves[moves["before"] != moves["now"]]
    moves["moved"] = moves["now"] - moves["before"]
    print(f"{len(moves)} means over seeds are others now:")
    print(moves.reset_index().to_string(index=False, float_format="%.2f", na_rep=""))


if __name__ == "__main__":
    sys.exit(main())
