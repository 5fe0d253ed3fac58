"""The walk-through docs/add_a_learner.md: its two files are all that a method takes, inside and outside the package."""

import inspect
import re
import sys
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pandas as pd
import pytest
import test_learners

import vlprompt.learners
from vlprompt import cli
from vlprompt.config.compose import compose
from vlprompt.sweep import main as run

PAGE = Path(__file__).parents[1] / "docs" / "add_a_learner.md"
FILES = dict(re.findall(r"<!-- file: (\S+) -->\n```\w+\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL))
MODULE, CONFIG = "vlprompt/learners/two_biases.py", "conf/method/two_biases.yaml"
SMALL = ["dataset=digits", "dataset.source._target_=tiny_world.load", "backbone.weights=random", "shots=2"]
CHECKS = {
    name: check
    for name, check in vars(test_learners).items()
    if name.startswith("test_") and "case" in inspect.signature(check).parameters
}
"""The contract of every method."""


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


@pytest.fixture
def inside(tmp_path, monkeypatch):
    """The two files as they stand, as if they lay in the package; -> the folder of the configuration."""
    for name, text in FILES.items():
        write(tmp_path / name, text)
    folders = [*vlprompt.learners.__path__, str(tmp_path / "vlprompt" / "learners")]
    monkeypatch.setattr(vlprompt.learners, "__path__", folders)
    yield tmp_path / "conf"
    sys.modules.pop("vlprompt.learners.two_biases", None)
    vars(vlprompt.learners).pop("two_biases", None)


@pytest.fixture
def outside(tmp_path, monkeypatch):
    """The two files in a folder of the user's own, another `_target_` in the YAML; -> as above."""
    write(tmp_path / "my_methods" / "two_biases.py", FILES[MODULE])
    write(tmp_path / CONFIG, FILES[CONFIG].replace("vlprompt.learners.", "my_methods."))
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path / "conf"
    for name in ("my_methods.two_biases", "my_methods"):
        sys.modules.pop(name, None)


def test_the_page_holds_two_files():
    assert list(FILES) == [MODULE, CONFIG]


@pytest.mark.parametrize("place", ["inside", "outside"])
def test_from_two_files_to_a_row(place, request, tmp_path, monkeypatch, capsys):
    conf = request.getfixturevalue(place)
    for name, value in {"WANDB_MODE": "disabled", "VLPROMPT_RESULTS": str(tmp_path / "results")}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    monkeypatch.setattr(sys, "argv", ["pytest"])
    assert run(["--config-dir", str(conf), "method=two_biases", "name=small", "fit.epochs=2", *SMALL]) == 0
    assert "two_biases@small on digits" in capsys.readouterr().out
    assert cli.main(["table", "--format", "csv"]) == 0
    rows = pd.read_csv(StringIO(capsys.readouterr().out)).set_index("method")
    assert list(rows.index) == ["zero_shot", "two_biases"]
    row = rows.loc["two_biases"]
    assert (row["n"], row["failed"], row["shots"]) == (1, 0, 2)
    assert 0 <= row["base"] <= 100
    assert 0 <= row["novel"] <= 100
    assert row["parameters"] == 4 * 5 * (128 + 96)  # layers; widths of q and of fc1, which is four times as wide


@pytest.fixture
def configured(inside, monkeypatch):
    """The contract's tables with the new method in them."""
    config = compose(["method=two_biases", f"hydra.searchpath=[file://{inside}]"])
    monkeypatch.setattr(test_learners, "configured", lambda method: {"two_biases": config}[method])
    monkeypatch.setitem(test_learners.NEUTRAL, "two_biases", ({}, test_learners.as_built))


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_it_keeps_the_contract(check: Callable[..., None], configured, request):
    names = inspect.signature(check).parameters
    case = test_learners.Case("two_biases")
    check(**{name: case if name == "case" else request.getfixturevalue(name) for name in names})


def test_it_starts_as_the_frozen_model(configured):
    test_learners.test_neutral_start("two_biases")
