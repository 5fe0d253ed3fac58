"""Learning rates as published, and the checks of settings."""

import json
from pathlib import Path

import pytest

from vlprompt.config.schema import Fit, Schedule
from vlprompt.training.optim import learning_rate, n_steps, steps_per_epoch

SCHEDULES = json.loads((Path(__file__).parent / "fixtures" / "data" / "lr_schedules.json").read_text())


@pytest.mark.parametrize("told", [s for s in SCHEDULES if s["warmup_recount"] and s["scheduler"] == "cosine"])
@pytest.mark.parametrize("per_epoch", [1, 7])
def test_published_rates(told, per_epoch):
    warmup = {"constant": "constant", "linear": "linear"}[told["warmup_type"]]
    schedule = Schedule(
        warmup=warmup if told["warmup_epoch"] > 0 else "none",
        warmup_epochs=max(told["warmup_epoch"], 0),
        warmup_lr=told["warmup_cons_lr"] if warmup == "constant" else told["warmup_min_lr"],
    )
    fit = Fit(lr=told["base_lr"], epochs=told["max_epoch"], schedule=schedule)
    total = told["max_epoch"] * per_epoch
    rates = [learning_rate(step, fit, per_epoch=per_epoch, total=total) for step in range(total)]
    assert rates[::per_epoch] == pytest.approx(told["lr_per_epoch"], rel=1e-9)
    assert rates == [rate for rate in rates[::per_epoch] for _ in range(per_epoch)]


def test_rates_by_step_reach_the_floor():
    fit = Fit(lr=1.0, steps=100, schedule=Schedule(every="step", warmup="none", floor=0.1))
    rates = [learning_rate(step, fit, per_epoch=7, total=100) for step in range(100)]
    assert rates[0] == 1.0
    assert rates[50] == pytest.approx(0.55)
    assert 0.1 < rates[99] < 0.101
    assert sorted(rates, reverse=True) == rates


def test_vpt_warms_up_from_zero_and_decays_to_zero():
    """Jia et al., ECCV 2022: ten epochs up from 0, then a cosine down to 0 over the other ninety."""
    fit = Fit(lr=1.0, epochs=100, schedule=Schedule(warmup="linear", warmup_epochs=10, warmup_lr=0.0, period="rest"))
    rates = [learning_rate(epoch, fit, per_epoch=1, total=100) for epoch in range(100)]
    assert rates[:11] == pytest.approx([i / 10 for i in range(11)])
    assert rates[55] == pytest.approx(0.5)
    assert 0 < rates[99] < 4e-4


@pytest.mark.parametrize(
    ("images", "drop_last", "expected"), [(80, True, 2), (80, False, 3), (20, True, 1), (96, True, 3)]
)
def test_steps_per_epoch(images, drop_last, expected):
    fit = Fit(lr=0.1, epochs=5, drop_last=drop_last)
    assert steps_per_epoch(images, fit) == expected
    assert n_steps(expected, fit) == 5 * expected


def test_either_epochs_or_steps():
    from vlprompt.errors import UserError

    with pytest.raises(UserError, match="either epochs or steps"):
        Fit(lr=0.1)
    with pytest.raises(UserError, match="either epochs or steps"):
        Fit(lr=0.1, epochs=1, steps=1)
