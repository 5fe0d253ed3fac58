"""LayerNorm tuning and 2SFS next to what they reduce to, and what is trained in them."""

from typing import Any

import pytest
import test_stops
import torch
from test_stops import Case, fit, small_clip, trained
from torch import nn

from vlprompt.config.compose import read_run
from vlprompt.config.schema import Schedule
from vlprompt.data.cache.features import FeatureCache
from vlprompt.data.loader import Loader
from vlprompt.errors import UserError
from vlprompt.interop.onnx import ImageSide
from vlprompt.learners.base import normalize, scaled_cosine
from vlprompt.learners.ln_tuning import LNTuning
from vlprompt.learners.two_stage import TwoStage
from vlprompt.protocols.base import Episode
from vlprompt.towers import Images, load_clip

episode = test_stops.episode
NAMES = ["cat", "dog"]
FIT = fit(optimizer="adamw", weight_decay=0.1, drop_last=False, schedule=Schedule(warmup="none", every="step"))


def test_without_a_first_stage_it_is_a_linear_classifier_that_starts_from_the_texts(episode: Episode) -> None:
    tensors, _ = trained(Case(TwoStage, {"fraction": 0.0, "towers": "text"}, FIT), episode)
    clip = small_clip()
    with torch.no_grad():
        texts = clip.text(clip.text.prompts(episode.train.classes, template="a photo of a {}."))
    classifier = nn.Linear(*texts.T.shape, bias=False)
    classifier.weight.data = normalize(texts)
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=0.01, weight_decay=0.1)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 8)
    loader = Loader(clip, FeatureCache(clip, precision="fp32", workers=0))
    for images, labels in loader.shuffled(episode.train, batch_size=3, per_epoch=4, total=8):
        logits = scaled_cosine(images.features, classifier.weight, clip.scale)
        optimizer.zero_grad()
        nn.functional.cross_entropy(logits, labels).backward()
        optimizer.step()
        cosine.step()
    torch.testing.assert_close(tensors["classifier"], classifier.weight.data)
    norms = dict(LNTuning(clip, NAMES, towers="text").named_parameters())
    assert all(torch.equal(tensors[f"tuned.{name}"], p) for name, p in norms.items())


def test_without_a_second_stage_it_is_layer_norm_tuning(episode: Episode) -> None:
    both, _ = trained(Case(TwoStage, {"fraction": 1.0, "towers": "text"}, FIT), episode)
    alone, _ = trained(Case(LNTuning, {"towers": "text"}, FIT), episode)
    assert both["stage"] == 0
    assert all(torch.equal(both[f"tuned.{name}"], tensor) for name, tensor in alone.items())


@torch.no_grad()
def test_only_classes_that_were_not_trained_on_are_embedded() -> None:
    learner = TwoStage(small_clip(), NAMES).eval()
    learner.begin(1)
    for p in learner.parameters():
        p.add_(torch.randn_like(p) * 0.1)
    tuned = learner.tuned
    tuned.bind(["zebra", "cat"])
    texts = normalize(tuned.encode_classes())
    learner.bind(["zebra", "dog", "cat"])
    expected = [texts[0], *normalize(learner.classifier)[[1, 0]]]
    torch.testing.assert_close(learner.encode_classes(), torch.stack(expected))


@torch.no_grad()
def test_after_both_stages_its_image_side_is_plain_weights() -> None:
    learner = TwoStage(small_clip(), NAMES).eval()
    for p in learner.tuned.parameters():
        p.add_(torch.randn_like(p) * 0.1)
    learner.begin(1)
    side, size = ImageSide(learner), learner.clip.preprocess.size
    assert side.tower is not None  # which an exporter can follow
    pixels = torch.randn(2, 3, size, size)
    torch.testing.assert_close(side(pixels)[0], learner.encode_images(Images(pixels)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("settings", "expected"), [
    ({}, {"visual.": (0, 1, 2), "": (0, 1, 2)}),
    ({"first_image_layer": 1, "first_text_layer": 2}, {"visual.": (1, 2), "": (2,)}),
    ({"towers": "text"}, {"": (0, 1, 2)}),
])  # fmt: skip
def test_the_norms_of_the_blocks_are_trained(settings: dict[str, Any], expected: dict[str, Any]) -> None:
    names = {
        f"weights.{tower}transformer.resblocks.{layer}.{norm}.{kind}"
        for tower, layers in expected.items() for layer in layers
        for norm in ("ln_1", "ln_2") for kind in ("weight", "bias")
    }  # fmt: skip
    assert set(dict(LNTuning(small_clip(), NAMES, **settings).named_parameters())) == names


def test_biases_of_the_first_stage() -> None:
    def names(**settings: Any) -> set[str]:
        learner = TwoStage(small_clip(), NAMES, stage1="bitfit", **settings)
        return {name.removeprefix("weights.") for name, _ in learner.tuned.named_parameters()}

    everything = names()
    assert not [name for name in everything if "in_proj" in name or not name.endswith(".bias")]
    assert {"visual.ln_pre.bias", "visual.ln_post.bias", "ln_final.bias"} <= everything
    assert "transformer.resblocks.0.attn.out_proj.bias" in everything
    fewer = names(first_image_layer=1)
    gone = {"visual.ln_pre.bias", *(name for name in everything if name.startswith("visual.transformer.resblocks.0."))}
    assert everything - fewer == gone


@pytest.mark.parametrize(("kind", "settings", "says"), [
    (LNTuning, {"first_text_layer": 3}, r"first_text_layer is 3, allowed is 0 to 2"),
    (LNTuning, {"first_image_layer": -1}, r"first_image_layer is -1, allowed is 0 to 2"),
    (TwoStage, {"fraction": 1.2}, r"fraction is 1\.2, allowed is 0 to 1"),
])  # fmt: skip
def test_what_is_not_there_is_refused(kind: Any, settings: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        kind(small_clip(), NAMES, **settings)


def test_a_model_without_text_has_no_second_stage() -> None:
    with pytest.raises(UserError, match=r"TwoStage classifies by class names .* ln_tuning"):
        TwoStage(load_clip("timm:test_vit"), NAMES)


@pytest.mark.parametrize(("given", "says"), [
    (["method.rank=4"], r"method\.rank=4 has no effect next to method\.stage1=layer_norm"),
    (["method.stage1=lora", "method.first_text_layer=1"], r"method\.first_text_layer=1 has no effect"),
    (["method.towers=image", "method.first_text_layer=1"], r"next to method\.towers=image, so that this tower is not"),
    (["method.fraction=0", "method.stage1=lora"], r"method\.stage1=lora has no effect next to method\.fraction=0"),
])  # fmt: skip
def test_settings_of_another_first_stage_are_refused(given: list[str], says: str) -> None:
    with pytest.raises(UserError, match=says):
        read_run(["method=two_stage", *given])
