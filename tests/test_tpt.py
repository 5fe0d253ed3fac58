"""Test-time prompt tuning: gradients, independence of images, and which learners it takes."""

import math
from argparse import Namespace
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import tiny
import torch
import yaml
from PIL import Image
from test_learners import CASES, Case, build, scatter
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from vlprompt.config.paths import config_dir
from vlprompt.data.transforms import Augment, train_transform
from vlprompt.errors import UserError
from vlprompt.inference import ADAPTATIONS
from vlprompt.inference.base import ImageViews
from vlprompt.inference.tpt import CTPT, TPT
from vlprompt.learners.base import Learner
from vlprompt.learners.cocoop import CoCoOp
from vlprompt.learners.coop import CoOp
from vlprompt.learners.dept import DePT
from vlprompt.learners.ivlp import IVLP
from vlprompt.learners.maple import MaPLe
from vlprompt.learners.tcp import TCP
from vlprompt.learners.vpt import VPT
from vlprompt.learners.zero_shot import ZeroShot
from vlprompt.towers import Images, Preprocess

CLASSES = ("cat", "striped red star", "a_very_long_name", "dog")
MADE: dict[str, tuple[type[Learner], dict[str, Any]]] = {
    "coop": (CoOp, {"n_context": 3}),
    "middle, by class": (CoOp, {"n_context": 3, "position": "middle", "class_specific": True}),
    "cocoop": (CoCoOp, {"reduction": 4}),
    "maple": (MaPLe, {"depth": 2}),
    "ivlp": (IVLP, {"depth": 2, "image_depth": 2}),
    "tcp": (TCP, {"layer": 1}),
    "dept": (DePT, {"inner": "coop", "arguments": {"n_context": 2}}),
    "dept around cocoop": (DePT, {"inner": "cocoop", "arguments": {"reduction": 4}}),
    "zero_shot": (ZeroShot, {}),
    "vpt": (VPT, {"depth": 1}),
}


clip_of = cache(lambda dtype: tiny.clip(dtype=dtype))


def make(name: str, dtype: torch.dtype = torch.float32) -> tuple[Learner, Tensor]:
    """A learner with drawn numbers, and views of three images [3, 8, 3, H, W]."""
    torch.manual_seed(3)
    kind, settings = MADE[name]
    clip, model = clip_of(dtype)
    learner = scatter(kind(clip, CLASSES, **settings)).eval().to(dtype)
    return learner, tiny.pixels(model, 24).unflatten(0, (3, 8))


def start(learner: Learner, method: TPT) -> Any:
    with torch.no_grad():
        return method.start(learner, learner.encode_classes())


def run(learner: Learner, method: TPT, pixels: Tensor) -> Tensor:
    return start(learner, method)(ImageViews(Images(pixels)))


def seen_gradients(learner: Learner, method: TPT, pixels: Tensor) -> list[list[Tensor]]:
    """Of each step."""
    steps, step = [], torch.optim.AdamW.step

    def noted(self: torch.optim.AdamW, *given: Any) -> Any:
        steps.append([p.grad.clone() for p in self.param_groups[0]["params"]])
        return step(self, *given)

    with mock.patch.object(torch.optim.AdamW, "step", noted):
        run(learner, method, pixels)
    return steps


def expected_loss(p: Tensor, classes: Tensor, weight: float) -> Tensor:
    """From the predictions of the selected views, in the words of the papers."""
    mean = p.mean(0)
    unit = classes / classes.norm(dim=-1, keepdim=True)
    return -(mean * mean.log()).sum() - weight * (unit - unit.mean(0)).norm(dim=-1).mean()


@pytest.mark.parametrize(("name", "weight"), [
    ("coop", 3.0), ("maple", 0.0), pytest.param("maple", 3.0, marks=pytest.mark.slow),
    pytest.param("ivlp", 2.0, marks=pytest.mark.slow), pytest.param("tcp", 0.0, marks=pytest.mark.slow),
    pytest.param("middle, by class", 0.5, marks=pytest.mark.slow), pytest.param("dept", 1.0, marks=pytest.mark.slow),
])  # fmt: skip
def test_the_gradient_is_that_of_finite_differences(name: str, weight: float) -> None:
    learner, pixels = make(name, torch.float64)
    method = CTPT(selection=0.4, dispersion=weight) if weight else TPT(selection=0.4)
    (gradients,) = seen_gradients(learner, method, pixels[0])
    names = {"maple": "", "ivlp": ("context", "deep"), "dept": "inner.context"}.get(name, "context")
    tuned = [p for n, p in learner.named_parameters() if n.startswith(names)]
    assert [g.shape for g in gradients] == [p.shape for p in tuned]

    @torch.no_grad()
    def loss(views: Tensor) -> Tensor:
        classes = learner.encode_classes()
        return expected_loss(learner.logits(Images(views), classes).softmax(-1), classes, weight)

    with torch.no_grad():
        p = learner.logits(Images(pixels[0]), learner.encode_classes()).softmax(-1)
    views = pixels[0][(-(p * p.log()).sum(-1)).sort().indices[:3]]
    for tensor, gradient in zip(tuned, gradients, strict=True):
        direction, step = torch.randn_like(tensor), 1e-6
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                tensor.add_(sign * step * direction)
                ends.append(loss(views))
                tensor.sub_(sign * step * direction)
        assert ((ends[0] - ends[1]) / (2 * step)).item() == pytest.approx((gradient * direction).sum().item(), rel=1e-6)


def test_cocoop_tunes_the_context_of_the_centre_crop() -> None:
    learner, pixels = make("cocoop", torch.float64)
    with torch.no_grad():
        context = learner.context_for(learner.encode_images(Images(pixels[0][:1])))[0]
    fixed = CoOp(learner.clip, CLASSES, ctx_init=learner.ctx_init, n_context=None).double()
    fixed.context.data = context
    for method in (TPT(selection=0.5), CTPT(selection=0.5, two_step=True, steps=2)):
        torch.testing.assert_close(run(learner, method, pixels[0]), run(fixed, method, pixels[0]), rtol=1e-10, atol=0)


def test_zero_shot_starts_from_words() -> None:
    learner, pixels = make("zero_shot")
    for words in ("a photo of a", "one_drawing"):
        coop = CoOp(learner.clip, CLASSES, ctx_init=words, n_context=None)
        ours = run(learner, TPT(selection=0.5, ctx_init=words), pixels[0])
        assert torch.equal(ours, run(coop, TPT(selection=0.5), pixels[0]))


OTHERS = ("coop", "ivlp", "tcp", "dept", "dept around cocoop", "zero_shot")


@pytest.mark.parametrize("name", ["cocoop", "maple", *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)])
def test_images_leave_nothing(name: str) -> None:
    """Neither in the learner nor for the next image, bit for bit."""
    learner, pixels = make(name)
    for n, p in enumerate(learner.parameters()):
        p.requires_grad_(n % 2 == 0)
    before = {name: (p.clone(), p.requires_grad) for name, p in learner.named_parameters()}
    method = CTPT(selection=0.3, steps=2, lr=0.1)
    adapter = start(learner, method)
    first = [adapter(ImageViews(Images(views))) for views in pixels]
    again = [adapter(ImageViews(Images(pixels[n]))) for n in (2, 0, 1)]
    alone = run(learner, method, pixels[1])
    assert torch.equal(torch.stack(first)[[2, 0, 1]], torch.stack(again))
    assert torch.equal(first[1], alone)
    assert not torch.equal(first[0], first[1])
    for name, p in learner.named_parameters():
        assert torch.equal(p, before[name][0])
        assert p.requires_grad == before[name][1]
        assert p.grad is None
        assert p.is_leaf
    assert not any(logits.requires_grad for logits in first)


@pytest.mark.parametrize("name", ["coop", "maple", "cocoop", pytest.param("dept", marks=pytest.mark.slow)])
def test_no_step_worth_mentioning_is_the_learner(name: str) -> None:
    learner, pixels = make(name, torch.float64)
    with torch.no_grad():
        plain = learner.logits(Images(pixels[1][:1]), learner.encode_classes())[0]
    method = TPT(lr=1e-12, weight_decay=0.0)
    torch.testing.assert_close(run(learner, method, pixels[1]), plain, rtol=1e-7, atol=1e-7)


def test_the_step_is_that_of_adamw() -> None:
    learner, pixels = make("coop", torch.float64)
    method = TPT(selection=0.4, lr=0.03, weight_decay=0.2)
    ((gradient,),) = seen_gradients(learner, method, pixels[2])
    ours = run(learner, method, pixels[2])
    with torch.no_grad():
        learner.context.mul_(1 - 0.03 * 0.2).sub_(0.03 * gradient / (gradient.abs() + 1e-8))
        expected = learner.logits(Images(pixels[2][:1]), learner.encode_classes())[0]
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)


def test_steps_and_their_order() -> None:
    learner, pixels = make("coop", torch.float64)
    both, one_by_one = (CTPT(selection=0.4, steps=2, dispersion=2.0, two_step=two) for two in (False, True))
    assert [len(seen_gradients(learner, method, pixels[0])) for method in (both, one_by_one)] == [2, 4]
    plain = seen_gradients(learner, TPT(selection=0.4, steps=3), pixels[0])
    torch.testing.assert_close(seen_gradients(learner, one_by_one, pixels[0])[0], plain[0])
    without = CTPT(selection=0.4, steps=3, dispersion=0.0)
    torch.testing.assert_close(run(learner, without, pixels[0]), run(learner, TPT(selection=0.4, steps=3), pixels[0]))


@pytest.mark.parametrize(("share", "n"), [(0.1, 1), (0.3, 2), (0.5, 4), (1.0, 8)])
def test_the_surest_views_count(share: float, n: int) -> None:
    learner, pixels = make("coop", torch.float64)
    with torch.no_grad():
        p = learner.logits(Images(pixels[0]), learner.encode_classes()).softmax(-1)
    chosen = pixels[0][(-(p * p.log()).sum(-1)).sort().indices[:n]]
    ((gradient,),) = seen_gradients(learner, TPT(selection=share), pixels[0])
    p = learner.logits(Images(chosen), learner.encode_classes()).softmax(-1)
    loss = expected_loss(p, torch.eye(2), 0.0)
    torch.testing.assert_close(gradient, *torch.autograd.grad(loss, learner.context))


def test_one_view_alone() -> None:
    learner, pixels = make("coop", torch.float64)
    (gradients,) = seen_gradients(learner, TPT(views=1, selection=1.0), pixels[0][:1])
    logits = learner.logits(Images(pixels[0][:1]), learner.encode_classes())
    entropy = torch.distributions.Categorical(logits=logits).entropy().sum()
    torch.testing.assert_close(gradients, [*torch.autograd.grad(entropy, learner.context)])


@pytest.mark.parametrize("name", ["coop", pytest.param("ivlp", marks=pytest.mark.slow)])
def test_image_features_that_stay_are_computed_once(name: str) -> None:
    learner, pixels = make(name, torch.float64)
    adapter = start(learner, CTPT(selection=0.5, steps=2))
    once = adapter(ImageViews(Images(pixels[0])))
    adapter.reads_images = True
    torch.testing.assert_close(once, adapter(ImageViews(Images(pixels[0]))), rtol=1e-9, atol=1e-9)
    if name == "coop":
        with torch.no_grad():
            banked = Images(features=learner.encode_images(Images(pixels[0])))
        assert torch.equal(once, start(learner, adapter.method)(ImageViews(banked)))


@pytest.mark.parametrize("name", [pytest.param("coop", marks=pytest.mark.slow), "maple"])
def test_floating_point_operations_are_counted(name: str) -> None:
    learner, pixels = make(name)
    adapter = start(learner, TPT(selection=0.5))
    with FlopCounterMode(display=False) as counter:
        adapter(ImageViews(Images(pixels[0])))
    with FlopCounterMode(display=False) as of_image, torch.no_grad():
        learner.encode_images(Images(pixels[0]))
    assert counter.get_total_flops() > of_image.get_total_flops() > 0


@pytest.mark.parametrize(("name", "dtype"), [
    (name, dtype) for name in ("coop", "maple") for dtype in (torch.bfloat16, torch.float16)
])  # fmt: skip
@pytest.mark.slow
def test_half_precision(name: str, dtype: torch.dtype) -> None:
    """It comes near; what autocast remembers within an image or between images changes nothing."""
    learner, pixels = make(name)
    method = CTPT(selection=1.0, steps=2, dispersion=2.0, lr=0.02)  # of all views: rounding may select others
    with torch.autocast("cpu", dtype):
        adapter = start(learner, method)
        at_once = [adapter(ImageViews(Images(views))) for views in pixels]
    alone = []
    for views in pixels:
        with torch.autocast("cpu", dtype, cache_enabled=False):
            alone.append(run(learner, method, views))
    exact = torch.stack([run(learner, method, views) for views in pixels])
    assert torch.equal(torch.stack(at_once), torch.stack(alone))
    with torch.no_grad():
        before = torch.stack([learner.logits(Images(v[:1]), learner.encode_classes())[0] for v in pixels])
    assert (torch.stack(alone) - exact).norm() < 0.5 * (exact - before).norm()


@pytest.mark.parametrize("wrong", [
    {"views": 0}, {"selection": 0.0}, {"selection": 1.5}, {"steps": 0}, {"lr": 0.0}, {"weight_decay": -1.0},
    {"ctx_init": " "}, {"dispersion": -1.0}, {"lr": math.nan}, {"dispersion": math.inf},
], ids=str)  # fmt: skip
def test_settings_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"{next(iter(wrong))}.*{next(iter(wrong.values()))}"):
        CTPT(**wrong)


TUNED = {"zero_shot", "coop", "cocoop", "kgcoop", "prograd", "tcp", "maple", "ivlp", "language_prompts", "promptsrc",
         "p_tuning", "dept"}  # fmt: skip


def test_learners_without_a_context_are_refused() -> None:
    learner, _ = make("vpt")
    for call in (TPT().check, lambda learner: start(learner, TPT())):
        with pytest.raises(UserError, match=r"test_time=tpt tunes a context .* VPT has none: choose"):
            call(learner)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_method_is_tuned_or_refused(case: Case) -> None:
    learner = build(case).eval()
    learner.conclude([], None) if case.method == "p_tuning" else None
    size = learner.clip.preprocess.size
    pixels = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(1))
    method = CTPT(selection=0.5, two_step=True)
    if case.method not in TUNED or case.name == "p_tuning: image":
        for call in (method.check, lambda learner: start(learner, method)):
            with pytest.raises(UserError, match=f"test_time=c_tpt .* {type(learner).__name__} has none: choose"):
                call(learner)
        return
    method.check(learner)
    with torch.no_grad():
        before = learner.logits(Images(pixels[:1]), learner.encode_classes())[0]
    after = run(learner, method, pixels)
    assert after.shape == before.shape
    assert after.isfinite().all()
    assert not torch.equal(before, after)


@pytest.mark.parametrize("kind", [TPT, CTPT])
def test_the_files_have_the_settings(kind: type[TPT]) -> None:
    settings = yaml.safe_load((config_dir() / "test_time" / f"{kind.name}.yaml").read_text())
    assert ADAPTATIONS[settings.pop("name")] is kind
    assert settings == kind.__init__.__kwdefaults__


@pytest.mark.slow
def test_the_benchmark_compares_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "scripts"))
    import speed_tpt

    options = {"backbone": "shapes_vit", "classes": 5, "views": 12, "device": "cpu", "repeats": 1}
    row = speed_tpt.tuned(Namespace(**options, parts=speed_tpt.PARTS))
    for part in speed_tpt.PARTS:
        assert row[part]["logits_difference"] <= speed_tpt.SAME
        assert row[part]["cpu_ratio"] > 0
    monkeypatch.setattr(speed_tpt, "WORDS", "one photo of a")  # of one side alone
    monkeypatch.setattr(speed_tpt, "TPT", lambda **settings: TPT(**{**settings, "ctx_init": "a photo of a"}))
    with pytest.raises(SystemExit, match="logits differ by"):
        speed_tpt.tuned(Namespace(**options, parts=["text"]))


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_views_are_mixed_whatever_the_crop_is_resized_with(interpolation: str) -> None:
    """All operations come up in so many views."""
    image = Image.frombytes("RGB", (20, 16), bytes(range(240)) * 4)
    mix = train_transform(Preprocess(size=16, interpolation=interpolation), Augment(augmix=True))
    torch.manual_seed(0)
    assert {tuple(mix(image).shape) for _ in range(30)} == {(3, 16, 16)}
