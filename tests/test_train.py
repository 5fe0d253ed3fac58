"""Means over epochs, best epochs, and what they are selected on."""

from dataclasses import replace
from typing import Any

import pytest
import tiny
import tiny_world
import torch
from scipy.stats import norm

import vlprompt.train as module
from vlprompt.config.compose import read_run
from vlprompt.config.schema import Average, Fit
from vlprompt.data.cache.features import FeatureCache
from vlprompt.data.loader import Loader
from vlprompt.data.sampling import sample_few_shot
from vlprompt.errors import UserError
from vlprompt.learners.base import Learner
from vlprompt.learners.clip_adapter import CLIPAdapter
from vlprompt.learners.tip_adapter import TipAdapter
from vlprompt.protocols.base import Episode
from vlprompt.protocols.few_shot import FewShot
from vlprompt.run import run
from vlprompt.train import Epoch, train
from vlprompt.training.averaging import GaussianMean, KeepBest
from vlprompt.training.progress import Reporter


@pytest.fixture
def loader() -> Loader:
    clip, _ = tiny.clip("vit", torch.float32)
    return Loader(clip, FeatureCache(clip, precision="fp32", workers=0), n_views=2)


@pytest.fixture
def episode() -> Episode:
    dataset = tiny_world.load("tiny")
    return FewShot().episode(dataset, sample_few_shot(dataset, shots=2, seed=1))


def fit(loader: Loader, learner: Learner, episode: Episode, settings: Fit) -> list[Epoch]:
    return train(learner, episode, loader, settings, precision="fp32", reporter=Reporter())


def test_gaussian_weights() -> None:
    weights = GaussianMean(Average(mu=15, sigma=1), 20).weights
    expected = norm.pdf(range(1, 21), 15, 1)
    assert weights == pytest.approx((expected / expected.sum()).tolist(), rel=1e-9)
    assert sum(GaussianMean(Average(mu=500, sigma=1), 3).weights) == pytest.approx(1)  # far from all epochs
    assert GaussianMean(Average(mu=2, sigma=1e9), 4).weights == pytest.approx([0.25] * 4)


def test_best_keeps_the_first_of_equals() -> None:
    learner = torch.nn.Linear(1, 1)
    right = iter([3, 5, 5, 4])
    best = KeepBest(lambda: next(right))
    for epoch in range(1, 5):
        torch.nn.init.constant_(learner.weight, epoch)
        best.update(learner, epoch)
    best.restore(learner)
    assert learner.weight.item() == 2


def test_views_recur_in_turn_on_pixels_as_on_features(loader: Loader, episode: Episode) -> None:
    given = {"batch_size": len(episode.train), "per_epoch": 1, "total": 3}
    banked = [images.features for images, _ in loader.shuffled(episode.train, **given)]
    pixels = [images for images, _ in replace(loader, features=None).shuffled(episode.train, **given)]
    for features, batch in zip(banked, pixels, strict=True):
        assert torch.allclose(loader.clip.image(batch), features, atol=1e-4)


@pytest.mark.parametrize("keep", ["average", "best"])
def test_a_training_ends_with_them(loader: Loader, episode: Episode, monkeypatch: Any, keep: str) -> None:
    kind = {"average": GaussianMean, "best": KeepBest}[keep]
    seen, update = [], kind.update
    monkeypatch.setattr(kind, "update", lambda self, learner, epoch: (
        seen.append(learner.adapter[0].weight.detach().clone()), update(self, learner, epoch)))  # fmt: skip
    rights = iter([0, 2, 1])
    monkeypatch.setattr(module, "count_correct", lambda *_: next(rights))
    choice: dict[str, Any] = {"average": Average(mu=2, sigma=1)} if keep == "average" else {"keep": "best"}
    torch.manual_seed(0)
    learner = CLIPAdapter(loader.clip, episode.train.classes)
    fit(loader, learner, episode, Fit(lr=0.1, epochs=3, batch_size=5, **choice))
    assert len(seen) == 3
    assert not torch.equal(seen[0], seen[2])
    density = norm.pdf([1, 2, 3], 2, 1)
    mean = sum(float(w) * p for w, p in zip(density / density.sum(), seen, strict=True))
    torch.testing.assert_close(learner.adapter[0].weight.detach(), mean if keep == "average" else seen[1])


def test_best_needs_images_to_choose_on(loader: Loader, episode: Episode, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = CLIPAdapter(loader.clip, episode.train.classes)
    without = Episode(train=episode.train, val=None, tests=episode.tests)
    monkeypatch.setattr(CLIPAdapter, "loss", lambda *_: pytest.fail("a step was taken first"))
    with pytest.raises(UserError, match="needs validation images"):
        fit(loader, learner, without, Fit(lr=0.1, epochs=1, keep="best"))
    monkeypatch.undo()
    fit(loader, learner, without, Fit(lr=0.1, epochs=1, keep="best", select_on="test"))
    other = Episode(train=episode.train, val=None, tests={"novel": episode.tests["test"].select([0, 1])})
    with pytest.raises(UserError, match="test of the classes trained on"):
        fit(loader, learner, other, Fit(lr=0.1, epochs=1, select_on="test"))


def test_one_of_two_ways_to_end() -> None:
    with pytest.raises(UserError, match="choose one of the two"):
        Fit(lr=0.1, epochs=1, average=Average(mu=1, sigma=1), keep="best")


@pytest.mark.parametrize("banked", [True, False])
def test_preparing_meets_another_view_at_each_pass(loader: Loader, episode: Episode, banked: bool) -> None:
    learner = TipAdapter(loader.clip, episode.train.classes, n_views=3)
    cache = loader.features
    loader = loader if banked else replace(loader, features=None)
    assert fit(loader, learner, episode, Fit(lr=0.1, epochs=0)) == []
    views = [cache.features(episode.train, view, seed=loader.seed) for view in range(3)]
    assert not torch.allclose(views[0], views[1])
    expected = torch.nn.functional.normalize(torch.stack(views).mean(0), dim=-1)
    torch.testing.assert_close(learner.keys, expected, atol=1e-5, rtol=1e-4)
    assert learner.labels.tolist() == [item.label for item in episode.train.items]


@pytest.mark.slow
def test_what_the_selection_was_on_stands_in_the_record(tmp_path: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("VLPROMPT_RESULTS", str(tmp_path))
    world = [*tiny_world.RUN[:3], "shots=2", "protocol=few_shot", "method.n_views=1", "method.search_steps=[3,3]"]
    choices = [("tip_adapter", "val"), ("tip_adapter", "test"), ("tip_adapter_f", "val")]
    runs = [run(read_run([f"method={m}", f"fit.select_on={choice}", *world])) for m, choice in choices]
    assert [record.selection for record in runs] == ["few_shot_val", "test", "few_shot_val"]
    assert all(record.shots == 2 and record.cost["stored_bytes"] > 0 for record in runs)
    val, test, _ = runs
    assert val.cost["trained_parameters"] == 0
    assert val.config_hash != test.config_hash
    assert test.variant  # a row for itself
