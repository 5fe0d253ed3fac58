"""Learners adapted at test time as runs: what a record says, what is trained again and what is not, and refusals."""

import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from running import ROOT, ask, check_mistake, set_up
from test_learners import CLASSES, build, plain, scatter
from tiny_world import RUN

import vlprompt.commands.tested
import vlprompt.run
from vlprompt import cli, sweep
from vlprompt.config.build import saved_learner
from vlprompt.config.compose import read_run
from vlprompt.data.cache.features import FeatureCache
from vlprompt.data.dataset import Item, Split
from vlprompt.data.loader import Loader
from vlprompt.evaluate import evaluate
from vlprompt.inference import ADAPTATIONS, Adaptation, ImageViews
from vlprompt.inference.tda import TDA
from vlprompt.inference.zero import Zero
from vlprompt.reports.variants import has_name
from vlprompt.results.predictions import Predictions, load_predictions
from vlprompt.results.record import Record
from vlprompt.results.store import find_runs
from vlprompt.training.progress import Reporter

WORLD = [*RUN, "protocol=few_shot", "method=coop"]


class Order(Adaptation):
    """Remembers in which order images come, and how many views of each."""

    name = "order"
    inference = "online"

    def start(self, learner: Any, class_features: Any) -> Any:
        self.seen: list[torch.Tensor] = []

        def adapt(image: ImageViews) -> torch.Tensor:
            assert image.logits is not None
            self.seen.append(image.logits)
            return image.logits[0]

        return adapt


def pictures(n: int) -> Split:
    drawn = [Image.effect_noise((40, 32), 20 + 5 * i).convert("RGB") for i in range(n)]
    items = tuple(Item(str(i), i % len(CLASSES)) for i in range(n))
    return Split(items, tuple(CLASSES), lambda image: drawn[int(image)], origin="these")


def judged(learner: Any, split: Split, loader: Loader, adaptation: Adaptation | None) -> Predictions:
    given: Any = {"precision": "fp32", "reporter": Reporter(), "adaptation": adaptation}
    return evaluate(learner, {"test": split}, loader, **given)["test"]


def test_a_stream_has_an_order_of_its_seed_and_predictions_that_of_the_test() -> None:
    learner, split = scatter(build(plain("coop"))), pictures(12)
    orders = {}
    for seed in (1, 1, 2):
        order = Order(views=3)
        told = judged(learner, split, Loader(learner.clip, seed=seed), order)
        alone = judged(learner, split, Loader(learner.clip), None)
        assert (told.images == alone.images).all()
        np.testing.assert_allclose(told.label_logit, alone.label_logit, rtol=1e-5, atol=1e-5)
        assert [logits.shape for logits in order.seen] == [(3, len(CLASSES))] * 12
        firsts = torch.stack([logits[0] for logits in order.seen])
        assert seed not in orders or torch.equal(orders[seed], firsts)
        orders[seed] = firsts
    assert not torch.equal(orders[1], orders[2])
    torch.testing.assert_close(orders[1].sort(0).values, orders[2].sort(0).values)


@pytest.mark.parametrize("banked", [True, False])
def test_an_image_is_judged_the_same_whatever_the_others(banked: bool) -> None:
    learner, split = scatter(build(plain("coop"))), pictures(6)
    features = FeatureCache(learner.clip, precision="fp32", workers=0) if banked else None
    loader = Loader(learner.clip, features, seed=3)
    whole = judged(learner, split, loader, Zero(views=9))
    turned = judged(learner, replace(split, items=split.items[:1:-1]), loader, Zero(views=9))
    assert (whole.images[:1:-1] == turned.images).all()
    np.testing.assert_array_equal(whole.top5[:1:-1], turned.top5)
    np.testing.assert_allclose(whole.label_logit[:1:-1], turned.label_logit, rtol=1e-5)


def test_views_in_parts_are_those_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    learner, split = build(plain("coop")), pictures(5)

    def views() -> list[torch.Tensor]:
        loader = Loader(learner.clip, FeatureCache(learner.clip, precision="fp32", workers=0), seed=3)
        return [images.features for images in loader.views(split, 4, [4, 0, 2, 1, 3])]

    whole = torch.stack(views())
    monkeypatch.setattr("vlprompt.data.loader.IMAGES_AT_ONCE", 2)
    torch.testing.assert_close(torch.stack(views()), whole)
    pixels = [learner.clip.image(images) for images in Loader(learner.clip, seed=3).views(split, 4, [4, 0, 2, 1, 3])]
    torch.testing.assert_close(torch.stack(pixels), whole)


@pytest.mark.parametrize("method", ["coop", "maple", "mmrl", "linear_head"])
def test_one_view_of_zero_and_tda_without_weights_are_the_learner(method: str) -> None:
    learner, split = scatter(build(plain(method))), pictures(7)
    loader, still = Loader(learner.clip), TDA(positive_alpha=0.0, negative_alpha=0.0)
    adaptations: list[Adaptation] = [Zero(views=1), *[still] * (method != "mmrl")]
    for adaptation in adaptations:
        told, alone = judged(learner, split, loader, adaptation), judged(learner, split, loader, None)
        np.testing.assert_array_equal(told.top5, alone.top5)
        np.testing.assert_allclose(told.logsumexp, alone.logsumexp, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """CoOp on a tiny world, and the same adapted by both commands."""
    folder = tmp_path_factory.mktemp("adapted")
    with pytest.MonkeyPatch.context() as patch:
        set_up(patch, folder)
        assert ask(sweep.main, [*WORLD, "seed=1"]).code == 0
        yield folder / "results"


def records(results: Path) -> dict[str, tuple[Path, Record]]:
    of_coop = {f: r for f, r in find_runs([results]).items() if r.method == "coop" and not has_name(r)}
    return {r.test_time.get("name", "none"): (f, r) for f, r in of_coop.items()}


def test_a_finished_run_is_adapted_and_has_a_record(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_up(monkeypatch, results.parent)
    plain_folder, plain_record = records(results)["none"]
    assert (plain_record.inference, plain_record.test_time) == ("inductive", {})
    answer = ask(cli.main, ["evaluate", "test_time=none,tda", str(plain_folder)])
    assert answer.code == 0, answer
    folder, record = records(results)["tda"]
    assert (record.inference, record.test_time) == ("online", {"name": "tda", "views": 1, "seed": 1})
    assert record.cost["views"] == 1
    assert record.cost["flops_per_image"] >= plain_record.cost["flops_per_image"] > 0
    assert record.curve == plain_record.curve  # taken over, not trained anew
    assert folder == read_run([*WORLD, "test_time=tda"]).folder  # the run that the other command makes, too
    before = (folder / "result.json").stat().st_mtime_ns
    again = ask(sweep.main, [*WORLD, "test_time=tda"])
    assert again.code == 0
    assert (folder / "result.json").stat().st_mtime_ns == before
    assert load_predictions(folder / "predictions.npz").keys() == record.scores.keys()


def test_a_damaged_learner_is_told_and_not_trained_anew(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_up(monkeypatch, results.parent)
    copied = tmp_path / "other" / "runs"
    shutil.copytree(results / "runs", copied)
    folder = next(f for f, r in find_runs([copied]).items() if r.method == "coop" and not r.test_time)
    tensors = folder / "learner.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-9])
    before = set(find_runs([copied]))
    answer = ask(cli.main, ["evaluate", "test_time=mta", str(folder)])
    assert (answer.code, "learner.safetensors" in answer.err) == (2, True)
    assert set(find_runs([copied])) == before


@pytest.mark.slow
def test_both_commands_come_to_the_same(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_up(monkeypatch, results.parent)
    folder, _ = records(results)["none"]
    assert ask(cli.main, ["evaluate", "test_time=zero", "test_time.views=4,6", str(folder)]).code == 0
    of_evaluate = {f: r for f, r in find_runs([results]).items() if r.test_time.get("name") == "zero"}
    assert {record.test_time["views"] for record in of_evaluate.values()} == {4, 6}
    assert ask(sweep.main, [*WORLD, "test_time=zero", "test_time.views=6", "force=true"]).code == 0  # and is trained
    for path, record in find_runs([results]).items():
        if record.test_time.get("views") == 6:
            assert record.scores == of_evaluate[path].scores


def test_the_name_of_a_run_begins_that_of_its_adaptation(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_up(monkeypatch, results.parent)
    assert ask(sweep.main, [*WORLD, "name=mine"]).code == 0
    folder = next(f for f, r in find_runs([results]).items() if r.variant == "mine")
    assert ask(cli.main, ["evaluate", "test_time=tda", str(folder)]).code == 0
    adapted = [f for f, r in find_runs([results]).items() if (r.variant or "").startswith("mine+") and r.test_time]
    assert len(adapted) == 1
    answer = ask(cli.main, ["evaluate", "test_time=none,tda", *map(str, adapted)])  # which knows whose it is
    assert answer.code == 0
    assert not [r for r in find_runs([results]).values() if (r.variant or "").count("+") > 1]
    assert answer.out.count("mine ") == 2


def test_seeds_of_an_untrained_learner_are_seeds_of_one_row(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_up(monkeypatch, results.parent)
    zero_shot = [*RUN[:3], "protocol=few_shot", "method=zero_shot"]
    specs = [read_run([*zero_shot, "test_time=tda", f"seed={seed}"]) for seed in (1, 2)]
    assert [(spec.key.seed, spec.key.shots) for spec in specs] == [(1, 0), (2, 0)]
    assert len({spec.key.variant for spec in specs}) == 1
    assert specs[0].changes["test_time"] == "tda"
    assert "seed" not in specs[0].changes
    without = [read_run([*zero_shot, f"seed={seed}"]) for seed in (1, 2)]
    assert without[0].key == without[1].key


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["test_time=zer"], ["test_time", "zer", "zero"]),
        (["test_time.views=4"], ["test_time.views", "test_time=NAME"]),
        (["test_time=zero", "test_time.views=0"], ["test_time.views", "0", "at least 1"]),
        (["test_time=zero", "test_time.share=0.3"], ["test_time", "share", "selection"]),
        (["method=mmrl", "test_time=tda"], ["test_time=tda", "MMRL", "zero"]),
        (["method=lora", "test_time=tpt"], ["test_time=tpt", "LoRA", "coop"]),
    ],
)
def test_mistakes_are_told(given: list[str], words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_up(monkeypatch, tmp_path)
    base = [*RUN[:3], "fit.epochs=1", "shots=2"] if any("method=" in text for text in given) else WORLD
    check_mistake(ask(sweep.main, [*base, *given]), words, tmp_path)


def test_every_method_has_a_file_of_settings_with_its_defaults() -> None:
    for name, kind in ADAPTATIONS.items():
        spec = read_run(["method=zero_shot", f"test_time={name}"])
        assert isinstance(spec.adaptation, kind)
        assert spec.result_settings["test_time"] == {"name": name}


def test_what_uses_an_adapted_run_says_that_it_does_not_adapt(
    results: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    set_up(monkeypatch, results.parent)
    of_plain, _ = records(results)["none"]
    assert ask(cli.main, ["evaluate", "test_time=tda", str(of_plain)]).code == 0
    saved_learner(of_plain)
    assert not caplog.messages
    saved_learner(records(results)["tda"][0])
    assert ["test_time=tda" in message for message in caplog.messages] == [True]


@pytest.mark.slow
def test_an_adapted_run_gives_its_learner_back(results: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """To be tested alone, or adapted in another way, once for each training, whatever adapted it."""
    set_up(monkeypatch, results.parent)
    of_plain, record = records(results)["none"]
    for more in ("zero test_time.views=2", "tda"):
        assert ask(cli.main, ["evaluate", *f"test_time={more}".split(), str(of_plain)]).code == 0
    adapted = [f for f, r in find_runs([results]).items() if r.method == "coop" and r.test_time and not has_name(r)]
    assert len(adapted) > 1
    table = tmp_path / "adapted.csv"
    alone = [shutil.copytree(folder, tmp_path / "elsewhere" / folder.relative_to(results)) for folder in adapted]
    options = ["--format", "csv", "--output", str(table)]
    monkeypatch.setattr(vlprompt.run, "train", lambda *_, **__: pytest.fail("it was trained"))
    answer = ask(cli.main, ["evaluate", "test_time=none,tda", *map(str, alone), *options])
    assert answer.code == 0, answer
    rows = pd.read_csv(table).set_index("test_time")
    assert list(rows.index) == ["none", "tda"]
    assert set(rows.variant) == {record.variant}
    assert rows.test["none"] == pytest.approx(100 * record.scores["test"]["accuracy"])
    (again,) = [
        run for run in find_runs([tmp_path / "elsewhere"]).values() if run.method == "coop" and not run.test_time
    ]
    assert again.config_hash == record.config_hash


@pytest.mark.slow
def test_values_that_a_run_cannot_have_are_named_next_to_those_that_it_can(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_up(monkeypatch, results.parent)
    method = [*RUN[:3], "protocol=few_shot", "method=mmrl", "fit.epochs=1", "shots=2"]
    assert ask(sweep.main, method).code == 0
    folder = next(f for f, r in find_runs([results]).items() if r.method == "mmrl")
    answer = ask(cli.main, ["evaluate", "test_time=none,mta,zero", "test_time.views=2", str(folder)])
    assert answer.code == 0, answer
    assert "test_time=mta views=2" in answer.out
    assert "zero views=2" in answer.out
    assert ask(cli.main, ["evaluate", "test_time=mta", str(folder)]).code == 2


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["test_time=tda,zer"], ["test_time", "zer", "zero"]),
        (["test_time=zero,mta", "test_time.selection=0.5"], ["test_time.selection", "test_time.iterations"]),
        (["test_time=tda,zero", "test_time.views=0"], ["test_time.views", "0", "at least 1"]),
        (["test_time=zero", "calibration=temperature"], ["calibration=temperature", "test_time=zero", "other"]),
        (["calibration=none", "test_time.views=4"], ["test_time.views=4", "test_time=NAME"]),
    ],
)
def test_mistakes_are_told_before_any_test(
    given: list[str], words: list[str], results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_up(monkeypatch, results.parent)
    monkeypatch.setattr(vlprompt.commands.tested, "run", lambda *_, **__: pytest.fail("it was tested"))
    folder, _ = records(results)["none"]
    answer = ask(cli.main, ["evaluate", *given, str(folder)])
    assert (answer.code, answer.out) == (2, "")
    assert not [word for word in words if word not in answer.err], answer.err


def test_the_method_of_the_docs_is_one() -> None:
    page = (ROOT / "docs" / "test_time.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"<!-- test -->\n```python\n(.*?)```", page, re.DOTALL)
    names: dict[str, Any] = {}
    exec(block, names)
    learner, split = scatter(build(plain("coop"))), pictures(4)
    alone = judged(learner, split, Loader(learner.clip), None)
    told = judged(learner, split, Loader(learner.clip), names["Mean"](views=1))
    np.testing.assert_array_equal(told.top5, alone.top5)
    several = judged(learner, split, Loader(learner.clip), names["Mean"](views=3))
    assert not np.allclose(several.label_logit, told.label_logit)
    assert set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)) == set(ADAPTATIONS)
