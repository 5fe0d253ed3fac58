"""SLURM itself, with one node, on this machine: started in a folder of its own, with ports of its own."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

SECONDS = 60  # until a daemon answers
PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
PROGRAMS = {name: shutil.which(name, path=PATH) for name in ("munged", "slurmctld", "slurmd", "srun", "sbatch")}
MISSING = [name for name, path in PROGRAMS.items() if path is None]

CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
SlurmdParameters=config_overrides
KillWait=3
MinJobAge=300
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 CoresPerSocket=4 RealMemory=4000
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


@contextmanager
def cluster(folder: Path) -> Iterator[dict[str, str]]:
    """What the environment of SLURM's commands needs to find the cluster that runs within.

    `folder` has a short name, as a socket lies there.
    """
    with ExitStack() as stack:
        ports = [stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1] for _ in range(2)]
    for name in ("state", "spool"):
        (folder / name).mkdir()
    key, conf = folder / "munge.key", folder / "slurm.conf"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o600)
    host, user = socket.gethostname().partition(".")[0], os.environ.get("USER") or Path("~").expanduser().owner()
    conf.write_text(CONF.format(folder=folder, host=host, ports=ports, user=user), encoding="utf-8")
    environment = {"SLURM_CONF": str(conf), "PATH": PATH}
    with ExitStack() as stack:
        files = [f"--{name.replace('_', '-')}={folder}/munge.{name}" for name in ("socket", "pid_file", "log_file")]
        files += [f"--key-file={key}", f"--seed-file={folder}/munge.seed"]
        stack.enter_context(daemon("munged", ["--foreground", "--force", *files], environment, folder))
        wait_for((folder / "munge.socket").exists)
        stack.enter_context(daemon("slurmctld", ["-D", "-c"], environment, folder))
        stack.enter_context(daemon("slurmd", ["-D"], environment, folder))
        wait_for(lambda: "idle" in ask(["sinfo", "--noheader", "--format=%t"], environment))
        try:
            yield environment
        finally:
            ask(["scancel", "--signal=KILL", "--full", "--me"], environment)
            ask(["scancel", "--me"], environment)
            with suppress(TimeoutError):
                wait_for(lambda: not ask(["squeue", "--noheader"], environment))


@contextmanager
def daemon(name: str, arguments: list[str], environment: dict[str, str], folder: Path) -> Iterator[None]:
    with (folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(
            [str(PROGRAMS[name]), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=os.environ | environment,
            start_new_session=True,
        )
        try:
            yield
        finally:
            process.terminate()
            try:
                process.wait(SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()


def ask(command: list[str], environment: dict[str, str]) -> str:
    """What a command of SLURM says."""
    answer = subprocess.run(
        command, capture_output=True, text=True, timeout=SECONDS, env=os.environ | environment, check=False
    )
    return answer.stdout.strip()


def wait_for(ready: Callable[[], bool], seconds: float = SECONDS) -> None:
    """Raises: TimeoutError."""
    last = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > last:
            raise TimeoutError(f"it was not ready after {seconds:.0f} s")
        time.sleep(0.1)
