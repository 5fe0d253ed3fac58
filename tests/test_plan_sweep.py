"""The plan of a large sweep, in cases whose outcome is known, and what holds in all."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "scripts"))

from plan_sweep import Cluster, main, simulate

IDEAL = Cluster(queue=0, preempted=0, killed=0, start=0, slow=0)
COSTS = [3.0, 1.0, 2.0, 6.0]


@pytest.mark.parametrize(("gpus", "wall"), [(1, 12.0), (2, 9.0), (4, 6.0), (9, 6.0)])
def test_undisturbed_machines_take_cell_after_cell(gpus: int, wall: float) -> None:
    outcome = simulate(COSTS, gpus, IDEAL)
    assert (outcome.wall, outcome.held, outcome.lost, outcome.preemptions) == (wall, 12.0, 0.0, 0)


def test_each_begin_costs_its_start_and_a_slow_machine_twice_the_minutes() -> None:
    assert simulate(COSTS, 1, Cluster(queue=0, preempted=0, start=0.5, slow=0)).wall == 14.0
    assert simulate(COSTS, 1, Cluster(queue=0, preempted=0, start=0, slow=1)).wall == 24.0


@pytest.mark.parametrize("gpus", [1, 3, 8])
def test_what_is_lost_is_done_again(gpus: int) -> None:
    costs = [10.0] * 60
    kept = simulate(costs, gpus, Cluster(queue=1, preempted=30, killed=0, start=0, slow=0))
    assert kept.preemptions > 5
    assert kept.held == pytest.approx(sum(costs))  # a state that is kept loses nothing
    killed = simulate(costs, gpus, Cluster(queue=1, preempted=30, killed=1, interval=5, start=0.5, slow=0))
    assert killed.held == pytest.approx(sum(costs) + killed.lost)
    assert killed.lost > 0.5 * 60
    assert killed.wall >= killed.held / gpus


@pytest.mark.parametrize(
    ("given", "allowed"),
    [
        (["--cells", "0"], "a whole number from 1"),
        (["--mean-minutes", "-1"], "minutes, 0 or more"),
        (["--queue", "nan"], "minutes, 0 or more"),
        (["--killed", "2"], "a share from 0 to 1"),
    ],
)
def test_a_number_that_cannot_be_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], given: list[str], allowed: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["plan_sweep.py", "results/demo", *given])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert f"argument {given[0]}: '{given[1]}' is not {allowed}" in capsys.readouterr().err
