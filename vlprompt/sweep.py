"""`python run.py`: one job or many, and the only place where an exception becomes a failed record."""

import json
import os
import signal
import sys
import time
import traceback
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, cast

import hydra
from hydra._internal.callbacks import Callbacks
from hydra._internal.hydra import Hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf

from vlprompt.config.cells import check, expand, key_of
from vlprompt.config.compose import (
    COMPOSITION_ERRORS,
    check_groups,
    config_dirs,
    explained,
    made_choices,
    modernized,
    plain,
    spec_of,
    started,
    zero_shot_reference,
)
from vlprompt.config.options import MODE, SWEEP_DIR, is_sweep, make_folder, options_first, read_options, sweep_folder
from vlprompt.config.paths import config_dir, results_root
from vlprompt.config.spec import UNRECORDED
from vlprompt.data.disk import whole_file, writing
from vlprompt.errors import NotApplicableError, UserError, prepare_streams, printable
from vlprompt.towers import has_text
from vlprompt.training.stops import Stopped, heard

if TYPE_CHECKING:
    from vlprompt.config.spec import RunSpec
    from vlprompt.results.record import Record

OUTCOMES = "jobs"  # a file for each job, below the sweep's folder
BASIC = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"
Errors = tuple[type[Exception], ...]


def main(arguments: Sequence[str]) -> int:
    """Run what the arguments ask for; -> exit code (0 done, 1 a job of a sweep failed, 2 a mistake, 128 + a signal)."""
    trace = os.environ.get("HYDRA_FULL_ERROR", "0") not in ("", "0")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # so that errors reach this function whole
    mistakes: list[UserError] = []  # of a single run; Hydra would reformat what is raised within a job

    @heard()  # within Hydra, which would print a stop that OmegaConf took for an error
    def job(config: DictConfig) -> None:
        try:
            single_job(config)
        except UserError as error:
            mistakes.append(error)

    try:
        prepare_streams(arguments)
        arguments = modernized(options_first(arguments))
        options = read_options(arguments)
        check_groups(options.overrides)
        with heard():
            if is_sweep(options):
                return run_sweep(options, arguments)
            sys.argv = ["run.py", *arguments]
            hydra.main(version_base="1.3", config_path=str(config_dir()), config_name="config")(job)()
        if mistakes:
            raise mistakes[0]
        return 0
    except KeyboardInterrupt as stop:
        stop = stop if isinstance(stop, Stopped) else Stopped(signal.SIGINT)
        print(printable(stop.line), file=sys.stderr)  # noqa: T201
        return 128 + stop.number
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


def run_sweep(options: Namespace, arguments: Sequence[str]) -> int:
    """Check all cells of a sweep, run those that can run, and sum up; -> exit code."""
    if options.config_name or options.config_path:
        raise UserError("a sweep starts from conf/config.yaml: give settings of your own with --config-dir")
    of_hydra = [text for text in options.overrides if text.lstrip("+~").startswith(("hydra.", "hydra/"))]
    with started(options.config_dir and Path(options.config_dir)) as hydra, sweep_folder(of_hydra) as folder:
        asked = [text for text in options.overrides if text not in of_hydra]
        shared = [t for t in of_hydra if t.lstrip("+").partition("=")[0] not in (MODE, SWEEP_DIR)]
        shared += [f"{MODE}=MULTIRUN", f"{SWEEP_DIR}={json.dumps(str(folder), ensure_ascii=False)}"]
        config = hydra.compose_config("config", shared, RunMode.MULTIRUN)
        sweeper = config.hydra.sweeper
        if sweeper.get("_target_") != BASIC:
            raise UserError("hydra/sweeper is not for benchmarks: give values as a,b,c, or search with `vlprompt tune`")
        cells, refused = check(
            expand([*(f"{key}={value}" for key, value in (sweeper.params or {}).items()), *asked], hydra),
            shared,
            arguments,
        )
        make_folder(folder, folder / OUTCOMES)
        since = datetime.now(timezone.utc).replace(microsecond=0)
        for number, cell in enumerate(refused, len(cells)):
            outcome = {"status": "not_applicable", "reason": str(cell.refusal)}
            write_failure({**cell.key, **outcome, "config": cell.config, "changes": cell.changes}, None)
            write_outcome(folder, number, {"job": " ".join(cell.overrides), "folders": [], **outcome})
        launch([cell.overrides for cell in cells], config, hydra)
        return summarise_sweep(folder, since)


def launch(cells: Sequence[list[str]], config: DictConfig, hydra: Hydra) -> None:
    """Give all cells to Hydra's launcher, which may run several at once."""
    callbacks = Callbacks(config)
    callbacks.on_multirun_start(config=config, config_name="config")
    context = HydraContext(config_loader=hydra.config_loader, callbacks=callbacks)
    launcher = Plugins.instance().instantiate_launcher(context, sweep_job, config)
    at_once = config.hydra.sweeper.max_batch_size or len(cells)
    for first in range(0, len(cells), at_once):
        for job in launcher.launch(cells[first : first + at_once], initial_job_idx=first):
            _ = job.return_value  # raises what the job raised
    callbacks.on_multirun_end(config=config, config_name="config")


def single_job(config: DictConfig) -> None:
    """Run, or find the finished run, and show its table next to the zero-shot reference's."""
    from vlprompt.reports.endings import next_steps
    from vlprompt.reports.render import in_words
    from vlprompt.run import run
    from vlprompt.training.progress import Reporter

    overrides, choices = asked_for()
    spec = spec_of(plain(config, config_dirs()), choices, overrides)
    reference = zero_shot_reference(choices, overrides) if spec.trained else None
    record = run(spec)  # first: a mistake in it shows before the reference is computed
    references = []
    try:
        references = [run(reference)] if reference and is_comparable(reference) else []
    except UserError as error:  # the run is finished all the same
        Reporter().say(f"there is no zero-shot row: {error}")
    Reporter().say(f"\n{in_words([*references, record])}\n\n{next_steps([record])}")


def is_comparable(reference: "RunSpec") -> bool:
    """Whether the zero-shot run can be asked for; it says so where the backbone has no text."""
    from vlprompt.training.progress import Reporter

    if has_text(model := reference.settings.backbone.model):
        return True
    Reporter().say(f"there is no zero-shot row: {model} has no text tower")
    return False


def asked_for() -> tuple[list[str], dict[str, Any]]:
    """The overrides of this job, the folders of settings among them, and the chosen names of groups."""
    now = HydraConfig.get()
    searched = [text for text in now.overrides.hydra if text.startswith("hydra.searchpath")]
    return [*now.overrides.task, *searched], made_choices(now.runtime.choices)


@heard()
def sweep_job(config: DictConfig) -> None:
    """One job of a sweep, whose outcome is left as a file where the whole sweep is summed up."""
    prepare_streams()  # those of another process
    now = HydraConfig.get()
    overrides, choices = asked_for()
    record = run_or_record_failure(
        lambda: spec_of(plain(config, config_dirs()), choices, overrides),
        key=key_of(config, choices),
        config=cast("dict[str, Any]", OmegaConf.to_container(config)),
    )
    records = [record]
    if record.status == "finished" and record.shots:  # 0: a learner that is not trained
        try:
            reference = zero_shot_reference(choices, overrides)
            records += [run_or_record_failure(reference)] if is_comparable(reference) else []
        except UserError as error:  # the run is finished all the same, and other cells are to come
            print(printable(f"there is no zero-shot row: {error}"), file=sys.stderr)  # noqa: T201
    folders = [str(one.folder(results_root())) for one in reversed(records) if one.status == "finished"]
    outcome: dict[str, Any] = {"job": " ".join(now.overrides.task), "folders": folders, "wandb": config.get("wandb")}
    for one in records:
        if one.status != "finished":
            outcome |= {"status": one.status, "reason": one.reason}
    write_outcome(Path(now.sweep.dir), now.job.num, outcome)


def write_outcome(folder: Path, number: int, outcome: Mapping[str, Any]) -> None:
    path = folder / OUTCOMES / f"{number:06d}.json"
    with writing(f"'{path}'", "and run the sweep again: finished runs are read"), whole_file(path) as draft:
        draft.write_text(json.dumps(outcome), encoding="utf-8")


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
            "status": "not_applicable" if isinstance(error, NotApplicableError) else "failed",
            "reason": str(error) if is_mistake else f"{type(error).__name__}: {error}",
            "cost": {"train_seconds": time.perf_counter() - start},
        }
        if spec is not None:
            fields |= {**spec.key.model_dump(), "config": spec.config, "config_hash": spec.hash}
            fields |= {"changes": spec.changes, "precision": spec.precision}  # so that it is of its seeds' row
        else:
            fields |= {**key, "config": {name: value for name, value in config.items() if name not in UNRECORDED}}
        return write_failure(fields, spec.folder if spec else None)


def write_failure(fields: Mapping[str, Any], folder: Path | None) -> "Record":
    """Leave the record of a run that did not finish, if its key is a valid one."""
    from vlprompt.results.record import Record
    from vlprompt.results.store import open_run

    try:
        record = Record(**{"weights": (fields["config"].get("backbone") or {}).get("weights"), **fields})
        with open_run(folder or record.folder(results_root())) as run:
            run.write(lambda: run.publish(record))
    except (ValueError, UserError):  # a value that no run can have, a name that no folder can
        return Record.model_construct(**fields)
    return record


def summarise_sweep(folder: Path, since: datetime) -> int:
    """Show what the jobs of a sweep came to, and log it if a run is new `since` then; -> 1 if a job failed."""
    from vlprompt.reports.endings import next_steps
    from vlprompt.reports.render import in_words
    from vlprompt.results.store import stored_run

    outcomes = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob(f"{OUTCOMES}/*.json"))]
    folders = dict.fromkeys(name for outcome in outcomes for name in outcome["folders"])
    records = [run[1] for folder in folders if (run := stored_run(Path(folder)))]
    if records:
        print(f"\n{in_words(records)}\n\n{next_steps(records)}")  # noqa: T201
    if any(datetime.fromisoformat(record.created) >= since for record in records):  # else it was logged then
        log_sweep(records, outcomes, folder.name)
    stopped = [outcome for outcome in outcomes if "status" in outcome]
    if stopped:
        lines = [f"{len(stopped)} of {len(outcomes)} runs did not finish:"]
        for status, reason in dict.fromkeys((outcome["status"], outcome["reason"]) for outcome in stopped):
            lines.append(f"  {status}: {reason}")
            lines += [f"    {o['job']}" for o in stopped if (o["status"], o["reason"]) == (status, reason)]
        lines.append("Mend this and give the same command again: finished runs are read, not made anew.")
        print(printable("\n".join(lines)), file=sys.stderr)  # noqa: T201
    return int(any(outcome["status"] == "failed" for outcome in stopped))


def log_sweep(records: "Sequence[Record]", outcomes: Sequence[Mapping[str, Any]], name: str) -> None:
    """Leave W&B one table of all results, in the mode that the jobs had."""
    from vlprompt.reports.summary import summarise
    from vlprompt.reports.variants import distinguishing
    from vlprompt.training.tracking import track_sweep

    jobs = Counter(outcome.get("status", "finished") for outcome in outcomes)
    mode = next((outcome["wandb"] for outcome in outcomes if "wandb" in outcome), None)
    table = summarise(records, columns=distinguishing(records))
    track_sweep(mode, table, jobs, name=name, folder=results_root())
