"""Weights & Biases: offline runs are read back by W&B's own reader; failures never cost a run."""

import json
import logging
import os
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import made_records
import pandas as pd
import pytest
import torch

from vlprompt.errors import UserError
from vlprompt.reports.sweeps import summarise_sweep
from vlprompt.results.predictions import Predictions
from vlprompt.results.record import Record, RunKey
from vlprompt.training import tracking
from vlprompt.training.tracking import Tracker, plain_config, tags, track, track_sweep

KEY = RunKey(protocol="base_to_novel", dataset="shapes", backbone="tiny", method="coop", shots=16, seed=1)
GROUP = "base_to_novel-shapes-tiny-coop@long-shots16"


@pytest.fixture(autouse=True)
def no_settings_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)


def read(folder: Path) -> dict[str, Any]:
    """One tracked run, as W&B's own reader prints it: its records by type, and its summary."""
    (log,) = (folder / "wandb").glob("offline-run-*/run-*.wandb")
    answers = []
    for options in ([], ["--summary"]):
        command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", *options, str(log)]
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
        if answer.returncode == 2:
            pytest.skip("this version of wandb has no reader for offline runs")
        assert answer.returncode == 0, answer.stderr
        answers.append(answer.stdout)
    run: dict[str, Any] = json.loads(answers[1])
    for line in answers[0].splitlines():
        entry = json.loads(line)
        run.setdefault("records", {}).setdefault(entry["type"], []).append(entry.get(entry["type"]))
    return run


def without_its_own(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if not name.startswith("_")}


@pytest.mark.slow
def test_an_offline_run_is_read_back(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    three = Predictions.from_logits(["a", "b", "c"], torch.tensor([0, 2, 2]), torch.eye(3))
    settings = {"fit": {"epochs": {1: 50, 16: 200}, "lr": 0.002}, "name": "long", "method": {"n_context": 16}}
    origin = {"config": settings, "changes": {"method.n_context": 16}, "recipe": ["coop/few_shot"], "git": "abc+dirty"}
    key = KEY.model_copy(update={"variant": "long"})
    with track(None, key=key, origin={**origin, "device": "cpu", "weights": "random"}, folder=tmp_path) as tracker:
        for epoch in range(3):
            tracker.log({"loss": 1 / (epoch + 1), "accuracy": None, "lr": 0.1}, epoch=epoch + 1)
        scores = {"base": {"accuracy": 0.5, "correct": 2}, "novel": {"accuracy": 0.25, "correct": 1}}
        cost: dict[str, Any] = {"trained_parameters": 2048, "train_seconds": 1.5, "peak_memory_bytes": None}
        many = [str(i) for i in range(101)]
        results = {"scores": scores, "headline": {"base": 0.5, "H": 1 / 3}, "cost": cost}
        record = Record(**key.model_dump(), status="finished", **results)
        tracker.finish(record, {"base": three, "novel": three}, {"base": ["x", "y", "z"], "novel": many})
    assert capfd.readouterr() == ("", "")

    run = read(tmp_path)
    assert (run["state"], run["exit_code"]) == ("finished", 0)
    assert (run["project"], run["name"]) == ("vlprompt", f"{GROUP}-seed1")
    entry = run["records"]["run"][0]
    assert (entry["run_group"], entry["job_type"]) == (GROUP, "train")
    assert set(run["tags"]) == {"coop", "text prompts", "shapes", "base_to_novel", "tiny", "16-shot"}
    config = run["config"]
    assert config.pop("settings") == json.loads(json.dumps(settings))
    machine = config.pop("machine")
    assert (machine["device"], machine["cpus"]) == ("cpu", os.cpu_count())
    plain = {**KEY.model_dump(), "variant": "long: method.n_context=16", "recipe": "coop/few_shot"}
    plain |= {"weights": "random", "git": "abc+dirty", "family": "text prompts"}
    plain |= {"learner": "CoOp (long: n_context=16)"}
    assert {name: config[name] for name in plain} == plain

    curve = [without_its_own(entry["item"]) for entry in run["records"]["history"]]
    assert curve[:3] == [{"epoch": n, "train/loss": pytest.approx(1 / n), "train/lr": 0.1} for n in (1, 2, 3)]
    summary = run["summary"]
    assert (summary["base/accuracy"], summary["novel/correct"]) == (0.5, 1)
    assert summary["H"] == pytest.approx(1 / 3)
    assert {name: value for name, value in summary.items() if name.startswith("cost/")} == {
        "cost/trained_parameters": 2048,
        "cost/train_seconds": 1.5,
    }
    assert summary["novel/confusion"] == "not drawn: 101 classes"

    (table,) = (tmp_path / "wandb").glob("offline-run-*/files/media/table/base/*.json")
    cells = {(actual, predicted): n for actual, predicted, n in json.loads(table.read_text())["data"]}
    assert len(cells) == 9
    assert {key: n for key, n in cells.items() if n} == {("x", "x"): 1, ("z", "y"): 1, ("z", "z"): 1}

    charts = {name.split(".")[0] for point in curve for name in point}
    metrics = run["records"]["metric"]
    hidden = {metric["name"] for metric in metrics if metric["options"].get("hidden")}
    assert charts - hidden == {"train/loss", "train/lr"}  # curves; what a chart is drawn from is no chart
    assert [metric["step_metric"] for metric in metrics if metric.get("glob_name") == "train/*"] == ["epoch"]
    assert nothing_is_staged(tmp_path, run)


def nothing_is_staged(results: Path, run: dict[str, Any]) -> bool:
    """All that W&B would send lies among the run's own files."""
    assert "artifact" not in run["records"]
    names = {path.name for path in (results / "wandb").iterdir() if path.is_dir() and not path.is_symlink()}
    inside = {path.name for path in (results / "wandb").glob("offline-run-*/*") if path.is_dir()}
    return all(name.startswith("offline-run-") for name in names) and inside <= {"files", "logs"}


@pytest.mark.slow
def test_a_sweep_has_one_table(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    table = pd.DataFrame(
        {
            "protocol": "few_shot",
            "method": ["coop", "lora", "<b>mine</b>"],
            "variant": ["", "0a1b2c3d", ""],
            "named": ["", "method.rank=2", ""],
            "changes": [{}, {"method.rank": 2}, {}],
            "shots": [16, 16, "all"],
            "test": [0.5, None, 0.75],
            "H": [None, None, None],
        }
    )
    track_sweep("offline", table, {"finished": 3, "failed": 1}, name="2030-01-01", folder=tmp_path)
    assert capfd.readouterr() == ("", "")
    run = read(tmp_path)
    assert (run["name"], run["exit_code"], run["tags"]) == ("sweep-2030-01-01", 1, ["sweep"])
    assert run["config"]["method"] == ["<b>mine</b>", "coop", "lora"]
    assert (run["summary"]["jobs/finished"], run["summary"]["jobs/failed"]) == (3, 1)
    logged = run["summary"]["results"]
    assert (logged["_type"], logged["nrows"]) == ("table-file", 3)
    (folder,) = (tmp_path / "wandb").glob("offline-run-*")
    content = json.loads((folder / "files" / logged["path"]).read_text())
    assert content["columns"] == ["protocol", "method", "variant", "shots", "test"]
    assert content["data"] == [
        ["few_shot", "coop", "", 16, 0.5],
        ["few_shot", "lora", "method.rank=2", 16, None],
        ["few_shot", "<b>mine</b>", "", "all", 0.75],
    ]
    assert nothing_is_staged(tmp_path, run)


def test_a_sweep_is_done_whatever_happens_to_its_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise UserError("no network")

    monkeypatch.setattr(tracking, "_start", refuse)
    with caplog.at_level(logging.WARNING):
        for mode in ("online", "bogus", "disabled"):
            track_sweep(mode, pd.DataFrame({"method": ["coop"]}), {}, name="x", folder=tmp_path)
    assert [record.message.split(":")[0] for record in caplog.records] == ["no network", "unknown wandb mode 'bogus'"]


def test_a_sweep_is_logged_when_it_has_new_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its modes, all of its results and what did not finish."""
    logged: list[tuple[Any, ...]] = []

    def log(mode: str | None, table: pd.DataFrame, jobs: dict[str, int], **_: object) -> None:
        logged.append((mode, list(table["method"]), dict(jobs)))

    monkeypatch.setattr(tracking, "track_sweep", log)
    records = [made_records.record(method, created="2030-01-01T00:00:00+00:00") for method in ("coop", "vpt_deep")]
    made_records.save(tmp_path, records)
    outcomes: list[dict[str, Any]] = [{"folders": [], "status": "not_applicable", "reason": "novel classes"}]
    outcomes += [{"folders": [str(one.folder(tmp_path))], "wandb": "offline"} for one in records]
    (tmp_path / "sweep" / "jobs").mkdir(parents=True)
    for number, outcome in enumerate(outcomes):
        (tmp_path / f"sweep/jobs/{number:06}.json").write_text(json.dumps(outcome | {"job": f"seed={number}"}))
    for year in (2029, 2031):  # the runs are new; they were made before
        assert summarise_sweep(tmp_path / "sweep", datetime(year, 1, 1, tzinfo=timezone.utc)) == 0
    assert logged == [("offline", ["coop", "vpt_deep"], {"finished": 2, "not_applicable": 1})]


@pytest.mark.parametrize(
    ("variant", "origin", "expected"),
    [
        (None, {}, ("default", "none")),
        ("45e845b8", {"changes": {"fit.epochs": 2}, "recipe": ["a", "b"]}, ("fit.epochs=2", "a, b")),
        ("45e845b8", {"changes": None}, ("45e845b8", "none")),
        ("mine", {"changes": {}, "config": {"name": "mine"}}, ("mine", "none")),
    ],
)
def test_plain_keys(variant: str | None, origin: dict[str, Any], expected: tuple[str, str]) -> None:
    config = plain_config(KEY.model_copy(update={"variant": variant}), origin)
    assert (config["variant"], config["recipe"]) == expected
    plain = [name for name, value in config.items() if not isinstance(value, dict)]
    assert set(RunKey.model_fields) <= set(plain)
    assert json.loads(json.dumps(config)) == config


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"shots": 0}, ["coop", "text prompts", "shapes", "base_to_novel", "tiny"]),
        ({"shots": "all", "method": "m" * 100}, ["m" * 64, "shapes", "base_to_novel", "tiny", "all shots"]),
        ({"dataset": "coop"}, ["coop", "text prompts", "base_to_novel", "tiny", "16-shot"]),
    ],
)
def test_tags(changes: dict[str, Any], expected: list[str]) -> None:
    assert tags(KEY.model_copy(update=changes)) == expected


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_ends_the_run_as_failed(tmp_path: Path, error: type[BaseException]) -> None:
    untrained = KEY.model_copy(update={"shots": 0, "seed": 0})
    with pytest.raises(error), track("offline", key=untrained, origin={}, folder=tmp_path):
        raise error
    run = read(tmp_path)
    assert (run["exit_code"], run["summary"]["reason"]) == (1, error.__name__)
    assert run["records"]["run"][0]["job_type"] == "eval"
    assert nothing_is_staged(tmp_path, run)


@pytest.mark.parametrize(
    ("mode", "environment", "expected"),
    [(None, None, "offline"), (None, "online", "online"), ("offline", "online", "offline"), (None, "", "offline")],
)
def test_modes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str | None, environment: str | None, expected: str
) -> None:
    if environment is not None:
        monkeypatch.setenv("WANDB_MODE", environment)
    started: list[str] = []
    monkeypatch.setattr(tracking, "_start", lambda mode, *_, **__: started.append(mode))
    with track(mode, key=KEY, origin={}, folder=tmp_path):
        pass
    assert started == [expected]


def test_long_names_are_cut_to_what_wandb_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[dict[str, Any]] = []
    monkeypatch.setattr(tracking, "_start", lambda *_, **of_run: started.append(of_run))
    for seed in (1, 2):
        key = KEY.model_copy(update={"method": "m" * 100, "dataset": "d" * 100, "seed": seed})
        with track("offline", key=key, origin={}, folder=tmp_path):
            pass
    assert max(len(run[name]) for run in started for name in ("name", "group")) <= 128
    assert started[0]["group"] == started[1]["group"]
    assert started[0]["name"] != started[1]["name"]


def test_disabled_does_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    with track(None, key=KEY, origin={}, folder=tmp_path) as tracker:
        tracker.log({"loss": 1.0}, epoch=1)
        tracker.finish(Record(**KEY.model_dump(), status="finished"), {}, {})
    assert tracker.where is None
    assert list(tmp_path.iterdir()) == []
    with (
        pytest.raises(UserError, match="did you mean 'offline'"),
        track("ofline", key=KEY, origin={}, folder=tmp_path),
    ):
        pass


ONLINE = """
import sys
from datetime import datetime, timezone
from pathlib import Path
from vlprompt.reports.sweeps import summarise_sweep
from vlprompt.training import tracking
from vlprompt.errors import UserError
from vlprompt.results.record import RunKey

tracking.SECONDS_TO_START = 1
try:
    with tracking.track("online", key=RunKey.model_validate_json(sys.argv[2]), origin={}, folder=Path(sys.argv[1])):
        print("started")
except UserError as error:
    print(error)
"""


@pytest.mark.parametrize("key", ["", "0123456789" * 4])
@pytest.mark.slow
def test_online_without_account_or_network_is_one_sentence(tmp_path: Path, key: str) -> None:
    environment = {**os.environ, "HOME": str(tmp_path), "WANDB_API_KEY": key, "WANDB_BASE_URL": "http://127.0.0.1:9"}
    command = [sys.executable, "-c", ONLINE, str(tmp_path), KEY.model_dump_json()]
    answer = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, timeout=60)
    (line,) = answer.stdout.splitlines()
    assert "wandb=offline" in line
    assert "Traceback" not in answer.stderr


def test_offline_continues_where_nothing_can_be_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "wandb").write_text("in the way")
    with caplog.at_level(logging.WARNING), track("offline", key=KEY, origin={}, folder=tmp_path) as tracker:
        tracker.log({"loss": 1.0}, epoch=1)
        tracker.finish(Record(**KEY.model_dump(), status="finished"), {}, {})
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "continues without it" in caplog.text


def test_a_failure_on_the_way_warns_once(caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        url, dir, ended = None, "run/files", 0

        def log(self, *_: object, **__: object) -> None:
            raise OSError("disk gone\nmore")

        def finish(self, exit_code: int) -> None:
            self.ended += 1

    broken = Broken()
    tracker = Tracker(broken)
    assert tracker.where == "run"
    with caplog.at_level(logging.WARNING):
        for epoch in range(3):
            tracker.log({"loss": 1.0}, epoch=epoch)
        tracker.close(exit_code=0)
    assert len(caplog.records) == 1
    assert "(disk gone)" in caplog.text
    assert broken.ended == 1
