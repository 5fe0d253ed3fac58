"""Every method of conf/method keeps the contract of learners, on a small random CLIP."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import tiny
import torch
import yaml
from torch import Tensor

from vlprompt.config.compose import compose
from vlprompt.config.locate import locate
from vlprompt.config.paths import config_dir
from vlprompt.errors import UserError
from vlprompt.learners import checks
from vlprompt.learners.base import Learner
from vlprompt.learners.checks import CHECKS, Candidate
from vlprompt.results import learner_files as saved
from vlprompt.towers import Clip, load_clip

CLASSES = list(checks.CLASSES)
LABELS = torch.tensor(checks.LABELS)
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
    "clap": {"n_views": 2},
    "cocoop": {"reduction": 4},
    "gda": {"n_nearest": 3},
    "cross_modal": {"batch_sizes": [2, 4], "iterations": 20, "evaluate_every": 2, "warmup_steps": 2, "init": "random",
                    "rates": [0.05, 0.01]},
    "ivlp": {"depth": 3, "image_depth": 3},
    "language_prompts": {"depth": 3},
    "llama_adapter": {"depth": 2},
    "lp_plus_plus": {"iterations": 20},
    "maple": {"depth": 3},
    "mma": {"first_layer": 1, "dim": 6},
    "mmrl": {"space": 20, "first_layer": 1},
    "mmrl_plus_plus": {"space": 20, "first_layer": 1, "projection_rank": 5},
    "plot_plus_plus": {"n_image_prompts": 2, "openings": ["a photo of a", "one picture of a"]},
    "prolip": {"iterations": 5, "n_views": 2},
    "promptsrc": {"depth": 3, "image_depth": 3},
    "tcp": {"layer": 2},
    "tip_adapter": {"search_steps": [3, 2]},
    "tip_adapter_f": {"search_steps": [3, 2]},
    "vpt_deep": {"depth": 3},
}  # fmt: skip
"""What a tower of three blocks and an embedding of 24 numbers ask for, and few images."""

VARIANTS = [
    Case("coop: random start", {"ctx_init": "", "n_context": 3}),
    Case("coop: class-specific", {"ctx_init": "", "n_context": 3, "class_specific": True}),
    Case("coop: middle", {"ctx_init": "", "n_context": 3, "position": "middle"}),
    Case("bitfit: image", {"towers": "image"}),
    Case("cross_modal: adapter, from texts", {"batch_sizes": [2], "iterations": 9, "adapter": True}),
    Case("cross_modal: images alone", {"batch_sizes": [2], "iterations": 9, "texts": False, "init": "random"}),
    Case("dept: cocoop", {"inner": "cocoop", "arguments": {"reduction": 4}}),
    Case("dept: maple", {"inner": "maple", "arguments": {"depth": 2}}),
    Case("dylora: last rank alone", {"frozen": True, "min_rank": 8, "dropout": 0.2}),
    Case("full_finetune: text", {"towers": "text"}),
    Case("gda: pooled", {"covariance": "pooled"}),
    Case("hard_prompts: ensemble", {"templates": "openai_7"}),
    Case("intrinsic_dimension: said, image", {"towers": "image", "dimension": 70, "projection": "said"}),
    Case("linear_head: plain ViT", model="timm:test_vit"),
    Case("linear_probe: plain ViT", model="timm:test_vit"),
    Case("p_tuning: image", {"encoder": "mlp", "towers": "image", "std": 1.0, "hidden": None}),
    Case("p_tuning: mlp", {"encoder": "mlp", "towers": "both"}),
    Case("p_tuning: none", {"encoder": "none"}),
    Case("plot_plus_plus: text alone", {"openings": ["a photo", "one of the"], "n_image_tokens": 0}),
    Case("prograd: front", {"n_context": 6, "position": "front"}),
    Case("prograd: class-specific", {"n_context": 3, "init": "random", "class_specific": True}),
    Case("promptsrc: text alone", {"depth": 2, "image_depth": 0}),
    Case("ss_text: performance", {"penalty": "performance", "repel": False}),
    Case("taskres: ensemble", {"templates": "openai_7"}),
    Case("tcp: no tokens", {"layer": None}),
    Case("tcp: words around", {"layer": 2, "ctx_init": "a photo of a", "learned_template": "one {}, a pet"}),
    Case("two_stage: bitfit, text", {"stage1": "bitfit", "towers": "text"}),
    Case("two_stage: lora", {"stage1": "lora"}),
    Case("ln_tuning: plain ViT", {"first_image_layer": 1}, "timm:test_vit"),
    Case("vpt_deep: linear head", {"depth": 2, "head": "linear", "init": "patch", "project": 7}),
    Case("vpt_deep: plain ViT", {"depth": 2, "head": "linear"}, "timm:test_vit"),
    Case("clap: cosine, adaptive", {"constraint": "cosine", "adaptive": True, "n_views": 2}),
    Case("zs_lp: texts, ensemble", {"templates": "openai_7", "texts": True}),
    Case("zero_shot: ensemble", {"templates": "openai_7"}),
    Case("lora: plain ViT", {"head_start": "probe"}, "timm:test_vit"),
]
"""Settings that change what a method does, next to its configuration as it stands."""


@cache
def clip_of(model: str) -> Clip:
    if model.startswith("timm:"):
        return load_clip(model)
    clip = tiny.clip(model.removesuffix(":nf4"), torch.float32)[0]
    return clip.quantized("nf4") if model.endswith(":nf4") else clip


@cache
def configured(method: str) -> Any:
    return compose([f"method={method}", "dataset=caltech101"])  # without recipes for the demo


def candidate_of(case: Case) -> Candidate:
    kind, arguments = locate(configured(case.method)["method"], Learner, "method")
    return Candidate(kind, {**arguments, **case.settings}, clip_of(case.model), clip_of("resnet"))


def plain(method: str) -> Case:
    """A method as its configuration has it, its backbone in 4 bits where that says so."""
    content = yaml.safe_load((config_dir() / "method" / f"{method}.yaml").read_text())
    quantize = content.get("backbone", {}).get("quantize")  # Hydra would take seconds before the first test
    return Case(method, SMALL.get(method, {}), "vit:nf4" if quantize else "vit")


CASES = [plain(method) for method in METHODS] + [case for case in VARIANTS if case.method in METHODS]
SLOW = {"dept: cocoop", "dept: maple", "plot_plus_plus: text alone",
        "bitfit: image", "coop: random start", "full_finetune: text", "hard_prompts: ensemble", "promptsrc: text alone",
        "linear_head: plain ViT", "taskres: ensemble", "linear_probe: plain ViT", "prograd: front",
        "prograd: class-specific", "p_tuning: none", "vpt_deep: plain ViT", "coop: middle",
        "tcp: words around", "two_stage: bitfit, text", "two_stage: lora", "ln_tuning: plain ViT",
        "zs_lp: texts, ensemble", "cross_modal: images alone"}  # fmt: skip
"""Whose ways other cases go, too."""


LACKING = {"gda", "gda: pooled", "ss_text", "linear_probe", "linear_head", "lp_plus_plus", "tip_adapter", "taskres"}
"""Which a class without images may harm: they make something of each class's images."""


def is_slow(case: Case, check: Any) -> bool:
    return case.name in SLOW or (check is checks.check_missing_class and case.name not in LACKING)


@pytest.mark.parametrize(
    ("case", "check"),
    [
        pytest.param(
            *(case, check),
            marks=[pytest.mark.slow] * is_slow(case, check),
            id=f"{case.name}-{check.__name__.removeprefix('check_')}",
        )
        for case in CASES
        for check in CHECKS
    ],
)
def test_contract(case: Case, check: Any) -> None:
    check(candidate_of(case))


def test_tables_name_real_methods() -> None:
    assert {*SMALL, *(case.method for case in VARIANTS)} <= set(METHODS)
    assert {case.name for case in VARIANTS} >= SLOW


@pytest.mark.parametrize("method", METHODS)
def test_a_closed_form_is_configured_without_steps(method: str) -> None:
    fit = configured(method)["fit"]
    assert build(plain(method)).closed_form == (fit is not None and fit.get("epochs") == 0)


def test_a_file_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    learner = build(plain("coop"))
    about = {"target": "vlprompt.learners.coop.CoOp", "arguments": {}, "backbone": {"model": "m", "weights": "random"}}
    assert saved.save(learner, tmp_path, about) > 0
    assert saved.read_config(tmp_path)["classes"] == CLASSES
    again = build(plain("coop"), seed=1)
    saved.load_tensors(again, tmp_path)
    assert torch.equal(again.context, learner.context)
    path = tmp_path / saved.TENSORS
    whole = path.read_bytes()
    safetensors.torch.save_file({"other": torch.zeros(3)}, path)
    other, context = path.read_bytes(), again.context.detach()
    odd = [safetensors.torch.save({"context": context.to(kind)}) for kind in (torch.float8_e5m2, torch.complex64)]
    for content in (other, *odd, whole[:20], None):
        path.unlink() if content is None else path.write_bytes(content)
        with pytest.raises(UserError, match=r"does not fit CoOp|is damaged|holds no learner"):
            saved.load_tensors(again, tmp_path)


# for tests of other files


def build(case: Case, classes: Sequence[str] = CLASSES, seed: int = 0) -> Learner:
    """The case's learner in train mode, prepared with four images."""
    return candidate_of(case).build(classes, seed=seed)


def scatter(learner: Learner) -> Learner:
    """The same learner with every number of its checkpoint drawn from N(0, 0.02)."""
    torch.manual_seed(99)
    for tensor in learner.state_dict().values():
        if tensor.is_floating_point():
            tensor.normal_(0, 0.02)
    return learner


def logits(learner: Learner) -> Tensor:
    """As evaluation gets them, on four images."""
    return Candidate(type(learner), {}, learner.clip, learner.clip).logits(learner)
