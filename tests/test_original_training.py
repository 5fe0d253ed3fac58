"""DyLoRA, P-tuning and intrinsic dimension against the public originals: losses, gradients, steps and logits.

The numbers are in fixtures/originals, each method's README says what ran.
"""

import json
import sys
from pathlib import Path
from typing import Any

import open_clip
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from vlprompt.learners.base import Learner
from vlprompt.learners.dylora import DyLoRA
from vlprompt.learners.intrinsic_dimension import IntrinsicDimension
from vlprompt.learners.p_tuning import PTuning
from vlprompt.towers import Clip, Images, Preprocess
from vlprompt.towers.loading import clip_of

ORIGINALS = Path(__file__).parent / "fixtures" / "originals"
sys.path.insert(0, str(ORIGINALS))
import recording  # noqa: E402

BOUND = 1e-4  # relative, of each tensor; float32 differs by up to 4e-5


def runs(method: str) -> dict[str, Any]:
    return json.loads((ORIGINALS / method / "cases.json").read_text())


def cases(method: str, *quick: str) -> list[Any]:
    """The runs of a method; all but the quick ones with -m slow."""
    names = list(runs(method))
    assert set(quick) <= set(names)
    return [pytest.param(name, marks=() if name in quick else pytest.mark.slow) for name in names]


def expected(method: str, run: str) -> dict[str, Tensor]:
    tensors = safetensors.torch.load_file(ORIGINALS / method / "cases.safetensors")
    return {name.removeprefix(f"{run}."): t for name, t in tensors.items() if name.startswith(f"{run}.")}


@pytest.fixture(scope="module")
def clip() -> Clip:
    preprocess = Preprocess(size=32)
    return clip_of(recording.tiny_model(), name="tiny", preprocess=preprocess, tokenizer=open_clip.SimpleTokenizer())


def compare(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    """Each tensor by its relative L2 difference; where the original's is zero, so is ours."""
    assert set(ours) == set(theirs)
    for name, t in theirs.items():
        assert (ours[name] - t).norm() <= BOUND * t.norm(), f"{name}: {(ours[name] - t).norm() / t.norm():.1e}"


def logits_of(learner: Learner) -> Tensor:
    return learner(Images(recording.images()), learner.encode_classes())


# DyLoRA


@pytest.mark.parametrize("run", cases("dylora", "published", "odd"))
def test_dylora_is_the_authors(clip: Clip, run: str) -> None:
    settings = runs("dylora")[run]
    ranks = settings.pop("ranks")
    learner = DyLoRA(clip, recording.CLASSES, **settings)
    parameters: dict[str, nn.Parameter] = {}
    for (tower, layer, site), update in learner.updates_by_site().items():
        for matrix, p in (("a", update.a), ("b", update.b)):
            name = f"{tower}.{layer}.{site}.{matrix}"
            p.data, parameters[name] = 0.3 * recording.numbers(name, p.shape), p

    def before(step: int) -> None:
        learner.use_rank(ranks[-1])
        learner.train(step <= recording.STEPS)
        if learner.training:
            learner._activate(ranks[step - 1])

    compare(recording.train(lambda: logits_of(learner), parameters, lr=0.02, before=before), expected("dylora", run))


# P-tuning


def theirs_of(name: str) -> str:
    """The original's name of a parameter of `VirtualTokens`."""
    for ours, theirs in {
        "start": "embedding.weight",
        "encoder.lstm.": "lstm_head.",
        "encoder.mlp.": "mlp_head.",
        "encoder.": "mlp_head.",
    }.items():
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    raise AssertionError(name)


@pytest.mark.parametrize("run", cases("p_tuning", "authors", "peft_lstm", "peft_mlp"))
def test_p_tuning_s_encoders_are_the_authors_and_peft_s(clip: Clip, run: str) -> None:
    settings = runs("p_tuning")[run]
    del settings["by"]
    learner, theirs = PTuning(clip, recording.CLASSES, **settings), expected("p_tuning", run)
    encoder = learner.tokens["text"]
    parameters = {theirs_of(name): p for name, p in encoder.named_parameters()}
    for name, p in parameters.items():
        p.data = (0.3 if "embedding" in name else 0.6) * recording.numbers(name, p.shape)
    with torch.no_grad():
        tokens = encoder().clone()
    compare({"tokens": tokens, **recording.train(lambda: logits_of(learner), parameters, lr=0.01)}, theirs)
    learner.drop_encoders()
    compare({"logits": logits_of(learner)}, {"logits": theirs["logits"]})


# Intrinsic dimension


class Part(IntrinsicDimension):
    """Of some tensors alone."""

    parts: tuple[str, ...] = ()

    def frozen(self, tower: Any) -> dict[str, Tensor]:
        frozen = super().frozen(tower)
        return {name: t for name, t in frozen.items() if any(part in name for part in self.parts)}


def intrinsic(clip: Clip, run: str) -> tuple[Part, list[int]]:
    """The learner with the original's projections and start, and the indices of its scales among the original's."""
    settings = runs("intrinsic_dimension")[run]
    Part.parts = tuple(settings["parts"])
    names = [name for name, _ in clip.weights.root.named_parameters() if any(p in name for p in Part.parts)]
    m = len(names) if settings["projection"] == "said" else 0
    about = {"projection": settings["projection"], "dimension": settings["d"] + m, "scales": "tensor"}
    learner, drawn, at = Part(clip, recording.CLASSES, **about), expected("intrinsic_dimension", "drawn"), 0
    modules = {n: p for t in learner.towers for n, p in zip(learner.frozen(t), learner.projections[t], strict=True)}
    for p in map(modules.__getitem__, names):
        span, at = slice(at, at + p.n), at + p.n
        p.signs, p.order, gains = drawn["BB"][span][None], drawn["Pi"][span][None], drawn["GG"][span]
        p.gains = (gains / gains.norm() * p.gains.norm())[None]
    assert at == len(drawn["BB"])
    learner.theta.data = 0.5 * recording.numbers("theta", learner.theta.shape)
    order = [names.index(name) for name in learner.scale_of]  # ours are by tower
    if learner.scales is not None:
        learner.scales.data += 0.5 * recording.numbers("scales", learner.scales.shape)[order]
    return learner, order


@pytest.mark.parametrize("run", cases("intrinsic_dimension", "did_large", "said"))
def test_intrinsic_dimension_of_each_tensor_is_the_public_codes(clip: Clip, run: str) -> None:
    learner, order = intrinsic(clip, run)
    theirs = expected("intrinsic_dimension", run)
    theirs = {name: t[order] if name.endswith("scales") else t for name, t in theirs.items()}
    theirs.pop("published_gradient.theta", None)
    compare(recording.train(lambda: logits_of(learner), dict(learner.named_parameters()), lr=0.003), theirs)
