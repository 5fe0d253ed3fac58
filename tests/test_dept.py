"""DePT: what it is next to its inner learner, which inner learners there are, and what it knows of classes."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import torch.nn.functional as F

from vlprompt.config.allowed import METHODS, check_names, named_by
from vlprompt.config.locate import locate
from vlprompt.config.schema import Fit, Schedule
from vlprompt.errors import UserError
from vlprompt.learners.base import Learner
from vlprompt.learners.coop import CoOp
from vlprompt.learners.dept import DePT
from vlprompt.learners.inner import INNER
from vlprompt.towers import Clip, Images
from vlprompt.training.optim import make_optimizer, set_learning_rate

CLASSES = ("cat", "golden retriever", "star")
LABELS = torch.tensor([2, 0, 1, 1])
SMALL: dict[str, dict[str, Any]] = {
    "coop": {"n_context": 4},
    "cocoop": {"reduction": 4},
    "maple": {"depth": 2},
    "ivlp": {"depth": 2, "image_depth": 2},
    "promptsrc": {"depth": 2, "image_depth": 1, "templates": "openai_7"},
    "tcp": {"layer": 1},
}
FIT = Fit(lr=0.01, steps=3, schedule=Schedule(shape="constant", warmup="none"))


class Mine(CoOp):
    """A user's own."""


@cache
def clip() -> Clip:
    return tiny.clip("vit", torch.float32)[0]


@cache
def images() -> Images:
    return Images(tiny.pixels(clip().weights.root, len(LABELS)))


def built(inner: str, **settings: Any) -> DePT:
    torch.manual_seed(0)
    return DePT(clip(), CLASSES, inner=inner, arguments=SMALL.get(inner), **settings)


def trained(learner: Learner) -> list[torch.Tensor]:
    """The inner learner's parameters after three steps, and the logits then."""
    optimizer = make_optimizer(learner, FIT)
    for _ in range(3):
        optimizer.zero_grad()
        learner.backward(images(), LABELS)
        optimizer.step()
    parameters = getattr(learner, "inner", learner).parameters()
    return [*(p.detach() for p in parameters), learner.logits(images(), learner.encode_classes()).detach()]


@pytest.mark.parametrize("inner", [pytest.param(name, marks=[pytest.mark.slow] * (name in ("tcp", "ivlp", "maple")))
                                   for name in INNER])  # fmt: skip
def test_without_weight_it_is_its_inner_learner_bit_for_bit(inner: str) -> None:
    torch.manual_seed(0)
    alone = trained(INNER[inner](clip(), CLASSES, **SMALL.get(inner, {})))
    assert all(map(torch.equal, trained(built(inner, weight=0.0)), alone))
    assert not all(map(torch.equal, trained(built(inner)), alone))


@pytest.mark.parametrize("inner", ["cocoop", "promptsrc"])
def test_loss_is_the_mixture_and_what_the_inner_learner_adds(inner: str) -> None:
    learner = built(inner, weight=0.3)
    inside, _ = learner.inner.loss(images(), LABELS)
    features = learner.encode_images(images())
    cosines = learner.inner.compare(features, learner.encode_classes())
    of_classes = learner.classes_for(features, learner.encode_classes())
    assert of_classes is not None
    text = torch.stack([of_classes[min(i, len(of_classes) - 1), label] for i, label in enumerate(LABELS)])
    with torch.no_grad():
        learner.text_channels.bias.fill_(0.1)
        learner.image_channels.weight.fill_(0.9)
    rows = torch.cat([text + 0.1, 0.9 * features])
    head = rows @ learner.linear.weight.T + learner.linear.bias
    ce, ce_head = F.cross_entropy(cosines, LABELS), F.cross_entropy(head, LABELS.repeat(2))
    loss, logits = learner.loss(images(), LABELS)
    torch.testing.assert_close(loss, inside - ce + 0.7 * ce + 0.3 * ce_head)
    torch.testing.assert_close(logits, 0.7 * cosines + 0.3 * head[len(LABELS) :])


def test_a_step_computes_features_once(monkeypatch: pytest.MonkeyPatch) -> None:
    learner, calls = built("kgcoop"), []
    monkeypatch.setattr(type(clip().text), "__call__", counted(type(clip().text).__call__, calls))
    learner.loss(images(), LABELS)
    assert len(calls) == 2  # the class features, and the frozen ones that KgCoOp compares them with
    assert vars(learner.inner).keys() == vars(built("kgcoop").inner).keys()


def counted(function: Any, calls: list[Any]) -> Any:
    def call(*args: Any, **keywords: Any) -> Any:
        calls.append(args)
        return function(*args, **keywords)

    return call


@torch.no_grad()
def test_the_head_judges_training_classes_alone() -> None:
    learner = built("coop")
    logits = learner.logits(images(), learner.encode_classes())
    cosines = learner.inner.logits(images(), learner.encode_classes())
    head = learner.linear(learner.image_channels(learner.encode_images(images())))
    torch.testing.assert_close(logits, 0.3 * cosines + 0.7 * head)
    learner.bind([CLASSES[2], CLASSES[0]], rows=[2, 0], transfer=True)  # ImageNet-A's part of ImageNet
    torch.testing.assert_close(learner.logits(images(), learner.encode_classes()), logits[:, [2, 0]])
    for others in (("dog", "cat"), (*CLASSES, "dog")):  # new ones, and both together
        learner.bind(others)
        expected = learner.inner.logits(images(), learner.encode_classes())
        assert torch.equal(learner.logits(images(), learner.encode_classes()), expected)
        assert expected.shape[1] == len(others)


def test_rates_of_the_head() -> None:
    fit = Fit(lr=0.02, epochs=3, schedule=Schedule(warmup="constant", warmup_epochs=1, warmup_lr=1e-5))
    learner = built("coop")
    optimizer = make_optimizer(learner, fit)
    rates = []
    for step in range(3):
        set_learning_rate(optimizer, step, fit, per_epoch=1, total=3)
        rates.append([group["lr"] for group in optimizer.param_groups])
    assert rates[0] == [1e-5, 1e-5]  # a warm-up as in the original's scheduler: one constant for all
    assert rates[1:] == [[rate, pytest.approx(6.5 * rate)] for rate, _ in rates[1:]]
    assert {id(p) for p in optimizer.param_groups[0]["params"]} == {id(learner.inner.context)}


@pytest.mark.parametrize("inner", ["lora", "zero_shot", "dept", "vlprompt.learners.lora.LoRA",
                                   "vlprompt.learners.dept.DePT", "vlprompt.learners.zero_shot.ZeroShot",
                                   "vlprompt.learners.mmrl.MMRL", "vlprompt.learners.prograd.ProGrad",
                                   "vlprompt.learners.linear_head.LinearHead", "os.path.join",
                                   "no_module.Thing"])  # fmt: skip
def test_what_is_no_prompt_learner_is_refused(inner: str) -> None:
    with pytest.raises(UserError, match=f"method.inner.*{inner}"):
        DePT(clip(), CLASSES, inner=inner)


def test_an_inner_learner_of_ones_own() -> None:
    learner = DePT(clip(), CLASSES, inner="test_dept.Mine", arguments={"n_context": 2})
    assert isinstance(learner.inner, Mine)
    assert learner.inner.n_context == 2


def test_settings_of_the_inner_learner_are_checked_like_its_own() -> None:
    method = {"_target_": "vlprompt.learners.dept.DePT", "inner": "kgcoop"}
    locate({**method, "arguments": {"n_context": 4, "ctx_init": ""}}, Learner, "method")
    for wrong, said in (({"n_context": "four"}, r"method\.arguments\.n_context"), ({"foo": 1}, "foo")):
        with pytest.raises(UserError, match=said):
            locate({**method, "arguments": wrong}, Learner, "method")


def test_a_file_names_no_inner_learner_that_is_not_allowed() -> None:
    names = {"target": ("vlprompt.learners.dept.DePT", METHODS), **named_by({"inner": "somebody.Theirs"})}
    with pytest.raises(UserError, match="VLPROMPT_ALLOW=somebody"):
        check_names(names, "ViT-B-16", Path("learner_config.json"))
    names = {"target": ("vlprompt.learners.dept.DePT", METHODS), **named_by({"inner": "coop"})}
    check_names(names, "ViT-B-16", Path("learner_config.json"))


@pytest.mark.parametrize("settings", [{"weight": 1.2}, {"weight": -0.1}, {"rate": 0.0}])
def test_numbers_out_of_range(settings: dict[str, float]) -> None:
    with pytest.raises(UserError, match="allowed is"):
        built("coop", **settings)


def test_the_template_is_the_inner_learners_where_it_has_one() -> None:
    assert built("kgcoop", template="one {}.").inner.template == "one {}."
    arguments = {"template": "two {}."}
    assert DePT(clip(), CLASSES, inner="kgcoop", arguments=arguments, template="one {}.").inner.template == "two {}."
    settings = {"inner": "coop", "arguments": None, "template": "one {}.", "weight": 0.7, "rate": 6.5}
    told = DePT.overridden(settings, val=False, steps=True)
    assert told.keys() == {"template"}
    assert not DePT.overridden({**settings, "inner": "kgcoop"}, val=False, steps=True)
    assert DePT.overridden({**settings, "weight": 0.0}, val=False, steps=True).keys() == {"template", "rate"}
