"""Arithmetics of a run, the scale of a loss in float16, and compiled steps."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import stand_in
import tiny
import tiny_world
import torch
from torch import Tensor

from vlprompt.config.schema import Fit, Schedule
from vlprompt.data.cache.features import FeatureCache
from vlprompt.data.loader import Loader
from vlprompt.data.sampling import sample_few_shot
from vlprompt.errors import NonFiniteError, UserError
from vlprompt.learners.base import Learner
from vlprompt.learners.coop import CoOp
from vlprompt.learners.prograd import ProGrad
from vlprompt.protocols.base import Episode
from vlprompt.protocols.few_shot import FewShot
from vlprompt.towers import Images
from vlprompt.towers.precision import autocast
from vlprompt.train import Epoch, train
from vlprompt.training.device import resolve_device
from vlprompt.training.precision import Scaler, resolve_precision
from vlprompt.training.progress import Reporter

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
FIT = Fit(epochs=2, lr=0.01, batch_size=5, schedule=Schedule(warmup="none"))


@pytest.fixture
def loader() -> Loader:
    clip, _ = tiny.clip("vit", torch.float32)
    return Loader(clip, FeatureCache(clip, precision="fp32", workers=0), n_views=1)


@pytest.fixture
def episode() -> Episode:
    dataset = tiny_world.load("tiny")
    return FewShot().episode(dataset, sample_few_shot(dataset, shots=2, seed=1))


def coop(loader: Loader, kind: Callable[..., Learner] = CoOp) -> Learner:
    torch.manual_seed(0)
    return kind(loader.clip, tiny_world.CLASSES, n_context=4)


def fitted(loader: Loader, episode: Episode, precision: str = "fp32", **more: Any) -> tuple[Learner, list[Epoch]]:
    learner = coop(loader)
    return learner, train(learner, episode, loader, FIT, precision=precision, reporter=Reporter(), **more)


def losses(curve: list[Epoch]) -> list[float]:
    return [line.loss for line in curve]


def test_a_training_in_half_precision_is_close(loader: Loader, episode: Episode) -> None:
    exact = losses(fitted(loader, episode)[1])
    for precision in ("bf16", "fp16"):
        learner, curve = fitted(loader, episode, precision)
        assert losses(curve) == pytest.approx(exact, abs=0.05)
        assert losses(curve) != exact
        assert {p.dtype for p in learner.parameters()} == {torch.float32}
        assert learner.scale_loss is None  # whoever trains on does so without


@pytest.mark.parametrize("kind", [CoOp, partial(ProGrad, init="random")])
def test_scaled_gradients_are_those_of_the_loss(loader: Loader, kind: Callable[..., Learner]) -> None:
    batch = Images(features=torch.randn(5, loader.clip.image.embed_dim)), torch.arange(5)
    gradients = []
    for precision in ("fp32", "fp16"):  # without autocast, so that the scale alone differs
        learner = coop(loader, kind)
        scaler, optimizer = Scaler(learner, precision), torch.optim.SGD(learner.parameters(), lr=1)
        scaler.backward(*batch)
        scaled = [p.grad.clone() for p in learner.parameters() if p.grad is not None]
        assert scaler.unscale(optimizer)
        gradients.append([p.grad for p in learner.parameters()])
    assert scaled[0].norm() > 1000 * gradients[0][0].norm()
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-8)


class ItsOwn(CoOp):
    """A method that knows no scale."""

    def backward(self, images: Images, labels: Tensor) -> tuple[Tensor, Tensor]:
        loss, logits = self.loss(images, labels)
        loss.backward()
        return loss.detach(), logits.detach()


def test_gradients_that_nobody_scaled_stay(loader: Loader) -> None:
    learner = coop(loader, ItsOwn)
    scaler, optimizer = Scaler(learner, "fp16"), torch.optim.SGD(learner.parameters(), lr=1)
    scaler.backward(Images(features=torch.randn(5, loader.clip.image.embed_dim)), torch.arange(5))
    (before,) = [p.grad.clone() for p in learner.parameters() if p.grad is not None]
    assert scaler.unscale(optimizer)
    assert torch.equal(next(learner.parameters()).grad, before)


class Overflowing(CoOp):
    """A method whose gradients are too large for float16 while the scale is above a limit."""

    limit = 20_000.0

    def backward(self, images: Images, labels: Tensor) -> tuple[Tensor, Tensor]:
        loss, logits = super().backward(images, labels)
        assert self.scale_loss is not None
        if self.scale_loss(torch.ones(())) > self.limit:
            next(self.parameters()).grad.fill_(float("inf"))
        return loss, logits


def test_a_step_that_overflows_is_left_out(loader: Loader, episode: Episode) -> None:
    """65536 and 32768 overflow, 16384 does not."""
    learner = coop(loader, Overflowing)
    scaler, optimizer = Scaler(learner, "fp16"), torch.optim.SGD(learner.parameters(), lr=0.1)
    taken = []
    for _ in range(4):
        optimizer.zero_grad()
        scaler.backward(Images(features=torch.randn(5, loader.clip.image.embed_dim)), torch.arange(5))
        taken.append(scaler.unscale(optimizer))
    assert taken == [False, False, True, True]
    again = Scaler(learner, "fp16")
    again.load_state_dict(scaler.state_dict())  # of a run that is resumed
    assert (again.left_out, again.get_scale()) == (scaler.left_out, scaler.get_scale()) == (2, 16384)
    assert next(learner.parameters()).grad.isfinite().all()
    learner, learner.limit = coop(loader, Overflowing), 0.0  # at any scale: that is no overflow of the scale's
    short = FIT.model_copy(update={"epochs": 20})
    with pytest.raises(NonFiniteError, match="gradient of context"):
        train(learner, episode, loader, short, precision="fp16", reporter=Reporter())


def test_tf32_is_on_within_a_run_alone() -> None:
    def flags() -> tuple[str, bool]:
        return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32

    before = flags()
    with stand_in.cuda():
        for precision, wanted in {"tf32": ("high", True), "fp32": ("highest", False)}.items():
            with autocast(CUDA, precision):
                assert flags() == wanted
            with pytest.raises(KeyError), autocast(CUDA, precision):
                raise KeyError
            assert flags() == before
    with autocast(CPU, "fp32"):
        assert flags() == before


def test_a_precision_that_the_device_has() -> None:
    by_device = {name: resolve_precision("auto", torch.device(name)) for name in ("cpu", "cuda", "mps")}
    assert by_device == {"cpu": "fp32", "cuda": "bf16", "mps": "fp32"}
    assert resolve_precision("tf32", CUDA) == "tf32"
    with pytest.raises(UserError, match=r"precision=tf32.*cpu.*fp32"):
        resolve_precision("tf32", CPU)
    with pytest.raises(UserError, match=r"fp12.*auto.*bf16.*fp16.*fp32.*tf32"):
        resolve_precision("fp12", CPU)


def test_an_apple_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"device=mps.*device=cpu"):
        resolve_device("mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert resolve_device("mps") == torch.device("mps")
    assert resolve_device("auto").type != "mps"


def test_what_cannot_be_compiled_runs_as_it_is(
    loader: Loader, episode: Episode, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def compile_(step: Any, **_: Any) -> Any:
        def breaks(*batch: Any) -> Any:
            step(*batch)  # after it left gradients
            raise RuntimeError("no compiler\nand a long trace")

        return breaks

    exact = losses(fitted(loader, episode)[1])
    capsys.readouterr()
    monkeypatch.setattr(torch, "compile", compile_)
    assert losses(fitted(loader, episode, compile=True)[1]) == exact
    told = [line for line in "".join(capsys.readouterr()).splitlines() if "compile" in line]
    assert len(told) == 1
    assert "no compiler" in told[0]
