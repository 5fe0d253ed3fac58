"""`vlprompt check-learner`: what breaks the contract is named, by check, and what keeps it passes."""

import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from running import ask
from torch import nn

from vlprompt import cli
from vlprompt.learners import checks
from vlprompt.learners.base import Learner
from vlprompt.learners.checks import Candidate, run_checks
from vlprompt.learners.coop import CoOp
from vlprompt.learners.taskres import TaskRes
from vlprompt.learners.vpt import VPT
from vlprompt.towers import Clip, Edit


class WrongShape(Learner):
    def compare(self, features: Any, class_features: Any) -> Any:
        return super().compare(features, class_features)[:, :2]


class LossAlone(CoOp):
    def loss(self, images: Any, labels: Any) -> Any:
        return super().loss(images, labels)[0]


class Unused(CoOp):
    def __init__(self, clip: Clip, classes: Any, **settings: Any) -> None:
        super().__init__(clip, classes, **settings)
        self.more = nn.Parameter(torch.zeros(3))


class Half(CoOp):
    def param_groups(self, fit: Any) -> Any:
        return []


class Rising(CoOp):
    def backward(self, images: Any, labels: Any) -> Any:
        result = super().backward(images, labels)
        self.context.grad.neg_()
        return result


class Touching(CoOp):
    def backward(self, images: Any, labels: Any) -> Any:
        next(self.clip.weights.root.parameters()).data += 0.1
        return super().backward(images, labels)


class Unbound(TaskRes):
    class_bound = False


class Forgetful(CoOp):
    def bind(self, classes: Any, rows: Any = None) -> None:
        self.classes, self.rows = tuple(classes), rows
        self.forget()


class InAList(CoOp):
    def __init__(self, clip: Clip, classes: Any, **settings: Any) -> None:
        super().__init__(clip, classes, **settings)
        self.hidden = [torch.randn(self.context.shape)]

    def encode_classes(self) -> Any:
        return self.text(self.prompts.with_context(self.context + self.hidden[0]))


class Undeclared(VPT):
    edits_image = False


class Declared(CoOp):
    edits_image = True


class NeedsBlocks(CoOp):
    needs = frozenset({"text", "vit"})


class Mergeable(CoOp):
    mergeable = True


class NotNeutral(VPT):
    neutral_settings = Learner.neutral_settings


class Prefixed(Learner):
    """Keeps the contract, with everything that a stranger has to declare."""

    edits_image = True
    neutral_settings = None
    needs = frozenset({"text", "vit"})

    def __init__(self, clip: Clip, classes: Any, *, n: int = 2) -> None:
        super().__init__(clip, classes)
        self.tokens = nn.Parameter(torch.randn(n, clip.image.width) * 0.02)

    def encode_images(self, images: Any) -> Any:
        return self.clip.image(images, {0: Edit(tokens=self.tokens)})


BROKEN: dict[type[Learner], tuple[str, str]] = {
    WrongShape: ("logits are", ""),
    LossAlone: ("loss and backward", ""),
    Unused: ("every parameter", "more"),
    Half: ("param_groups", "every parameter once"),
    Rising: ("param_groups", "does not fall"),
    Touching: ("param_groups", "changes the model"),
    Unbound: ("other classes", ""),
    Forgetful: ("binding the same", "changes"),
    InAList: ("state_dict", "other logits"),
    Undeclared: ("cached image features", "edits_image"),
    Declared: ("cached image features", "edits_image"),
    NeedsBlocks: ("a ResNet", "edits_image"),
    Mergeable: ("zero-shot on the merged", "merged()"),
    NotNeutral: ("neutral()", "zero-shot"),
}
"""By class: the check that fails, as it begins, and a word of what it says."""


def problems(kind: type[Learner], **settings: Any) -> dict[str, str]:
    candidate = Candidate(kind, settings, tiny.clip("vit", torch.float32)[0], tiny.clip("resnet", torch.float32)[0])
    return {name: problem for name, problem in run_checks(candidate) if problem}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", BROKEN)
def test_what_breaks_the_contract_is_named(kind: type[Learner], monkeypatch: pytest.MonkeyPatch) -> None:
    start, word = BROKEN[kind]
    named = tuple(check for check in checks.CHECKS if str(check.__doc__).startswith(start))
    monkeypatch.setattr(checks, "CHECKS", named)
    before = torch.random.get_rng_state()
    told = [problem for name, problem in problems(kind).items() if name.startswith(start)]
    assert told
    assert word in told[0]
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_learner_of_ones_own_passes(capsys: pytest.CaptureFixture[str]) -> None:
    assert problems(Prefixed, n=3) == {}


def check(*arguments: str) -> Any:
    return ask(lambda given: cli.main(given), ["check-learner", *arguments])


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = Path(__file__).stem
    monkeypatch.setitem(sys.modules, module, sys.modules[__name__])
    good = check(f"{module}.Prefixed", "n=3")
    assert (good.code, good.err, "failed " in good.out) == (0, "", False)
    bad = check(f"{module}.Undeclared", "n_tokens=2")
    assert (bad.code, bad.err, "edits_image" in bad.out) == (1, "", True)
    for wrong, word in (
        (["no_such.module.X"], "no_such.module.X"),
        ([f"{module}.tiny"], "Learner"),
        ([f"{module}.Prefixed", "m=3"], "'m'"),
        ([f"{module}.Prefixed", "n=x"], "n is 'x'"),
        (["vlprompt.learners.vpt.VPT", "depth=40"], "depth"),
    ):
        answer = check(*wrong)
        assert (answer.code, answer.out) == (2, ""), answer
        assert word in answer.err
