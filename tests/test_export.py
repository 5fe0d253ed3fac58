"""Exports of trained learners, each read back by the library that it is for."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import tiny
import torch
from PIL import Image
from running import ROOT
from torch import Tensor

from vlprompt import demo
from vlprompt.api import Model
from vlprompt.errors import UserError
from vlprompt.interop import onnx
from vlprompt.interop.classifier import classifier_of, write_classifier
from vlprompt.interop.folder import whole_folder
from vlprompt.interop.onnx import write_onnx
from vlprompt.interop.open_clip import MERGEABLE, write_open_clip
from vlprompt.learners.adapter import Adapter
from vlprompt.learners.base import Learner
from vlprompt.learners.checks import CLASSES
from vlprompt.learners.clip_adapter import CLIPAdapter
from vlprompt.learners.cocoop import CoCoOp
from vlprompt.learners.coop import CoOp
from vlprompt.learners.full_finetune import FullFinetune
from vlprompt.learners.linear_head import LinearHead
from vlprompt.learners.llama_adapter import LlamaAdapter
from vlprompt.learners.lora import LoRA
from vlprompt.learners.lp_plus_plus import LPPlusPlus
from vlprompt.learners.prefix_tuning import PrefixTuning
from vlprompt.learners.taskres import TaskRes
from vlprompt.learners.tip_adapter import TipAdapter
from vlprompt.learners.vpt import VPT
from vlprompt.learners.zero_shot import ZeroShot
from vlprompt.towers import Clip, Images, load_clip

LABELS = torch.tensor([0, 1, 2, 1])
CLIPS = ("vit", "vit_avg", "vit_ls", "resnet", "timm")
"""Models whose towers have features of one width."""


def made(kind: type[Learner], model: str | Clip = "vit", **settings: Any) -> Learner:
    """With numbers that differ from those of the start, on a model whose matrices other libraries can read."""
    clip = model if isinstance(model, Clip) else clip_of(model)
    torch.manual_seed(99)
    learner = kind(clip.dequantized(), CLASSES, **settings)
    batch = Images(pixels_of(clip)), LABELS
    learner.prepare([batch], [batch])
    for name, tensor in learner.state_dict().items():
        if tensor.is_floating_point() and name not in ("alpha", "beta"):
            tensor.add_(0.02 * torch.randn(tensor.shape))
    return learner.eval()


@cache
def clip_of(model: str) -> Clip:
    return load_clip(model) if ":" in model else tiny.clip(model, torch.float32)[0]


def model_folder(clip: Clip, folder: Path) -> str:
    """open_clip's configuration of a tiny model, as if it had been trained from that folder."""
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": tiny.CONFIGS.get(clip.name)}))
    return str(folder)


def pixels_of(clip: Clip, n: int = 4) -> Tensor:
    size = clip.preprocess.size
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(5))


@torch.no_grad()
def logits_of(learner: Learner, pixels: Tensor) -> np.ndarray:
    return learner.logits(Images(pixels), learner.encode_classes()).numpy()


@torch.no_grad()
def plain_features(clip: Clip, pixels: Tensor) -> np.ndarray:
    """Of the model that open_clip or timm made, by its own forward pass."""
    model: Any = clip.weights.root
    return (model(pixels) if clip.text is None else model.encode_image(pixels)).numpy()


def by_numpy(folder: Path, outputs: dict[str, np.ndarray]) -> np.ndarray:
    """What docs/export.md tells users to do."""
    with np.load(folder / "classifier.npz") as saved:
        weight, bias, scale, unit = (saved[name] for name in ("weight", "bias", "scale", "unit"))
    shares = json.loads((folder / "preprocess.json").read_text())["shares"]
    logits = 0
    for name, share in shares.items():
        f = outputs[name]
        f = f / np.linalg.norm(f, axis=1, keepdims=True) if unit else f
        logits = logits + share * (scale * f @ weight.T + bias)
    return logits


def assert_near(ours: np.ndarray, theirs: np.ndarray, tolerance: float = 1e-4) -> None:
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= tolerance * max(1.0, np.abs(theirs).max())


@torch.no_grad()
def check_open_clip(learner: Learner, folder: Path) -> None:
    """open_clip's own model has the learner's features and, with its template and names, its logits."""
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    about = json.loads((folder / "open_clip_config.json").read_text())["vlprompt"]
    texts = [about["template"].replace("{}", name.replace("_", " ")) for name in about["classes"]]
    pixels = pixels_of(learner.clip)
    images, classes = (model.eval().encode_image(pixels), model.encode_text(tokenizer(texts)))
    assert_near(images.numpy(), learner.encode_images(Images(pixels)).numpy())
    cosines = torch.nn.functional.normalize(images, dim=-1) @ torch.nn.functional.normalize(classes, dim=-1).T
    assert_near((model.logit_scale.exp() * cosines).numpy(), logits_of(learner, pixels))
    shown = {type(step).__name__: step for step in preprocess.transforms}
    assert tuple(shown["Normalize"].mean) == learner.clip.preprocess.mean


def check_classifier(learner: Learner, folder: Path) -> None:
    pixels = pixels_of(learner.clip)
    assert_near(by_numpy(folder, {"features": plain_features(learner.clip, pixels)}), logits_of(learner, pixels))
    with np.load(folder / "classifier.npz") as saved:
        assert tuple(saved["classes"]) == learner.classes


def check_onnx(learner: Learner, folder: Path) -> bool:
    """onnxruntime's features are the learner's, in batches of any size; -> whether a matrix gives its logits."""
    import onnxruntime

    about = json.loads((folder / "preprocess.json").read_text())
    assert b".py" not in (folder / "image.onnx").read_bytes()  # paths of this machine
    session = onnxruntime.InferenceSession(folder / "image.onnx", providers=["CPUExecutionProvider"])
    for n in (1, 4):
        pixels = pixels_of(learner.clip, n)
        outputs = dict(zip(about["outputs"], session.run(about["outputs"], {"pixels": pixels.numpy()}), strict=True))
        with torch.no_grad():
            assert_near(outputs["features"], learner.encode_images(Images(pixels)).numpy())
        if about["classifier"]:
            assert_near(by_numpy(folder, outputs), logits_of(learner, pixels))
    assert (folder / "classifier.npz").exists() == bool(about["classifier"])
    return bool(about["classifier"])


# open_clip


def test_a_merged_learner_is_a_checkpoint_of_open_clip(tmp_path: Path) -> None:
    clip = load_clip(str(demo.BACKBONES["shapes_vit"]), "pretrained")
    learner = LoRA(clip, ["red star", "blue_circle", "green square"], rank=2).eval()
    for p in learner.parameters():
        torch.nn.init.normal_(p, std=0.1)
    assert write_open_clip(learner, "shapes_vit", tmp_path) == ["open_clip_config.json", "open_clip_model.safetensors"]
    check_open_clip(learner, tmp_path)
    again = load_clip(str(tmp_path), "pretrained")
    assert torch.equal(again.tensors("text")["token_embedding.weight"], clip.tensors("text")["token_embedding.weight"])


def test_what_is_no_checkpoint_names_what_is(tmp_path: Path) -> None:
    for learner in (made(CoOp), made(LoRA, head="linear"), made(ZeroShot)):
        with pytest.raises(UserError, match="lora_plus"):
            write_open_clip(learner, "", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_mergeable_methods_are_named() -> None:
    from test_learners import CASES, candidate_of

    mergeable = {case.method for case in CASES if candidate_of(case).kind.mergeable}
    assert set(MERGEABLE.partition(" (")[0].split(", ")) == mergeable


# A matrix


@pytest.mark.parametrize(
    ("kind", "settings"),
    [(CoOp, {}), (LPPlusPlus, {"iterations": 9}), (TaskRes, {}), (LinearHead, {}), (ZeroShot, {})],
)
def test_numpy_classifies_plain_features(kind: type[Learner], settings: dict[str, Any], tmp_path: Path) -> None:
    learner = made(kind, **settings)
    assert write_classifier(learner, tmp_path) == ["classifier.npz", "preprocess.json"]
    check_classifier(learner, tmp_path)


def test_a_classifier_of_some_of_the_classes(tmp_path: Path) -> None:
    learner = made(LinearHead, head_start="probe")
    learner.bind(CLASSES[::-1][:2], rows=[2, 1])
    write_classifier(learner, tmp_path)
    check_classifier(learner, tmp_path)


@pytest.mark.parametrize(
    ("kind", "settings", "words"),
    [
        (CoCoOp, {"reduction": 4}, "no linear function"),
        (TipAdapter, {}, "no linear function"),
        (CLIPAdapter, {}, "--to onnx"),
        (VPT, {}, "--to onnx"),
    ],
)
def test_what_no_matrix_holds(kind: type[Learner], settings: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words):
        write_classifier(made(kind, **settings), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_method_of_a_stranger_is_held_against_its_logits() -> None:
    class Odd(Learner):
        def compare(self, features: Tensor, class_features: Tensor | None) -> Tensor:
            return super().compare(features, class_features) ** 2

    clip = clip_of("vit")
    assert classifier_of(Odd(clip, CLASSES)) is None
    assert classifier_of(Learner(clip, CLASSES)) is not None


# ONNX


def test_without_the_libraries_of_onnx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"pip install 'vlprompt\[onnx\]'"):
        write_onnx(made(VPT), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("model", [*tiny.CONFIGS, "timm:test_vit"])
def test_every_kind_of_tower_in_onnx(model: str, tmp_path: Path) -> None:
    """Other weights, tokens, prefixes with and without a gate, bottlenecks."""
    pytest.importorskip("onnxscript")
    kinds: dict[type[Learner], dict[str, Any]] = {FullFinetune: {"towers": "image"}}
    if model != "resnet":
        kinds |= {VPT: {"depth": 2}, PrefixTuning: {}, LlamaAdapter: {"depth": 2}, Adapter: {}}
    for kind, settings in kinds.items():
        learner = made(kind, model, head="text" if model in CLIPS else "linear", **settings)
        write_onnx(learner, tmp_path / kind.__name__)
        assert check_onnx(learner, tmp_path / kind.__name__)


@pytest.mark.slow
def test_every_method_in_every_form(tmp_path: Path) -> None:
    """Each has the forms that docs/export.md says, read back equal, and a sentence instead of the others."""
    pytest.importorskip("onnxscript")
    from test_learners import CASES, candidate_of

    promised = forms_in_docs()
    assert {case.method for case in CASES} == promised.keys()
    for i, case in enumerate(CASES):
        candidate = candidate_of(case)
        learner = made(candidate.kind, candidate.clip, **candidate.settings)
        source = model_folder(learner.clip, tmp_path / f"model{i}")
        forms = {
            "open_clip": lambda out, of=learner, source=source: write_open_clip(of, source, out),
            "classifier": lambda out, of=learner: write_classifier(of, out),
            "onnx": lambda out, of=learner: write_onnx(of, out),
        }
        outcome = {form: exported(write, learner, tmp_path / f"{i} {form}", form) for form, write in forms.items()}
        if case.name == case.method:
            assert outcome == promised[case.method], case.name


def exported(write: Callable[[Path], object], learner: Learner, out: Path, form: str) -> str:
    """What docs/export.md has in its table: whether there is such a form, and a matrix next to the image side."""
    try:
        write(out)
    except UserError as error:
        refusal = str(error)
    else:
        return "yes" if CHECKS[form](learner, out) is not False else "features"
    assert "\n" not in refusal
    assert not out.exists()
    return "–"


CHECKS: dict[str, Any] = {"open_clip": check_open_clip, "classifier": check_classifier, "onnx": check_onnx}


def forms_in_docs() -> dict[str, dict[str, str]]:
    """The table of docs/export.md: by method and form."""
    lines = (ROOT / "docs" / "export.md").read_text(encoding="utf-8").splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("| `method=`"))
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[start:] if line.startswith("| `")]
    names = [name.strip("`") for name in rows[0][1:]]
    methods = [(method.strip(" `"), row) for row in rows[1:] for method in row[0].split(",")]
    return {method: dict(zip(names, row[1:], strict=True)) for method, row in methods}


@pytest.mark.slow
def test_weights_beyond_the_format_lie_next_to_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxscript")
    monkeypatch.setattr(onnx, "LARGEST", 0)
    learner = made(VPT)
    assert write_onnx(learner, tmp_path) == ["classifier.npz", "image.onnx", "image.onnx.data", "preprocess.json"]
    assert check_onnx(learner, tmp_path)
    monkeypatch.undo()
    write_onnx(learner, tmp_path, force=True)  # which leaves none of these there
    assert not (tmp_path / "image.onnx.data").exists()


@pytest.mark.slow
def test_what_onnxruntime_computes_otherwise_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxscript")
    monkeypatch.setattr(onnx, "TOLERANCE", -1.0)
    with pytest.raises(UserError, match="onnxruntime gives other features"):
        write_onnx(made(VPT), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_lines_of_the_docs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They give the logits of the learner for a photo, without PyTorch."""
    pytest.importorskip("onnxscript")
    text = (ROOT / "docs" / "export.md").read_text(encoding="utf-8")
    lines = next(block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "onnxruntime" in block)
    monkeypatch.chdir(tmp_path)
    noise = np.random.default_rng(0).integers(0, 256, (50, 71, 3), np.uint8)
    Image.fromarray(noise).save("photo.jpg")
    learner = made(VPT)
    write_onnx(learner, tmp_path / "out")
    ran = subprocess.run(
        [sys.executable, "-c", f"{lines}\nprint(*logits[0])"], capture_output=True, text=True, check=True
    )
    ours = Model(learner).logits(["photo.jpg"])
    shown = ran.stdout.splitlines()
    assert shown[0] == str(np.array([learner.classes[int(ours.argmax())]]))
    assert_near(np.array(shown[1].split(), np.float32)[None], ours.numpy())


# Folders


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "out"

    def fail() -> None:
        with whole_folder(folder, ["x"], force=False) as draft:
            (draft / "x").write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert list(tmp_path.iterdir()) == []
    with whole_folder(folder, ["x", "y"], force=False) as draft:
        (draft / "x").write_text("1")
        (draft / "y").write_text("1")
    (folder / "mine").write_text("mine")
    with pytest.raises(UserError, match="x and y: --force"), whole_folder(folder, ["x", "y"], force=False):
        pytest.fail("it is refused before anything is made")
    with whole_folder(folder, ["x", "y"], force=True) as draft:
        (draft / "x").write_text("2")
    assert {path.name: path.read_text() for path in folder.iterdir()} == {"x": "2", "mine": "mine"}
    (folder / "z").mkdir()
    with pytest.raises(UserError, match="directory"), whole_folder(folder, ["x", "z"], force=True) as draft:
        (draft / "x").write_text("3")
    assert (folder / "x").read_text() == "2"
