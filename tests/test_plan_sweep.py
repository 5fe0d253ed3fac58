"""The plan of a large sweep, in cases whose outcome is known, and what holds in all."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "scripts"))

from plan_sweep import Cluster, simulate

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
