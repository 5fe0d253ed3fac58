"""Calibration: what is fitted, what it does to logits, and that all who classify with a saved run use it."""

import io
import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from running import ask, check_mistake
from test_learners import build, plain, scatter
from test_predict import BACKBONE
from tiny_world import CLASSES, RUN, draw
from torch import Tensor

import vlprompt
from vlprompt import cli, sweep
from vlprompt.config.build import restore_calibration
from vlprompt.data.dataset import Item, Split
from vlprompt.data.loader import Loader
from vlprompt.errors import UserError
from vlprompt.evaluate import evaluate, fit_calibration
from vlprompt.inference.calibration import DAC, Temperature, best_scale, dac_factors, nll, sgd
from vlprompt.results.predictions import load_predictions
from vlprompt.results.record import Record
from vlprompt.results.store import find_runs
from vlprompt.towers import PLAIN
from vlprompt.training.progress import Reporter

slow = partial(pytest.param, marks=pytest.mark.slow)
WORLD = [setting for setting in RUN if not setting.startswith(("fit.", "bank.", "method."))]


def drawn(n: int, n_classes: int, seed: int, spread: float = 2.0) -> tuple[Tensor, Tensor]:
    """Logits, and labels that are drawn from their softmax: calibrated ones."""
    generator = torch.Generator().manual_seed(seed)
    logits = spread * torch.randn(n, n_classes, generator=generator)
    return logits, logits.softmax(-1).multinomial(1, generator=generator)[:, 0]


@pytest.mark.parametrize("factor", [0.05, 0.5, 1.0, 3.0, 30.0])
@pytest.mark.parametrize("n_classes", [2, 7])
def test_the_optimum_undoes_a_known_factor(factor: float, n_classes: int) -> None:
    logits, labels = drawn(4000, n_classes, seed=n_classes)
    scale = best_scale(factor * logits, labels)
    assert scale * factor == pytest.approx(1, abs=0.1)
    around = [float(nll(factor * logits.double(), labels, math.log(scale) + step)) for step in (-1e-3, 0, 1e-3)]
    assert around[1] == min(around)
    assert around[1] <= float(nll(factor * logits.double(), labels))


@pytest.mark.parametrize("seed", range(5))
def test_the_likelihood_of_few_images_is_never_less(seed: int) -> None:
    logits, labels = drawn(4 + seed, 3, seed, spread=20.0)
    calibration = Temperature()
    calibration.fit(logits, labels, scale=100.0)
    assert float(nll(calibration.scale * logits, labels)) <= float(nll(logits, labels)) + 1e-7


def test_images_that_are_all_right_leave_the_scale() -> None:
    logits, _ = drawn(20, 4, seed=0)
    assert best_scale(logits, logits.argmax(1)) == 1
    tied = torch.cat([logits, torch.ones(1, 4)])
    assert best_scale(tied, tied.argmax(1)) != 1  # which is half right


@pytest.mark.parametrize("factor", [0.6, 2.0])
def test_sgd_goes_the_way_of_the_optimum(factor: float) -> None:
    logits, labels = drawn(1000, 5, seed=3)
    calibration = Temperature(solver="sgd")
    calibration.fit(factor * logits, labels, scale=100.0)
    assert calibration.scale == pytest.approx(best_scale(factor * logits, labels), rel=0.25)
    rates = [step.lr for step in sgd(logits, labels, 0.0, epochs=4, lr=0.1, batch_size=600, warmup_lr=1e-3)][::2]
    assert rates == pytest.approx([1e-3] + [0.05 * (1 + math.cos(math.pi * epoch / 4)) for epoch in range(3)])


def around(n: int, generator: torch.Generator) -> Tensor:
    return F.normalize(torch.randn(n, 16, generator=generator), dim=-1)


@pytest.mark.parametrize(("n_base", "k"), [(6, 3), (2, 5)])
def test_dac_leaves_base_classes_and_scales_the_others_by_how_far_they_moved(n_base: int, k: int) -> None:
    generator = torch.Generator().manual_seed(n_base)
    frozen = around(n_base + 4, generator)
    tuned = F.normalize(frozen + 0.4 * around(n_base + 4, generator), dim=-1)
    factors = dac_factors(7 * tuned, frozen, tuned[:n_base], 3 * frozen[:n_base], k=k)  # of any length
    assert factors[:n_base].tolist() == [1.0] * n_base
    for i in range(n_base, n_base + 4):
        tuned_distances = sorted(float((tuned[i] - tuned[j]).norm()) for j in range(n_base))
        distances = sorted(float((frozen[i] - frozen[j]).norm()) for j in range(n_base))
        assert float(factors[i]) == pytest.approx(math.exp((sum(distances[:k]) - sum(tuned_distances[:k])) / k), 1e-5)
    unmoved = dac_factors(frozen, frozen, frozen[:n_base], frozen[:n_base], k=k)
    assert torch.equal(unmoved, torch.ones(n_base + 4))


def test_dac_multiplies_all_logits_of_a_picture_by_the_factor_of_its_class() -> None:
    generator = torch.Generator().manual_seed(0)
    frozen, tuned = around(5, generator), around(5, generator)
    calibration = DAC(k=2)
    calibration.base = tuned[:3], frozen[:3]
    learner: Any = SimpleNamespace(zero_shot_features=lambda templates: frozen)
    logits = torch.randn(50, 5, generator=generator)
    factors = dac_factors(tuned, frozen, tuned[:3], frozen[:3], k=2)
    after = calibration.start(learner, tuned)(logits)
    assert torch.equal(after, factors[logits.argmax(1)][:, None] * logits)
    assert torch.equal(after.argmax(1), logits.argmax(1))


@pytest.mark.parametrize(
    ("method", "said"),
    [
        pytest.param("cocoop", "no one text feature of each class", marks=pytest.mark.slow),
        ("linear_head", "no classes but those it was trained on"),
        pytest.param("taskres", "no classes but those it was trained on", marks=pytest.mark.slow),
        ("zero_shot", "is not trained"),
        ("coop", None),
        pytest.param("kgcoop", None, marks=pytest.mark.slow),
    ],
)
def test_dac_is_refused_where_there_is_no_text_that_moves(method: str, said: str | None) -> None:
    learner = build(plain(method)).train()
    before = torch.get_rng_state()
    if said:
        with pytest.raises(UserError, match=said):
            DAC().check(learner)
    else:
        DAC().check(learner)
    assert learner.training
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("method", ["coop", "linear_head"])
@pytest.mark.parametrize("calibration", [Temperature(), Temperature(solver="sgd"), DAC(k=2, template=PLAIN)])
def test_confidences_are_those_of_the_stored_calibration(method: str, calibration: Any) -> None:
    learner = scatter(build(plain(method)))
    if learner.class_bound and not calibration.on_images:
        return
    pictures = [draw(f"{i}", style=0, sealed="") for i in range(8)]
    items = tuple(Item(str(i), i % len(learner.classes)) for i in range(len(pictures)))
    split = Split(items, learner.classes, lambda image: pictures[int(image)], origin="these")
    others = split if learner.class_bound else replace(split, classes=("dog", "sea or lake", "face"))
    given: Any = {"loader": Loader(learner.clip), "precision": "fp32", "reporter": Reporter()}
    before = evaluate(learner, {"test": others}, **given)["test"]
    fit_calibration(calibration, learner, split, split, **given)
    after = evaluate(learner, {"test": others}, **given)["test"]
    assert (before.predicted == after.predicted).all()
    assert not np.allclose(before.confidence, after.confidence)
    again = scatter(build(plain(method)))
    again.load_state_dict(learner.state_dict())
    restore_calibration(again, json.loads(json.dumps(calibration.stored)))
    seen = vlprompt.Model(again, as_shown=False).with_classes(others.classes).probabilities(pictures)
    assert np.allclose(seen.amax(1).numpy(), after.confidence, atol=1e-5)


def runs(results: Path) -> dict[str, tuple[Path, Record]]:
    return {record.learner.partition("@")[0] + record.calibration.get("name", ""): (folder, record)
            for folder, record in find_runs([results]).items()}  # fmt: skip


def predicted(folder: Path) -> Any:
    return load_predictions(folder / "predictions.npz")


@pytest.mark.slow
def test_a_calibrated_run_is_the_run_with_other_confidences(results: Path) -> None:
    """Stored with the learner, and used by whoever loads it."""
    for more in (["calibration=none"], ["calibration=temperature"], ["calibration=dac"]):
        assert ask(sweep.main, [*RUN, "seed=2", *more]).code == 0
    there = runs(results)
    plain_folder, plain_record = there["coop"]
    assert plain_record.calibration == {}
    assert plain_record.selection == "fixed"
    folder, record = there["cooptemperature"]
    scale = record.calibration["scale"]
    assert scale != 1
    assert record.changes == (plain_record.changes or {}) | {"calibration": "temperature"}
    assert record.selection == "few_shot_val"
    before, after, dac = (predicted(f) for f, _ in (there["coop"], there["cooptemperature"], there["coopdac"]))
    for name in before:
        assert (before[name].predicted == after[name].predicted).all()
        assert (before[name].predicted == dac[name].predicted).all()
        assert np.allclose(after[name].label_logit, scale * before[name].label_logit, rtol=1e-5)
    assert np.array_equal(before["base"].confidence, dac["base"].confidence)
    assert not np.array_equal(before["novel"].confidence, dac["novel"].confidence)
    for name, of_run in (("cooptemperature", after), ("coopdac", dac)):
        model = vlprompt.load(there[name][0], device="cpu")
        for test in ("base", "novel"):
            model = model if test == "base" else model.with_classes(CLASSES[there[name][1].n_classes["base"] :])
            pictures = [draw(image, style=0, sealed="") for image in of_run[test].images]
            seen = model.probabilities(pictures).amax(1).numpy()
            assert np.allclose(seen, of_run[test].confidence, atol=1e-5)
    assert json.loads((folder / "learner_config.json").read_text())["calibration"]["scale"] == scale
    answer = ask(cli.main, ["evaluate", "calibration=none,temperature,dac", str(plain_folder), "--metric", "ece",
                                "--format", "csv"])  # fmt: skip
    rows = pd.read_csv(io.StringIO(answer.out))
    wanted = [100 * r.scores["novel"]["ece"] for r in (plain_record, record, there["coopdac"][1])]
    assert rows["calibration"].tolist() == ["none", "temperature", "dac"]
    assert rows["novel"].tolist() == pytest.approx(wanted, abs=1e-3)
    answer = ask(cli.main, ["evaluate", "calibration=none,dac", str(there["cooptemperature"][0]), "--format", "csv"])
    assert "calibration=temperature" not in answer.out  # which is the run's, and no row's


@pytest.mark.slow
def test_what_is_not_trained_is_calibrated_on_a_sample(results: Path) -> None:
    for more in ([], ["calibration=temperature"], ["calibration=temperature", "seed=2"]):
        assert ask(sweep.main, [*WORLD, "method=zero_shot", "protocol=few_shot", *more]).code == 0
    plain_one, *calibrated = sorted(find_runs([results]).items(), key=lambda pair: pair[1].seed)
    assert [(r.shots, r.seed) for _, r in calibrated] == [(2, 1), (2, 2)]
    assert len({r.variant for _, r in calibrated}) == 1  # two seeds of one learner
    assert len({r.config_hash for _, r in calibrated}) == 2
    assert (plain_one[1].shots, plain_one[1].seed) == (0, 0)
    for folder, record in calibrated:
        assert record.scores["test"]["accuracy"] == plain_one[1].scores["test"]["accuracy"]
        of_run = predicted(folder)["test"]
        pictures = [draw(image, style=0, sealed="") for image in of_run.images]
        seen = vlprompt.load(folder, device="cpu").probabilities(pictures).amax(1).numpy()
        assert np.allclose(seen, of_run.confidence, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["calibration=warmth"], ["unknown calibration 'warmth'", "dac, none, temperature"]),
        slow(["calibration.k=3"], ["calibration.k", "calibration=NAME"]),
        slow(["calibration=temperature", "calibration.solver=adam"], ["'adam'", "'optimum' or 'sgd'"]),
        slow(["calibration=dac", "calibration.k=0"], ["calibration.k is 0", "at least 1"]),
        slow(["calibration=dac", "method=zero_shot"], ["calibration=dac", "is not trained"]),
        slow(["calibration=temperature", "shots=all", "protocol=train_val"], ["validation images"]),
    ],
)
def test_what_cannot_be_calibrated_is_told_before_anything_is_trained(
    settings: list[str], words: list[str], results: Path, tmp_path: Path
) -> None:
    answer = ask(sweep.main, [*(WORLD if "method=zero_shot" in settings else RUN), *settings])
    check_mistake(answer._replace(err="error: " + answer.err.rpartition("error: ")[2]), words, tmp_path)


@pytest.mark.parametrize("stored", [
    {"name": "warmth", "arguments": {}}, {"name": "temperature", "arguments": {}, "scale": -1.0},
    {"name": "temperature", "arguments": {}}, {"name": "temperature", "arguments": {"scale": 2.0}, "scale": 1.0},
    {"name": "temperature", "arguments": {}, "scale": float("nan")}, "temperature",
])  # fmt: skip
def test_a_damaged_description_is_told(stored: Any, tmp_path: Path) -> None:
    about = {"target": "vlprompt.learners.zero_shot.ZeroShot", "arguments": {}, "backbone": BACKBONE,
             "classes": ["zero", "one"], "calibration": stored}  # fmt: skip
    (tmp_path / "learner_config.json").write_text(json.dumps(about))
    with pytest.raises(UserError):
        vlprompt.load(tmp_path, device="cpu")
