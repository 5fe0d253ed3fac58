"""Commands as a user gives them, each in a process of its own: killed, interrupted, twice at once, on real files."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from running import PROGRAM, ROOT, SECONDS, end, environment_in, start
from test_tracking import read
from tiny_world import RUN

from vlprompt import sweep
from vlprompt.config.build import clip_at
from vlprompt.results.record import Record
from vlprompt.results.store import STATE, find_records

LONG = [*RUN, "name=long", "fit.epochs=1000000"]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return environment_in(tmp_path)


@pytest.fixture
def within(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Callable[[list[str]], int]:
    """The same command within this process, which saves its start."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", sys.argv)
    return sweep.main


def wait_for_training(results: Path, process: subprocess.Popen[str]) -> None:
    """Until the first epoch is logged."""
    limit = time.monotonic() + SECONDS
    while not any("epoch 1 " in path.read_text() for path in results.rglob(".*.partial/log.txt")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit
        time.sleep(0.02)


def left_over(results: Path) -> Iterator[Path]:
    """What an unfinished run left, its locks and the names of their holders aside."""
    return (path for path in results.rglob("*") if path.is_file() and path.suffix not in (".lock", ".holder"))


def coop(results: Path) -> list[Record]:
    return [record for record in find_records([results]) if record.method == "coop"]


def stop(sent: signal.Signals, folder: Path, *more: str) -> tuple[Path, tuple[int, str, str]]:
    """A run that gets a signal while it trains: its results root, its exit code and what it said."""
    process = start(PROGRAM, [*LONG, *more], environment_in(folder), folder)
    wait_for_training(folder / "results", process)
    os.killpg(process.pid, sent)  # a terminal sends Ctrl-C to the workers, too
    return folder / "results", end(process)


def test_a_killed_run_leaves_nothing_that_reads_as_finished(within: Any, tmp_path: Path) -> None:
    results, (code, _, _) = stop(signal.SIGKILL, tmp_path)
    assert code == -signal.SIGKILL
    assert find_records([results]) == []
    assert [path.name for path in left_over(results)] == ["log.txt"]
    assert within([*LONG, "fit.epochs=3"]) == 0  # in the same folder
    (record,) = coop(tmp_path / "results")
    assert len(record.curve) == 3
    log = (record.folder(tmp_path / "results") / "log.txt").read_text()
    assert log.count("epoch 1 ") == 1  # nothing of the killed run
    assert not list(tmp_path.rglob(".*.partial"))


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_stop_is_one_line_and_leaves_what_resumes(tmp_path: Path, sent: signal.Signals) -> None:
    """While workers read the images, which get the signal, too."""
    results, (code, _, err) = stop(sent, tmp_path, "bank.views=null", "workers=2")
    assert code == 128 + sent
    (line,) = err.strip().splitlines()
    assert "the same command resumes it" in line
    assert {path.name for path in left_over(results)} == {"log.txt", STATE}


@pytest.mark.slow
def test_two_processes_with_one_command_and_their_tracked_runs(environment: dict[str, str], tmp_path: Path) -> None:
    results = tmp_path / "results"
    environment["WANDB_MODE"] = "offline"
    pair = [start(PROGRAM, [*RUN, "name=both"], environment, tmp_path) for _ in range(2)]
    answers = [end(process) for process in pair]
    assert [(code, err) for code, _, err in answers] == [(0, "")] * 2
    tables = {out[out.index("\nprotocol ") :] for _, out, _ in answers}
    assert len(tables) == 1
    assert sum(out.count("is finished already") for _, out, _ in answers) == 2  # each cell was computed once
    (record,) = coop(results)
    assert record.variant == "both"

    tracked = sorted((results / "wandb").glob("offline-run-*"))  # by the time they began
    assert len(tracked) == 2
    ours = next(run for run in map(read_one, tracked) if "coop" in run["name"])
    assert (ours["name"], ours["exit_code"]) == ("base_to_novel-digits-shapes_vit-coop@both-shots2-seed1", 0)
    assert ours["config"]["settings"]["method"] == record.config["method"]
    assert (ours["config"]["method"], ours["config"]["variant"]) == ("coop", "both: fit.epochs=2")
    assert {key: ours["summary"][key] for key in ("base/accuracy", "novel/correct")} == {
        "base/accuracy": record.scores["base"]["accuracy"],
        "novel/correct": record.scores["novel"]["correct"],
    }
    history: list[Any] = [entry["item"] for entry in ours["records"]["history"]]
    losses = [point["train/loss"] for point in history if "train/loss" in point]
    assert losses == pytest.approx([epoch["loss"] for epoch in record.curve])


def read_one(folder: Path) -> dict[str, Any]:
    """A tracked run that lies next to others."""
    alone = folder.parents[2] / f"only-{folder.name}" / "wandb"
    alone.mkdir(parents=True)
    (alone / folder.name).symlink_to(folder)
    return read(alone.parent)


def make_caltech(root: Path) -> None:
    """Four classes in the published layout: JPEGs of different sizes, and the split file."""
    rng, parts = random.Random(0), {"train": 2, "val": 1, "test": 2}
    split: dict[str, list[list[Any]]] = {part: [] for part in parts}
    for label, (folder, name) in enumerate(
        {"Faces": "face", "Leopards": "leopard", "accordion": "accordion", "sea_horse": "sea_horse"}.items()
    ):
        images = root / "caltech-101" / "101_ObjectCategories" / folder
        images.mkdir(parents=True)
        wanted = [part for part, n in parts.items() for _ in range(n)]
        for number, part in enumerate(wanted, start=1):
            size = rng.randint(100, 400), rng.randint(100, 400)
            image = Image.frombytes("RGB", (8, 8), rng.randbytes(192)).resize(size)
            if number == 1:
                image = image.convert("L")
            image.save(images / f"image_{number:04d}.jpg")
            split[part].append([f"{folder}/image_{number:04d}.jpg", label, name])
    (root / "caltech-101" / "split_zhou_Caltech101.json").write_text(json.dumps(split))


@pytest.mark.parametrize(
    ("backbone", "width"), [("shapes_vit", 96), pytest.param("vit_b16", 512, marks=pytest.mark.slow)]
)
def test_caltech101_in_its_published_layout(within: Any, tmp_path: Path, backbone: str, width: int) -> None:
    """Cut short, with random weights; the real thing has ViT-B/16 at 224 pixels and starts from "a photo of a"."""
    make_caltech(tmp_path / "datasets")
    arguments = ["method=coop", "dataset=caltech101", "backbone.weights=random", "fit.epochs=1", "shots=1", "workers=1"]
    if backbone == "shapes_vit":  # which does not know the words
        arguments += ["backbone=shapes_vit", "method.ctx_init=''", "method.n_context=4"]
    assert within(arguments) == 0
    clip_at.cache_clear()  # 600 MB
    (record,) = coop(tmp_path / "results")
    assert (record.dataset, record.backbone, record.weights) == ("caltech101", backbone, "random")
    assert record.cost["trained_parameters"] == 4 * width
    assert (record.bank["test_features"], record.bank["views"]) == (True, None)
    assert {name: scores["total"] for name, scores in record.scores.items()} == {"base": 4, "novel": 4, "all": 8}


@pytest.mark.slow
def test_the_wheel_works_from_anywhere(environment: dict[str, str], tmp_path: Path) -> None:
    """Configuration and demo weights are inside; nothing of the checkout is used."""
    options = ["--quiet", "--no-deps", "--no-build-isolation"]
    pip = [sys.executable, "-m", "pip"]
    subprocess.run([*pip, "wheel", *options, "--wheel-dir", str(tmp_path), str(ROOT)], check=True, timeout=SECONDS)
    (wheel,) = tmp_path.glob("vlprompt-*.whl")
    assert wheel.stat().st_size < 10e6
    target = tmp_path / "installed"
    subprocess.run([*pip, "install", *options[:2], "--target", str(target), str(wheel)], check=True, timeout=SECONDS)
    assert (target / "vlprompt" / "py.typed").exists()  # so that type checkers of users read its annotations
    environment["PYTHONPATH"] = f"{target}{os.pathsep}{Path(__file__).parent}"
    code = "import sys, vlprompt.cli as cli; print(cli.__file__); sys.exit(cli.main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "run", *RUN, "backbone.weights=pretrained"]
    command.remove("backbone.weights=random")
    answer = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=SECONDS)
    assert (answer.returncode, answer.stderr) == (0, "")
    assert answer.stdout.startswith(str(target))
    (record,) = coop(tmp_path / "results")
    assert (record.weights, record.git) == ("pretrained", None)
    assert "vlprompt" in record.versions


@pytest.mark.slow
def test_joblib_runs_the_cells_of_a_sweep_in_processes(environment: dict[str, str], tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="needs the extra sweep")
    parallel = ["-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    arguments = [*parallel, *RUN, "seed=1,2", "method.class_specific=false,true", "name=here"]
    code, out, err = end(start(PROGRAM, arguments, environment, tmp_path))
    assert (code, "Traceback" in err) == (0, False), err
    records = coop(tmp_path / "results")
    assert sorted((record.seed, record.status) for record in records) == [(1, "finished"), (2, "finished")]
    assert "2 of 4 runs did not finish:" in err
    assert err.count("(not_applicable): CoOp owns parameters for each") == 2
    row = next(line.split() for line in out.splitlines() if line.startswith("coop  "))
    assert row[:4] == ["coop", "here", "2", "2"]  # variant, shots, n


def test_ctrl_c_while_modules_are_loaded_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "hydra.py").write_text("raise KeyboardInterrupt\n")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    answer = subprocess.run([sys.executable, *PROGRAM], capture_output=True, text=True, env=environment, check=False)
    assert (answer.returncode, answer.stdout) == (130, "")
    assert answer.stderr == "\nstopped by Ctrl-C: nothing was begun\n"
