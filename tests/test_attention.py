"""Attention of the image towers: the weights are those of the fused path, in tables of one size, and their rollout."""

from functools import cache
from typing import Any

import pytest
import tiny
import torch
from test_learners import CASES, CLASSES, Case, build, scatter
from torch import Tensor

from vlprompt.errors import UserError
from vlprompt.learners.base import Learner
from vlprompt.learners.clip_adapter import CLIPAdapter
from vlprompt.learners.llama_adapter import LlamaAdapter
from vlprompt.learners.lora import LoRA
from vlprompt.learners.maple import MaPLe
from vlprompt.learners.prefix_tuning import PrefixTuning
from vlprompt.learners.vpt import VPT
from vlprompt.towers import Edit, Edits, Images, Prefix
from vlprompt.towers.attention import Weighed, rollout

made = cache(tiny.clip)
SLOW = [pytest.param(kind, marks=pytest.mark.slow) for kind in ("timm", "siglip")]
KINDS = ["vit", "vit_avg", "vit_ls", *SLOW]


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def every_site(tower: Any) -> Edits:
    """Prompts that are rewritten, kept and shortened; prefixes of three kinds; maps and branches."""
    d, h = tower.width, tower.heads
    shift, gate = random(d) / 9, torch.linspace(-1, 2, h, dtype=torch.float64)
    pair = {"key": random(h, 4, d // h), "value": random(h, 4, d // h)}
    return {
        0: Edit(tokens=random(3, d), prefix=Prefix(**pair)),
        1: Edit(tokens=random(2, 2, d), q=lambda x: x * shift, mlp=lambda y, x: y + x * shift),
        2: Edit(prefix=Prefix(tokens=random(5, d), gate=gate), v=lambda x: x * shift),
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("edited", [False, True], ids=["frozen", "edited"])
def test_the_weights_make_the_features(kind: str, edited: bool) -> None:
    clip, model = made(kind)
    tower, images = clip.image, Images(tiny.pixels(model, 2))
    edits = every_site(tower) if edited else {}
    weighed = Weighed()
    tokens, n_prompts = tower._run(images, edits, weighed=weighed)
    torch.testing.assert_close(tower.project(tokens, n_prompts), tower(images, edits))
    assert len(weighed.weights) == tower.depth + edited  # a gated prefix has a softmax of its own
    table, n_prefix = tower.attention(images, edits), tower.n_prefix_tokens
    n_learned = 3 + 5 if edited else 0
    assert table.shape[3] == table.shape[4] == n_prefix + n_learned + tower.patches(images).shape[1]
    total = table.sum(-1)
    image_rows = torch.cat([total[..., :n_prefix], total[..., n_prefix + n_learned :]], -1)
    wanted = torch.ones_like(image_rows)
    if edited:
        wanted[2] += torch.linspace(-1, 2, tower.heads, dtype=torch.float64)[:, None]
    torch.testing.assert_close(image_rows, wanted)


@pytest.mark.parametrize("kind", ["vit", "vit_ls"])
def test_the_weights_are_those_of_open_clip(kind: str) -> None:
    clip, model = made(kind)
    images = Images(tiny.pixels(model))
    x = clip.image.norm_in(clip.image.embed(images.pixels))
    for block, ours in zip(model.visual.transformer.resblocks, clip.image.attention(images), strict=True):
        u = block.ln_1(x)
        theirs = block.attn(u, u, u, need_weights=True, average_attn_weights=False)[1]
        torch.testing.assert_close(ours, theirs)
        x = block(x)


def test_slots_hold_what_a_layer_has() -> None:
    clip, model = made("vit")
    table = clip.image.attention(Images(tiny.pixels(model)), every_site(clip.image))
    prompts, keys = slice(1, 4), slice(4, 9)
    looks, seen = table.sum((1, 2, 4)) != 0, table.abs().sum((1, 2, 3)) > 0  # [L, N]
    assert not looks[0, prompts].any()  # the next layer overwrites them
    assert looks[1:, prompts].tolist() == [[True, True, False]] * 2
    assert not looks[:, keys].any()
    assert seen[:, prompts].tolist() == [[True] * 3, [True, True, False], [True, True, False]]
    assert seen[:, keys].tolist() == [[True] * 4 + [False], [False] * 5, [True] * 5]
    assert looks[:, 9:].all()
    assert seen[:, 9:].all()


FEW = {
    "lora": lambda clip: LoRA(clip, CLASSES, sites=["q", "v", "o", "fc1"]),
    "prefix_tuning": lambda clip: PrefixTuning(clip, CLASSES),
    "llama_adapter": lambda clip: LlamaAdapter(clip, CLASSES, depth=2),
    "vpt_deep": lambda clip: VPT(clip, CLASSES, depth=2),
    "maple": lambda clip: MaPLe(clip, CLASSES, depth=3),
}


@pytest.mark.parametrize("method", FEW)
def test_the_weights_of_a_learner_make_its_features(method: str) -> None:
    torch.manual_seed(0)
    check_learner(scatter(FEW[method](made("vit", torch.float32)[0])))


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_weights_of_any_learner_make_its_features(case: Case) -> None:
    check_learner(build(case))


def check_learner(learner: Learner) -> None:
    learner.eval()
    tower = learner.image_tower()
    size = learner.clip.preprocess.size
    images = Images(torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1)))
    with torch.no_grad():
        edits = learner.image_edits()
        tokens, n_prompts = tower._run(images, edits, weighed=Weighed())
        features = tower.project(tokens, n_prompts)
        changed = not torch.allclose(learner.clip.image(images), features, rtol=1e-4, atol=1e-5)
        if not isinstance(learner, CLIPAdapter):  # which changes the features themselves
            torch.testing.assert_close(features, learner.encode_images(images), rtol=1e-4, atol=1e-5)
        flow = rollout(tower.attention(images, edits))
    assert not changed or learner.edits_image
    torch.testing.assert_close(flow.sum(-1), torch.ones(flow.shape[:-1]))
    assert (flow >= 0).all()


def test_rollout_by_hand() -> None:
    first = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 0.0], [0.5, 0.0, 0.5]])  # the second row looks at nothing
    heads = torch.stack([first, torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.5, 0.0, 0.5]])])
    second = torch.tensor([[0.0, 0.0, 2.0], [0.0, 0.0, 0.0], [0.0, -1.0, 1.0]]).expand(2, 3, 3)
    flow = rollout(torch.stack([heads, second])[:, None])[0]
    after_one = torch.tensor([[0.75, 0.25, 0.0], [0.0, 1.0, 0.0], [0.25, 0.0, 0.75]])
    mixing = torch.tensor([[0.5, 0.0, 0.5], [0.0, 1.0, 0.0], [0.0, 0.25, 0.75]])
    torch.testing.assert_close(flow, mixing @ after_one)


def test_a_prompt_that_is_overwritten_carries_nothing_on() -> None:
    clip, model = made("vit")
    images, tokens = Images(tiny.pixels(model)), random(2, 48)
    flow = rollout(clip.image.attention(images, {layer: Edit(tokens=tokens) for layer in range(3)}))
    asks = rollout(clip.image.attention(images, {0: Edit(tokens=tokens)}))
    assert flow[:, 0, 1:3].sum() > asks[:, 0, 1:3].sum()  # which has taken up some of the patches
    assert (asks[:, 1:3, 3:].sum(-1) > 0.3).all()


@pytest.mark.parametrize("kind", KINDS)
def test_patches_are_read_as_the_head_reads(kind: str) -> None:
    clip, model = made(kind)
    tower, images = clip.image, Images(tiny.pixels(model))
    edits = every_site(tower)
    x = tower.tokens(images, edits)
    x = x[:, tower.n_prefix_tokens + 2 :]
    patches = tower.patches(images, edits)
    assert patches.shape == (*x.shape[:2], tower.embed_dim)
    same = x[:, :1].expand(-1, 7 + tower.n_prefix_tokens, -1)  # a table of which each row is the first patch
    torch.testing.assert_close(tower.project(same), patches[:, 0])
    if kind == "vit":
        torch.testing.assert_close(patches, model.visual.ln_post(x) @ model.visual.proj)


def test_a_resnet_has_none() -> None:
    clip, model = made("resnet")
    for what in (clip.image.attention, clip.image.patches):
        with pytest.raises(UserError, match="ResNet"):
            what(Images(tiny.pixels(model)))
