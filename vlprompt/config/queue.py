"""Jobs of submitit: each is waited for to its end, and one that was lost (cancelled, killed, out of time) says so.

submitit itself raises an error for the first job that was lost and leaves the others, and asks a data base of jobs that
not every SLURM has.
"""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig

from vlprompt.errors import UserError
from vlprompt.training.stops import Stopped

SECONDS = 60  # between looks at SLURM's queue
# of squeue, for jobs that run or will (https://slurm.schedmd.com/squeue.html, JOB STATE CODES)
UNDER_WAY = (
    *("PENDING", "RUNNING", "CONFIGURING", "COMPLETING", "SUSPENDED", "STOPPED", "RESIZING", "SIGNALING", "STAGE_OUT"),
    *("REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD"),
)


@dataclass(frozen=True)
class Lost:
    """What a job gives that did not come to its end."""

    reason: str


def is_submitit(config: DictConfig) -> bool:
    return "submitit_launcher" in str(config.hydra.launcher.get("_target_"))


def is_slurm(config: DictConfig) -> bool:
    return is_submitit(config) and "Slurm" in config.hydra.launcher._target_


@contextmanager
def waited_for(config: DictConfig) -> Iterator[None]:
    """Within, a job of submitit that was lost returns `Lost`. For other launchers this changes nothing.

    Raises: UserError where SLURM is not there, or refuses the jobs.
    """
    if not is_submitit(config):
        yield
        return
    from submitit import Job
    from submitit.core.utils import FailedJobError, FailedSubmissionError, UncompletedJobError
    from submitit.slurm.slurm import SlurmJob

    if is_slurm(config) and not shutil.which("sbatch"):
        raise UserError(
            "the jobs of this sweep are for SLURM, and there is no sbatch here: give the command on a machine that "
            "submits jobs, or run it on this one without +cluster or hydra/launcher"
        )
    of_any, of_slurm = cast("Any", Job), cast("Any", SlurmJob)
    results, watcher = of_any.results, of_slurm.watcher

    def to_the_end(job: Any) -> list[Any]:
        try:
            return results(job)
        except (UncompletedJobError, FailedJobError) as error:
            return [JobReturn(status=JobStatus.COMPLETED, _return_value=Lost(why(job, error)))]

    of_any.results, of_slurm.watcher = to_the_end, queue()
    try:
        yield
    except (FailedJobError, FailedSubmissionError) as error:
        said = " ".join(str(error).split())
        raise UserError(f"the jobs of this sweep cannot be submitted, and none runs ({said})") from error
    finally:
        of_any.results, of_slurm.watcher = results, watcher


def queue() -> Any:
    """A look at the jobs of this user as `squeue` tells them, whether SLURM keeps accounts or not."""
    from submitit.slurm.slurm import SlurmInfoWatcher

    class Queue(SlurmInfoWatcher):
        def _make_command(self) -> list[str] | None:
            asks = self._registered - self._finished
            return ["squeue", "--me", "--array", "--noheader", "--states=all", "--format=%i|%T"] if asks else None

        def read_info(self, string: bytes | str) -> dict[str, dict[str, str]]:
            text = string if isinstance(string, str) else string.decode()
            states = dict(line.strip().split("|", 1) for line in text.splitlines() if "|" in line)
            told = {job: states.get(job, "gone from the queue") for job in self._registered - self._finished}
            return {job: {"State": "RUNNING" if one in UNDER_WAY else f"SLURM: {one}"} for job, one in told.items()}

    return Queue(delay_s=SECONDS)


def why(job: Any, error: Exception) -> str:
    """What became of a job that was lost, in one sentence, and where more is to be read."""
    raised = re.findall(r"^(?:\w+\.)*(\w+(?:Error|Exception): .+)$", str(error), re.MULTILINE)
    return f"job {job.job_id} was lost ({raised[-1] if raised else job.state}): its log is '{job.paths.stderr}'"


@contextmanager
def told_what_stays(config: DictConfig) -> Iterator[None]:
    """A stop of the process that waits says what becomes of submitit's jobs, which are others' children."""
    try:
        yield
    except Stopped as stop:
        if is_submitit(config) and not stop.kept:
            ends = ", scancel ends them" if is_slurm(config) else ""
            stop.kept = f"its jobs go on, `vlprompt status` says how far they are{ends}"
            stop.args = stop.number, stop.kept
        raise
