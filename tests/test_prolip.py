"""ProLIP: what its projection reads in each kind of tower, and the search for its rate and weight."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch

from vlprompt.commands import tested
from vlprompt.config.compose import read_run
from vlprompt.config.spec import RunSpec
from vlprompt.errors import UserError
from vlprompt.learners.base import Batch, scaled_cosine
from vlprompt.learners.prolip import ProLIP
from vlprompt.towers import Clip, Images, load_clip

NAMES = ["cat", "dog", "bird"]
LABELS = torch.tensor([0, 0, 1, 1, 2, 2])


def made(kind: str = "vit", **settings: Any) -> tuple[Clip, ProLIP, Batch]:
    clip, model = tiny.clip(kind, torch.float32)
    learner = ProLIP(clip, NAMES, **{"n_views": 1, "iterations": 8, "lr": 0.01, **settings})
    return clip, learner, (Images(tiny.pixels(model, len(LABELS))), LABELS)


@pytest.mark.parametrize("kind", ["vit", "vit_avg", "resnet", "timm"])
@torch.no_grad()
def test_features_are_the_projection_of_what_is_stored(kind: str) -> None:
    clip, learner, batch = made(kind)
    before, labels = learner.collect([batch])
    assert torch.equal(labels, LABELS)
    torch.testing.assert_close(learner.project(before), clip.image(batch[0]), atol=1e-5, rtol=1e-4)
    learner.projection.add_(torch.randn_like(learner.projection) * 0.1)
    torch.testing.assert_close(learner.project(before), learner.encode_images(batch[0]), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("named", "number"), [("1/shots", 0.5), ("1/shots^2", 0.25)])
def test_weights_by_shots(named: Any, number: float) -> None:
    projections = []
    for weight in (named, number):
        _, learner, batch = made(weight=weight)
        learner.prepare([batch], [batch])
        projections.append(learner.projection.detach())
    assert torch.equal(*projections)


def test_its_line_to_the_frozen_model_has_all_of_its_templates(monkeypatch: pytest.MonkeyPatch) -> None:
    clip, learner, (images, _) = made(templates=["a {}.", "art of the {}.", "no {}."])
    learner.projection.data += 0.1 * torch.randn_like(learner.projection)
    expected = learner.logits(images, learner.encode_classes()).detach()
    spec: Any = RunSpec.__new__(RunSpec)
    monkeypatch.setattr(tested, "replace", lambda spec, **settings: SimpleNamespace(**settings))
    monkeypatch.setattr(tested, "saved", lambda *_: (spec, learner, None))
    monkeypatch.setattr(tested, "scores_of", lambda spec, model, episode: model.logits(images, model.encode_classes()))
    object.__setattr__(spec, "learner", ProLIP)
    frozen, tuned = tested.test_line(spec, Path(), [0, 1])
    torch.testing.assert_close(tuned, expected, atol=1e-4, rtol=1e-4)
    features, classes = clip.image(images), learner.zero_shot_features(learner.templates)
    torch.testing.assert_close(frozen, scaled_cosine(features, classes, clip.scale), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(frozen, tuned, atol=0.1)


def test_the_search_ends_with_the_first_of_the_best_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    _, learner, batch = made(search_lr=[0.1, 0.01], search_weight=[1.0, 0.0])
    rights = iter([1, 4, 4, 2])
    monkeypatch.setattr(learner, "n_right", lambda *_: next(rights))
    learner.prepare([batch], [batch])
    _, alone, _ = made(lr=0.1, weight=0.0)
    alone.prepare([batch], None)
    assert torch.equal(learner.projection, alone.projection)
    assert next(rights, None) is None


@pytest.mark.parametrize("settings", [{"n_views": 0}, {"lr": 0.0}, {"search_lr": [0.1]}, {"iterations": -1}])
def test_settings_that_mean_nothing_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"method\.n_views=.*allowed are at least 1"):
        made(**settings)


@pytest.mark.parametrize("settings", [{"weight": -1.0}, {"search_lr": [-0.1], "search_weight": [1.0]}])
def test_negative_weights_and_rates_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="weights of 0 or more, and rates above 0"):
        made(**settings)


def test_a_tower_without_a_projection_is_refused() -> None:
    with pytest.raises(UserError, match="ends without a projection"):
        made("siglip")
    with pytest.raises(UserError, match="classifies by class names"):
        ProLIP(load_clip("timm:test_vit"), NAMES)


def test_a_rate_next_to_a_search_is_refused() -> None:
    with pytest.raises(UserError, match=r"method\.lr=0\.01 has no effect next to method\.search_lr"):
        read_run(["method=prolip", "recipe=prolip/few_shot_validation", "method.lr=0.01"])
