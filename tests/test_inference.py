"""The test-time methods that take no gradients against plain versions in NumPy and float64, and their special cases."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import yaml

from vlprompt.errors import UserError
from vlprompt.inference import ADAPTATIONS, Adaptation, ImageViews, views_of
from vlprompt.inference.mta import MTA
from vlprompt.inference.tda import TDA
from vlprompt.inference.zero import Zero, votes
from vlprompt.learners.clip_adapter import CLIPAdapter
from vlprompt.learners.cocoop import CoCoOp
from vlprompt.learners.dept import DePT
from vlprompt.learners.linear_probe import LinearProbe
from vlprompt.learners.mmrl import MMRL
from vlprompt.learners.tip_adapter import TipAdapter
from vlprompt.learners.zero_shot import ZeroShot
from vlprompt.towers import Clip, Images

CONF = Path(__file__).parents[1] / "conf" / "test_time"
EPISODIC = [Zero, MTA]
SIZES = [(1, 1, 3, 2), (5, 2, 4, 3), (4, 7, 9, 11), (3, 24, 5, 6), (25, 11, 2, 8)]  # images, views, classes, width


@pytest.fixture(scope="module")
def clip() -> Clip:
    return tiny.clip()[0]


def names(n: int) -> list[str]:
    return [f"class {i}" for i in range(n)]


@pytest.fixture(scope="module")
def single() -> tuple[Clip, torch.nn.Module]:
    """The same in float32, and the model that it borrows from."""
    return tiny.clip(dtype=torch.float32)


class World:
    """Test images of made-up features around those of their classes; zero-shot CLIP at a scale that leaves doubt."""

    def __init__(self, clip: Clip, n: int, k: int, c: int, width: int, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        clip = replace(clip, image=replace(clip.image, embed_dim=width), scale=10.0)
        self.learner, self.text = ZeroShot(clip, names(c)), draw(c, width)
        labels = torch.randint(c, (n,), generator=generator)
        self.features = self.text[labels][:, None] + draw(n, 1, width) + draw(n, k, width)

    def views(self, i: int) -> ImageViews:
        x = self.features[i]
        return ImageViews(Images(features=x), self.learner.compare(x, self.text), x)

    def run(self, adaptation: Adaptation, order: Sequence[int] | None = None) -> torch.Tensor:
        """Logits of the images, which are seen in this order."""
        adaptation.check(self.learner)
        adapt = adaptation.start(self.learner, self.text)
        order = range(len(self.features)) if order is None else order
        return torch.stack([adapt(self.views(i)) for i in order])

    @property
    def alone(self) -> torch.Tensor:
        """The learner's logits [image, view, class]."""
        return torch.stack([self.learner.compare(x, self.text) for x in self.features])


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def nats(p: np.ndarray) -> Any:
    return -(p * np.log(p)).sum(-1)


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def surest(logits: np.ndarray, selection: float) -> tuple[list[int], list[int]]:
    doubts = nats(softmax(logits))
    order = sorted(range(len(logits)), key=lambda i: doubts[i])
    n = int(len(order) * selection) or 1
    return order[:n], order[n:]


def plain_votes(logits: np.ndarray, selection: float) -> list[int]:
    voters, others = surest(logits, selection)
    predicted = [int(row.argmax()) for row in logits]
    counts = Counter(predicted[i] for i in voters)
    tied = sorted(label for label in counts if counts[label] == max(counts.values()))
    if len(tied) > 1:
        counts[next((predicted[i] for i in others if predicted[i] in tied), tied[0])] += 1
    return [counts[label] for label in range(logits.shape[1])]


def plain_mta(x: np.ndarray, logits: np.ndarray, lambda_y: float, lambda_q: float, rounds: int) -> np.ndarray:
    """The mode of the views."""
    x, p, n = unit(x), softmax(logits), len(x)
    squares = ((x[:, None] - x) ** 2).sum(-1)
    h2 = np.array([np.mean(sorted(np.delete(squares[i], i))[: int(0.3 * (n - 1)) or 1]) / 2 for i in range(n)])

    def kernel(mode: np.ndarray) -> np.ndarray:
        return np.exp(-((x - mode) ** 2).sum(-1) / 2 / h2)

    mode, y = x[0], np.full(n, 1 / n)
    for _ in range(rounds):
        density, change = kernel(mode), 1.0
        for _ in range(5):
            if change >= 1e-6:
                new = softmax((density + lambda_q * (p @ p.T) @ y) / lambda_y)
                change, y = float(np.linalg.norm(new - y)), new
        change = 1.0
        for _ in range(5):
            if change >= 1e-6:
                weights = y * kernel(mode)
                new = unit((weights[:, None] * x).sum(0) / weights.sum())
                change, mode = float(np.linalg.norm(new - mode)), new
    return mode


def plain_tda(x: np.ndarray, logits: np.ndarray, settings: dict[str, Any]) -> np.ndarray:
    """Logits of a stream of views [image, view, width]."""
    positive: dict[int, list[Any]] = {}
    negative: dict[int, list[Any]] = {}
    rows = []
    for features, of_views in zip(unit(x), logits, strict=True):
        chosen, _ = surest(of_views, settings["selection"])
        f, p, row = features[chosen].mean(0), softmax(of_views[chosen]).mean(0), of_views[chosen].mean(0)
        doubt, label = nats(p), int(row.argmax())
        doubtful = len(p) > 1 and settings["low"] < doubt / math.log2(len(p)) < settings["high"]
        for cache, shots, enters in ((positive, settings["shots"], True), (negative, settings["against"], doubtful)):
            if enters:
                cache[label] = sorted([*cache.get(label, []), (doubt, f, p)], key=lambda item: item[0])[:shots]
        row = row.copy()
        for of, items in positive.items():
            for _, key, _ in items:
                row[of] += settings["alpha"] * math.exp(-settings["beta"] * (1 - f @ key))
        for items in negative.values():
            for _, key, stored in items:
                mask = (stored > settings["least"]) & (stored < settings["most"])
                row -= settings["a"] * math.exp(-settings["b"] * (1 - f @ key)) * mask
        rows.append(row)
    return np.array(rows)


@pytest.mark.parametrize("selection", [0.1, 0.3, 0.55, 1.0])
@pytest.mark.parametrize("size", SIZES[1:])
def test_zero_is_a_vote_of_the_surest_views(clip: Clip, size: tuple[int, ...], selection: float) -> None:
    world = World(clip, *size)
    ours = world.run(Zero(selection=selection))
    for logits, of_views in zip(ours, world.alone, strict=True):
        counts = plain_votes(of_views.numpy(), selection)
        assert votes(of_views, selection).tolist() == counts
        assert int(logits.argmax()) == counts.index(max(counts))
        share = [(n + 1 / len(counts)) / (sum(counts) + 1) for n in counts]
        np.testing.assert_allclose(logits.exp().numpy(), share, rtol=1e-5)
        assert logits.dtype == torch.float32


def test_ties_of_zero() -> None:
    def view(label: int, sure: float) -> list[float]:
        return [sure if i == label else 0.0 for i in range(4)]

    def winner(*views: list[float]) -> int:
        counts = votes(torch.tensor(views), 0.5)
        assert counts.sum() == len(views) // 2 + 1
        return int(counts.argmax())

    tie = [view(3, 9), view(1, 8)]
    assert winner(*tie, view(3, 5), view(1, 4)) == 3  # the surest view left out
    assert winner(*tie, view(3, 4), view(1, 5)) == 1
    assert winner(view(3, 4), tie[0], view(1, 5), tie[1]) == 1  # wherever it stands
    assert winner(*tie, view(0, 5), view(3, 4)) == 3  # the surest of a tied class
    assert winner(*tie, view(0, 5), view(2, 4)) == 1  # none: the first class of the tie
    assert int(votes(torch.tensor(tie), 1.0).argmax()) == 1  # no view is left out


@pytest.mark.parametrize("kind", [Zero, MTA, TDA])
def test_with_one_view_it_is_the_learner(clip: Clip, kind: type[Adaptation]) -> None:
    off = {"positive_alpha": 0.0, "negative_alpha": 0.0} if kind is TDA else {}
    for c in (1, 2, 5):
        world = World(clip, 6, 1, c, 4)
        assert torch.equal(world.run(kind(views=1, **off)), world.alone[:, 0])


@pytest.mark.parametrize(
    ("size", "settings"),
    [
        ((3, 2, 4, 3), (0.2, 4.0, 5)),
        ((3, 7, 9, 11), (0.5, 1.0, 3)),
        ((3, 24, 5, 6), (0.05, 0.0, 1)),
        ((3, 19, 2, 16), (3.0, 10.0, 7)),
    ],
)
def test_mta_is_the_plain_version(clip: Clip, size: tuple[int, ...], settings: tuple[float, float, int]) -> None:
    world = World(clip, *size)
    lambda_y, lambda_q, rounds = settings
    ours = world.run(MTA(lambda_y=lambda_y, lambda_q=lambda_q, iterations=rounds))
    for i, logits in enumerate(ours):
        mode = plain_mta(world.features[i].numpy(), world.alone[i].numpy(), *settings)
        expected = 10 * unit(world.text.numpy()) @ mode
        np.testing.assert_allclose(logits.numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_mta_of_views_that_are_the_same(clip: Clip, dtype: torch.dtype) -> None:
    world = World(clip, 3, 8, 4, 6)
    world.text, world.features = world.text.to(dtype), world.features.to(dtype)
    world.features[0] = world.features[0, :1]  # one direction
    world.features[1, 4:] = world.features[1, :4]  # pairs
    world.features[2] = torch.eye(6, dtype=dtype)[[0, 1, 1, 1, 1, 1, 1, 1]]  # all but the first
    for lambda_y in (0.2, 1e-3):
        logits = world.run(MTA(lambda_y=lambda_y))
        assert logits.isfinite().all()
        torch.testing.assert_close(logits[0], world.alone[0, 0], atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", EPISODIC)
def test_images_by_themselves_do_not_depend_on_their_order(clip: Clip, kind: type[Adaptation]) -> None:
    world, order = World(clip, 9, 12, 5, 8), [4, 0, 8, 3, 1, 7, 2, 6, 5]
    assert torch.equal(world.run(kind(views=12), order), world.run(kind(views=12))[order])


STREAMS = [
    {},
    {"positive_shots": 1, "positive_alpha": 5.0, "positive_beta": 0.5, "negative_shots": 4, "negative_alpha": 3.0,
     "negative_beta": 7.0, "entropy_range": [0.0, 0.9], "mask_range": [0.2, 0.6]},
    {"positive_alpha": 0.0, "negative_shots": 1, "entropy_range": (0.1, 1.0), "mask_range": (0.0, 0.3)},
    {"negative_alpha": 0.0, "positive_shots": 5, "selection": 0.5},
]  # fmt: skip


@pytest.mark.parametrize("settings", STREAMS)
@pytest.mark.parametrize("size", [*SIZES, (25, 1, 5, 8), (6, 3, 1, 4)])
def test_tda_is_the_plain_version_of_any_stream(clip: Clip, size: tuple[int, ...], settings: dict[str, Any]) -> None:
    world, tda = World(clip, *size), TDA(views=size[1], **settings)
    order = torch.randperm(size[0], generator=torch.Generator().manual_seed(1)).tolist()
    shots, alpha, beta = tda.positive
    against, a, b = tda.negative
    (low, high), (least, most) = tda.entropy_range, tda.mask_range
    plain = {"selection": tda.selection, "shots": shots, "alpha": alpha, "beta": beta, "against": against, "a": a,
             "b": b, "low": low, "high": high, "least": least, "most": most}  # fmt: skip
    for stream in (order[::-1], order):  # the caches are those of one stream
        expected = plain_tda(world.features[stream].numpy(), world.alone[stream].numpy(), plain)
        np.testing.assert_allclose(world.run(tda, stream).numpy(), expected, atol=1e-9)
    if size[0] > 20 and alpha and size[1] == 1:
        assert not torch.equal(world.run(tda, order[::-1]).flip(0), world.run(tda, order))


def test_of_equally_sure_images_the_first_stay_in_the_cache(clip: Clip) -> None:
    world = World(clip, 4, 1, 2, 6)
    world.features[:] = world.features[:1]
    adapt = TDA(views=1, positive_shots=2).start(world.learner, world.text)
    for i, n in enumerate((1, 2, 2, 2)):
        adapt(world.views(i))
        assert int(adapt.positive.entropy.isfinite().sum()) == n  # type: ignore[attr-defined]


def test_what_is_refused_is_told_of_the_learner_and_the_method(single: tuple[Clip, torch.nn.Module]) -> None:
    small, _ = single
    whole = [MMRL(small, names(3), space=20, first_layer=1)]
    refused = {MTA: [*whole, LinearProbe(small, names(3)), DePT(small, names(3))], TDA: whole, Zero: []}
    fine = [kind(small, names(3)) for kind in (CoCoOp, TipAdapter, CLIPAdapter, ZeroShot)]
    state = torch.get_rng_state()
    for kind, learners in refused.items():
        for learner in learners:
            with pytest.raises(UserError, match=f"test_time={kind.name} .* {type(learner).__name__}"):
                kind().check(learner)
        for learner in [*fine, *(learner for learner in refused[MTA] if learner not in learners)]:
            kind().check(learner)
    assert torch.equal(torch.get_rng_state(), state)  # the training draws what it would


@pytest.mark.parametrize("kind", [kind for kind in ADAPTATIONS.values() if not kind.takes_gradients])
def test_the_learner_stays_as_it_is(kind: type[Adaptation], single: tuple[Clip, torch.nn.Module]) -> None:
    clip, model = single
    learner = TipAdapter(clip, names(3))
    learner.prepare([(Images(tiny.pixels(model, 3)), torch.arange(3))], None)
    learner.eval().bind(names(3)[::-1], rows=[2, 1, 0])
    adaptation, text = kind(views=4), learner.encode_classes()
    before = {name: tensor.clone() for name, tensor in learner.state_dict().items()} | {"text": text.clone()}
    with torch.set_grad_enabled(adaptation.takes_gradients):
        views = views_of(learner, Images(tiny.pixels(model, 4)), text, adaptation)
        given = None if views.logits is None else views.logits.clone()
        logits = adaptation.start(learner, text)(views)
    assert logits.shape == (3,)
    assert logits.isfinite().all()
    assert given is None or torch.equal(given, views.logits)
    assert all(torch.equal(before[name], tensor) for name, tensor in {**learner.state_dict(), "text": text}.items())


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (Zero, {"views": 0}),
        (Zero, {"selection": 0.0}),
        (TDA, {"selection": 1.5}),
        (MTA, {"lambda_y": 0.0}),
        (MTA, {"lambda_q": -1.0}),
        (MTA, {"iterations": 0}),
        (TDA, {"positive_shots": 0}),
        (TDA, {"entropy_range": [0.2]}),
        (TDA, {"mask_range": [0.1, 0.2, 0.3]}),
    ],
)
def test_settings_out_of_range(kind: type[Adaptation], settings: dict[str, Any]) -> None:
    (name,) = settings
    with pytest.raises(UserError, match=name):
        kind(**settings)


@pytest.mark.parametrize("name", ["zero", "mta", "tda"])
def test_settings_that_ship_are_the_defaults(name: str) -> None:
    shipped = yaml.safe_load((CONF / f"{name}.yaml").read_text(encoding="utf-8"))
    arguments = signature(ADAPTATIONS[shipped.pop("name")]).parameters
    defaults = {key: list(p.default) if isinstance(p.default, tuple) else p.default for key, p in arguments.items()}
    assert shipped == defaults


@pytest.mark.parametrize("kind", [Zero, MTA, TDA])
def test_half_precision_is_adapted_in_float32(kind: type[Adaptation], clip: Clip) -> None:
    world = World(clip, 4, 10, 3, 8)
    adapt = kind(views=10).start(world.learner, world.text.float())
    exact = kind(views=10).start(world.learner, world.text.float())
    for i in range(4):
        views = world.views(i)
        logits, features = views.logits.float(), views.features.bfloat16()
        with torch.autocast("cpu", torch.bfloat16):
            half = adapt(ImageViews(views.images, logits, features))
        assert half.dtype == torch.float32
        torch.testing.assert_close(half, exact(ImageViews(views.images, logits, features.float())))
