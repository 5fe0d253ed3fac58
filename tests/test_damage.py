"""Damaged files of runs, folders that vanish, processes that were killed: all is named, and nothing lost."""

import csv
import errno
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_records import few_shot
from running import Answer, ask, set_up
from tiny_world import RUN

import vlprompt.run
from vlprompt import cli, sweep
from vlprompt.config.spec import spec_of_record
from vlprompt.data import disk
from vlprompt.data.disk import Lock, locked, whole_file
from vlprompt.errors import DamagedError
from vlprompt.results import learner_files
from vlprompt.results.predictions import Predictions, load_predictions, save_predictions
from vlprompt.results.record import FILE, Record
from vlprompt.results.store import find_runs, open_run, tidy

ROOT = Path(__file__).parents[1]
LEARNER = ["learner.safetensors", "learner_config.json"]


def written(root: Path, record: Record) -> Path:
    folder = record.folder(root)
    with open_run(folder) as run:
        run.publish(record)
    return folder


def scored(method: str = "coop", correct: int = 5) -> Record:
    scores = {"test": {"accuracy": correct / 8, "correct": correct, "total": 8, "nll": 0.123456789e-5}}
    return few_shot(method, scores=scores, curve=[{"epoch": 1, "loss": float("nan"), "lr": 1e-05}])


# Records

NOT_RECORDS: dict[str, Callable[[str], bytes]] = {
    "empty": lambda text: b"",
    "truncated": lambda text: text.encode()[: len(text) // 2],
    "a digit": lambda text: text.replace('"lr": 1e-05', '"lr": 2e-05').encode(),
    "an accuracy without checksum": lambda text: edited(
        text, scores={"test": {"accuracy": 1, "correct": 5, "total": 8}}
    ),
    "a list": lambda text: b"[1, 2]",
    "null": lambda text: b"null",
    "deep": lambda text: b"[" * 100_000,
    "a stranger's": lambda text: b'{"name": "something else", "version": 3}',
    "no UTF-8": lambda text: b"\xff\xfe" + text.encode(),
    "newer": lambda text: edited(text, schema_version=99, status="paused"),
    "a folder": lambda text: b"folder",
    "a pipe": lambda text: b"pipe",
    "a device": lambda text: b"device",
}


def edited(text: str, **fields: Any) -> bytes:
    """As by hand, without a checksum."""
    content = json.loads(text) | fields
    del content["checksum"]
    return json.dumps(content).encode()


@pytest.mark.parametrize("damage", NOT_RECORDS)
def test_a_damaged_record_is_named_and_hides_no_other(results: Path, damage: str) -> None:
    written(results, few_shot("maple"))
    path = written(results, scored()) / FILE
    content = NOT_RECORDS[damage](path.read_text())
    make = {b"folder": path.mkdir, b"pipe": lambda: os.mkfifo(path), b"device": lambda: path.symlink_to("/dev/zero")}
    if content in make:
        path.unlink()
        make[content]()
    else:
        path.write_bytes(content)
    answer = ask(cli.main, ["table"])
    table, _, note = answer.out.partition("Left out")
    assert (answer.code, answer.err, note.count(str(path))) == (0, "", 1), answer
    assert "maple" in table
    assert "coop" not in table
    for asked in (["table", "--where", "method=coop"], ["compare", "coop", "maple"], ["curve", "method.rank"]):
        answer = ask(cli.main, asked)  # for what was left out
        assert (answer.code, answer.err.count(str(path))) == (2, 1), answer


@given(st.integers(min_value=0), st.integers(0, 7))
@settings(max_examples=150, deadline=None)
def test_a_flipped_bit_never_changes_what_is_read(
    tmp_path_factory: pytest.TempPathFactory, byte: int, bit: int
) -> None:
    folder = tmp_path_factory.getbasetemp() / "flips"
    folder.mkdir(exist_ok=True)
    record = scored()
    content = bytearray(record.text().encode())
    content[byte % len(content)] ^= 1 << bit
    (folder / FILE).write_bytes(content)
    said: list[str] = []
    read = list(find_runs([folder], said.append).values())
    same = [one.model_dump_json() for one in read] == [record.model_dump_json()]  # of which NaN is the same, too
    assert (same and not said) or (not read and str(folder / FILE) in said[0])


def test_a_record_may_be_written_again(tmp_path: Path) -> None:
    """Spaces, the order of keys, and a round trip through the model change nothing; records of before are read."""
    folder = written(tmp_path, scored())
    first = Record.read(folder)
    content = json.loads((folder / FILE).read_text())
    assert list(content)[-1] == "checksum"
    (folder / FILE).write_text(json.dumps(dict(reversed(content.items()))))
    assert Record.read(folder) is not None
    assert first is not None
    (folder / FILE).write_text(first.model_dump_json())
    assert Record.read(folder) is not None
    del content["checksum"], content["files"]
    (folder / FILE).write_text(json.dumps(content | {"of_the_future": [1]}))
    assert Record.read(folder) is not None


@pytest.mark.skipif(os.name == "nt" or not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads everything")
def test_a_record_that_may_not_be_read(results: Path) -> None:
    path = written(results, scored()) / FILE
    path.chmod(0)
    assert str(path) in ask(cli.main, ["table"]).err  # all that there is


# The other files of a run


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The results of two runs of CoOp and zero-shot."""
    folder = tmp_path_factory.mktemp("damage")
    with pytest.MonkeyPatch.context() as patch:
        set_up(patch, folder)
        for seed in (1, 2):
            assert ask(sweep.main, [*RUN, f"seed={seed}"]).code == 0
    return folder / "results"


@pytest.fixture
def again(trained: Path, results: Path) -> Path:
    """A copy of these results."""
    shutil.copytree(trained, results)
    shutil.copytree(trained.parent / "datasets", results.parent / "datasets")
    return results


def folder_of(root: Path, seed: int = 1) -> Path:
    return next(f for f, r in find_runs([root]).items() if (r.method, r.seed) == ("coop", seed))


def without_files(folder: Path) -> None:
    """As if an earlier version had written it."""
    content = json.loads((folder / FILE).read_text())
    del content["files"], content["checksum"]
    (folder / FILE).write_text(json.dumps(content))


def retest() -> Answer:
    return ask(cli.main, ["evaluate", "method.n_context=4", "--format", "csv"])


CONFIGURATIONS = [
    b"",
    b"- 1",
    b"a: !!python/object/apply:os.system ['id']",
    b"\xff\xfe",
    b"{a: [",
    b"protocol: {}",
    b"3",
    b"a: &a [1]\nb: [*a, *a]",
    b"#" * 2 * 10**6,
]
COOP: dict[str, Any] = {"target": "vlprompt.learners.coop.CoOp", "arguments": {}, "classes": ["a"]}
BACKBONE = {"model": "a", "weights": "b"}
LEARNERS = [
    *(json.dumps(content) for content in ([1], {}, 3, COOP, COOP | {"backbone": None})),
    json.dumps(COOP | {"backbone": BACKBONE, "target": ["a"]}),
    json.dumps(COOP | {"backbone": BACKBONE, "arguments": []}),
    json.dumps(COOP | {"backbone": BACKBONE, "classes": [1]}),
    json.dumps(COOP | {"backbone": BACKBONE | {"model": 1}}),
    json.dumps(COOP | {"backbone": {"model": "a"}}),
    "[" * 100_000,
    "{",
]


@pytest.mark.parametrize(
    ("checksums", "name"),
    [
        (True, "config.yaml"),
        (False, "learner.safetensors"),
        pytest.param(True, "learner.safetensors", marks=pytest.mark.slow),
        pytest.param(False, "config.yaml", marks=pytest.mark.slow),
    ],
)
def test_evaluate_names_a_damaged_run_and_tests_the_others(again: Path, name: str, checksums: bool) -> None:
    folder = folder_of(again)
    if not checksums:
        without_files(folder)
    (folder / name).write_bytes((folder / name).read_bytes()[: 100 if checksums else 5])
    answer = retest()
    assert (answer.code, answer.err.count(str(folder / name))) == (0, 1), answer
    assert {row["seed"] for row in csv.DictReader(io.StringIO(answer.out))} == {"2"}


@pytest.mark.parametrize("content", CONFIGURATIONS)
def test_a_configuration_that_is_none(again: Path, content: bytes) -> None:
    folder = folder_of(again)
    without_files(folder)
    (folder / "config.yaml").write_bytes(content)
    record = Record.read(folder)
    assert record is not None
    with pytest.raises(DamagedError, match=r"config\.yaml"):
        spec_of_record(folder, record)


@pytest.mark.parametrize("content", [text.encode() for text in LEARNERS] + [b"\xff\xfe", b""])
def test_a_learner_file_that_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "learner_config.json").write_bytes(content)
    answer = ask(cli.main, ["export", str(tmp_path), str(tmp_path / "out")])
    assert (answer.code, answer.err.count("\n")) == (2, 1)
    assert "learner_config.json" in answer.err
    assert not (tmp_path / "out").exists()


def test_a_learner_file_may_say_more(tmp_path: Path) -> None:
    about = {"target": "a", "arguments": {}, "backbone": {"model": "m", "weights": "w", "more": 1}, "classes": ["x"]}
    (tmp_path / "learner_config.json").write_text(json.dumps(about | {"later": [1]}))
    assert learner_files.read_config(tmp_path) == about | {"later": [1]}


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_learner_that_is_not_finite_is_refused(again: Path, value: str) -> None:
    folder = folder_of(again)
    without_files(folder)
    path = folder / "learner.safetensors"
    tensors = safetensors.torch.load_file(path)
    next(iter(tensors.values())).flatten()[-1] = float(value)
    safetensors.torch.save_file(tensors, path)
    answer = ask(cli.main, ["export", str(folder), str(again / "out")])
    assert answer.code == 2
    assert "NaN" in answer.err
    assert str(path) in answer.err
    assert str(path) in retest().err


@pytest.mark.parametrize("name", LEARNER)
def test_one_bit_of_a_learner_is_named(again: Path, name: str) -> None:
    folder = folder_of(again)
    content = bytearray((folder / name).read_bytes())
    content[-3] ^= 0x40
    (folder / name).write_bytes(content)
    answer = ask(cli.main, ["export", str(folder), str(again / "out")])
    assert answer.code == 2
    assert str(folder / name) in answer.err


def arrays(n: int = 4) -> dict[str, np.ndarray]:
    whole, real = np.zeros(n, np.int64), np.zeros(n, np.float32)
    named = np.array([f"{i}.png" for i in range(n)])
    return {
        "images": named, "labels": whole, "top5": np.zeros((n, 5), np.int32), "confidence": real, "label_logit": real,
        "logsumexp": real,
    }  # fmt: skip


def open_world(n: int = 4) -> dict[str, np.ndarray]:
    two = np.zeros((n, 2), np.float32)
    return {"square_sum": two[:, 0], "classwise_ece": np.array(0.5), "known": np.zeros(n, bool), "side_logsumexp": two,
            "side_logit": two, "side_class": np.zeros((n, 2), np.int32)}  # fmt: skip


@pytest.mark.parametrize("optional", [{}, open_world()], ids=["earlier", "open world"])
def test_predictions_with_and_without_what_is_optional(tmp_path: Path, optional: dict[str, np.ndarray]) -> None:
    save_predictions(tmp_path / "predictions.npz", {"test": Predictions(**arrays() | optional)})
    back = load_predictions(tmp_path / "predictions.npz")["test"]
    assert {name for name, array in vars(back).items() if array is None} == set(open_world()) - set(optional)


@pytest.mark.parametrize(
    "change",
    [
        {"labels": np.zeros(3, np.int64)},
        {"labels": np.zeros((4, 1), np.int64)},
        {"labels": np.zeros(4)},
        {"labels": np.int64(3)},
        {"top5": np.zeros(4, np.int32)},
        {"confidence": np.zeros((4, 4))},
        {"confidence": np.array(["a"] * 4)},
        {"images": np.arange(4)},
        {"images": np.array([{}] * 4, dtype=object)},
        {"logsumexp": None},
        {"square_sum": np.zeros(3, np.float32)},
        {"classwise_ece": np.zeros(4)},
        {"classwise_ece": np.int64(0)},
        {"known": None},
        {"known": np.zeros(4, np.int64)},
        {"side_logit": np.zeros((4, 3), np.float32)},
        {"side_logit": None},
        {"side_class": np.zeros((4, 2), np.float32)},
    ],
)
def test_predictions_of_another_shape(tmp_path: Path, change: dict[str, Any]) -> None:
    content = {f"test/{k}": v for k, v in (arrays() | open_world() | change).items() if v is not None}
    np.savez(tmp_path / "predictions.npz", **content)
    with pytest.raises(DamagedError, match=r"predictions\.npz"):
        load_predictions(tmp_path / "predictions.npz")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"x" * 500, "npy"])
def test_a_file_that_holds_no_predictions(tmp_path: Path, content: bytes | str) -> None:
    path = tmp_path / "predictions.npz"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        with path.open("wb") as file:
            np.save(file, np.zeros(3))
    with pytest.raises(DamagedError, match=r"predictions\.npz"):
        load_predictions(path)


@given(st.integers(min_value=0), st.integers(0, 7))
@settings(max_examples=60, deadline=None)
def test_a_flipped_bit_of_predictions_raises_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, byte: int, bit: int
) -> None:
    """Without a checksum: they are read, or named."""
    path = tmp_path_factory.getbasetemp() / "flipped.npz"
    save_predictions(path, {"test": Predictions(**arrays())})
    content = bytearray(path.read_bytes())
    content[byte % len(content)] ^= 1 << bit
    path.write_bytes(content)
    with suppress(DamagedError):
        load_predictions(path)


def test_damaged_predictions_are_left_out(again: Path) -> None:
    """Of a figure, of a comparison and of a metric that is computed from them."""
    folder = folder_of(again)
    path = folder / "predictions.npz"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    figure, name = again / "x.svg", Record.model_validate_json((folder / FILE).read_bytes()).learner
    zero_shot = next(run.learner for run in find_runs([again]).values() if run.method == "zero_shot")
    answers = [
        ask(cli.main, ["plot", "reliability", "--output", str(figure)]),
        ask(cli.main, ["compare", name, zero_shot, "--format", "csv"]),
    ]
    for answer in answers:
        assert answer.code == 0, answer
    assert str(path) in answers[0].err
    assert figure.is_file()
    assert {line.split(",")[4] for line in answers[1].out.splitlines()[1:]} == {"2"}  # the seed


# Runs


def test_finished_runs_in_a_folder_that_cannot_be_written(again: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    def elsewhere(work: Any) -> Any:
        return lambda path, *more, **named: (refuse if Path(path).is_relative_to(again) else work)(path, *more, **named)

    for name in ("mkdir", "rename", "replace", "unlink"):
        monkeypatch.setattr(f"os.{name}", elsewhere(getattr(os, name)))
    monkeypatch.setattr("os.access", lambda path, _: not Path(path).is_relative_to(again))
    monkeypatch.setattr("vlprompt.data.disk.FileLock.acquire", refuse)
    assert ask(sweep.main, RUN).code == 0
    content = sorted(again.rglob("*"))
    several = ask(sweep.main, ["-m", *RUN, "seed=1,3"])
    assert (several.code, several.out.count("is finished already")) == (1, 2)  # one seed, and zero-shot
    assert "1 of 2 runs did not finish" in several.err
    assert sorted(again.rglob("*")) == content
    answer = ask(sweep.main, [*RUN, "seed=3"])
    assert (answer.code, answer.err.count("\n")) == (2, 1)
    assert "VLPROMPT_RESULTS" in answer.err


@pytest.mark.parametrize("moment", ["test", "save_predictions"])
@pytest.mark.parametrize("what", ["all results", "the run's folder"])
@pytest.mark.slow
def test_results_deleted_under_a_run(again: Path, monkeypatch: pytest.MonkeyPatch, moment: str, what: str) -> None:
    work, done, folder = getattr(vlprompt.run, moment), [], folder_of(again)

    def delete(*arguments: Any) -> Any:
        answer = work(*arguments)
        if not done:
            done.append(moment)
            shutil.rmtree(again if what == "all results" else folder.with_name(".seed1.partial"))
        return answer

    scores = Record.read(folder)
    monkeypatch.setattr(vlprompt.run, moment, delete)
    assert ask(sweep.main, [*RUN, "force=true"]).code == 0
    record = Record.read(folder)
    assert done
    assert scores is not None
    assert record is not None
    assert record.scores == scores.scores
    assert {path.name for path in folder.iterdir()} == {*record.files, FILE}
    assert "epoch" in (folder / "log.txt").read_text()


def test_what_killed_runs_left_next_to_a_run_goes(tmp_path: Path) -> None:
    done = scored()
    folder = written(tmp_path, done)
    left, live, complete = (folder.with_name(f".seed{n}.partial") for n in (2, 3, 4))
    for path in (left, live, complete):
        path.mkdir()
    (complete / FILE).write_text(done.model_copy(update={"seed": 4}).text())
    folder.with_name(".seed5.lock.holder").write_text("1 on a, since 2026-01-01 00:00")
    code = "import sys, time; from pathlib import Path; from vlprompt.data.disk import Lock\n"
    code += "lock = Lock(Path(sys.argv[1])); assert lock.try_acquire(); print('held', flush=True); time.sleep(60)"
    lock = folder.with_name(".seed3.lock")
    with subprocess.Popen([sys.executable, "-c", code, str(lock)], stdout=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with open_run(folder):
            pass
        assert live.is_dir()
        said: list[str] = []
        with pytest.raises(Heard), open_run(folder.with_name("seed3"), on_wait=interrupt(said)):
            pass
        assert f"({process.pid} on " in said[0]
        process.kill()
    assert not left.exists()
    assert find_runs([tmp_path]).keys() == {folder, folder.with_name("seed4")}
    tidy(folder.parent)
    assert {path.name for path in folder.parent.iterdir() if path.suffix != ".lock"} == {"seed1", "seed4"}


class Heard(Exception):
    """Instead of waiting."""


def test_links_are_neither_followed_nor_silent(tmp_path: Path) -> None:
    """What a link in somebody's results points to is not read, written or deleted."""
    folder, outside = written(tmp_path / "results", scored()), tmp_path / "outside"
    shutil.copytree(folder, outside)
    (folder.parent / "link").symlink_to(tmp_path)
    said: list[str] = []
    assert list(find_runs([tmp_path / "results"], said.append)) == [folder]
    assert len(said) == 1
    assert str(folder.parent / "link") in said[0]
    for name in (".{}.old", ".{}.partial", ".{}.lock.holder"):
        (folder.parent / name.format(folder.name)).symlink_to(outside / FILE if "holder" in name else outside)
    with open_run(folder) as run:
        run.publish(scored(correct=6))
    assert json.loads((outside / FILE).read_text())["scores"]["test"]["correct"] == 5
    assert not [path for path in folder.parent.iterdir() if path.is_symlink() and path.name != "link"]


def interrupt(said: list[str]) -> Callable[[str], None]:
    def hear(text: str) -> None:
        said.append(text)
        raise Heard

    return hear


# Locks and drafts


@pytest.mark.parametrize("note", ["", "nonsense", "99999999 on {host}, since 2026-01-01 00:00", "\x00" * 300])
def test_a_stale_note_is_not_believed(tmp_path: Path, note: str) -> None:
    lock, said = Lock(tmp_path / "a"), list[str]()
    assert lock.try_acquire()
    (tmp_path / "a.holder").write_text(note.format(host=disk.socket.gethostname()))
    with pytest.raises(Heard), locked(tmp_path / "a", interrupt(said)):
        pass
    assert said == ["another process"]
    lock.release()
    with locked(tmp_path / "a", interrupt(said)):  # the lock decides
        assert (tmp_path / "a.holder").read_text().startswith(f"{os.getpid()} on ")
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".holder"] == []


KILLED = """
import os, sys
from pathlib import Path
from vlprompt.data.disk import whole_file
with whole_file(Path(sys.argv[1])) as draft:
    draft.write_text("half")
    os.kill(os.getpid(), 9)
"""


def test_drafts_of_killed_processes_go(tmp_path: Path) -> None:
    others = [tmp_path / name for name in (".x.20240101.12", ".hidden", ".b.4711", "vlprompt-notes-12")]
    for path in others:
        path.write_text("of the user")
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "file")], check=False, cwd=ROOT)
    assert len(list(tmp_path.iterdir())) == len(others) + 1
    with whole_file(tmp_path / "other") as draft:
        disk._clear_drafts.cache_clear()
        with whole_file(tmp_path / "second") as second:  # of this process: in use
            second.write_text("y")
        assert draft.parent == tmp_path
        draft.write_text("x")
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in others} | {"other", "second"}


# All together


def load_campaign(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    import fault_campaign

    return fault_campaign


@pytest.mark.slow
def test_a_sample_of_the_campaign(results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    campaign = load_campaign(monkeypatch)
    with campaign.worlds(tmp_path / "worlds") as (world, _):
        rows = [
            campaign.before_each(world, older=True, full=False, every=13),
            campaign.before_each(world, older=True, full=True, every=13),
        ]
        world.reset("results")
        folder_of(world.now).joinpath(FILE).write_text("{")
        assert "lost" in world.problem_of_readers(finished=True)  # it would be seen
    assert all(row.tried and row.tried == row.survived for row in rows), rows


@pytest.mark.slow
def test_the_whole_campaign(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "scripts" / "fault_campaign.py"), "--output", str(tmp_path)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stdout
    rows = json.loads((tmp_path / "fault_campaign.json").read_text())
    assert sum(row["tried"] for row in rows if row["fault"].startswith("SIGKILL")) > 100
    assert sum(row["tried"] for row in rows if row["fault"].startswith("flipped")) > 200
