"""Curves over a setting: which points, which reference, and the smallest value near it."""

from pathlib import Path

import pytest
from made_records import few_shot, save
from running import ask, succeed

from vlprompt import cli
from vlprompt.errors import UserError
from vlprompt.reports.curves import curves
from vlprompt.results.record import Record

ACCURACIES = {10: 0.30, 50: 0.52, 200: 0.61, 1000: 0.59}  # 90 % of 0.66 is 0.594


def record(method: str, accuracy: float, seed: int = 1, dimension: int | None = None, **fields: object) -> Record:
    scores = {"test": {"accuracy": accuracy, "ece": 0.1}}
    config = {"method": {"_target_": method, **({} if dimension is None else {"dimension": dimension})}}
    known = {"config": config, "variant": None if dimension in (None, 200) else f"d{dimension}"}
    known |= {"cost": {"trained_parameters": dimension}, "precision": "fp32", "scores": scores}
    return few_shot(method, seed=seed, **{**known, **fields})


@pytest.fixture
def records() -> list[Record]:
    points = [record("intrinsic_dimension", a, dimension=d) for d, a in reversed(ACCURACIES.items())]
    return [*points, record("intrinsic_dimension", 0.63, 2, 200), record("full_finetune", 0.66), record("coop", 0.7)]


def test_the_smallest_value_within_a_share_of_the_reference(records: list[Record]) -> None:
    (curve,) = curves(records, "method.dimension", against="full_finetune")
    assert list(curve.points["method.dimension"]) == [10, 50, 200, 1000]
    assert list(curve.points["test"]) == pytest.approx([30, 52, 62, 59])  # the mean of two seeds at 200
    assert curve.reference == pytest.approx(66)
    assert curve.smallest(0.9) == 200
    assert curve.smallest(0.78) == 50
    assert curve.smallest(0.99) is None
    assert "200" in curve.finding(0.9)
    assert "99%" in curve.finding(0.99)
    grid = curve.grid()
    assert list(grid.rows["method.dimension"]) == ["10", "50", "200", "1,000"]
    assert list(grid.rows["% of full_finetune"]) == ["45.5", "78.8", "93.9", "89.4"]
    assert list(grid.rows["test"])[2].startswith("62.00 ± 1.41")


def test_cells_have_curves_and_references_of_their_own(records: list[Record]) -> None:
    values = ((10, 0.2), (5, 0.1))
    one = [record("intrinsic_dimension", value, dimension=d, shots=1) for d, value in values]
    one += [record("full_finetune", 0.21, shots=1), record("intrinsic_dimension", 0.3, dimension=10, shots=2)]
    by_shots = {
        curve.cell["shots"]: curve for curve in curves([*records, *one], "method.dimension", against="full_finetune")
    }
    assert {shots: curve.smallest(0.9) for shots, curve in by_shots.items()} == {16: 200, 1: 10}


def test_mistakes_are_one_sentence(records: list[Record]) -> None:
    again = record("intrinsic_dimension", 0.5, dimension=200, variant="slow")
    for wrong, key, how, words in [
        (records, "method.rank", {}, "unknown key"),
        (records, "method._target_", {}, "no finished run has a number as method._target_"),
        (records, "method.dimension", {"split": "novel"}, "no run has a test 'novel': there are test"),
        (records, "method.dimension", {"against": "lora"}, "there is no finished run of lora to compare with"),
        (records, "method.dimension", {"against": "coop", "metric": "ece"}, "a share of ece says nothing"),
        ([*records, again], "method.dimension", {}, "several rows with method.dimension=200"),
    ]:
        with pytest.raises(UserError, match=words):
            curves(wrong, key, **how)
    assert len(curves(records, "method.dimension", metric="ece")[0].points) == 4


def test_the_command(records: list[Record], tmp_path: Path) -> None:
    save(tmp_path, records)
    command = ["curve", "method.dimension", str(tmp_path), "--reference", "full_finetune"]
    (line,) = (line for line in succeed(cli.main, command).out.splitlines() if "90%" in line)
    assert "66.00" in line
    assert "200" in line
    assert ask(cli.main, [*command, "--share", "2"]).code == 2
