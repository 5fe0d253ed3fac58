"""The backbones of conf/backbone that open_clip has: they are what its own lists say, and build with random weights."""

from typing import Any

import open_clip
import pytest
import torch
from open_clip.pretrained import get_pretrained_cfg

from vlprompt import demo
from vlprompt.config.compose import compose
from vlprompt.config.paths import config_dir
from vlprompt.errors import UserError
from vlprompt.towers import Images, loading
from vlprompt.towers.loading import load_clip
from vlprompt.towers.preprocess import Preprocess

CLIP_IMAGES = Preprocess()
IMAGES = {  # as their papers and docs/backbones.md have them
    "siglip2_b16": Preprocess(mean=(0.5,) * 3, std=(0.5,) * 3, resize="squash"),
    "vit_l14_336": Preprocess(size=336),
    **dict.fromkeys(("metaclip_b16", "dfn_b16", "laion_b16", "vit_b16", "vit_b32", "vit_l14", "rn50"), CLIP_IMAGES),
}
FEATURES = {"siglip2_b16": 768, "vit_l14_336": 768, "vit_l14": 768, "rn50": 1024}
PLAIN_GELU = {"laion_b16", "siglip2_b16"}


def backbone(name: str) -> Any:
    return compose([f"backbone={name}", "dataset=caltech101"])["backbone"]


def test_all_are_looked_at() -> None:
    others = {"timm_vit", "vit_b16_in21k", *demo.BACKBONES}
    assert {path.stem for path in config_dir().glob("backbone/*.yaml")} == {*IMAGES} | others


@pytest.mark.parametrize("name", IMAGES)
def test_model_and_weights_belong_to_each_other(name: str) -> None:
    asked = backbone(name)
    config, weights = open_clip.get_model_config(asked["model"]), get_pretrained_cfg(asked["model"], asked["weights"])
    assert asked["weights"] in open_clip.list_pretrained_tags_by_model(asked["model"])
    assert bool(config.get("quick_gelu")) == bool(weights.get("quick_gelu")) == (name not in PLAIN_GELU)
    assert config["embed_dim"] == FEATURES.get(name, 512)
    expected, size = IMAGES[name], config["vision_cfg"]["image_size"]
    given = (size, weights["mean"], weights["std"], weights["interpolation"], weights["resize_mode"])
    assert given == (expected.size, expected.mean, expected.std, expected.interpolation, expected.resize)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["siglip2_b16", "metaclip_b16", "dfn_b16", "laion_b16", "vit_l14_336"])
def test_it_builds_with_random_weights(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = backbone(name)
    if name == "siglip2_b16":  # its tokenizer comes from a hub
        monkeypatch.setattr(loading, "_tokenizer", lambda model: open_clip.SimpleTokenizer(context_length=64))
    clip = load_clip(asked["model"], "random")
    assert clip.preprocess == IMAGES[name]
    size = clip.preprocess.size
    features = clip.image(Images(torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))))
    classes = clip.text(clip.text.prompts(["cat", "dog"], template="a photo of a {}."))
    assert features.shape == (1, FEATURES.get(name, 512))
    assert classes.shape == (2, FEATURES.get(name, 512))
    assert features.isfinite().all()
    assert classes.isfinite().all()
    assert not torch.equal(classes[0], classes[1])


def test_a_tokenizer_that_needs_another_package_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any, **__: Any) -> None:
        raise ModuleNotFoundError("No module named 'transformers'", name="transformers")

    monkeypatch.setattr(open_clip, "get_tokenizer", missing)
    with pytest.raises(UserError, match="pip install transformers"):
        loading._tokenizer("ViT-B-16-SigLIP2")
