"""Search spaces as the methods declare them, and searches with made-up answers."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from test_config import plain, settings

from vlprompt.config.compose import compose
from vlprompt.config.identity import result_settings
from vlprompt.config.schema import read_settings
from vlprompt.errors import UserError
from vlprompt.results.record import RunKey
from vlprompt.tuning.sampler import search
from vlprompt.tuning.search import as_overrides
from vlprompt.tuning.space import Choices, Range, leaves, read_dimension, read_space, value_at
from vlprompt.tuning.study import Study, Trial, best, row

SPACE = {
    name: read_dimension(node)
    for name, node in leaves(
        {
            "fit": {"lr": {"low": 1e-4, "high": 0.5, "log": True}, "weight_decay": {"choices": [0.0, 0.01]}},
            "method": {"rank": {"low": 1, "high": 8}, "sites": {"choices": [["q", "v"], ["q"], None, "all of them"]}},
        }
    ).items()
}
DEFAULT = {"fit.lr": 0.02, "fit.weight_decay": 0, "method.rank": 3, "method.sites": ["q", "v"]}


def answer(number: int, setting: dict[str, Any]) -> Trial:
    """Best at a rate of 0.01; the third trial fails."""
    accuracy = 1 / (1 + abs(math.log(setting["fit.lr"] / 0.01)))
    failed = {"accuracy": None, "reason": "the loss is nan"} if number == 2 else {}
    return Trial(number=number, setting=setting, **{"accuracy": accuracy, "seconds": 0.5, **failed})


def searched(budget: int, **changes: Any) -> list[Trial]:
    pytest.importorskip("optuna", reason="needs the extra tune")
    return search(SPACE, {**DEFAULT, **changes}, budget=budget, seed=1, evaluate=answer)


def test_the_default_comes_first_and_all_stays_in_the_space() -> None:
    trials = searched(12)
    assert [trial.number for trial in trials] == list(range(12))
    assert trials[0].setting == DEFAULT
    assert all(trial.setting[name] in dimension for trial in trials for name, dimension in SPACE.items())
    assert len({trial.setting["fit.lr"] for trial in trials}) == 12
    assert all(type(trial.setting["method.rank"]) is int for trial in trials)
    assert {json.dumps(trial.setting["method.sites"]) for trial in trials[1:]} >= {"null", '["q"]'}


def test_a_longer_search_begins_as_the_shorter_one_did() -> None:
    """And so the trials of an interrupted search are asked for again, and need not be run."""
    assert searched(12)[:5] == searched(5)
    assert searched(12) == searched(12)


def test_the_sampler_hears_the_answers() -> None:
    """With others it proposes other settings."""
    pytest.importorskip("optuna", reason="needs the extra tune")

    def other(number: int, setting: dict[str, Any]) -> Trial:
        return Trial(number=number, setting=setting, accuracy=setting["fit.lr"])

    trials = search(SPACE, DEFAULT, budget=12, seed=1, evaluate=other)
    assert trials[0].setting == searched(12)[0].setting
    assert trials[-1].setting != searched(12)[-1].setting


def test_a_default_outside_the_space_is_tried_all_the_same() -> None:
    trials = searched(3, **{"fit.lr": 5.0})
    assert [trial.setting["fit.lr"] in SPACE["fit.lr"] for trial in trials] == [False, True, True]


def test_the_earliest_of_the_best_is_chosen_and_failed_ones_count() -> None:
    def trial(number: int, accuracy: float | None) -> Trial:
        return Trial(number=number, setting={}, accuracy=accuracy)

    chosen = best([trial(0, 0.5), trial(1, None), trial(2, 0.7), trial(3, 0.7)])
    assert chosen is not None
    assert chosen.number == 2
    assert best([trial(0, None)]) is None


def test_a_study_on_disk_and_as_a_row(tmp_path: Path) -> None:
    cell = RunKey(protocol="few_shot", dataset="d", backbone="b", method="lora", shots=16, seed=1)
    space = {name: dimension.model_dump() for name, dimension in SPACE.items()}
    study = Study(cell=cell, overrides=["shots=16"], space=space, sampler={"seed": 1}, budget=12)
    for trial in searched(12, **{"fit.lr": 0.4}):
        study.add(trial, tmp_path / "new")
        assert Study.model_validate_json((tmp_path / "new/study.json").read_bytes()) == study
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["study.json"]
    study.chosen = best(study.trials)
    assert study.chosen is not None
    shown = row(study)
    assert (shown["trials"], shown["failed"], shown["search s"]) == ("12", "1", "6.0")
    assert shown["default"] == f"{100 / (1 + math.log(40)):.2f}"
    assert shown["setting"].startswith(f"fit.lr={study.chosen.setting['fit.lr']}, fit.weight_decay=")
    assert float(shown["chosen"]) > float(shown["default"])


def test_a_setting_reads_the_same_on_the_command_line() -> None:
    setting = {"method.sites": ["q", "v"], "method.rank": 4, "fit.lr": 2.5e-05, "method.template": "a {}, {x: 1} of"}
    given = compose(["method=lora", *as_overrides(setting)])
    assert {name: value_at(given, name) for name in setting} == setting
    assert value_at(compose(["method=coop", *as_overrides({"bank.views": None})]), "bank.views") is None


def test_what_a_range_holds() -> None:
    whole, broken = Range(low=1, high=8), Range(low=0.5, high=2)
    assert [value in whole for value in (1, 8, 9, 2.0, True, "2")] == [True, True, False, False, False, False]
    assert [value in broken for value in (1, 0.5, 2.5)] == [True, True, False]
    assert (whole.whole, broken.whole) == (True, False)
    assert None in Choices(choices=[None, "a"])


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"fit": {"lr": {"low": 0.1, "high": 0.01}}}, "low below high"),
        ({"fit": {"lr": {"low": 0.0, "high": 0.01, "log": True}}}, "low above 0 where log is true"),
        ({"fit": {"lr": {"low": 0.1}}}, "'search.fit.lr.high' is missing"),
        ({"fit": {"lr": {"low": 0.1, "high": 1, "steps": 3}}}, "unknown setting 'search.fit.lr.steps'"),
        ({"fit": {"lr": {"choices": [0.1]}}}, "search.fit.lr.choices is"),
        ({"fit": {"lr": [0.1, 0.2]}}, "search.fit.lr is"),
        ({"fit": {"rate": {"choices": [0.1, 0.2]}}}, "search.fit.rate is not a setting of this run"),
        ({"fitting": {"lr": {"choices": [0.1, 0.2]}}}, "search.fitting.lr is not a setting of this run"),
    ],
)
def test_wrong_spaces_are_named(space: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_space(read_settings({**plain(), "search": space}))


def test_a_search_space_changes_no_run() -> None:
    from tiny_world import load

    dataset = load("tiny")
    other = read_settings({**plain(), "search": {"fit": {"lr": {"choices": [0.1, 0.2]}}}})
    assert result_settings(other, "fp32", dataset, {}) == result_settings(settings(), "fp32", dataset, {})
