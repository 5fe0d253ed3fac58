"""How long a run trains: `fit.steps` instead of epochs, and `debug=fast`, which goes through all code in seconds."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import set_up

from vlprompt.config.compose import read_reference, read_run
from vlprompt.config.spec import RunSpec
from vlprompt.errors import UserError
from vlprompt.run import run

HERE = ("dataset=digits", "protocol=few_shot", "backbone=shapes_vit", "wandb=disabled", "workers=0")


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    made = tmp_path_factory.mktemp("lengths")
    with pytest.MonkeyPatch.context() as patch:
        set_up(patch, made)
        yield made


def spec(*overrides: str) -> RunSpec:
    return read_run([*HERE, *overrides])


@pytest.mark.parametrize(
    ("overrides", "epochs", "steps"),
    [
        (["method=coop", "fit.steps=7"], None, 7),
        pytest.param(["method=lora", "fit.epochs=3"], 3, None, marks=pytest.mark.slow),
        (["method=clip_lora", "fit.epochs=3"], 3, None),  # its own file has steps
        pytest.param(["method=clip_lora", "fit.steps=3"], None, 3, marks=pytest.mark.slow),
        pytest.param(["method=coop", "debug=fast"], None, 2, marks=pytest.mark.slow),
        pytest.param(["method=clip_lora", "debug=fast"], None, 2, marks=pytest.mark.slow),
        pytest.param(["method=coop", "debug=fast", "fit.epochs=1"], 1, None, marks=pytest.mark.slow),
        pytest.param(["method=coop", "debug=fast", "debug.steps=3"], None, 3, marks=pytest.mark.slow),
        (["method=linear_probe", "debug=fast"], 0, None),  # which takes no steps
    ],
)
def test_what_a_user_asks_for_replaces_what_a_file_has(
    overrides: list[str], epochs: int | None, steps: int | None
) -> None:
    fit = spec(*overrides).settings.fit
    assert fit is not None
    assert (fit.epochs, fit.steps) == (epochs, steps)


def test_both_lengths_are_one_too_many() -> None:
    with pytest.raises(UserError, match=r"epochs=2 and steps=3"):
        spec("method=coop", "fit.epochs=2", "fit.steps=3")


def test_a_length_is_named_once_and_another_is_another_run() -> None:
    by_steps, same, longer = (spec("method=coop", f"fit.steps={n}") for n in (7, 7, 8))
    assert by_steps.changes == {"fit.steps": 7}
    assert by_steps.hash == same.hash != longer.hash


@pytest.mark.parametrize("method", ["coop", pytest.param("zero_shot", marks=pytest.mark.slow)])
def test_a_debugging_run_is_short_and_no_other_run(method: str) -> None:
    short, whole = spec(f"method={method}", "debug=fast"), spec(f"method={method}", "shots=2")
    assert short.folder != whole.folder
    per_class = len(short.dataset.test) / len(short.dataset.classes)
    assert per_class == 2 < len(whole.dataset.test) / len(whole.dataset.classes)


@pytest.mark.parametrize(("method", "iterations"), [("prolip", 2), ("plot_plus_plus", 100)])
def test_a_debugging_run_shortens_a_training_of_its_method_and_no_transport(method: str, iterations: int) -> None:
    arguments = spec(f"method={method}", "debug=fast").arguments
    assert arguments["iterations"] == iterations
    assert arguments.get("n_views", 1) == 1


@pytest.mark.slow
def test_what_a_debugging_run_is_compared_with_is_as_short() -> None:
    short, reference = spec("method=coop", "debug=fast"), read_reference([*HERE, "method=coop", "debug=fast"])
    assert reference.dataset.fingerprint() == short.dataset.fingerprint()
    assert spec("method=coop", "debug=fast", "shots=4").settings.shots == 4


def test_it_leaves_a_record(folder: Path) -> None:
    record = run(spec("method=coop", "debug=fast"))
    assert record.cost["steps"] == 2
    assert record.changes == {"debug.images": 2, "fit.steps": 2}
    assert record.scores["test"]["total"] == 20
    (written,) = folder.glob("results/runs/**/result.json")
    assert json.loads(written.read_text())["changes"]["fit.steps"] == 2
