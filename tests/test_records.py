"""Records: where they lie, and that no crash, no second process and no full disk harms one."""

import errno
import json
import os
import signal
import subprocess
import sys
from contextlib import nullcontext
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import vlprompt
from vlprompt import run
from vlprompt.config.hashing import config_hash, variant_of
from vlprompt.errors import DamagedError, UserError
from vlprompt.results.record import Record, RunKey, checksum, git_commit, versions
from vlprompt.results.store import find_records, find_runs, open_run

KEY = {"protocol": "base_to_novel", "dataset": "shapes", "backbone": "tiny", "method": "coop", "shots": 16, "seed": 1}


def record(name: str = "a", **fields: Any) -> Record:
    return Record(**{**KEY, "status": "finished", "config_hash": name, **fields})


def write(folder: Path, done: Record, text: str = "x") -> None:
    with open_run(folder) as run:
        (run.path / "log.txt").write_text(text)
        run.publish(done)


def is_finished(folder: Path, name: str) -> bool:
    done = Record.read(folder)
    return done is not None and (done.status, done.config_hash) == ("finished", name)


def names(folder: Path) -> set[str]:
    """What lies next to a run, the lock excepted."""
    return {path.name for path in folder.parent.iterdir() if not path.name.endswith(".lock")}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return RunKey(**KEY).folder(tmp_path)


def test_folders(tmp_path: Path) -> None:
    assert RunKey(**KEY).folder(tmp_path) == tmp_path / "runs/base_to_novel/shapes/tiny/coop/shots16/seed1"
    other = RunKey(**{**KEY, "variant": "lr=0.1", "shots": "all"})
    assert other.folder(tmp_path) == tmp_path / "runs/base_to_novel/shapes/tiny/coop@lr=0.1/shotsall/seed1"


@pytest.mark.parametrize("name", ["../x", "a/b", "a\\b", "..", ".hidden", "a@b", "a b", "x" * 101, "a\n"])
def test_a_name_that_is_no_folder_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="cannot name a folder"):
        RunKey(**{**KEY, "variant": name}).folder(tmp_path)


def test_hash_ignores_order_and_the_spelling_of_numbers() -> None:
    a = {"lr": 1, "epochs": {1: 50, 16: 200}, "init": None, "betas": [0.9, 0.999], "flag": True}
    b = {"flag": True, "betas": (0.9, 0.999), "init": None, "epochs": {"16": 200.0, "1": 50}, "lr": 1.0}
    assert config_hash(a) == config_hash(b)
    assert len(config_hash(a)) == 64
    others = [{**a, "lr": 1.5}, {**a, "init": 0}, {**a, "flag": 1}, {**a, "lr": "1"}, {**a, "betas": [0.999, 0.9]}]
    assert len({config_hash(a), *map(config_hash, others)}) == 6


def test_hash_stays_the_same_over_versions() -> None:
    settings = {"fit": {"lr": 0.002, "epochs": 50}, "init": None}
    assert config_hash(settings) == "9820e9039011fc118ed8b9edd0fbe404e68a512b0142adc72ced3177b316addb"


def test_variant() -> None:
    fit, method = {"lr": 0.002, "epochs": 50, "average": {}}, {"init": None}
    default = {"fit": fit, "method": method}
    assert variant_of({"method": method, "fit": {"average": {}, "lr": 2e-3, "epochs": 50.0}}, default) is None
    fits = [{"fit": fit | change} for change in ({"lr": 0.01}, {"average": {"mu": 1}})]
    methods: list[Any] = [{"method": {}}, {"method": {"init": None, "depth": None}}]
    variants = [variant_of(default | change, default) for change in fits + methods]
    assert len(set(variants)) == 4
    assert all(len(variant or "") == 8 for variant in variants)


def test_round_trip(folder: Path) -> None:
    full = record(
        scores={"base": {"accuracy": 0.5, "correct": 1, "total": 2}},
        config={"fit": {"epochs": {"1": 50}}, "x": [1, 2.5, None]},
        curve=[{"epoch": 1, "loss": float("nan"), "accuracy": None, "lr": 0.002}],
        cost={"trained_parameters": 2048, "peak_memory_bytes": None},
        recipe=["coop_base_to_novel"],
        versions=versions(),
    )
    write(folder, full)
    back = Record.read(folder)
    assert back is not None
    assert back.model_copy(update={"files": {}}).model_dump_json() == full.model_dump_json()
    assert back.files == {"log.txt": sha256(b"x").hexdigest()}
    assert isinstance(back.scores["base"]["correct"], int)
    assert back.key == RunKey(**KEY)
    assert {"python", "torch", "numpy"} <= back.versions.keys()
    assert is_finished(folder, "a")
    assert not is_finished(folder, "b")
    assert names(folder) == {"seed1"}
    assert {path.name for path in folder.iterdir()} == {"log.txt", "result.json"}


def test_damaged_or_newer_records_are_named(folder: Path) -> None:
    assert Record.read(folder) is None
    write(folder, record())
    path = folder / "result.json"
    good = json.loads(path.read_text())
    path.write_text(path.read_text()[:50])
    with pytest.raises(DamagedError, match=r"result\.json' is damaged"):
        is_finished(folder, "a")
    path.write_text(json.dumps({**good, "schema_version": 99}))
    with pytest.raises(UserError, match="newer vlprompt"):
        Record.read(folder)
    write(folder, record("b"))  # running again mends it
    assert is_finished(folder, "b")


def check_old(folder: Path) -> None:
    """The run that was there first is as it was, and nothing lies next to it."""
    assert is_finished(folder, "a")
    assert (folder / "log.txt").read_text() == "old"
    assert names(folder) == {"seed1"}


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, None])
def test_an_unfinished_run_leaves_the_older_one(folder: Path, error: type[BaseException] | None) -> None:
    write(folder, record(), "old")
    with pytest.raises(error) if error else nullcontext(), open_run(folder) as run:
        (run.path / "log.txt").write_text("half")
        if error:
            raise error
    check_old(folder)


def test_a_failed_run_never_replaces_a_finished_one(folder: Path) -> None:
    failed = record("b", status="failed", reason="loss is NaN")
    write(folder, failed)
    assert (got := Record.read(folder)) is not None
    assert got.reason == "loss is NaN"
    write(folder, record())
    with open_run(folder) as run:
        assert not run.publish(failed)
    assert is_finished(folder, "a")
    assert names(folder) == {"seed1"}


KILLED = """
import os, signal, sys
from pathlib import Path
from vlprompt.results.record import Record
from vlprompt.results.store import open_run

folder, moment = Path(sys.argv[1]), sys.argv[2]
def kill(*args, **named): os.kill(os.getpid(), signal.SIGKILL)
if moment == "before the record": os.fsync = kill
with open_run(folder) as run:
    (run.path / "log.txt").write_text("new")
    if moment == "while training": kill()
    rename, unlink = Path.rename, Path.unlink
    if moment == "before the swap": Path.rename = kill
    if moment == "between the renames": Path.rename = lambda a, b: kill() if "partial" in a.name else rename(a, b)
    if moment == "before the older one goes": Path.unlink = lambda path: kill() if path.exists() else unlink(path)
    run.publish(Record.model_validate_json(sys.argv[3]))
    kill()
"""


@pytest.mark.parametrize(
    ("moment", "older", "published"),
    [
        ("while training", True, False),
        ("while training", False, False),
        ("before the record", True, False),
        ("before the record", False, False),
        ("before the swap", True, True),
        ("before the swap", False, True),
        ("between the renames", True, True),
        ("before the older one goes", True, True),
        ("after it all", True, True),
        ("after it all", False, True),
    ],
)
def test_killed_at_any_moment(folder: Path, moment: str, published: bool, older: bool) -> None:
    if older:
        write(folder, record("old"), "old")
    command = [sys.executable, "-c", KILLED, str(folder), moment, record("new").model_dump_json()]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    # a reader sees the old run or the new one, if either was complete: never a half-written one, never none
    runs = find_runs([folder.parents[5]])
    seen = [(done.config_hash, (where / "log.txt").read_text()) for where, done in runs.items()]
    swapped = moment in ("between the renames", "before the older one goes", "after it all")
    if older:
        assert seen == ([("new", "new")] if swapped else [("old", "old")])
    else:
        assert seen == ([("new", "new")] if published else [])
    # the next run finds what was complete, and can write
    with open_run(folder) as run:
        assert is_finished(folder, "new") == published
        assert is_finished(folder, "old") == (older and not published)
        assert list(run.path.iterdir()) == []
        run.publish(record("next"))
    assert is_finished(folder, "next")
    assert names(folder) == {"seed1"}


SECOND = """
import sys, time
from pathlib import Path
from vlprompt.results.record import Record
from vlprompt.results.store import open_run

folder = Path(sys.argv[1])
with open_run(folder, on_wait=lambda who: print("waited")) as run:
    if Record.read(folder):
        print("read")
    else:
        (run.path / "log.txt").write_text("x")
        time.sleep(1)
        run.publish(Record.model_validate_json(sys.argv[2]))
        print("wrote")
"""


def test_two_processes_on_one_cell(folder: Path) -> None:
    command = [sys.executable, "-c", SECOND, str(folder), record().model_dump_json()]
    pair = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    answers = sorted(process.communicate(timeout=30)[0].split() for process in pair)
    assert answers == [["waited", "read"], ["wrote"]]
    assert is_finished(folder, "a")
    assert names(folder) == {"seed1"}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk_while_training(folder: Path) -> None:
    write(folder, record(), "old")
    with pytest.raises(UserError, match="no space left on the disk"), open_run(folder):
        Path("/dev/full").write_text("x")
    check_old(folder)


def test_full_disk_while_publishing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(folder, record(), "old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match="VLPROMPT_RESULTS"):
        write(folder, record("b"), "new")
    check_old(folder)


def test_full_disk_in_a_library_that_raises_its_own_error(folder: Path) -> None:
    with pytest.raises(UserError, match="no space left"), open_run(folder):
        raise RuntimeError("I/O error: No space left on device (os error 28)")
    with pytest.raises(ValueError, match="other"), open_run(folder):
        raise ValueError("other")


def test_find_records(tmp_path: Path) -> None:
    def put(part: str, done: Record) -> Path:
        target = tmp_path / part / done.folder(tmp_path).relative_to(tmp_path / "runs")
        write(target, done)
        return target

    put("demo", record("demo"))
    put("demo", record("demo", method="zero_shot", shots=0, seed=0))
    run = put("runs", record("run"))
    put("runs", record("other", seed=2))
    (run.parent / ".seed3.partial").mkdir()
    (run.parent / ".seed3.partial" / "result.json").write_text(record(seed=3).model_dump_json())
    hashes = {(done.method, done.seed): done.config_hash for done in find_records([tmp_path])}
    assert hashes == {("coop", 1): "run", ("coop", 2): "other", ("coop", 3): "a", ("zero_shot", 0): "demo"}
    assert len(find_records([tmp_path / "demo"])) == 2
    assert [done.seed for done in find_records([run])] == [1]
    assert find_records([tmp_path / "absent"]) == []


def test_git_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
        answer = subprocess.run(
            ["git", *identity, *arguments], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        return answer.stdout.strip()

    code = tmp_path / "vlprompt" / "__init__.py"
    code.parent.mkdir()
    code.write_text("1")
    monkeypatch.setattr(vlprompt, "__file__", str(code))
    assert git_commit() is None
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "first")
    git("tag", "v1")
    assert git_commit() == git("rev-parse", "HEAD")
    code.write_text("2")
    assert git_commit() == git("rev-parse", "HEAD") + "+dirty"
    monkeypatch.setenv("PATH", "")
    assert git_commit() is None


def test_no_torch_is_loaded_for_reading() -> None:
    code = "import sys, vlprompt.results.record; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("said", "config", "now"),
    [
        ("last", {}, "fixed"),
        ("last", {"sampler": {"name": "coop"}}, "fixed"),
        ("val", {"shots": 4}, "few_shot_val"),
        ("val", {"sampler": {"name": "tip_adapter"}}, "val"),
        ("val", {"sampler": {"name": "coop"}, "selection": "val"}, "val"),  # a recipe says so
        ("val", {}, "val"),  # a log of other software
        ("test", {"shots": 4}, "test"),
    ],
)
def test_selections_of_earlier_records_have_todays_words(folder: Path, said: str, config: Any, now: str) -> None:
    write(folder, record(config=config))
    path = folder / "result.json"
    fields = {name: value for name, value in json.loads(path.read_text()).items() if name != "checksum"}
    fields["selection"] = said
    path.write_text(json.dumps(fields | {"checksum": checksum(fields)}))
    assert Record.read(folder).selection == now


def test_all_validation_images_are_no_few_shots() -> None:
    assert record(shots="all", selection="val", config={"shots": "all"}).selection == "val"


def test_what_files_and_the_run_say_of_the_selection() -> None:
    def says(of_files: str | None, select_on: str = "val", *, val: bool = True, searches: bool = True) -> str:
        fit = SimpleNamespace(keep="last", select_on=select_on)
        settings = SimpleNamespace(fit=fit, selection=of_files, shots=4, sampler=SimpleNamespace(name="coop"))
        episode = SimpleNamespace(selection_split=lambda select_on: val or None)
        learner = SimpleNamespace(uses_validation=searches, calibration=None)
        return run.selection(SimpleNamespace(settings=settings), learner, episode)

    assert [says(of_files) for of_files in (None, "fixed", "val", "test")] == ["few_shot_val"] * 2 + ["val", "test"]
    assert (says("per_target"), says("per_target", "test")) == ("per_target", "test")
    assert (says(None, searches=False), says(None, val=False), says("test", searches=False)) == (
        "fixed",
        "fixed",
        "test",
    )
