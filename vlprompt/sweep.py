"""`python run.py`: one job or many."""

import atexit
import gc
import json
import os
import random
import signal
import sys
import traceback
from argparse import Namespace
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from vlprompt.config.compose import (
    COMPOSITION_ERRORS,
    check_groups,
    composed,
    config_dirs,
    explained,
    made_choices,
    modernized,
    plain,
    spec_of,
    started,
    zero_shot_reference,
)
from vlprompt.config.options import (
    MODE,
    SWEEP_DIR,
    is_of_cluster,
    is_sweep,
    make_folder,
    options_first,
    read_options,
    sweep_folder,
    sweep_settings,
    with_any_option,
)
from vlprompt.config.paths import config_dir, results_root
from vlprompt.errors import InUseError, UserError, prepare_streams, printable
from vlprompt.jobs.failures import described, run_or_record_failure, write_failure
from vlprompt.jobs.single import is_comparable, single_job
from vlprompt.reports.sweeps import summarise_sweep
from vlprompt.results.sweeps import OUTCOMES, start_of, write_begun, write_outcome, write_sweep
from vlprompt.training.stops import Stopped, heard, served

if TYPE_CHECKING:
    from vlprompt.config.cells import Cell
    from vlprompt.config.spec import RunSpec

atexit.register(gc.freeze)  # whatever is left is gone with the process: looking for it takes a second
BASIC = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"


def main(arguments: Sequence[str]) -> int:
    """Run what the arguments ask for; -> exit code (0 done, 1 a job of a sweep failed, 2 a mistake, 128 + a signal)."""
    trace = os.environ.get("HYDRA_FULL_ERROR", "0") not in ("", "0")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # so that errors reach this function whole
    mistakes: list[UserError] = []  # of a single run; Hydra would reformat what is raised within a job

    @heard()  # within Hydra, which would print a stop that OmegaConf took for an error
    def job(config: DictConfig) -> None:
        try:
            single_job(plain(config, config_dirs()), *asked_for())
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
    from vlprompt.config.cells import check, expand
    from vlprompt.config.launch import launch, n_at_once, sharing
    from vlprompt.config.queue import told_what_stays
    from vlprompt.run import existing_record

    if options.config_name or options.config_path:
        raise UserError("a sweep starts from conf/config.yaml: give settings of your own with --config-dir")
    of_hydra = [text for text in options.overrides if text.lstrip("+~").startswith(("hydra.", "hydra/"))]
    with started(options.config_dir and Path(options.config_dir)) as hydra, sweep_folder(of_hydra) as folder:
        wishes, asked = sweep_settings([text for text in options.overrides if text not in of_hydra])
        shared = [t for t in of_hydra if t.lstrip("+").partition("=")[0] not in (MODE, SWEEP_DIR)]
        shared += [f"{MODE}=MULTIRUN", f"{SWEEP_DIR}={json.dumps(str(folder), ensure_ascii=False)}"]
        of_cluster = [text for text in asked if is_of_cluster(text)]
        asked = [text for text in asked if text not in of_cluster]
        config = hydra.compose_config("config", [*shared, *with_any_option(of_cluster)], RunMode.MULTIRUN)
        sweeper = config.hydra.sweeper
        if sweeper.get("_target_") != BASIC:
            raise UserError("hydra/sweeper is not for benchmarks: give values as a,b,c, or search with `vlprompt tune`")
        cells, refused = check(
            expand([*(f"{key}={value}" for key, value in (sweeper.params or {}).items()), *asked], hydra),
            shared,
            arguments,
        )
        if wishes.dry_run:
            return list_cells(cells, refused, shared)
        if wishes.shuffle:
            random.shuffle(cells)
        make_folder(folder, folder / OUTCOMES)
        since = write_sweep(folder, {" ".join(cell.overrides): cell.key for cell in [*cells, *refused]})
        for number, cell in enumerate(refused, len(cells)):
            outcome = {"status": "not_applicable", "reason": str(cell.refusal)}
            write_failure({**cell.key, **outcome, "config": cell.config, "changes": cell.changes}, None)
            write_outcome(folder, number, {"job": " ".join(cell.overrides), "folders": [], **outcome})

        def lose(overrides: list[str], number: int, reason: str) -> None:
            spec = spec_of_cell(overrides, shared)
            outcome: dict[str, Any] = {"job": " ".join(overrides), "folders": [str(spec.folder)]}
            if not existing_record(spec):
                failure = {"status": "failed", "reason": reason}
                write_failure({**described(spec), **failure}, spec.folder)
                outcome |= {"folders": [], **failure}
            write_outcome(folder, number, outcome)

        tried = [cell.overrides for cell in cells]
        with sharing(n_at_once(config, len(cells))), told_what_stays(config):
            launch(tried, sweep_job, config, hydra, number=len(cells) + len(refused), on_loss=lose)
        return summarise_sweep(folder, since)


def list_cells(cells: "Sequence[Cell]", refused: "Sequence[Cell]", shared: list[str]) -> int:
    """Show what a sweep would run, what is finished, and the time that the rest takes; -> exit code 0."""
    from vlprompt.reports.sweeps import Planned, show_plan
    from vlprompt.run import existing_record

    plan = dict[str, Planned]()
    for cell in cells:
        state, reason = "to do", ""
        try:
            state = "finished" if existing_record(spec_of_cell(cell.overrides, shared)) else "to do"
        except UserError as error:
            state, reason = "fails", str(error)
        plan[" ".join(cell.overrides)] = Planned(cell.key, state, reason)
    plan |= {" ".join(cell.overrides): Planned(cell.key, "not applicable", str(cell.refusal)) for cell in refused}
    print(show_plan(plan))  # noqa: T201
    return 0


def spec_of_cell(overrides: list[str], shared: list[str]) -> "RunSpec":
    with composed([*shared, *overrides]) as (config, choices):
        return spec_of(config, choices, [*overrides, *shared])


def asked_for() -> tuple[list[str], dict[str, Any]]:
    """The overrides of this job, the folders of settings among them, and the chosen names of groups."""
    now = HydraConfig.get()
    searched = [text for text in now.overrides.hydra if text.startswith("hydra.searchpath")]
    return [*now.overrides.task, *searched], made_choices(now.runtime.choices)


def sweep_job(config: DictConfig) -> str | Stopped | None:
    """`one_job`, or what stopped it where it is a process of a launcher's."""
    return served(partial(one_job, config))


def one_job(config: DictConfig) -> str | None:
    """One job of a sweep, whose outcome is left as a file where the whole sweep is summed up.

    -> None, or the folder of the run that another process is making: the job is to be tried again when it has.
    """
    from vlprompt.config.cells import key_of

    prepare_streams()  # those of another process
    now, wait = HydraConfig.get(), bool(config.get("force"))
    overrides, choices = asked_for()
    folder, job = Path(now.sweep.dir), " ".join(now.overrides.task)

    def asked() -> "RunSpec":
        spec = spec_of(plain(config, config_dirs()), choices, overrides)
        write_begun(folder, now.job.num, job, spec.folder)
        return spec

    try:
        key, since = key_of(config, choices), start_of(folder)
        whole = cast("dict[str, Any]", OmegaConf.to_container(config))
        records = [run_or_record_failure(asked, key=key, config=whole, wait=wait, since=since)]
        if records[0].status == "finished" and records[0].shots:  # 0: a learner that is not trained
            try:
                reference = zero_shot_reference(choices, overrides)
                wait |= "SUBMITIT_EXECUTOR" in os.environ  # a second try would be a job more in the queue
                if is_comparable(reference):
                    records.append(run_or_record_failure(reference, wait=wait, since=since))
            except InUseError:
                raise
            except UserError as error:  # the run is finished all the same, and other cells are to come
                print(printable(f"there is no zero-shot row: {error}"), file=sys.stderr)  # noqa: T201
    except InUseError as error:
        return str(error.folder)
    folders = [str(one.folder(results_root())) for one in reversed(records) if one.status == "finished"]
    outcome: dict[str, Any] = {"job": job, "folders": folders, "wandb": config.get("wandb")}
    for one in records:
        if one.status != "finished":
            outcome |= {"status": one.status, "reason": one.reason}
    try:
        write_outcome(folder, now.job.num, outcome)
    except UserError as error:  # on another machine's disk, say: the run is finished all the same
        print(printable(f"warning: {error}"), file=sys.stderr)  # noqa: T201
    return None
