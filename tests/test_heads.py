"""Linear heads: for which methods, where by default, how they start, and what is told of them."""

import inspect
import math
from pathlib import Path

import pytest
import torch
from running import ask, check_mistake
from sklearn.linear_model import LogisticRegression
from test_learners import METHODS, SMALL, Case, candidate_of, configured

from vlprompt import sweep
from vlprompt.config.compose import read_run
from vlprompt.config.locate import locate
from vlprompt.errors import UserError
from vlprompt.learners.base import WITHOUT_TEXT, Learner
from vlprompt.learners.checks import CHECKS
from vlprompt.learners.head import make_head

PLAIN_VIT = ["backbone=vit_b16_in21k", "backbone.model=timm:test_vit", "backbone.weights=random"]
RUN = [*PLAIN_VIT, "dataset=digits", "protocol=few_shot", "shots=1"]


def kind_of(method: str) -> type[Learner]:
    kind: type[Learner] = locate(configured(method)["method"], Learner, "method")[0]
    return kind


HEADED = [method for method in METHODS if "head" in inspect.signature(kind_of(method)).parameters]


def headed(method: str, model: str, start: str = "zero") -> Case:
    """A method with a head of its own kind, by default on a plain ViT."""
    parameters = inspect.signature(kind_of(method)).parameters
    settings = {**SMALL.get(method, {}), **({"head_start": start} if "head_start" in parameters else {})}
    if not model.startswith("timm:"):
        settings["head"] = kind_of(method).without_text
    if "depth" in settings:
        settings["depth"] = 2  # the plain ViT's blocks
    return Case(f"{method}: {model}", settings, model)


@pytest.mark.slow
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
@pytest.mark.parametrize(("model", "start"), [("timm:test_vit", "probe"), ("timm:test_vit", "zero"), ("vit", "zero")])
@pytest.mark.parametrize("method", HEADED)
def test_contract(method: str, model: str, start: str, check) -> None:
    check(candidate_of(headed(method, model, start)))


def test_the_methods_that_need_no_text_are_named() -> None:
    named = {word for word in WITHOUT_TEXT.replace(",", " ").split() if word in METHODS}
    assert named == {*HEADED, "linear_probe"}


@pytest.mark.usefixtures("results")
@pytest.mark.parametrize(
    "method",
    ["lora", pytest.param("p_tuning", marks=pytest.mark.slow), pytest.param("clip_adapter", marks=pytest.mark.slow)],
)
def test_without_text_a_head_is_the_default_and_recorded(method: str) -> None:
    spec = read_run([f"method={method}", *RUN])
    assert spec.key.variant == read_run([f"method={method}", *RUN, "method.head=linear"]).key.variant
    for settings in (spec.config["method"], spec.arguments):
        assert settings["head"] == "linear"
        assert settings.get("towers", "image") == "image"
    with_text = read_run([f"method={method}", "dataset=digits", "protocol=few_shot"])
    assert with_text.config["method"]["head"] == "text"
    assert "head_start" not in with_text.config["method"]


MISTAKES = {
    "method=lora method.towers=text": ["method.towers=text", "method.head=linear", "text tower"],
    "method=p_tuning method.towers=both": ["method.towers=both", "method.head=linear"],
    "method=vpt_deep method.template='{}'": ["method.template", "method.head=linear"],
    "method=tip_adapter method.templates=openai_7": ["method.templates", "method.head=cache"],
    "method=lora method.head=text": ["LoRA", "no text tower", "method.head=linear"],
    "method=coop": ["CoOp", "no text tower", "lora", "linear_probe"],
    "method=lora protocol=base_to_novel": ["LoRA", "each of its"],
}


@pytest.mark.parametrize(
    "mistake", [one if one == "method=coop" else pytest.param(one, marks=pytest.mark.slow) for one in MISTAKES]
)
def test_what_cannot_be_without_text_is_one_sentence(results: Path, mistake: str) -> None:
    answer = ask(sweep.main, [*RUN, *mistake.split()])
    assert (answer.code, "Traceback" in answer.err) == (2, False)
    assert all(word in answer.err for word in MISTAKES[mistake]), answer.err


def test_a_head_on_a_clip_has_no_start_where_there_is_none(results: Path) -> None:
    given = ["dataset=digits", "protocol=few_shot", "method=lora", "method.head_start=zero"]
    check_mistake(ask(sweep.main, given), ["method.head_start", "method.head=text"], results)


def test_a_misspelt_model_is_not_taken_for_a_clip(results: Path) -> None:
    given = ["method=lora", "method.head_start=zero", "backbone.model=vit_tiny_patch16_244"]
    check_mistake(ask(sweep.main, [*RUN, *given]), ["did you mean 'vit_tiny_patch16_224'"], results)


def learner(start: str) -> Learner:
    return candidate_of(headed("lora", "vit", start)).build()


def test_starts() -> None:
    published, zero, probe = (learner(start) for start in ("published", "zero", "probe"))
    assert torch.all(published.head.bias == -math.log(99))
    assert not zero.head.weight.any()
    features, labels = zero.collect_features([candidate_of(headed("lora", "vit")).batch])
    centred = features - features.mean(0)
    assert torch.allclose(zero.head.seen(features), centred / centred.square().mean().sqrt(), atol=1e-5)
    reference = LogisticRegression(tol=1e-8, max_iter=10_000).fit(standardised := zero.head.seen(features), labels)
    expected = torch.tensor(reference.predict_proba(standardised)).float()
    assert torch.allclose(probe.head(features).softmax(-1), expected, atol=1e-3)
    assert probe.head.seen(features).square().sum(1).mean().item() == pytest.approx(1)


@pytest.mark.parametrize("start", ["zero", "probe"])
def test_a_head_is_the_same_whatever_the_length_of_features(start: str) -> None:
    torch.manual_seed(0)
    features, labels = torch.randn(12, 5) + 3, torch.arange(12) % 3
    logits = []
    for length in (1.0, 55.0):
        head = make_head(5, 3, start)
        head.start(features * length, labels)
        optimizer = torch.optim.SGD(head.parameters(), lr=0.25)
        for _ in range(3):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(head(features * length), labels).backward()
            optimizer.step()
        logits.append(head(features * length))
    assert torch.allclose(*logits, atol=5e-3)
    assert logits[0].argmax(-1).unique().numel() > 1


@pytest.mark.parametrize("n", [1, 2])
def test_a_head_starts_from_few_images(n: int) -> None:
    """One image has no variance, and a class may have none."""
    for start in ("zero", "probe"):
        head = make_head(5, 3, start)
        head.start(torch.randn(n, 5), torch.arange(n))
        assert head(torch.randn(4, 5)).isfinite().all()


def test_a_head_is_not_merged() -> None:
    for method in ("lora", "bitfit"):
        headed_learner = candidate_of(headed(method, "vit")).build()
        assert not headed_learner.mergeable
        with pytest.raises(UserError, match="linear head"):
            headed_learner.merged()
