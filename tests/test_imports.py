"""Checkpoints, logs and few-shot lists of the CoOp family, read into the forms used here."""

import builtins
import io
import json
import os
import pickle
import zipfile
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import dassl_files as dassl
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from test_parity import tiny_clip  # noqa: F401
from torch import Tensor

from vlprompt import cli, saved
from vlprompt.imports import trained
from vlprompt.imports.dassl import facts_of_path, read_options
from vlprompt.learners.base import Learner
from vlprompt.plan import locate
from vlprompt.records import Record, find_records, is_finished
from vlprompt.towers import Images
from vlprompt.towers.geometry import read_geometry

FIXTURES = Path(__file__).parent / "fixtures"
CASES = FIXTURES / "parity" / "cases"


class Answer(NamedTuple):
    code: int
    out: str
    err: str


def ask(*arguments: object) -> Answer:
    """`vlprompt import ...`; anything but a UserError comes through."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = cli.main(["import", *map(str, arguments)])
    return Answer(code, out.getvalue(), err.getvalue())


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory with the results root in it."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("VLPROMPT_RESULTS", str(folder / "results"))
    return folder


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"}


# Trained prompts


@pytest.fixture
def tiny_backbone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--backbone tiny` is the model of the parity cases."""
    shape = json.loads((FIXTURES / "parity" / "clip_tiny.json").read_text())
    image = {"image_size": shape["image_size"], "width": shape["vision_width"], "layers": shape["vision_layers"]}
    text = {"width": shape["text_width"], "layers": shape["text_layers"]}
    config = {"model_cfg": {"embed_dim": shape["embed_dim"], "vision_cfg": image, "text_cfg": text}}
    folder = tmp_path / "tiny"
    dassl.write(folder / "open_clip_config.json", json.dumps(config))
    monkeypatch.setattr(
        trained, "read_backbone", lambda name: ({"model": "tiny", "weights": "w"}, read_geometry(str(folder), "w"))
    )


class Trial(NamedTuple):
    """A case, and how its checkpoint and command look."""

    case: str
    method: str
    arguments: dict[str, Any]
    flags: tuple[str, ...] = ()
    folder: str = "seed1/prompt_learner"
    form: str = ""


VPT = {"head": "text", "template": "a photo of a {}.", "init": "normal", "project": None, "dropout": 0.0}
COOP = {"n_context": 4, "ctx_init": "", "class_specific": False, "position": "end"}
TRIALS = [
    Trial("coop_m4", "coop", COOP),
    Trial("coop_csc_m4", "coop", COOP | {"class_specific": True}),
    Trial("coop_middle_m4", "coop", COOP | {"position": "middle"}, folder="nctx4_cscFalse_ctpmiddle/seed1/prompt_learner"),
    Trial("coop_front_m4", "coop", COOP | {"position": "front"}, flags=("--position", "front")),
    Trial("kgcoop", "coop", COOP, folder="KgCoOp/x/seed1/prompt_learner", form="KgCoOp"),
    Trial("cocoop_m4", "cocoop", {"n_context": 4, "ctx_init": "", "reduction": 16}),
    Trial("cocoop_ctxinit", "cocoop", {"n_context": 4, "ctx_init": "", "reduction": 16}),
    Trial("maple_n2_d3", "maple", {"n_context": 2, "ctx_init": "a photo of a", "depth": 3}),
    Trial("maple_n2_d1", "maple", {"n_context": 2, "ctx_init": "a photo of a", "depth": 1}),
    Trial("maple_n5_d2_random", "maple", {"n_context": 5, "ctx_init": "", "depth": 2}),
    Trial("ivlp_2x2_d3", "ivlp", {"n_context": 2, "ctx_init": "a photo of a", "depth": 3, "n_tokens": 2, "image_depth": 3}),
    Trial("ivlp_asym", "ivlp", {"n_context": 4, "ctx_init": "a photo of a", "depth": 4, "n_tokens": 3, "image_depth": 2}),
    Trial("ivlp_language_only", "language_prompts",
          {"n_context": 4, "ctx_init": "a photo of a", "depth": 3, "n_tokens": 0, "image_depth": 0}),
    Trial("promptsrc", "ivlp", {"n_context": 4, "ctx_init": "a photo of a", "depth": 3, "n_tokens": 4, "image_depth": 3},
          form="PromptSRC"),
    Trial("vpt_deep_d3", "vpt_deep", {"n_tokens": 4, "depth": 3, **VPT}),
    Trial("vpt_shallow", "vpt_shallow", {"n_tokens": 4, "depth": 1, **VPT}),
]  # fmt: skip


def original_tensors(clip: Any, case: Mapping[str, Any], tensors: Mapping[str, Tensor], *, suffix: bool = True) -> dict[str, Tensor]:
    """What the original would save after the run `paper`: the prompt learner alone, or the whole model."""
    method = case["config"]["method"]
    last = f"paper.param{case['runs']['paper']['steps']}."
    own = {name.removeprefix(last): tensor for name, tensor in tensors.items() if name.startswith(last)}
    if suffix and (context := own.get("prompt_learner.ctx")) is not None:
        embedded = clip.text.embed(tensors["inputs.token_ids"].long())
        own["prompt_learner.token_prefix"] = embedded[:, :1]
        own["prompt_learner.token_suffix"] = embedded[:, 1 + context.shape[-2] :]
    if method in ("CoOp", "CoCoOp", "KgCoOp"):
        own = {name.removeprefix("prompt_learner."): tensor for name, tensor in own.items()}
        return own | ({"bias_vectors": torch.zeros(1, 8)} if method == "KgCoOp" else {})
    frozen = {"image_encoder.conv1.weight": torch.zeros(2), "text_encoder.positional_embedding": torch.zeros(2)}
    if method == "PromptSRC":
        frozen["prompt_learner.ZS_image_encoder.proj"] = torch.zeros(2)
    return own | frozen | {"logit_scale": torch.zeros(())}


def load_case(name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    return json.loads((CASES / f"{name}.json").read_text()), safetensors.torch.load_file(CASES / f"{name}.safetensors")


def rebuild(clip: Any, folder: Path) -> Learner:
    """A learner from the folder alone."""
    config = saved.read_config(folder)
    kind, arguments = locate({"_target_": config["target"], **config["arguments"]}, Learner, "method")
    learner = kind(clip, config["classes"], **arguments).eval()
    saved.load_tensors(learner, folder)
    return learner


@pytest.mark.usefixtures("tiny_backbone")
@pytest.mark.parametrize("trial", TRIALS, ids=[trial.case for trial in TRIALS])
def test_imported_prompts_give_the_original_logits(trial: Trial, here: Path, tiny_clip: Any) -> None:  # noqa: F811
    case, tensors = load_case(trial.case)
    state = original_tensors(tiny_clip, case, tensors)
    path = dassl.write_checkpoint(here / trial.folder / "model.pth.tar-7", state, epoch=7)
    classes = dassl.write(here / "classes.txt", "\n".join(case["config"]["classnames"]) + "\n")
    answer = ask(path, "--output", "out", "--classes", classes, "--backbone", "tiny", *trial.flags)
    assert answer.code == 0, answer.err
    config = saved.read_config(here / "out")
    assert (config["method"], config["arguments"]) == (trial.method, trial.arguments)
    origin = config["origin"]
    assert origin["form"] == trial.form or case["config"]["method"] and origin["epoch"] == 7
    learner = rebuild(tiny_clip, here / "out")
    assert {p.dtype for p in learner.parameters()} == {torch.float32}
    with torch.no_grad():
        for name, images in (("train", "images"), ("eval", "eval_images")):
            logits = learner.logits(Images(tensors[f"inputs.{images}"].float()), learner.encode_classes())
            expected = tensors[f"paper.logits_final_{name}_images"]
            torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)
