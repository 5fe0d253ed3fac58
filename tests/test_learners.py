"""One contract that every method of conf/method keeps, on a small random CLIP."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import tiny
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from vlprompt.config.compose import compose
from vlprompt.config.locate import locate
from vlprompt.config.paths import config_dir
from vlprompt.config.schema import Fit
from vlprompt.data.dataset import Item, Split
from vlprompt.data.loader import Loader
from vlprompt.errors import ClassBoundError, UserError
from vlprompt.evaluate import evaluate
from vlprompt.learners.base import Learner
from vlprompt.learners.weights import WeightLearner
from vlprompt.results import learner_files as saved
from vlprompt.towers import Images, NeedsPixels, load_clip
from vlprompt.training.optim import make_optimizer
from vlprompt.training.progress import Reporter

CLASSES = ["cat", "striped red star", "a_very_long_name_with_many_tokens"]
OTHERS = ["dog", "sea or lake", "cat", "face"]
TEMPLATE = "a photo of a {}."
LABELS = torch.tensor([0, 1, 2, 1])

METHODS = sorted(path.stem for path in (config_dir() / "method").glob("*.yaml"))


@dataclass(frozen=True)
class Case:
    """A method with settings of its configuration replaced, on a model of tests/tiny.py or a plain one of timm."""

    name: str  # a method, or "method: what differs"
    settings: dict[str, Any] = field(default_factory=dict)
    model: str = "vit"

    @property
    def method(self) -> str:
        return self.name.split(":")[0]


SMALL: dict[str, dict[str, Any]] = {
    "cocoop": {"reduction": 4},
    "ivlp": {"depth": 3, "image_depth": 3},
    "language_prompts": {"depth": 3},
    "llama_adapter": {"depth": 2},
    "maple": {"depth": 3},
    "mmrl": {"space": 20, "first_layer": 1},
    "promptsrc": {"depth": 3, "image_depth": 3},
    "tcp": {"layer": 2},
    "tip_adapter": {"search_steps": [3, 2]},
    "tip_adapter_f": {"search_steps": [3, 2]},
    "vpt_deep": {"depth": 3},
}
"""What a tower of three blocks and an embedding of 24 numbers ask for."""

VARIANTS = [
    Case("coop: random start", {"ctx_init": "", "n_context": 3}),
    Case("coop: class-specific", {"ctx_init": "", "n_context": 3, "class_specific": True}),
    Case("coop: middle", {"ctx_init": "", "n_context": 3, "position": "middle"}),
    Case("bitfit: image", {"towers": "image"}),
    Case("dylora: last rank alone", {"frozen": True, "min_rank": 8, "dropout": 0.2}),
    Case("full_finetune: text", {"towers": "text"}),
    Case("hard_prompts: ensemble", {"templates": "openai_7"}),
    Case("intrinsic_dimension: image", {"towers": "image", "dimension": 70}),
    Case("linear_head: plain ViT", model="timm:test_vit"),
    Case("linear_probe: plain ViT", model="timm:test_vit"),
    Case("p_tuning: image", {"encoder": "mlp", "towers": "image"}),
    Case("p_tuning: mlp", {"encoder": "mlp", "towers": "both"}),
    Case("p_tuning: none", {"encoder": "none"}),
    Case("prograd: front", {"n_context": 6, "position": "front"}),
    Case("promptsrc: text alone", {"depth": 2, "image_depth": 0}),
    Case("taskres: ensemble", {"templates": "openai_7"}),
    Case("tcp: no tokens", {"layer": None}),
    Case("vpt_deep: linear head", {"depth": 2, "head": "linear", "init": "patch", "project": 7}),
    Case("vpt_deep: plain ViT", {"depth": 2, "head": "linear"}, "timm:test_vit"),
    Case("zero_shot: ensemble", {"templates": "openai_7"}),
]
"""Settings that change what a method does, beside its configuration as it stands."""

NO_PARAMETERS = {"tip_adapter": "its cache is filled, and never trained"}
"""Methods that see training images, but have nothing that an optimiser could change, and why."""


@cache
def world(kind: str) -> tuple[Any, Any, Images, Tensor]:
    """The frozen model, called as its kind, what it borrows from, four images, and their features."""
    clip = load_clip(kind) if kind.startswith("timm:") else tiny.clip(kind.removesuffix(":nf4"), torch.float32)[0]
    clip = clip.quantized("nf4") if kind.endswith(":nf4") else clip
    generator = torch.Generator().manual_seed(2)
    images = Images(torch.randn(len(LABELS), 3, clip.preprocess.size, clip.preprocess.size, generator=generator))
    with torch.no_grad():
        return replace(clip, name=kind), clip.weights.root, images, clip.image(images)


@cache
def configured(method: str) -> Any:
    return compose([f"method={method}", "dataset=caltech101"])  # without recipes for the demo


def plain(method: str) -> Case:
    """A method as its configuration has it, its backbone in 4 bits where that says so."""
    return Case(method, SMALL.get(method, {}), "vit:nf4" if configured(method)["backbone"]["quantize"] else "vit")


CASES = [plain(method) for method in METHODS] + [case for case in VARIANTS if case.method in METHODS]


def build(case: Case, classes: list[str] = CLASSES, seed: int = 0) -> Learner:
    """The case's learner in train mode, prepared with the four images."""
    kind, arguments = locate(configured(case.method)["method"], Learner, "method")
    clip, _, images, _ = world(case.model)
    torch.manual_seed(seed)
    learner = kind(clip, classes, **{**arguments, **case.settings})
    learner.prepare([(images, LABELS)], [(images, LABELS)])
    return learner.train()


def scatter(learner: Learner) -> Learner:
    """The same learner with every number of its checkpoint drawn from N(0, 0.02)."""
    torch.manual_seed(99)
    for tensor in learner.state_dict().values():
        if tensor.is_floating_point():
            tensor.normal_(0, 0.02)
    return learner


@torch.no_grad()
def logits(learner: Learner, images: Images | None = None) -> Tensor:
    """As evaluation gets them: on four images, or those given."""
    was_training = learner.training
    try:
        return learner.eval()(images or world_of(learner)[2], learner.encode_classes())
    finally:
        learner.train(was_training)


def world_of(learner: Learner) -> tuple[Any, Any, Images, Tensor]:
    return world(learner.clip.name)


def is_trained(case: Case) -> bool:
    return configured(case.method)["fit"] is not None


def each(cases: list[Case]) -> Any:
    return pytest.mark.parametrize("case", cases, ids=[case.name for case in cases])


def close(a: Tensor, b: Tensor, tolerance: float = 1e-5) -> bool:
    """Whether the relative L2 distance is small."""
    return bool((a - b).norm() <= tolerance * b.norm())


def reads_features(learner: Learner) -> bool:
    return not learner.edits_image


TRAINED = [case for case in CASES if is_trained(case)]
BY_STEPS = [case for case in TRAINED if configured(case.method)["fit"].get("epochs") != 0]


@each(CASES)
def test_logits(case: Case) -> None:
    got = logits(build(case))
    assert got.shape == (len(LABELS), len(CLASSES))
    assert got.dtype == torch.float32
    assert got.isfinite().all()


@each(BY_STEPS)
def test_every_parameter_gets_a_gradient(case: Case) -> None:
    learner = scatter(build(case))
    assert learner.backward(world_of(learner)[2], LABELS)[0].isfinite()
    gradients = {name: p.grad for name, p in learner.named_parameters()}
    assert gradients
    assert {n: p.dtype for n, p in learner.named_parameters() if p.dtype != torch.float32} == {}
    assert not [n for n, g in gradients.items() if g is None or not g.isfinite().all() or not g.any()]


@each(BY_STEPS)
def test_training_lowers_the_loss_and_leaves_the_model_alone(case: Case) -> None:
    learner = build(case)
    _, model, images, _ = world_of(learner)
    frozen = copy.deepcopy(model.state_dict())
    rate = 1e-4 if case.method == "full_finetune" else 1e-3  # every weight moves by it
    optimizer = make_optimizer(learner, Fit(optimizer="adam", lr=rate, epochs=1))
    learner.eval()  # the same function at each step, whatever the method drops while training
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        losses.append(learner.backward(images, LABELS)[0].item())
        optimizer.step()
    assert losses[-1] < losses[0], losses
    assert all(torch.equal(tensor, frozen[name]) for name, tensor in model.state_dict().items())
    assert not any(p.requires_grad or p.grad is not None for p in model.parameters())
    assert not {id(p) for p in learner.parameters()} & {id(p) for p in model.parameters()}


@each(CASES)
def test_binding_other_classes(case: Case) -> None:
    learner = scatter(build(case))
    before = logits(learner)
    if learner.class_bound:
        with pytest.raises(ClassBoundError, match="training classes"):
            learner.bind(OTHERS)
    else:
        learner.bind(OTHERS)
        assert logits(learner).shape == (len(LABELS), len(OTHERS))
    learner.bind([CLASSES[2], CLASSES[0]], rows=[2, 0])  # a subset works for all
    assert close(logits(learner), before[:, [2, 0]])
    learner.bind(CLASSES)
    assert close(logits(learner), before)


@each(CASES)
def test_images_that_tests_share_are_encoded_once(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = scatter(build(case))
    pictures = [Image.effect_noise((32, 32), 10 + i).convert("RGB") for i in range(5)]
    items = tuple(Item(str(i), i % len(CLASSES)) for i in range(len(pictures)))
    whole = Split(items, tuple(CLASSES), lambda image: pictures[int(image)], origin="these")
    tests = {"base": whole.select([0, 1]), "all": whole}
    if learner.class_bound:
        tests["base"] = replace(tests["base"], rows=(0, 1))
    given: Any = {"loader": Loader(learner.clip), "precision": "fp32", "reporter": Reporter()}
    apart = {name: evaluate(learner, {name: split}, **given)[name] for name, split in tests.items()}
    encoded, encode = [], learner.encode_images
    monkeypatch.setattr(learner, "encode_images", lambda images: encoded.append(len(images)) or encode(images))
    together = evaluate(learner, tests, **given)
    for name, predictions in together.items():
        assert (predictions.images == apart[name].images).all()
        assert np.allclose(predictions.label_logit, apart[name].label_logit, rtol=1e-5, atol=1e-5)
        assert (predictions.top5 == apart[name].top5).all()
    assert sum(encoded) == len(whole) or case.method == "mmrl"  # which has its own `logits`


@each(CASES)
def test_binding_the_same_classes_changes_nothing(case: Case) -> None:
    learner = build(case)
    expected = logits(learner)
    before = dict(vars(learner))
    learner.bind(list(CLASSES))
    assert [name for name, value in vars(learner).items() if value is not before[name]] == []
    assert torch.equal(logits(learner), expected)


@each(CASES)
def test_classes_may_share_a_name(case: Case) -> None:
    learner = scatter(build(case, ["cat", "dog", "cat"]))
    got = logits(learner)
    assert got.shape == (len(LABELS), 3)
    if not learner.class_bound:
        assert close(got[:, 0], got[:, 2])
        assert not close(got[:, 0], got[:, 1])


@each(TRAINED)
def test_saved_and_loaded(case: Case, tmp_path: Path) -> None:
    learner = scatter(build(case))
    assert saved.save(learner, tmp_path, {"method": case.method}) > 0
    assert saved.read_config(tmp_path)["classes"] == CLASSES
    again = build(case, seed=1)
    assert not torch.equal(logits(again), logits(learner))
    saved.load_tensors(again, tmp_path)
    assert torch.equal(logits(again), logits(learner))

    path = tmp_path / saved.TENSORS
    good = safetensors.torch.load_file(path)
    name = next(iter(good))
    for wrong in (
        {"other": torch.zeros(3)},
        {k: t for k, t in good.items() if k != name},
        {**good, "other": torch.zeros(3)},
        {**good, name: torch.zeros(1, 1, 1, 1, 7)},
    ):
        safetensors.torch.save_file(wrong, path)
        with pytest.raises(UserError, match=f"learner.safetensors does not fit {type(learner).__name__}"):
            saved.load_tensors(again, tmp_path)
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(UserError, match="does not fit"):
        saved.load_tensors(again, tmp_path)
    path.unlink()
    with pytest.raises(UserError, match="does not fit"):
        saved.load_tensors(again, tmp_path)


@each(CASES)
def test_banked_features(case: Case) -> None:
    """A learner that reads features gives the same from them; one that asks for pixels really needs them."""
    learner = scatter(build(case))
    _, _, images, features = world_of(learner)
    if reads_features(learner):
        assert close(logits(learner, Images(features=features)), logits(learner))
    else:
        with pytest.raises(NeedsPixels):
            logits(learner, Images(features=features))
        assert not close(learner.eval().encode_images(images), features)


@each(CASES)
def test_a_resnet_is_taken_or_refused_in_words(case: Case) -> None:
    """Methods that edit an image tower's blocks refuse one that has none; all others work on it, or on its weights."""
    resnet = Case(case.name, case.settings, "resnet")
    learner = build(case)
    if reads_features(learner) or isinstance(learner, WeightLearner):
        assert logits(build(resnet)).isfinite().all()
    else:
        with pytest.raises(UserError, match="a ResNet has none: choose a backbone with a ViT"):
            build(resnet)


@each(CASES)
def test_merged_or_refused_in_words(case: Case) -> None:
    """What can be merged is zero-shot on the merged model; anything else says that it cannot."""
    learner = scatter(build(case)).eval()
    if not learner.mergeable:
        with pytest.raises(UserError, match="cannot be merged"):
            learner.merged()
        return
    merged, images = learner.merged(), world_of(learner)[2]
    assert close(logits(Learner(merged, CLASSES, template=learner.template), images), logits(learner))


def as_built(learner: Learner) -> None:
    """Nothing to do."""


def without_shift(learner: Any) -> None:
    """The network's output is zero."""
    for p in learner.meta_net.linear2.parameters():
        p.detach().zero_()


def without_cache(learner: Any) -> None:
    """The cache counts for nothing."""
    learner.alpha.zero_()


def without_probe(learner: Any) -> None:
    """The class names alone, at the model's scale."""
    learner.weight.detach().zero_()
    learner.alpha.detach().fill_(learner.clip.scale)


PROMPTS_ATTEND = "its tokens are attended to whatever they hold"
WORDS = {"ctx_init": "a photo of a", "n_context": 4}  # the template's own words

NEUTRAL: dict[str, tuple[dict[str, Any], Callable[[Any], None]] | str] = {
    "adapter": ({}, as_built),
    "bitfit": ({}, as_built),
    "clip_adapter": ({"ratio": 0.0}, as_built),
    "clip_lora": ({}, as_built),
    "cocoop": (WORDS, without_shift),
    "coop": (WORDS, as_built),
    "dylora": ({}, as_built),
    "full_finetune": ({}, as_built),
    "hard_prompts": ({}, as_built),
    "intrinsic_dimension": ({}, as_built),
    "ivlp": ({**WORDS, "depth": 1, "image_depth": 0}, as_built),
    "language_prompts": ({**WORDS, "depth": 1}, as_built),
    "kgcoop": (WORDS, as_built),
    "linear_head": "its head knows no names",
    "linear_probe": "its head knows no names",
    "llama_adapter": ({}, as_built),
    "lora": ({}, as_built),
    "lora_plus": ({}, as_built),
    "lp_plus_plus": ({}, without_probe),
    "maple": PROMPTS_ATTEND,
    "mmrl": PROMPTS_ATTEND,
    "p_tuning": ({"ctx_init": "a photo of a", "encoder": "none"}, as_built),
    "prefix_tuning": PROMPTS_ATTEND,
    "prograd": ({"n_context": 4}, as_built),
    "promptsrc": ({**WORDS, "depth": 1, "image_depth": 0}, as_built),
    "qlora": ({}, as_built),  # on a backbone that is not in 4 bits
    "taskres": ({}, as_built),
    "tcp": ({**WORDS, "layer": None}, as_built),
    "tip_adapter": ({}, without_cache),
    "tip_adapter_f": ({}, without_cache),
    "vpt_deep": PROMPTS_ATTEND,
    "vpt_shallow": PROMPTS_ATTEND,
    "zero_shot": ({}, as_built),
}
"""By method: the settings and the change that make it the frozen model, or why there are none."""


@pytest.mark.parametrize("method", METHODS)
def test_neutral_start(method: str) -> None:
    """A method at its neutral start is zero-shot CLIP as open_clip computes it; one without such a start is not."""
    assert method in NEUTRAL, f"add {method} to NEUTRAL: how it is made the frozen model, or why it cannot be"
    clip, model, images, _ = world("vit")
    texts = clip.text.tokenize([TEMPLATE.format(name.replace("_", " ")) for name in CLASSES])
    with torch.no_grad():
        image, text = F.normalize(model.encode_image(images.pixels)), F.normalize(model.encode_text(texts))
    frozen = model.logit_scale.exp().detach() * image @ text.T
    row = NEUTRAL[method]
    settings, change = ({}, as_built) if isinstance(row, str) else row
    learner = build(Case(method, {**SMALL.get(method, {}), **settings}))
    change(learner)
    assert close(logits(learner), frozen) == (not isinstance(row, str))


def test_tables_name_real_methods() -> None:
    assert {*SMALL, *NEUTRAL, *NO_PARAMETERS, *(case.method for case in VARIANTS)} <= set(METHODS)


def test_param_groups_hold_every_parameter_once() -> None:
    for case in TRAINED:
        learner = build(case)
        groups = learner.param_groups(Fit(lr=1.0, epochs=1))
        held = [id(p) for group in groups for p in group["params"]]
        assert sorted(held) == sorted(id(p) for p in learner.parameters()), case.name
        assert bool(held) == (case.method not in NO_PARAMETERS), case.name
