"""Sweeps whose cells several processes share: joblib's, plain shells', and what they say of each other."""

import json
import os
import random
import re
import signal
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
from PIL import Image
from running import PROGRAM, ask, check_mistake, end, environment_in, start, succeed
from slurm import wait_for
from tiny_world import RUN

from vlprompt import sweep
from vlprompt.config import launch
from vlprompt.config.compose import composed, read_run
from vlprompt.config.queue import Lost
from vlprompt.data.disk import Lock
from vlprompt.errors import UserError
from vlprompt.jobs.failures import run_or_record_failure
from vlprompt.results.record import Record
from vlprompt.results.store import find_records, open_run
from vlprompt.results.sweeps import write_begun, write_outcome, write_sweep
from vlprompt.training import device
from vlprompt.training.progress import Reporter

CELL = [*RUN, "method=coop", "protocol=few_shot", "fit.epochs=1", "name=x"]
SWEEP = ["-m", *CELL]


def runs(results: Path) -> list[tuple[str, int]]:
    return sorted((record.method, record.seed) for record in find_records([results]))


def hold(run: Path) -> Lock:
    """As another process that makes this run."""
    run.parent.mkdir(parents=True, exist_ok=True)
    lock = Lock(run.with_name(f".{run.name}.lock"))
    assert lock.try_acquire()
    return lock


def test_a_cell_that_another_process_holds_is_left_for_the_end(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = [*RUN[:3], "method=zero_shot", "protocol=few_shot"]
    other, seen = hold(read_run([*cells, "+dataset.source.style=1"]).folder), list[int]()

    def let_go(_: float) -> None:
        seen.append(len(find_records([results])))
        other.release()

    monkeypatch.setattr(launch, "time", SimpleNamespace(sleep=let_go))
    answer = succeed(sweep.main, ["-m", *cells, "+dataset.source.style=1,2"])
    assert seen == [1]  # the other one was made meanwhile
    assert len(find_records([results])) == 2
    assert "waiting for 1 " in answer.out
    outcomes = [json.loads(path.read_text()) for path in results.glob("multirun/*/jobs/*.json")]
    assert sorted(outcome["job"].split()[-1] for outcome in outcomes) == [f"+dataset.source.style={n}" for n in (1, 2)]


def test_what_another_process_tried_in_vain_is_not_tried_again(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, tries = read_run([*CELL, "seed=1"]), list[str]()

    def fails(*_: object, **__: object) -> Record:
        tries.append("once more")
        raise UserError("in vain")

    monkeypatch.setattr("vlprompt.run.run", fails)
    first = run_or_record_failure(spec)
    created = datetime.fromisoformat(first.created)
    for since, n_tries in ((created - timedelta(seconds=1), 1), (created + timedelta(seconds=1), 2), (None, 3)):
        again = run_or_record_failure(spec, since=since)
        assert (again.status, again.reason, len(tries)) == ("failed", "in vain", n_tries)


@pytest.mark.parametrize(
    ("n_jobs", "n_cells", "expected"), [(2, 9, 2), (4, 3, 3), (-1, 99, 6), (-2, 99, 5), (-9, 99, 1), (None, 9, 1)]
)
def test_jobs_at_once(monkeypatch: pytest.MonkeyPatch, n_jobs: int | None, n_cells: int, expected: int) -> None:
    monkeypatch.setattr(launch, "share_of_cores", lambda: 6)
    assert launch.n_at_once(OmegaConf.create({"hydra": {"launcher": {"n_jobs": n_jobs}}}), n_cells) == expected


def test_cores_are_divided_among_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    shares = {}
    for jobs in (1, 2, 4, 20):
        with launch.sharing(jobs):
            shares[jobs] = (device.jobs_at_once(), device.default_workers(), device.default_threads())
    assert shares == {1: (1, 7, None), 2: (2, 3, 4), 4: (4, 1, 2), 20: (20, 0, 1)}
    monkeypatch.setenv("VLPROMPT_JOBS", "4")  # a user's own wish wins
    with launch.sharing(2):
        assert device.jobs_at_once() == 4
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert device.default_threads() is None


@pytest.mark.parametrize("text", ["0", "-1", "many", "1.5", "\u00b2"])
def test_a_wrong_number_of_jobs(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("VLPROMPT_JOBS", text)
    with pytest.raises(UserError, match="VLPROMPT_JOBS"):
        device.jobs_at_once()


def test_lines_of_several_jobs_carry_their_names(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    reporter = Reporter(tmp_path / "log.txt", cell="coop dtd seed1")
    reporter.say("one\n[two]")
    reporter.close()
    assert capsys.readouterr().out.splitlines() == ["[coop dtd seed1] one", "[coop dtd seed1] [two]"]
    assert "coop dtd" not in (tmp_path / "log.txt").read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["hydra/launcher=nothing"], ["nothing", "plugin"]),
        (["cluster.gpus=3"], ["cluster.gpus", "+cluster=slurm"]),
        (["+cluster=nowhere"], ["nowhere", "slurm"]),
    ],
)
def test_a_mistake_about_where_jobs_run(results: Path, arguments: list[str], words: list[str]) -> None:
    check_mistake(ask(sweep.main, [*SWEEP, *arguments]), words, results)


def test_slurm_gets_what_the_cluster_needs(results: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="needs the extra slurm")
    with composed(["+cluster=slurm", "cluster.partition=gpu", "cluster.minutes=30"]):
        launcher = HydraConfig.get().launcher
        assert (launcher.partition, launcher.timeout_min, launcher.gpus_per_node) == ("gpu", 30, 1)
        assert launcher._target_.endswith("SlurmLauncher")


@pytest.mark.slow
def test_each_cell_is_a_job_of_submitit(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="needs the extra slurm")
    arguments = [*SWEEP, "hydra/launcher=submitit_local", "seed=1,2"]
    code, _, err = end(start(PROGRAM, arguments, environment_in(tmp_path), tmp_path))
    assert (code, err) == (0, "")
    assert runs(tmp_path / "results") == [("coop", 1), ("coop", 2), ("zero_shot", 0)]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_joblib_with_processes_that_read_files(tmp_path: Path, workers: int) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="needs the extra sweep")
    rng = random.Random(0)
    for name in ("red cat", "blue dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for number in range(5):
            image = Image.frombytes("RGB", (20, 20), rng.randbytes(1200))
            image.save(tmp_path / "pets" / name / f"{number}.png")
    arguments = ["-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "seed=1,2", f"workers={workers}"]
    arguments += ["method=lora", "dataset=folder", "dataset.root=pets", "protocol=few_shot", "shots=1"]
    arguments += ["backbone=shapes_vit", "backbone.weights=random", "fit.epochs=1"]
    code, out, err = end(start(PROGRAM, arguments, environment_in(tmp_path), tmp_path))
    assert (code, err) == (0, "")
    assert runs(tmp_path / "results") == [("lora", 1), ("lora", 2), ("zero_shot", 0)]
    said = [line for line in out.split("\n\n")[0].splitlines() if line]
    assert said
    assert [line for line in said if not re.match(r"\[(lora|zero_shot)\S* folder\S* shots\d seed\d\] ", line)] == []


@pytest.mark.slow
@pytest.mark.parametrize("n_processes", [2, 4])
def test_processes_share_a_sweep(tmp_path: Path, n_processes: int) -> None:
    """Each cell is run once, by one of them, and none waits while there is something to do."""
    command = [*SWEEP, "seed=1,2,3,4,5,6", "fit.epochs=200", "sweep.shuffle=true"]
    several = [start(PROGRAM, command, environment_in(tmp_path), tmp_path) for _ in range(n_processes)]
    answers = [end(process) for process in several]
    assert [(code, err) for code, _, err in answers] == [(0, "")] * n_processes
    assert runs(tmp_path / "results") == [*(("coop", seed) for seed in range(1, 7)), ("zero_shot", 0)]
    made = [re.findall(r"^(coop|zero_shot)\S* .*on digits.*", out, re.MULTILINE) for _, out, _ in answers]
    assert sorted(method for of_one in made for method in of_one) == ["coop"] * 6 + ["zero_shot"]
    assert not [out for _, out, _ in answers if "is running" in out]  # nobody waited at a lock
    tables = {out[out.index("\nprotocol ") : out.index("\nrecords")] for _, out, _ in answers}
    assert len(tables) == 1


def test_what_is_left_when_a_process_of_joblib_dies(tmp_path: Path) -> None:
    cells = [[f"seed={seed}"] for seed in (1, 2, 3, 4)]
    folder, run = tmp_path / "sweep", tmp_path / "runs" / "seed3"
    (folder / "jobs").mkdir(parents=True)
    run.parent.mkdir()
    write_sweep(folder, {" ".join(cell): {} for cell in cells})
    with pytest.raises(UserError, match="before a cell was begun"):
        launch.after_a_death(cells, folder)
    for number, seed in enumerate((1, 2, 3)):
        write_begun(folder, number, f"seed={seed}", run.with_name(f"seed{seed}"))
    write_outcome(folder, 0, {"job": "seed=1", "folders": []})
    with open_run(run):  # of another sweep
        done, lost, held, to_come = launch.after_a_death(cells, folder)
    assert (done, held) == (None, str(run))
    assert isinstance(lost, Lost)
    assert isinstance(to_come, launch.NotBegun)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="asks Linux for the processes of a process")
def test_a_process_of_joblib_that_is_killed_costs_what_ran_with_it(tmp_path: Path) -> None:
    cells = ["-m", *CELL, "fit.epochs=100", "bank.views=null", "seed=1,2,3"]
    environment = environment_in(tmp_path)
    many = start(PROGRAM, [*cells, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"], environment, tmp_path)
    folder = tmp_path / "results" / "runs" / "few_shot" / "digits" / "shapes_vit"
    wait_for(lambda: any("] epoch 5" in log.read_text() for log in folder.glob("*/*/.*.partial/log.txt")), 200)
    jobs = Path(f"/proc/{many.pid}/task/{many.pid}/children").read_text().split()
    (worker, *_) = [job for job in jobs if "LokyProcess" in Path(f"/proc/{job}/cmdline").read_text()]
    os.kill(int(worker), signal.SIGKILL)
    code, _, err = end(many)
    assert (code, "Traceback" in err) == (1, False)
    assert "2 of 3 runs did not finish" in err
    assert "a process of joblib died" in err
    assert end(start(PROGRAM, cells, environment, tmp_path))[::2] == (0, "")
    assert runs(tmp_path / "results") == [*(("coop", seed) for seed in (1, 2, 3)), ("zero_shot", 0)]
