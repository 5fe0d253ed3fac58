"""ZS-LP and CLAP: pools of views, the special cases, and each constraint against its formula in float64."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tiny
import tiny_world
import torch
from torch import Tensor

from vlprompt.config.compose import read_run
from vlprompt.config.schema import Fit, Schedule
from vlprompt.data.cache.features import FeatureCache
from vlprompt.data.loader import Loader
from vlprompt.data.sampling import sample_few_shot
from vlprompt.errors import UserError
from vlprompt.learners.base import Batches, Learner, normalize
from vlprompt.learners.clap import CLAP
from vlprompt.learners.cross_modal import CrossModal
from vlprompt.learners.zs_lp import ZSLP
from vlprompt.protocols.base import Episode
from vlprompt.protocols.few_shot import FewShot
from vlprompt.towers import Clip, Images, load_clip
from vlprompt.train import train
from vlprompt.training.progress import Reporter

CLASSES = ("cat", "dog", "frog")
VIEWS = 3
FIT = Fit(optimizer="sgd", lr=0.1, epochs=3, batch_size=4, schedule=Schedule(warmup="none"))


@pytest.fixture(scope="module")
def clip() -> Clip:
    return tiny.clip("vit", torch.float32)[0]


@pytest.fixture(scope="module")
def loader(clip: Clip) -> Loader:
    return Loader(clip, FeatureCache(clip, precision="fp32", workers=0), n_views=VIEWS, pooled=True)


@pytest.fixture(scope="module")
def episode() -> Episode:
    dataset = tiny_world.load("tiny")
    return FewShot().episode(dataset, sample_few_shot(dataset, shots=2, seed=1))


@pytest.fixture
def batch(clip: Clip) -> tuple[Images, Tensor]:
    torch.manual_seed(3)
    return Images(features=torch.randn(6, clip.image.embed_dim)), torch.tensor([0, 1, 1, 0, 0, 1])


def test_an_epoch_draws_from_all_views_in_as_many_batches_as_one_makes(loader: Loader, episode: Episode) -> None:
    """Which with few images are larger: at most all views, at most the size of a batch."""
    n = len(episode.train)
    views = [loader.features.features(episode.train, v, seed=loader.seed) for v in range(VIEWS)]  # type: ignore[union-attr]
    pool = {tuple(row.tolist()) for view in views for row in view}
    for size, expected in ((4 * n, VIEWS * n), (n, n), (n // 2, n // 2)):
        per_epoch = loader.n_batches(episode.train, size, drop_last=True)
        given = {"batch_size": size, "per_epoch": per_epoch, "total": 2 * per_epoch}
        batches = [images.features for images, _ in loader.shuffled(episode.train, **given)]
        assert [len(b) for b in batches] == [expected] * (2 * per_epoch)
        epochs = [
            [tuple(row.tolist()) for b in half for row in b] for half in (batches[:per_epoch], batches[per_epoch:])
        ]
        assert epochs[0] != epochs[1]
        for rows in epochs:
            assert len(set(rows)) == len(rows)  # each view at most once
            assert pool.issuperset(rows)
    assert not all(set(rows) <= {tuple(r.tolist()) for r in view} for rows in epochs for view in views)


def test_a_pool_is_the_same_from_pixels_and_when_resumed(loader: Loader, episode: Episode) -> None:
    given = {"batch_size": 4, "per_epoch": 2, "total": 4}
    whole = list(loader.shuffled(episode.train, **given))
    resumed = list(loader.shuffled(episode.train, **given, first=1))
    pixels = list(replace(loader, features=None).shuffled(episode.train, **given))
    for (images, labels), (others, theirs) in zip(whole[1:], resumed, strict=True):
        assert torch.equal(images.features, others.features)
        assert torch.equal(labels, theirs)
    for (images, labels), (others, theirs) in zip(whole, pixels, strict=True):
        assert torch.allclose(images.features, loader.clip.image(others), atol=1e-4)
        assert torch.equal(labels, theirs)


def test_a_pool_needs_views() -> None:
    with pytest.raises(UserError, match=r"bank\.pooled"):
        read_run(["method=zs_lp", "protocol=few_shot", "bank.views=null"])


def test_texts_are_a_setting_of_the_command_line() -> None:
    assert read_run(["method=zs_lp", "protocol=few_shot", "method.texts=true"]).arguments["texts"] is True


def test_a_constraint_of_no_strength_is_zs_lp(loader: Loader, episode: Episode) -> None:
    def trained(make: Callable[..., ZSLP], **settings: Any) -> Tensor:
        learner = make(loader.clip, episode.train.classes, **settings)
        train(learner, episode, loader, FIT, precision="fp32", reporter=Reporter(quiet=True))
        return learner.weight.detach()

    plain = trained(ZSLP)
    assert torch.equal(trained(CLAP, strength=0.0, n_views=VIEWS), plain)
    held, more = (trained(CLAP, n_views=VIEWS, strength=s) for s in (1.0, 100.0))
    start = ZSLP(loader.clip, episode.train.classes).zero_shot
    assert (more - start).norm() < (held - start).norm() < (plain - start).norm()


@pytest.mark.parametrize("multipliers", ["class", "corrected", "constant", "balanced"])
def test_multipliers_are_chances_of_the_right_class(multipliers: Any, clip: Clip, batch: tuple[Images, Tensor]) -> None:
    """Over all views; a class without an image has the largest."""
    images, labels = batch
    views = iter([images.features, 2 * images.features.flip(1)])

    class Passes:
        def __iter__(self) -> Any:
            yield Images(features=next(views)), labels

    learner = CLAP(clip, CLASSES, multipliers=multipliers, n_views=2)
    passes: Batches = Passes()
    start = learner.zero_shot.double().numpy()
    seen = np.concatenate([images.features.numpy(), 2 * images.features.flip(1).numpy()]).astype(np.float64)
    learner.prepare(passes, None)
    cosines = (seen / np.linalg.norm(seen, axis=1)[:, None]) @ (start / np.linalg.norm(start, axis=1)[:, None]).T
    chances = np.exp(clip.scale * cosines)
    chances /= chances.sum(1, keepdims=True)
    twice = np.tile(labels.numpy(), 2)
    of_class = np.array([chances[twice == c, c].mean() if c in twice else 1.0 for c in range(3)])
    expected = {"class": of_class, "corrected": of_class / of_class.mean(), "constant": np.full(3, of_class.mean()),
                "balanced": np.ones(3)}[multipliers]  # fmt: skip
    np.testing.assert_allclose(learner.lambdas.numpy(), expected, rtol=1e-4)


@pytest.mark.parametrize("constraint", ["l2", "cosine"])
def test_a_constraint_is_the_mean_weighted_distance(constraint: Any, clip: Clip, batch: tuple[Images, Tensor]) -> None:
    """Its gradient against finite differences in float64; the outer step is in squared distances with both."""
    learner = CLAP(clip, CLASSES, constraint=constraint, adaptive=True, n_views=1)
    learner.prepare([batch], None)
    start, lambdas = learner.zero_shot.double().numpy(), learner.lambdas.double().numpy()
    learner.weight.data += torch.randn(learner.weight.shape, generator=torch.Generator().manual_seed(1))
    weight = learner.weight.detach().double().numpy()

    def penalty(w: np.ndarray) -> float:
        cosines = (w * start).sum(1) / np.linalg.norm(w, axis=1) / np.linalg.norm(start, axis=1)
        distances = ((w - start) ** 2).sum(1) if constraint == "l2" else 1 - cosines
        return float((lambdas * distances).mean())

    loss, logits = learner.loss(*batch)
    cross_entropy = torch.nn.functional.cross_entropy(logits, batch[1])
    assert (loss - cross_entropy).item() == pytest.approx(penalty(weight), rel=1e-4)
    (gradient,) = torch.autograd.grad(learner.penalty(), learner.weight)
    moves = np.zeros_like(weight)
    moves[1, 2], h = 1.0, 1e-5
    slope = (penalty(weight + h * moves) - penalty(weight - h * moves)) / (2 * h)
    assert gradient[1, 2].item() == pytest.approx(slope, rel=1e-3)
    squares = ((weight - start) ** 2).sum(1)
    for expected in (lambdas, lambdas + squares**2):  # rho is 0 before the first step, then the squares
        learner.end_epoch()
        np.testing.assert_allclose(learner.lambdas.numpy(), expected, rtol=1e-4)
        np.testing.assert_allclose(learner.rho.numpy(), squares, rtol=1e-4)


def test_half_of_a_batch_gives_way_to_texts(clip: Clip, batch: tuple[Images, Tensor]) -> None:
    templates = ["a {}.", "one {}."]
    learner = ZSLP(clip, CLASSES, templates=templates, texts=True)
    learner.prepare([batch], None)
    learner.weight.data += 0.1
    torch.manual_seed(5)
    loss, logits = learner.train().loss(*batch)
    assert logits.shape == (6, 3)  # of all images
    torch.manual_seed(5)
    drawn = torch.randint(6, (3,))  # class by class within a template
    texts = torch.stack(
        [learner.zero_shot_features([templates[i // 3]], normalize=False)[i % 3] for i in drawn.tolist()]
    )
    rows = clip.scale * normalize(texts) @ normalize(learner.weight).T
    both, targets = torch.cat([logits[:3], rows]), torch.cat([batch[1][:3], drawn % 3])
    assert loss.item() == pytest.approx(torch.nn.functional.cross_entropy(both, targets).item(), rel=1e-5)
    assert learner.eval().loss(*batch)[0].item() == pytest.approx(
        torch.nn.functional.cross_entropy(logits, batch[1]).item(), rel=1e-5
    )


@pytest.mark.parametrize("kind", [ZSLP, CLAP, CrossModal])
def test_a_model_without_text_is_refused(kind: type[Learner]) -> None:
    with pytest.raises(UserError, match="has no text tower"):
        kind(load_clip("timm:test_vit"), CLASSES)


@pytest.mark.parametrize("wrong", [{"strength": -1.0}, {"n_views": 0}])
def test_settings_out_of_range_are_refused(clip: Clip, wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        CLAP(clip, CLASSES, **wrong)
