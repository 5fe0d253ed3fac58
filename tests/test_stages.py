"""A training in stages: each has an optimiser and a schedule of its own, in one loop that resumes anywhere."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import test_stops
import torch
from test_stops import SCHEDULE, Case, fit, same, small_clip, trained
from torch import Tensor, nn

from vlprompt.config.schema import Average, Schedule
from vlprompt.data.cache.features import FeatureCache
from vlprompt.data.loader import Loader
from vlprompt.errors import UserError
from vlprompt.learners.base import Learner, scaled_cosine
from vlprompt.protocols.base import Episode
from vlprompt.training.optim import Stage, stage_of
from vlprompt.training.stops import Stopped

episode, stopping = test_stops.episode, test_stops.stopping
STEPS = 8  # two passes of ten images, three at a time


class Staged(Learner):
    """At first a shift of all class features, then it and each class's feature, from where the shift has brought it."""

    stages = (0.6, 0.4)

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.shift = nn.Parameter(torch.zeros(self.clip.image.embed_dim))
        self.weight = nn.Parameter(torch.zeros(len(self.classes), self.clip.image.embed_dim))
        self.register_buffer("stage", torch.tensor(0))

    def begin(self, stage: int) -> None:
        self.weight.copy_(self.encode_classes() * torch.rand(()))
        super().begin(stage)

    def encode_classes(self) -> Tensor:
        return (self.weight if self.stage else super().encode_classes()) + self.shift


class Late(Staged):
    """Whose first stage has no steps."""

    stages = (0.0, 1.0)


CASE = Case(Staged, {}, fit(optimizer="adamw", weight_decay=0.5, drop_last=False))


@pytest.mark.parametrize(("shares", "total", "expected"), [
    ((1.0,), 3, [(0, 0, 3)] * 3),
    ((0.6, 0.4), 5, [(0, 0, 3)] * 3 + [(1, 3, 2)] * 2),
    ((0.5, 0.5), 4, [(0, 0, 2)] * 2 + [(1, 2, 2)] * 2),
    ((0.0, 1.0), 2, [(1, 0, 2)] * 2),
    ((1.0, 0.0), 2, [(0, 0, 2)] * 2),
    ((0.1, 0.4, 0.5), 4, [(1, 0, 2)] * 2 + [(2, 2, 2)] * 2),
])  # fmt: skip
def test_stages_divide_the_steps(shares: tuple[float, ...], total: int, expected: list[tuple[int, int, int]]) -> None:
    assert [stage_of(step, shares, total) for step in range(total)] == [Stage(*stage) for stage in expected]


@pytest.mark.parametrize("kind", [Staged, Late])
@pytest.mark.parametrize("every", ["step", "epoch"])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_each_stage_has_an_optimiser_and_a_schedule_of_its_own(
    episode: Episode, monkeypatch: pytest.MonkeyPatch, kind: type[Staged], every: Any, optimizer: str
) -> None:
    """The same by hand: two loops, with torch's own schedules."""
    monkeypatch.setattr(torch, "rand", lambda *_: torch.tensor(0.7))
    settings = {"optimizer": optimizer, "weight_decay": 0.5, "drop_last": False}
    schedule = Schedule(every=every, warmup="none", floor=1e-6)
    tensors, _ = trained(Case(kind, {}, fit(**settings, schedule=schedule)), episode)
    clip = small_clip()
    learner = kind(clip, episode.train.classes)
    loader = Loader(clip, FeatureCache(clip, precision="fp32", workers=0))
    batches = list(loader.shuffled(episode.train, batch_size=3, per_epoch=4, total=STEPS))
    with torch.no_grad():
        text = clip.text(learner.prompts)
    shift, weight = torch.zeros_like(learner.shift, requires_grad=True), torch.zeros_like(learner.weight)
    first = int(STEPS * kind.stages[0])
    for stage, part in enumerate((batches[:first], batches[first:])):
        if stage:
            weight = ((text + shift) * 0.7).detach().requires_grad_() if first else (text * 0.7).requires_grad_()
            shift = shift.detach().requires_grad_()
        both = [shift, weight] if stage else [shift]
        made = (torch.optim.SGD(both, 0.01, 0.9, weight_decay=0.5) if optimizer == "sgd"
                else torch.optim.AdamW(both, 0.01, weight_decay=0.5))  # fmt: skip
        length = 1 if every == "step" else 4
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(made, max(-(-len(part) // length), 1), 1e-6)
        for i, (images, labels) in enumerate(part):
            made.zero_grad()
            logits = scaled_cosine(images.features, (weight if stage else text) + shift, clip.scale)
            nn.functional.cross_entropy(logits, labels).backward()
            made.step()
            if (i + 1) % length == 0:
                cosine.step()
    torch.testing.assert_close(tensors["shift"], shift.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(tensors["weight"], weight.detach(), rtol=1e-5, atol=1e-6)
    assert tensors["stage"] == 1


def test_stopped_in_each_stage_it_ends_as_if_undisturbed(
    episode: Episode, tmp_path: Path, stopping: Callable[..., None]
) -> None:
    undisturbed = trained(CASE, episode)
    moments = [2, 4, 5, 7]  # the second one is the end of the first stage
    stopping(moments)
    for moment in moments:
        with pytest.raises(Stopped, match=f"is kept at step {moment} of {STEPS},"):
            trained(CASE, episode, tmp_path / "run")
    assert same(trained(CASE, episode, tmp_path / "run"), undisturbed)


@pytest.mark.parametrize("choice", [{"keep": "best"}, {"average": Average(mu=1, sigma=1)}])
def test_epochs_of_several_stages_are_not_compared(episode: Episode, choice: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"Staged is trained in stages.*use fit\.keep=last"):
        trained(Case(Staged, {}, fit(schedule=SCHEDULE, **choice)), episode)
