"""The cross-modal probe: its batches, what is chosen, its formulas in numpy, and its views of images."""

from itertools import islice
from typing import Any

import numpy as np
import pytest
import tiny
import tiny_world
import torch
from torch import Tensor
from torchvision.transforms.functional import hflip

from vlprompt.data.cache.features import FeatureCache
from vlprompt.data.loader import Loader
from vlprompt.data.sampling import sample_few_shot
from vlprompt.data.transforms import Augment
from vlprompt.errors import UserError
from vlprompt.learners.base import normalize
from vlprompt.learners.cross_modal import CrossModal
from vlprompt.learners.half_batches import fitting, half_batches
from vlprompt.protocols.few_shot import FewShot
from vlprompt.towers import Clip, Images

CLASSES = ("cat", "dog", "frog")
SHORT: dict[str, Any] = {"iterations": 6, "evaluate_every": 2, "batch_sizes": [4], "n_views": 0, "warmup_steps": 2}
ONE: dict[str, Any] = {**SHORT, "rates": [0.01], "decays": [0.1]}


@pytest.fixture(scope="module")
def clip() -> Clip:
    return tiny.clip("vit", torch.float32)[0]


def batch(clip: Clip, n: int = 9) -> tuple[Images, Tensor]:
    generator = torch.Generator().manual_seed(n)
    return Images(features=torch.randn(n, clip.image.embed_dim, generator=generator)), torch.arange(n) % 3


def made(clip: Clip, seed: int = 0, **settings: Any) -> CrossModal:
    torch.manual_seed(seed)
    return CrossModal(clip, CLASSES, **settings)


def samples(n: int, first: int) -> tuple[Tensor, Tensor]:
    """Whose feature says which they are."""
    return torch.arange(first, first + n, dtype=torch.float32)[:, None], torch.arange(n)


@pytest.mark.parametrize(("size", "n_images"), [(4, 2), (5, 3), (1, 1)])
def test_half_of_a_batch_are_texts(size: int, n_images: int) -> None:
    """Each goes through all of its samples before one comes again; what is left of a pass is dropped."""
    kinds = [samples(7, 0), samples(5, 100)]
    batches = list(islice(half_batches(kinds, size, seed=3), 12))
    images, texts = (torch.stack(part)[..., 0] for part in
                     zip(*((f[:n_images], f[n_images:]) for f, _ in batches), strict=True))  # fmt: skip
    assert (images < 7).all()
    assert (texts >= 100).all()
    assert texts.shape[1] == size - n_images
    for rows, n, share in ((images, 7, n_images), (texts, 5, size - n_images)):
        a_pass = n // share if share else 0
        passes = rows[: 12 // a_pass * a_pass].reshape(-1, a_pass * share).tolist() if share else []
        assert all(len(set(p)) == len(p) for p in passes)
        assert len({tuple(p) for p in passes}) == len(passes)  # in other orders
    for features, labels in batches:
        assert torch.equal(labels, features[:, 0].long() % 100)


def test_a_batch_size_needs_more_samples_than_its_halves() -> None:
    kinds = [samples(7, 0), samples(5, 100)]
    assert fitting([8, 10, 14, 4], kinds) == [8, 4]
    assert fitting([6, 7], kinds[:1]) == [6]
    assert fitting([32], kinds) == [9]  # five images and four texts
    assert fitting([8], [samples(7, 0), samples(1, 100)]) == [1]
    with pytest.raises(UserError, match="at least two"):
        fitting([32], [samples(1, 0), samples(5, 100)])


def test_the_first_of_the_best_evaluations_remains(clip: Clip, monkeypatch: pytest.MonkeyPatch) -> None:
    train, weights = [batch(clip)], []
    right = iter([3, 5, 4, 5, 5, 5])  # two trainings of six steps, each judged after steps 1, 3 and 5

    def n_right(self: CrossModal, *_: Tensor) -> int:
        weights.append(self.weight.detach().clone())
        return next(right)

    monkeypatch.setattr(CrossModal, "n_right", n_right)
    learner = made(clip, **{**ONE, "rates": [0.01, 0.02]})
    learner.prepare(train, train)
    assert len(weights) == 6
    assert torch.equal(learner.weight, weights[1])
    start = normalize(learner.zero_shot_features(learner.templates, normalize=False))
    assert (weights[3] - start).norm() < 2e-4  # the second begins anew, with the rate of its warm-up


def test_without_validation_images_there_is_one_training(clip: Clip) -> None:
    train = [batch(clip)]
    with pytest.raises(UserError, match="2 trainings on validation images"):
        made(clip, **{**ONE, "decays": [0.0, 0.1]}).prepare(train, None)
    ends = []
    for share in (0.0, 0.25):
        learner = made(clip, **ONE, interpolation=share)
        learner.prepare(train, None)
        ends.append(learner.weight.detach())
    start = normalize(learner.zero_shot_features(learner.templates, normalize=False))
    torch.testing.assert_close(ends[1], 0.75 * ends[0] + 0.25 * start)
    assert not torch.allclose(ends[0], start, atol=1e-3)


@pytest.mark.parametrize("adapter", [False, True])
def test_a_training_is_adamw_on_the_formula(clip: Clip, adapter: bool) -> None:
    """Logits in numpy; the steps by torch's own rule on them, in float64."""
    learner = made(clip, **ONE, adapter=adapter, init="random", texts=False)
    (images, labels), x = batch(clip), batch(clip)[0].features.double()
    w, *maps = (p.detach().double().requires_grad_() for p in learner.parameters())
    unit = x / x.norm(dim=1, keepdim=True)

    def logits() -> Tensor:
        hidden = 0.2 * (maps[1] @ (maps[0] @ unit.T).relu()).relu().T + 0.8 * unit if adapter else unit
        return clip.scale * hidden @ w.T

    np.testing.assert_allclose(learner.logits(images, learner.encode_classes()).detach(), logits().detach(), atol=1e-4)
    optimizer = torch.optim.AdamW([w, *maps], lr=0.01, weight_decay=0.1)
    steps = learner.descend([(images.features, labels)] * 6, rate=0.01, decay=0.1)
    for rate, loss in zip(
        [1e-5, 0.005] + [0.01 * (1 + np.cos(np.pi * i / 6)) / 2 for i in range(4)], steps, strict=True
    ):
        optimizer.param_groups[0]["lr"] = rate
        expected = torch.nn.functional.cross_entropy(logits(), labels)
        assert loss.item() == pytest.approx(expected.item(), rel=1e-4, abs=1e-4)
        optimizer.zero_grad()
        expected.backward()
        optimizer.step()
    np.testing.assert_allclose(learner.weight.detach(), w.detach(), atol=1e-4)


def test_a_seed_makes_one_learner(clip: Clip) -> None:
    train = [batch(clip)]
    ends = []
    for seed in (0, 0, 1):
        learner = made(clip, seed, **ONE)
        torch.manual_seed(int.from_bytes(np.random.default_rng().bytes(3), "big"))  # random numbers that are anywhere
        learner.prepare(train, train)
        ends.append(learner.weight.detach())
    assert torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[0], ends[2])


def test_the_views_are_centre_crops_and_their_mirror_images(clip: Clip) -> None:
    dataset = tiny_world.load("tiny")
    train = FewShot().episode(dataset, sample_few_shot(dataset, shots=1, seed=1)).train
    loader = Loader(clip, None, augment=Augment(flip=1.0, crop="center"))
    passes = loader.ordered(train, augmented="after_crop")
    crops, mirrored, again = (torch.cat([images.pixels for images, _ in passes]) for _ in range(3))
    assert torch.equal(crops, torch.cat([images.pixels for images, _ in loader.ordered(train)]))
    assert torch.equal(mirrored, hflip(crops))
    assert torch.equal(again, mirrored)
    features = FeatureCache(clip, precision="fp32", workers=0)
    plain = features.features(train, 0, augment=Augment(flip=1.0))
    assert not torch.equal(features.features(train, 0, augment=loader.augment), plain)  # they are other views


@pytest.mark.parametrize("wrong", [
    {"iterations": 0}, {"n_views": -1}, {"interpolation": 1.0}, {"batch_sizes": [0]}, {"rates": [-1.0]}, {"rates": []},
    {"decays": [-0.1]}, {"warmup_steps": -1}, {"warmup_rate": 0.0},
])  # fmt: skip
def test_settings_out_of_range_are_refused(clip: Clip, wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        made(clip, **wrong)
