"""The script that makes the demo's records again: its list, its searches, killed and parallel processes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from vlprompt.results.record import FILE
from vlprompt.results.store import find_records, find_runs

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "results" / "demo"
pytestmark = pytest.mark.slow


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, results: Path) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    monkeypatch.chdir(ROOT)
    import remake_demo

    return remake_demo


def write_list(demo: Path, *lines: str) -> Path:
    demo.mkdir(parents=True)
    (demo / "sweeps.txt").write_text("# a list\n" + "\n".join(lines) + "\n")
    return demo


def test_a_run_is_asked_for_once(script: Any, tmp_path: Path) -> None:
    demo = write_list(
        tmp_path / "demo", "dataset=digits method=zero_shot seed=1,2", "", "dataset=digits method=zero_shot # again"
    )
    assert [job.label for job in script.read_jobs(demo)] == ["base_to_novel/digits/shapes_vit/zero_shot/shots0/seed0"]


def test_a_list_may_be_cut(script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`remake_demo.py list | head`."""
    demo = write_list(tmp_path / "demo", "dataset=digits method=zero_shot")
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as out, monkeypatch.context() as patch:
        patch.setattr("sys.stdout", out)
        assert script.main(["list", f"--demo={demo}", f"--folder={tmp_path / 'again'}"]) == 0


def test_the_list_is_that_of_the_records(script: Any) -> None:
    jobs = script.read_jobs(DEMO)
    assert all(isinstance(job, script.Cell) for job in jobs)  # no search of results/tuning is out of date
    assert {job.spec.key for job in jobs} == {record.key for record in find_records([DEMO])}


def test_tuned_settings_are_searched_again_where_the_search_is_another_today(script: Any, tmp_path: Path) -> None:
    lines = (f"protocol=few_shot shots=16 seed=1,2 method=linear_head{name}" for name in ("", " name=tuned"))
    demo = write_list(tmp_path / "demo", *lines)
    cell = Path("few_shot/shapes/shapes_vit/linear_head/shots16/seed1")
    shutil.copytree(ROOT / "results" / "tuning" / cell, study := tmp_path / "tuning" / cell)
    *default, first, second = script.read_jobs(demo)
    assert [job.spec.key.variant for job in default] == [None, None]
    assert (first.spec.key.seed, second.spec.key.seed) == (1, 2)
    assert first.spec.settings.name == "tuned"
    chosen = json.loads((study / "study.json").read_text())["chosen"]["setting"]
    assert first.spec.changes["fit.lr"] == chosen["fit.lr"]
    (study / "study.json").write_text((study / "study.json").read_text().replace('"high": 10.0', '"high": 5.0'))
    script.searched.cache_clear()
    *default, search = script.read_jobs(demo)
    assert len(default) == 2  # the search is to come in addition to the default's own runs
    assert search.label == "tune/linear_head"
    assert search.seeds == "1,2"


def test_processes_share_the_cells_and_a_killed_one_loses_nothing(tmp_path: Path) -> None:
    demo = write_list(
        tmp_path / "results" / "demo",
        "dataset=digits shots=2 fit.epochs=3 method=coop seed=1,2,3,4",
        "dataset=digits method=zero_shot",
    )
    gone = Path(shutil.copytree(DEMO / "base_to_novel" / "digits", demo / "base_to_novel" / "digits"))
    command = [sys.executable, "scripts/remake_demo.py"]
    options = ["--demo", str(demo), "--folder", str(tmp_path / "again")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}

    def start(log: str) -> subprocess.Popen[bytes]:
        with (tmp_path / log).open("w") as out:
            return subprocess.Popen([*command, "run", *options], cwd=ROOT, env=environment, stdout=out, stderr=out)

    def publish() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, "publish", *options], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )

    killed = start("killed.log")
    while not list((tmp_path / "again").rglob("log.txt")):
        time.sleep(0.02)
        assert killed.poll() is None
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert len(find_runs([tmp_path / "again"])) < 5
    assert (
        subprocess.run([*command, "publish", *options], cwd=ROOT, env=environment, capture_output=True).returncode == 1
    )
    assert [process.wait() for process in [start("first.log"), start("second.log")]] == [0, 0]
    text = (tmp_path / "first.log").read_text() + (tmp_path / "second.log").read_text()
    started = Counter(line for line in text.splitlines() if " on digits: " in line)
    assert set(started.values()) == {1}
    assert len(started) >= 4  # the killed process may have made one
    done = publish()
    assert done.returncode == 0, done.stderr
    assert "5 records run again, 0 differ" in done.stdout
    records = find_records([demo])
    assert sorted((record.method, record.seed) for record in records) == [
        *(("coop", n) for n in (1, 2, 3, 4)),
        ("zero_shot", 0),
    ]
    files = Counter(path.name for path in demo.rglob("*") if path.is_file())
    assert files == {"sweeps.txt": 1, FILE: 5, "predictions.npz": 5}
    assert not (gone / "shapes_vit" / "coop").exists()  # whose settings are no line's
