"""How far a sweep is, from what its jobs leave."""

import json
import shutil
from pathlib import Path
from typing import Any

import made_records
import numpy as np
import pytest
import safetensors.numpy
from filelock import FileLock
from running import ask, succeed
from tiny_world import RUN

from vlprompt import cli, sweep
from vlprompt.commands import status
from vlprompt.data.disk import Lock
from vlprompt.reports.estimates import Costs, duration
from vlprompt.reports.sweeps import short_names
from vlprompt.results.record import Record
from vlprompt.results.store import STATE
from vlprompt.results.sweeps import write_begun, write_outcome, write_sweep

METHODS = ("coop", "maple", "vpt_deep", "cocoop", "lora", "taskres")


def job(method: str) -> str:
    return f"method={method} dataset=dtd method.ctx_init='a photo'"


def of(method: str, seconds: float) -> Record:
    return made_records.record(method, cost={"train_seconds": seconds, "test_seconds": 1.0})


def cells(*methods: str) -> dict[str, Any]:
    return {job(method): of(method, 0).key.model_dump() for method in methods}


@pytest.fixture
def shared(results: Path) -> Path:
    """Two processes share it: coop is finished, maple running, vpt_deep failed, cocoop was killed, lora is to do."""
    records = {method: of(method, seconds) for method, seconds in (("coop", 59.0), ("taskres", 119.0))}
    made_records.save(results, records.values())
    one, two = (results / "multirun" / name for name in ("2026-01-01", "2026-01-02"))
    for folder in (one, two):
        write_sweep(folder, cells(*METHODS))
    write_outcome(one, 0, {"job": job("coop"), "folders": [str(records["coop"].folder(results))]})
    write_outcome(two, 3, {"job": job("vpt_deep"), "folders": [], "status": "failed", "reason": "the disk is full"})
    for number, method in enumerate(("maple", "cocoop", "taskres")):  # the last left a record, and no outcome
        write_begun(two, number, job(method), of(method, 0).folder(results))
    draft = of("maple", 0).folder(results)
    draft = draft.with_name(f".{draft.name}.partial")
    draft.mkdir(parents=True)
    (draft / "log.txt").write_text("[2026-01-01 10:00:00] epoch 1  loss\n[2026-01-01 10:00:01] epoch 12  loss\n")
    return two


def test_status(shared: Path, results: Path) -> None:
    run = of("maple", 0).folder(results)
    lock = Lock(run.with_name(f".{run.name}.lock"))
    assert lock.try_acquire()
    lines = succeed(cli.main, ["status"]).out.splitlines()
    lock.release()
    assert lines[0] == "sweep 2026-01-02, and 1 more of the same cells"
    assert lines[1] == "6 cells: 2 finished, 1 running, 1 failed, 2 to do"
    assert lines[2].startswith("3 min of")
    assert lines[3].startswith("About 4 min left")  # three cells, of 90 s each
    (running,) = (line for line in lines if line.startswith("  method=maple: "))
    assert running.endswith(", epoch 12")
    assert lines[lines.index("failed: the disk is full") + 1] == "  method=vpt_deep"
    assert "1 running" not in succeed(cli.main, ["status", str(shared)]).out  # it was killed meanwhile


def stop(run: Path, step: int) -> Path:
    """As a process that was stopped; -> the file of its state."""
    draft = run.with_name(f".{run.name}.partial")
    draft.mkdir(parents=True, exist_ok=True)
    about = json.dumps({"step": step, "total": 1500})
    safetensors.numpy.save_file({"x": np.zeros(3)}, draft / STATE, {"about": about})
    return draft / STATE


def test_stopped_runs(shared: Path, results: Path) -> None:
    """The cocoop of the sweep, and one that is in none."""
    stop(run := of("cocoop", 0).folder(results).absolute(), 1234)
    lines = succeed(cli.main, ["status", str(shared)]).out.splitlines()
    assert lines[1] == "6 cells: 2 finished, 1 stopped, 1 failed, 2 to do"
    assert lines[3].startswith("About 4 min left")  # three cells
    told = [lines[lines.index(status.RESUMES) + 1]]
    assert told == [f"  method=cocoop: step 1,234 of 1,500, in {run}"]
    stop(alone := results.absolute() / "runs" / "x" / "seed1", 5)
    assert f"  step 5 of 1,500, in {alone}" in succeed(cli.main, ["status"]).out.splitlines()
    shutil.rmtree(results / "multirun")
    assert succeed(cli.main, ["status"]).out.count("\n  step ") == 2
    lock = Lock(alone.with_name(".seed1.lock"))
    assert lock.try_acquire()
    assert "seed1" not in succeed(cli.main, ["status"]).out.replace(str(run), "")
    lock.release()


@pytest.mark.parametrize("content", [b"", b"{}", b'\x05\0\0\0\0\0\0\0{"a":'])
def test_a_damaged_state_is_none(results: Path, content: bytes) -> None:
    stop(results / "runs" / "seed1", 5).write_bytes(content)
    assert "there is no sweep" in ask(cli.main, ["status"]).err


def test_a_run_on_another_machine(shared: Path, results: Path) -> None:
    """Its process cannot be seen from here, its lock can."""
    run = of("maple", 0).folder(results)
    path = run.with_name(f".{run.name}.lock")
    path.touch()
    note = path.with_name(f"{path.name}.holder")
    note.write_text("4711 on node7, since 2026-01-31 12:03")
    with FileLock(path):
        assert "  method=maple: 4711 on node7, since" in succeed(cli.main, ["status", str(shared)]).out
    assert "running" not in succeed(cli.main, ["status", str(shared)]).out  # it was killed
    assert note.exists()  # a look changes nothing


def test_what_a_failed_run_resumes_from(shared: Path, results: Path) -> None:
    stop(of("vpt_deep", 0).folder(results), 7)
    write_begun(shared, 9, job("vpt_deep"), of("vpt_deep", 0).folder(results))
    assert "  method=vpt_deep (step 7 of 1,500 is kept)" in succeed(cli.main, ["status", str(shared)]).out.splitlines()


def test_only_sweeps_of_the_same_cells_are_one(shared: Path) -> None:
    write_sweep(shared.parent / "other", cells("coop"))
    assert succeed(cli.main, ["status", "other"]).out.splitlines()[:2] == ["sweep other", "1 cell: 1 to do"]


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"started": 3, "cells": {}}', '{"started": "2026-01-01", "cells": 1}']
)
def test_a_folder_that_is_no_sweep(results: Path, content: str) -> None:
    for arguments in (["status"], ["status", "nowhere"]):
        answer = ask(cli.main, arguments)
        assert (answer.code, answer.err.count("\n")) == (2, 1)
    (results / "multirun" / "x").mkdir(parents=True)
    (results / "multirun" / "x" / "sweep.json").write_text(content)
    answer = ask(cli.main, ["status", "x"])
    assert (answer.code, answer.err.count("\n")) == (2, 1)


def test_an_estimate_goes_by_the_runs_that_are_most_alike() -> None:
    costs = Costs([of("coop", 9.0), of("coop", 19.0), of("maple", 99.0)])
    key = of("coop", 0).key.model_dump()
    assert costs(key) == 15
    assert costs(key | {"dataset": "food101"}) == 15
    assert costs(key | {"method": "lora"}) == pytest.approx((10 + 20 + 100) / 3)
    assert Costs([made_records.record("coop", base=None)])(key) is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (99.4, "99 s"), (100, "2 min"), (5900, "98 min"), (7200, "2 h 0 min"), (4 * 86400, "4 d 0 h")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_cells_are_named_by_what_differs() -> None:
    assert short_names([job("coop"), job("maple")]) == ["method=coop", "method=maple"]
    assert short_names([job("coop")]) == [job("coop")]
    assert short_names([]) == []
    words = ["method.ctx_init='a photo' ~recipe seed=1", "method.ctx_init='a drawing' ~recipe seed=1"]
    assert short_names(words) == ["method.ctx_init='a photo'", "method.ctx_init='a drawing'"]


def test_a_dry_run_runs_nothing(results: Path) -> None:
    arguments = [*RUN, "method=coop,taskres", "method.class_specific=true", "protocol=few_shot", "sweep.dry_run=true"]
    lines = succeed(sweep.main, arguments).out.splitlines()
    assert lines[0].split() == ["to", "do", "method=coop"]
    assert lines[1].startswith("not applicable  method=taskres: ")
    assert "2 cells: 1 to do, 1 not applicable. Nothing was run." in lines
    assert not list(results.rglob("*.json"))
    for wrong in ("sweep.dry_runs=true", "sweep.dry_run=7", "sweep.dry_run=true,false"):
        answer = ask(sweep.main, [*RUN, wrong])
        assert (answer.code, answer.err.count("\n")) == (2, 1), answer
