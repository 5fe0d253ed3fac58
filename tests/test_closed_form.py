"""GDA and SS-Text against their formulas in NumPy and float64, and their special cases."""

from typing import Any

import numpy as np
import pytest
import tiny
import torch

from vlprompt.errors import UserError
from vlprompt.learners.gda import GDA
from vlprompt.learners.ss_text import SSText
from vlprompt.learners.zero_shot import ZeroShot
from vlprompt.towers import Clip, Images

CLASSES = ["cat", "striped red star", "a_very_long_name"]
NEW = ["okapi", "zebra"]
VIEWS, WIDTH = 3, 24


@pytest.fixture(scope="module")
def clip() -> Clip:
    return tiny.clip()[0]


class Views:
    """Features of the same images, others in each pass."""

    def __init__(self, passes: torch.Tensor, labels: torch.Tensor) -> None:
        self.passes, self.labels = iter(passes), labels

    def __iter__(self) -> Any:
        yield Images(features=next(self.passes)), self.labels


def world(counts: tuple[int, ...], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Features [view, image, width] around a centre for each class, and labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.tensor([label for label, n in enumerate(counts) for _ in range(n)])
    centres = torch.randn(len(counts), WIDTH, generator=generator, dtype=torch.float64)
    noise = torch.randn(VIEWS, len(labels), WIDTH, generator=generator, dtype=torch.float64)
    return centres[labels] + noise, labels


def unit(x: Any) -> np.ndarray:
    x = np.asarray(x)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def texts(clip: Clip, names: list[str]) -> np.ndarray:
    return unit(clip.text(clip.text.prompts(names, template="a photo of a {}.")).numpy())


def affine(mu: np.ndarray, inverse: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return mu @ inverse, np.log(1 / len(mu)) - np.einsum("cd,de,ce->c", mu, inverse, mu) / 2


def gda(clip: Clip, counts: tuple[int, ...] = (4, 2, 5), **settings: Any) -> tuple[GDA, np.ndarray, np.ndarray]:
    passes, labels = world(counts)
    learner = GDA(clip, CLASSES, n_views=VIEWS, **settings).double()
    learner.prepare(Views(passes, labels), None)
    return learner, unit(passes).reshape(-1, WIDTH), labels.repeat(VIEWS).numpy()


@pytest.mark.parametrize("covariance", ["pooled", "classes"])
def test_gda_against_its_formula(clip: Clip, covariance: str) -> None:
    learner, x, labels = gda(clip, covariance=covariance, n_nearest=5)
    mu = np.stack([x[labels == label].mean(0) for label in range(3)])
    if covariance == "pooled":
        s = np.cov((x - mu[labels]).T)
        inverse = WIDTH * np.linalg.pinv((len(x) - 1) * s + np.trace(s) * np.eye(WIDTH))
    else:
        inverse = np.linalg.pinv(np.mean([np.cov(x[labels == label].T) for label in range(3)], axis=0))
    weight, bias = affine(mu, inverse)
    np.testing.assert_allclose(learner.weight, weight, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(learner.bias, bias, rtol=1e-6)
    f = unit(world((2, 2, 2), seed=1)[0][0])
    learner.alpha.fill_(0.7)
    expected = clip.scale * f @ texts(clip, CLASSES).T + 0.7 * (f @ weight.T + bias)
    np.testing.assert_allclose(learner.compare(torch.tensor(f), learner.encode_classes()), expected, rtol=1e-6)


def test_gda_knows_new_classes_from_the_features_near_their_texts(clip: Clip) -> None:
    n, copies = 5, 2
    learner, x, _ = gda(clip, covariance="classes", n_nearest=n, n_copies=copies)
    learner.bind(NEW)
    mu, inverses = [], []
    for text in texts(clip, NEW):
        near = x[np.argsort(-x @ text)[:n]]
        mu.append(np.concatenate([near, np.tile(text, (copies, 1))]).mean(0))
        s = (near - text).T @ (near - text) / (n - 1)
        inverses.append(WIDTH * np.linalg.pinv((n - 1) * s + np.trace(s) * np.eye(WIDTH)))
    for ours, expected in zip(learner.from_texts(), affine(np.stack(mu), np.mean(inverses, axis=0)), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-6, atol=1e-6)
    again = GDA(clip, CLASSES, covariance="classes", n_nearest=n, n_copies=copies).double()
    again.load_state_dict(learner.state_dict())
    again.bind(NEW)
    f = world((2, 2))[0][0]
    assert torch.equal(again.compare(f, again.encode_classes()), learner.compare(f, learner.encode_classes()))


def test_gda_takes_the_first_of_the_best_alphas_and_is_zero_shot_with_none(clip: Clip) -> None:
    passes, labels = world((4, 2, 5))
    val, of_val = world((9, 9, 9), seed=0)[0][0], torch.arange(3).repeat_interleave(9)
    tried = [0.0, 1e-9, 1.0, 1e3, 1e4]
    right = {}
    for alphas in ([alpha] for alpha in tried):
        learner = GDA(clip, CLASSES, n_views=VIEWS, alphas=alphas).double()
        learner.prepare(Views(passes, labels), [(Images(features=val), of_val)])
        assert learner.alpha.item() == pytest.approx(alphas[0])
        logits = learner.compare(val, learner.encode_classes())
        right[alphas[0]] = int((logits.argmax(-1) == of_val).sum())
        if alphas == [0.0]:
            zero_shot = ZeroShot(clip, CLASSES)
            torch.testing.assert_close(logits, zero_shot.compare(val, zero_shot.encode_classes()))
    learner = GDA(clip, CLASSES, n_views=VIEWS, alphas=tried).double()
    learner.prepare(Views(passes, labels), [(Images(features=val), of_val)])
    assert learner.alpha.item() == pytest.approx(max(right, key=right.__getitem__))  # the first of equals
    assert len(set(right.values())) > 1
    learner.prepare(Views(passes, labels), [(Images(features=val), torch.full_like(of_val, 7))])
    assert learner.alpha.item() == pytest.approx(max(right, key=right.__getitem__))  # none is right: as before


def test_gda_refuses_what_has_no_covariance_or_mean(clip: Clip) -> None:
    with pytest.raises(UserError, match=r"needs a training image of each class.*a_very_long_name"):
        gda(clip, (3, 2, 0))
    with pytest.raises(UserError, match=r"alphas=\[-1\.0\]: allowed are at least 1, 2, 0 and 0"):
        gda(clip, alphas=[-1.0])
    with pytest.raises(UserError, match=r"n_nearest=64.*6 and 33"):
        gda(clip, covariance="classes")


@pytest.mark.parametrize("counts", [(4, 4, 4), (6, 1, 0)])
@pytest.mark.parametrize("penalty", ["shots", "uniform", "performance", 0.003, 2e-4])
@pytest.mark.parametrize("repel", [False, True])
def test_ss_text_against_its_formula(clip: Clip, counts: tuple[int, ...], penalty: Any, repel: bool) -> None:
    passes, labels = world(counts + (0,) * (3 - len(counts)))
    learner = SSText(clip, CLASSES, penalty=penalty, repel=repel).double()
    learner.prepare([(Images(features=passes[0]), labels)], None)
    x, t, n = unit(passes[0]), texts(clip, CLASSES), len(labels)
    z = np.exp(clip.scale * x @ t.T)
    z = z / z.sum(1, keepdims=True)
    mean = [z[labels.numpy() == label, label].mean() if counts[label] else np.nan for label in range(3)]
    penalties = {
        "shots": [1 / c if c else np.inf for c in counts], "uniform": [1 / n] * 3,
        "performance": np.where(np.isnan(mean), np.nanmean(mean), mean),
    }.get(penalty, [penalty] * 3)  # fmt: skip
    sums = np.stack([x[labels.numpy() == label].sum(0) for label in range(3)])
    w = t + clip.scale / (n * np.maximum(penalties, 1e-3))[:, None] * sums
    w = w - unit(2 * w - w.mean(0)) if repel else w
    np.testing.assert_allclose(learner.weight, w, rtol=1e-7, atol=1e-9)
    if not counts[2] and not repel:
        np.testing.assert_allclose(learner.encode_classes()[2], t[2], atol=1e-12)  # its text
