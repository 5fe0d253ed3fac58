"""`python run.py`: one job or many, and the only place where an exception becomes a failed record."""

import json
import os
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, cast

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import setup_globals
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from vlprompt.config.compose import (
    COMPOSITION_ERRORS,
    config_dirs,
    explained,
    modernized,
    plain,
    spec_of,
    zero_shot_reference,
)
from vlprompt.config.paths import config_dir, results_root
from vlprompt.errors import ClassBoundError, OverriddenError, UserError, printable

if TYPE_CHECKING:
    from vlprompt.config.spec import RunSpec
    from vlprompt.results.record import Record

SWEEP_DIR, OUTCOMES = "hydra.sweep.dir", "jobs"  # a file for each job, below the sweep's folder
Errors = tuple[type[Exception], ...]


def main(arguments: Sequence[str]) -> int:
    """Run what the arguments ask for; -> exit code (0 done, 1 a job of a sweep failed, 2 a mistake, 130 Ctrl-C)."""
    trace = os.environ.get("HYDRA_FULL_ERROR", "0") not in ("", "0")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # so that errors reach this function whole
    mistakes: list[UserError] = []  # of a single run; Hydra would reformat what is raised within a job

    def job(config: DictConfig) -> None:
        """One run as composed by Hydra, in a sweep perhaps in another process."""
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            sweep_job(config)
            return
        try:
            single_job(config)
        except UserError as error:
            mistakes.append(error)

    try:
        arguments, folder = with_sweep_folder(modernized(arguments))
        sys.argv = ["run.py", *arguments]
        hydra.main(version_base="1.3", config_path=str(config_dir()), config_name="config")(job)()
        if mistakes:
            raise mistakes[0]
        return summarise_sweep(folder) if folder else 0
    except KeyboardInterrupt:
        print("\ninterrupted: this run left no record, earlier ones are untouched", file=sys.stderr)  # noqa: T201
        return 130
    except (UserError, *COMPOSITION_ERRORS) as error:
        mistake = error if isinstance(error, UserError) else explained(error, arguments)
        if not isinstance(mistake, UserError):
            raise
        if trace:
            traceback.print_exc()
        else:
            print(printable(f"error: {mistake}"), file=sys.stderr)  # noqa: T201
        return 2
    finally:
        os.environ["HYDRA_FULL_ERROR"] = str(int(trace))


def with_sweep_folder(arguments: list[str]) -> tuple[list[str], Path | None]:
    """Arguments that say where a sweep's jobs leave their outcomes, in whatever process or machine they run.

    -> these and the folder, emptied of earlier outcomes; None for a single run.
    """
    parsed = get_args_parser().parse_args(arguments)
    keys = {text.lstrip("+").partition("=")[0]: text for text in parsed.overrides}
    if not (parsed.multirun or keys.get("hydra.mode", "").endswith("=MULTIRUN")):
        return arguments, None
    if given := keys.get(SWEEP_DIR):  # resolved here, so that a time in it is the same for all
        setup_globals()
        value = OverridesParser.create().parse_override(given).value()
        folder = Path(OmegaConf.create({"dir": value})["dir"])
    else:
        folder = results_root().absolute() / "multirun" / datetime.now().strftime("%Y-%m-%d_%H-%M-%S-%f")
    shutil.rmtree(folder / OUTCOMES, ignore_errors=True)
    literal, others = f"{SWEEP_DIR}={json.dumps(str(folder))}", [text for text in arguments if text != given]
    first = next((i for i, text in enumerate(others) if text in parsed.overrides), len(others))
    return [*others[:first], literal, *others[first:]], folder


def single_job(config: DictConfig) -> None:
    """Run, or find the finished run, and show its table next to the zero-shot reference's."""
    from vlprompt.reports.render import render
    from vlprompt.reports.summary import summarise
    from vlprompt.run import run
    from vlprompt.training.progress import Reporter

    overrides, choices = asked_for()
    spec = spec_of(plain(config, config_dirs()), choices, overrides)
    reference = zero_shot_reference(choices, overrides) if spec.trained else None
    record = run(spec)  # first: a mistake in it shows before the reference is computed
    references = [run(reference)] if reference else []
    Reporter().say("\n" + render(summarise([*references, record])).rstrip())


def asked_for() -> tuple[list[str], dict[str, Any]]:
    """The overrides of this job, the folders of settings among them, and the chosen names of groups."""
    now = HydraConfig.get()
    searched = [text for text in now.overrides.hydra if text.startswith("hydra.searchpath")]
    return [*now.overrides.task, *searched], dict(now.runtime.choices)


def sweep_job(config: DictConfig) -> None:
    """One job of a sweep, whose outcome is left as a file where the whole sweep is summed up."""
    now = HydraConfig.get()
    overrides, choices = asked_for()
    record = run_or_record_failure(
        lambda: spec_of(plain(config, config_dirs()), choices, overrides),
        key=key_of(config, choices),
        config=cast("dict[str, Any]", OmegaConf.to_container(config)),
    )
    records = [record]
    if record.status == "finished" and record.shots:  # 0: a learner that is not trained
        records.append(run_or_record_failure(lambda: zero_shot_reference(choices, overrides)))
    folders = [str(one.folder(results_root())) for one in reversed(records) if one.status == "finished"]
    outcome: dict[str, Any] = {"job": " ".join(now.overrides.task), "folders": folders}
    for one in records:
        if one.status != "finished":
            outcome |= {"status": one.status, "reason": one.reason}
    path = Path(now.sweep.dir, OUTCOMES, f"{now.job.num:06d}.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(outcome), encoding="utf-8")


def key_of(config: Mapping[str, Any], choices: Mapping[str, Any]) -> dict[str, Any]:
    """The key of a run, as far as its configuration tells before it is checked."""
    shots = config.get("shots") if config.get("fit") else 0
    names = {group: choices.get(group) for group in ("protocol", "dataset", "backbone", "method")}
    return names | {"variant": config.get("name"), "shots": shots, "seed": config.get("seed") if shots else 0}


def run_or_record_failure(
    asked: "RunSpec | Callable[[], RunSpec]",
    *,
    key: Mapping[str, Any] = MappingProxyType({}),
    config: Mapping[str, Any] = MappingProxyType({}),
    caught: Errors = (Exception,),
) -> "Record":
    """The record of a run, or, if one of the exceptions in `caught` is raised, a failed record with the reason.

    `asked` may be a function that reads the run; `key` and `config` are for one that cannot be read.
    """
    from vlprompt.run import run

    spec, start = None, time.perf_counter()
    try:
        spec = asked() if callable(asked) else asked
        return run(spec)
    except caught as error:
        is_mistake = isinstance(error, UserError)
        if not is_mistake:
            traceback.print_exc()
        fields: dict[str, Any] = {
            "status": "not_applicable" if isinstance(error, ClassBoundError | OverriddenError) else "failed",
            "reason": str(error) if is_mistake else f"{type(error).__name__}: {error}",
            "cost": {"train_seconds": time.perf_counter() - start},
        }
        if spec is not None:
            fields |= {**spec.key.model_dump(), "config": spec.config, "config_hash": spec.hash}
        else:
            fields |= {**key, "config": {name: value for name, value in config.items() if name != "search"}}
        return write_failure(fields, spec.folder if spec else None)


def write_failure(fields: Mapping[str, Any], folder: Path | None) -> "Record":
    """Leave the record of a run that did not finish, if its key is a valid one."""
    from vlprompt.results.record import Record
    from vlprompt.results.store import open_run

    try:
        record = Record(**fields)
        with open_run(folder or record.folder(results_root())) as run:
            run.publish(record)
    except (ValueError, UserError):  # a value that no run can have, a name that no folder can
        return Record.model_construct(**fields)
    return record


def summarise_sweep(folder: Path) -> int:
    """Show what the jobs of a sweep came to; -> 1 if one failed."""
    from vlprompt.reports.render import render
    from vlprompt.reports.summary import summarise
    from vlprompt.results.record import Record

    outcomes = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob(f"{OUTCOMES}/*.json"))]
    folders = dict.fromkeys(run for outcome in outcomes for run in outcome["folders"])
    records = [record for run in folders if (record := Record.read(Path(run)))]
    if records:
        print("\n" + render(summarise(records)).rstrip())  # noqa: T201
    stopped = [outcome for outcome in outcomes if "status" in outcome]
    if stopped:
        print(f"{len(stopped)} of {len(outcomes)} runs did not finish:", file=sys.stderr)  # noqa: T201
        for outcome in stopped:
            line = f"  {outcome['job']} ({outcome['status']}): {outcome['reason']}"
            print(printable(line), file=sys.stderr)  # noqa: T201
    return int(any(outcome["status"] == "failed" for outcome in stopped))
