"""A training that was stopped and resumed is the one that nobody disturbed, bit for bit."""

import random
import signal
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import tiny_world
import torch
from torch import Tensor

from vlprompt.config.schema import Average, Fit, Schedule
from vlprompt.data.cache.features import FeatureCache
from vlprompt.data.loader import Loader
from vlprompt.data.sampling import sample_few_shot
from vlprompt.learners.base import Learner
from vlprompt.learners.clip_adapter import CLIPAdapter
from vlprompt.learners.coop import CoOp
from vlprompt.learners.dylora import DyLoRA
from vlprompt.learners.linear_head import LinearHead
from vlprompt.learners.lora import LoRA
from vlprompt.learners.maple import MaPLe
from vlprompt.learners.promptsrc import PromptSRC
from vlprompt.learners.tip_adapter import TipAdapter
from vlprompt.learners.vpt import VPT
from vlprompt.protocols.base import Episode
from vlprompt.protocols.few_shot import FewShot
from vlprompt.results.store import open_run
from vlprompt.train import Epoch, Meter, train
from vlprompt.training.progress import Reporter
from vlprompt.training.state import State
from vlprompt.training.stops import Stopped, heard

STEPS = 12  # of a tiny training: four epochs of ten images


def fit(**settings: Any) -> Fit:
    return Fit(lr=0.01, epochs=4, batch_size=3, schedule=Schedule(warmup="none", every="step"), **settings)


@dataclass(frozen=True)
class Case:
    kind: type[Learner]
    settings: dict[str, Any] = field(default_factory=dict)
    fit: Fit = field(default_factory=fit)
    n_views: int | None = None


AVERAGE = Average(mu=3, sigma=1)
CASES = {
    "coop": Case(CoOp, {"ctx_init": "", "n_context": 2}, fit(drop_last=False)),
    "lora": Case(LoRA, {"rank": 2, "dropout": 0.3}, fit(optimizer="adamw")),
    "dylora": Case(DyLoRA, {"rank": 4, "dropout": 0.3}),
    "promptsrc": Case(PromptSRC, {"depth": 2, "image_depth": 2}, fit(average=AVERAGE)),
    "maple": Case(MaPLe, {"depth": 2}, fit(momentum=0.0)),
    "vpt": Case(VPT, {"depth": 2}),
    "clip_adapter": Case(CLIPAdapter, {}, fit(keep="best", optimizer="adam"), n_views=3),
    "tip_adapter_f": Case(TipAdapter, {"finetune": True, "search_scale": [2.0, 2.0], "search_steps": [3, 2]}),
    "linear_head": Case(LinearHead, {}, fit(keep="best")),
}


@pytest.fixture(scope="module")
def episode() -> Episode:
    dataset = tiny_world.load("tiny")
    return FewShot().episode(dataset, sample_few_shot(dataset, shots=2, seed=1))


Trained = tuple[dict[str, Tensor], list[Epoch]]


def trained(case: Case, episode: Episode, folder: Path | None = None, *, minutes: float = 99.0) -> Trained:
    """A training as in a process of its own: nothing in memory, and random numbers that are anywhere."""
    clip = tiny.clip("vit", torch.float32)[0]
    torch.manual_seed(0)
    learner = case.kind(clip, episode.train.classes, **case.settings)
    for module in (torch.manual_seed, random.seed, np.random.seed):
        module(int.from_bytes(random.SystemRandom().randbytes(3), "big"))
    features = None if learner.edits_image else FeatureCache(clip, precision="fp32", workers=0)
    loader = Loader(clip, features, n_views=case.n_views)
    with ExitStack() as held:
        state = State()
        if folder:
            held.enter_context(heard())
            state = State(held.enter_context(open_run(folder)), run_hash="a", minutes=minutes)
            held.enter_context(state)
        curve = train(learner, episode, loader, case.fit, precision="fp32", reporter=Reporter(quiet=True), state=state)
    return {name: tensor.clone() for name, tensor in learner.state_dict().items()}, curve


def same(one: Trained, other: Trained) -> bool:
    tensors = zip(one[0].items(), other[0].items(), strict=True)
    return one[1] == other[1] and all(a == b and x.dtype == y.dtype and torch.equal(x, y) for (a, x), (b, y) in tensors)


@pytest.fixture
def stopping(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Signals in the middle of steps, counted from 1, of all trainings of a test together."""
    update, taken = Meter.update, iter(range(1, 10**6))

    def stop(steps: Sequence[int], sent: signal.Signals = signal.SIGTERM) -> None:
        def stopped(*arguments: Any) -> None:
            if next(taken) in steps:
                signal.raise_signal(sent)
            update(*arguments)

        monkeypatch.setattr(Meter, "update", stopped)

    return stop


@pytest.mark.parametrize("name", CASES)
def test_stopped_anywhere_it_ends_as_if_undisturbed(
    name: str, episode: Episode, tmp_path: Path, stopping: Callable[..., None]
) -> None:
    case, undisturbed = CASES[name], trained(CASES[name], episode)
    steps = 4 * (10 // 3 if case.fit.drop_last else 4)
    moments = sorted(random.Random(name).sample(range(1, steps), 2))  # no step is taken twice, so these are its steps
    stopping(moments, random.Random(name).choice([signal.SIGTERM, signal.SIGINT, signal.SIGUSR1]))
    for moment in moments:
        with pytest.raises(Stopped, match=f"step {moment} of {steps} of .* is kept"):
            trained(case, episode, tmp_path / "run")
    assert same(trained(case, episode, tmp_path / "run"), undisturbed)
