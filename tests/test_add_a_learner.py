"""The walk-through docs/add_a_learner.md: its two files are all that a method takes, inside and outside the package."""

import re
import sys
from io import StringIO
from pathlib import Path

import pandas as pd
import pytest

import vlprompt.learners
from vlprompt import cli
from vlprompt.sweep import main as run

PAGE = Path(__file__).parents[1] / "docs" / "add_a_learner.md"
FILES = dict(re.findall(r"<!-- file: (\S+) -->\n```\w+\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL))
MODULE, CONFIG = "vlprompt/learners/two_biases.py", "conf/method/two_biases.yaml"
SMALL = ["dataset=digits", "dataset.source._target_=tiny_world.load", "backbone.weights=random", "shots=2"]


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


@pytest.fixture
def inside(tmp_path, monkeypatch):
    """The two files as they stand, as if they lay in the package; -> the import path of the class."""
    for name, text in FILES.items():
        write(tmp_path / name, text)
    folders = [*vlprompt.learners.__path__, str(tmp_path / "vlprompt" / "learners")]
    monkeypatch.setattr(vlprompt.learners, "__path__", folders)
    yield "vlprompt.learners.two_biases.TwoBiases"
    sys.modules.pop("vlprompt.learners.two_biases", None)
    vars(vlprompt.learners).pop("two_biases", None)


@pytest.fixture
def outside(tmp_path, monkeypatch):
    """The two files in a folder of the user's own, another `_target_` in the YAML; -> as above."""
    write(tmp_path / "my_methods" / "two_biases.py", FILES[MODULE])
    write(tmp_path / CONFIG, FILES[CONFIG].replace("vlprompt.learners.", "my_methods."))
    monkeypatch.syspath_prepend(tmp_path)
    yield "my_methods.two_biases.TwoBiases"
    for name in ("my_methods.two_biases", "my_methods"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("where", ["inside", pytest.param("outside", marks=pytest.mark.slow)])
def test_from_two_files_to_a_row(where, request, tmp_path, monkeypatch, capsys):
    target = request.getfixturevalue(where)
    for name, value in {"WANDB_MODE": "disabled", "VLPROMPT_RESULTS": str(tmp_path / "results")}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    monkeypatch.setattr(sys, "argv", ["pytest"])
    assert cli.main(["check-learner", target]) == 0
    assert run(["--config-dir", str(tmp_path / "conf"), "method=two_biases", "name=small", "fit.epochs=2", *SMALL]) == 0
    assert re.search(r"two_biases@small \(.*fit\.epochs=2.*\) on digits", capsys.readouterr().out)
    assert cli.main(["table", "--format", "csv"]) == 0
    rows = pd.read_csv(StringIO(capsys.readouterr().out)).set_index("method")
    assert list(rows.index) == ["zero_shot", "two_biases"]
    row = rows.loc["two_biases"]
    assert (row["n"], row["failed"], row["shots"]) == (1, 0, 2)
    assert 0 <= row["base"] <= 100
    assert 0 <= row["novel"] <= 100
    assert row["parameters"] == 4 * 5 * (128 + 96)  # layers; widths of q and of fc1, which is four times as wide
