"""Sweeps whose cells are jobs: of SLURM itself, and of submitit on this machine."""

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import slurm
from hydra.types import RunMode
from omegaconf import OmegaConf
from running import PROGRAM, VLPROMPT, end, environment_in, start
from slurm import wait_for
from test_stops import outcome
from test_sweeps import CELL, runs

from vlprompt.config import queue
from vlprompt.config.compose import started
from vlprompt.config.options import with_any_option
from vlprompt.errors import UserError
from vlprompt.results.store import STATE, find_records, holder
from vlprompt.training.stops import Stopped

submitit = pytest.importorskip("submitit", reason="needs the extra slurm")
slow = pytest.mark.slow

QUEUE = ["+cluster=slurm", "cluster.partition=main", "cluster.gpus=0", "cluster.cpus=1", "cluster.memory_gb=1"]
NO_TIME = ["cluster.minutes=9", "cluster.requeue=0"]  # submitit takes a signal in the last ten minutes for the end
LOCAL = ["hydra/launcher=submitit_local"]
LONG = [*CELL, "fit.epochs=250", "bank.views=null", "threads=1", "device=cpu"]
RUN_OF = "runs/few_shot/digits/shapes_vit/coop@x/shots2"


@pytest.fixture(scope="module")
def cluster() -> Iterator[dict[str, str]]:
    if slurm.MISSING:
        pytest.skip(f"needs SLURM (apt-get install slurm-wlm munge): there is no {slurm.MISSING[0]}")
    with (
        tempfile.TemporaryDirectory(prefix="slurm-", ignore_cleanup_errors=True) as folder,
        slurm.cluster(Path(folder)) as environment,
    ):
        yield environment


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the long cell of the first seed comes to."""
    folder = tmp_path_factory.mktemp("undisturbed")
    code, _, err = end(start(PROGRAM, [*LONG, "seed=1"], environment_in(folder), folder))
    assert (code, err) == (0, "")
    return outcome(folder / "results", f"{RUN_OF}/seed1")


def wait_for_training(folder: Path, seed: int = 1) -> None:
    log = folder / "results" / RUN_OF / f".seed{seed}.partial" / "log.txt"
    wait_for(lambda: log.exists() and "] epoch 20 " in log.read_text(), 200)


def job_of(folder: Path, seed: int, environment: dict[str, str]) -> str:
    """The number that SLURM gave to the job of a cell."""
    for path in (folder / "results").glob("multirun/*/.submitit/*/*_submitted.pkl"):
        job = path.name.removesuffix("_submitted.pkl")
        if f"seed={seed}".encode() in path.read_bytes() and job in slurm.ask(["squeue", "-h", "-o%i"], environment):
            return job
    raise LookupError(f"no job of seed {seed}")


@slow
def test_a_sweep_is_a_job_array(cluster: dict[str, str], tmp_path: Path) -> None:
    environment = environment_in(tmp_path) | cluster
    code, out, err = end(start(PROGRAM, ["-m", *CELL, *QUEUE, "seed=1,2", "shots=1,2"], environment, tmp_path))
    assert (code, err) == (0, "")
    assert [method for method, _ in runs(tmp_path / "results")] == ["coop"] * 4 + ["zero_shot"]
    assert out.count("\ncoop ") == 2  # rows of the table
    (script,) = (tmp_path / "results").glob("multirun/*/.submitit/*/*_submission.sh")  # no job was given twice
    assert "#SBATCH --array=0-3%4" in script.read_text()


def requeue(job: str, environment: dict[str, str]) -> None:
    """As SLURM does with a job whose node it gives to another."""
    slurm.ask(["scontrol", "requeue", job], environment)


def warn(job: str, environment: dict[str, str]) -> None:
    """As SLURM does with a job whose time is nearly over, or that is preempted: submitit asks to be queued again."""
    slurm.ask(["scancel", "--signal=TERM", job], environment)
    slurm.ask(["scancel", "--signal=USR2", job], environment)


@slow
@pytest.mark.parametrize("disturb", [requeue, warn])
def test_a_preempted_job_goes_on(
    cluster: dict[str, str],
    tmp_path: Path,
    undisturbed: dict[str, Any],
    disturb: Callable[[str, dict[str, str]], None],
) -> None:
    environment = environment_in(tmp_path) | cluster
    sweep = start(PROGRAM, ["-m", *LONG, *QUEUE, "seed=1"], environment, tmp_path)
    wait_for_training(tmp_path)
    disturb(job_of(tmp_path, 1, environment), environment)
    wait_for(lambda: "PENDING" in slurm.ask(["squeue", "-h", "-o%T"], environment), 30)
    assert (tmp_path / "results" / RUN_OF / ".seed1.partial" / STATE).exists()
    _, status, _ = end(start(VLPROMPT, ["status"], environment, tmp_path))
    assert "1 cell: 1 to do" in status
    code, _, err = end(sweep)
    assert (code, err) == (0, "")
    assert outcome(tmp_path / "results", f"{RUN_OF}/seed1") == undisturbed
    assert [record.cost["stops"] for record in find_records([tmp_path / "results"]) if record.shots] == [1]


@slow
@pytest.mark.parametrize(
    ("command", "reason"),
    [(["scancel"], "CANCELLED"), (["scancel", "--signal=USR2"], "timed-out too many times")],
)
def test_a_job_that_is_lost_is_a_failed_cell_and_no_other_is(
    cluster: dict[str, str], tmp_path: Path, command: list[str], reason: str
) -> None:
    environment = environment_in(tmp_path) | cluster
    sweep = start(PROGRAM, ["-m", *LONG, *QUEUE, "seed=1,2", *NO_TIME], environment, tmp_path)
    wait_for_training(tmp_path)
    slurm.ask([*command, job_of(tmp_path, 1, environment)], environment)
    code, out, err = end(sweep)
    assert code == 1
    assert "1 of 2 runs did not finish" in err
    assert reason in err
    assert "Traceback" not in err
    assert "\ncoop " in out
    states = {record.seed: record.status for record in find_records([tmp_path / "results"]) if record.shots}
    assert states == {1: "failed", 2: "finished"}
    assert (tmp_path / "results" / RUN_OF / "seed1" / STATE).exists()  # the same command resumes it


@slow
def test_tasks_of_srun_share_a_sweep(cluster: dict[str, str], tmp_path: Path) -> None:
    command = [*PROGRAM, "-m", *CELL, "seed=1,2,3,4", "fit.epochs=100", "sweep.shuffle=true"]
    code, out, err = end(
        subprocess.Popen(
            ["srun", "--quiet", "-n4", sys.executable, *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            env=environment_in(tmp_path) | cluster,
        )
    )
    assert (code, err) == (0, "")
    assert runs(tmp_path / "results") == [*(("coop", seed) for seed in range(1, 5)), ("zero_shot", 0)]
    made = re.findall(r"^(?:coop|zero_shot)\S* .*on digits.*", out, re.MULTILINE)
    assert len(made) == 5
    assert "is running" not in out


@slow
@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGKILL])
def test_a_job_of_submitit_on_this_machine(tmp_path: Path, undisturbed: dict[str, Any], number: int) -> None:
    """submitit's signal has it queued again, and it goes on; one that is killed is lost, and goes on when asked."""
    environment = environment_in(tmp_path)
    cells = ["-m", *LONG, *LOCAL, "seed=1,2", "state_minutes=0.01"]
    sweep = start(PROGRAM, cells, environment, tmp_path)
    wait_for_training(tmp_path)
    pid = str(holder(tmp_path / "results" / RUN_OF / "seed1")).split()[0]
    os.kill(int(pid), number)
    code, _, err = end(sweep)
    if number == signal.SIGKILL:
        assert (code, "Traceback" in err) == (1, False)
        assert "1 of 2 runs did not finish" in err
        code, _, err = end(start(PROGRAM, ["-m", *LONG, "seed=1,2"], environment, tmp_path))
    assert (code, err) == (0, "")
    assert outcome(tmp_path / "results", f"{RUN_OF}/seed1") == undisturbed
    records = find_records([tmp_path / "results"])
    assert {record.seed: record.cost.get("stops") for record in records if record.shots} == {1: 1, 2: None}


# Without a cluster

SLURM = {"_target_": "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher"}
LAUNCHER = OmegaConf.create({"hydra": {"launcher": SLURM}})


@pytest.mark.parametrize(
    ("listed", "state"),
    [
        ("7_0|RUNNING\n7_1|PENDING\n", "RUNNING"),
        ("7_1|CONFIGURING\n", "RUNNING"),
        ("7_1|OUT_OF_MEMORY\n7_10|RUNNING\n", "SLURM: OUT_OF_MEMORY"),
        ("slurm: news of the day\n", "SLURM: gone from the queue"),
    ],
)
def test_what_the_queue_says_of_a_job(listed: str, state: str) -> None:
    watcher = queue.queue()
    watcher.register_job("7_1")
    assert watcher.read_info(listed)["7_1"] == {"State": state}


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Two of SLURM's, one of which says that a job's time was over."""
    for name in ("squeue", "sbatch"):
        (tmp_path / name).write_text("#!/bin/sh\necho '7_1|TIMEOUT'\n")
        (tmp_path / name).chmod(0o700)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")


@pytest.mark.usefixtures("programs")
def test_a_lost_job_has_a_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(submitit.SlurmJob, "_results_timeout_s", 0)
    before = submitit.Job.results, submitit.SlurmJob.watcher
    with queue.waited_for(LAUNCHER):
        ((answer,),) = (submitit.SlurmJob(tmp_path, "7_1").results(),)
        reason = answer.return_value.reason
    assert (submitit.Job.results, submitit.SlurmJob.watcher) == before
    assert "job 7_1 was lost (SLURM: TIMEOUT)" in reason
    assert "7_1_0_log.err" in reason


@pytest.mark.usefixtures("programs")
def test_what_slurm_refuses_is_one_sentence() -> None:
    text = "sbatch: error: invalid partition specified: gpu\nsbatch: error: Batch job submission failed"
    with pytest.raises(UserError) as refused, queue.waited_for(LAUNCHER):
        raise submitit.core.utils.FailedJobError(text)
    assert "invalid partition specified: gpu" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_machine_without_slurm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="sbatch"), queue.waited_for(LAUNCHER):
        pytest.fail("it submits jobs")


def test_a_stop_tells_what_becomes_of_the_jobs() -> None:
    with pytest.raises(Stopped, match=r"its jobs go on.* scancel"), queue.told_what_stays(LAUNCHER):
        raise Stopped(signal.SIGTERM)
    one_after_another = OmegaConf.create({"hydra": {"launcher": {"_target_": "hydra.BasicLauncher"}}})
    with pytest.raises(Stopped, match="nothing of a run"), queue.told_what_stays(one_after_another):
        raise Stopped(signal.SIGTERM)


@pytest.mark.parametrize("text", ["cluster.options={gres: x}", "+cluster.options={gres: x}", "cluster.options.gres=x"])
def test_any_option_of_sbatch_is_taken(text: str) -> None:
    with started(None) as hydra:
        config = hydra.compose_config("config", with_any_option(["+cluster=slurm", text]), RunMode.MULTIRUN)
        assert config.hydra.launcher.additional_parameters == {"gres": "x"}
    assert with_any_option([text]) == [text]  # without a cluster it is refused
