"""`vlprompt explain`: maps of the frozen and the adapted model, or a sentence instead; files and exit codes."""

import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from running import ask
from test_learners import CASES, Case, build

from vlprompt import cli
from vlprompt.api import Model, load_clip
from vlprompt.commands.explain import names_for
from vlprompt.explain.maps import Explainer, Explanation
from vlprompt.explain.picture import draw
from vlprompt.learners.base import Learner
from vlprompt.learners.clip_adapter import CLIPAdapter
from vlprompt.learners.cocoop import CoCoOp
from vlprompt.learners.linear_head import LinearHead
from vlprompt.learners.maple import MaPLe
from vlprompt.learners.tip_adapter import TipAdapter
from vlprompt.learners.vpt import VPT
from vlprompt.results import learner_files
from vlprompt.towers import Edit

made = cache(tiny.clip)
NAMES = ["cat", "dog", "$x$ <b>_&"]
SHAPES = ["plain red circle", "dotted green moon", "striped blue star"]


def photo(size: int = 32) -> torch.Tensor:
    return torch.randint(0, 256, (3, size, size), generator=torch.Generator().manual_seed(5), dtype=torch.uint8)


def explained(learner: Learner) -> Explanation:
    return Explainer(Model(learner.eval()))(photo(learner.clip.preprocess.size))


def test_both_sides_of_a_learner_with_words() -> None:
    clip = made("vit", torch.float32)[0]
    learner = MaPLe(clip, NAMES, depth=3)
    of = explained(learner)
    for side, model in ((of.frozen, Model(Learner(clip, NAMES))), (of.adapted, Model(learner))):
        pixels = model.preprocess(Image.fromarray(of.photo.permute(1, 2, 0).numpy()))
        torch.testing.assert_close(side.probabilities, model.probabilities([pixels])[0])
        assert side.rollout is not None
        assert side.rollout.shape == side.similarity.shape == (4, 4)
        assert side.rollout.mean() == pytest.approx(1, abs=1e-5)
        assert (side.unit, side.notes) == ("cosine", [])
    assert of.frozen.learned == 0 < of.adapted.learned < 1
    assert not torch.equal(of.frozen.rollout, of.adapted.rollout)
    best = int(of.frozen.probabilities.argmax())
    text = clip.text(clip.text.prompts(NAMES, template="a photo of a {}."))[best]
    visual = clip.weights.root.visual
    x = visual.ln_post(visual.transformer(visual.ln_pre(clip.image.embed(pixels[None])))[:, 1:]) @ visual.proj
    cosines = torch.nn.functional.cosine_similarity(x[0], text, dim=-1)
    torch.testing.assert_close(of.frozen.similarity.flatten(), cosines, rtol=1e-4, atol=1e-5)


class Hidden(Learner):
    """Edits that nobody can ask it for."""

    edits_image = True

    def encode_images(self, images: Any) -> Any:
        return self.clip.image(images, {0: Edit(q=lambda x: x)})


def tip_adapter(clip: Any) -> Learner:
    learner = TipAdapter(clip, NAMES, alpha=50.0)
    learner._set_cache(torch.eye(3, clip.image.embed_dim), torch.arange(3))
    return learner


@pytest.mark.parametrize(
    ("make", "model", "unit", "words"),
    [
        (lambda clip: CoCoOp(clip, NAMES, reduction=4), "vit", "cosine", ["leaves the image tower as it is"]),
        (lambda clip: CLIPAdapter(clip, NAMES), "vit", "cosine", ["leaves the image tower as it is"]),
        (tip_adapter, "vit", "cosine", ["leaves the image tower", "further parts"]),
        (lambda clip: LinearHead(clip, NAMES), "vit", "logit", ["leaves the image tower", "without words"]),
        (lambda clip: VPT(clip, NAMES), "vit_avg", "cosine", ["No class token"]),
        (lambda clip: VPT(clip, NAMES, head="linear"), "timm:test_vit", "logit", ["no text tower", "without words"]),
        (lambda clip: Learner(clip, NAMES), "resnet", None, ["ResNet"]),
        (lambda clip: Hidden(clip, NAMES), "vit", None, ["with image_edits it could"]),
    ],
)
def test_what_has_no_meaning_is_said(make: Any, model: str, unit: str | None, words: list[str]) -> None:
    clip = load_clip(model, "random") if ":" in model else made(model, torch.float32)[0]
    of = explained(make(clip))
    assert (of.adapted.similarity is None) == (of.adapted.rollout is None) == (unit is None)
    assert unit in (None, of.adapted.unit)
    assert of.adapted.probabilities is not None
    assert (of.frozen.similarity is None) == (model in ("resnet", "timm:test_vit"))
    notes = list(dict.fromkeys([*of.frozen.notes, *of.adapted.notes]))
    assert len(notes) == len(words), notes
    assert all(any(word in note for note in notes) for word in words), notes


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_method_is_explained(case: Case, tmp_path: Path) -> None:
    of = explained(build(case))
    several = case.name == "plot_plus_plus"  # passes of each image, of which no one is the learner's
    for side in (of.frozen, *([] if several else [of.adapted])):
        assert side.rollout is not None
        assert side.rollout.isfinite().all()
        assert side.similarity is None or side.similarity.isfinite().all()
    assert (of.adapted.similarity is None) == several
    assert any("way of its own" in note for note in of.adapted.notes) == several
    draw(of, "x").savefig(tmp_path / "x.png")


@cache
def vpt() -> Learner:
    return VPT(load_clip("shapes_vit"), SHAPES, n_tokens=2)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a learner."""
    folder = tmp_path_factory.mktemp("learner")
    about = {"target": "vlprompt.learners.vpt.VPT", "arguments": {"n_tokens": 2}, "precision": "fp32"}
    learner_files.save(vpt(), folder, {**about, "backbone": {"model": "shapes_vit", "weights": "pretrained"}})
    return folder


def test_one_drawing_a_picture(run: Path, tmp_path: Path) -> None:
    good, torn = (tmp_path / name for name in ("$a_b$ <i>%.png", "torn.png"))
    Image.fromarray(np.random.default_rng(1).integers(0, 255, (60, 70, 3), dtype=np.uint8)).save(good)
    torn.write_bytes(good.read_bytes()[:200])
    answer = ask(cli.main, ["explain", str(run), *map(str, (torn, good)), "--output", str(tmp_path / "out")])
    assert answer.code == 1
    assert [word for word in ("torn.png", "1 of 2") if word not in answer.err] == []
    (drawn,) = (tmp_path / "out").iterdir()
    assert (drawn.name, Image.open(drawn).width) == ("a_b_i.png", 1380)
    name, p = Model(vpt().eval()).predict(good)[0]
    assert f"{name} {100 * p:.1f} %" in answer.out


def test_names_are_safe_and_never_those_of_pictures(tmp_path: Path) -> None:
    given = [
        "a/x.png",
        "b/x.png",
        "b/X.png",
        "b/.hidden",
        "b/...png",
        "b/" + 200 * "y" + ".jpg",
        "b/-ä é.png",
        "b/x.png",
    ]
    targets = list(names_for([tmp_path / name for name in given], tmp_path / "b", "png"))
    assert [path.name for path in targets[:5]] == ["a_x.png", "b_x.png", "b_X_2.png", "hidden.png", "picture.png"]
    assert len({str(path).lower() for path in targets}) == len(given)
    assert all(path.parent == tmp_path / "b" and len(path.name) < 90 for path in targets)
    assert not {*targets} & {tmp_path / name for name in given}
    alike = names_for([tmp_path / name for name in ("a/x.png", "c/x.jpg", "c/y.png")], tmp_path, "png")
    assert [path.name for path in alike] == ["a_x.png", "c_x.png", "y.png"]


@pytest.mark.slow
@pytest.mark.parametrize(("format", "start"), [("svg", b"<?xml"), ("pdf", b"%PDF-")])
def test_other_formats(run: Path, tmp_path: Path, format: str, start: bytes) -> None:
    picture = tmp_path / "x.png"
    Image.new("RGB", (50, 50), "red").save(picture)
    answer = ask(cli.main, ["explain", str(run), str(picture), "--output", str(tmp_path / "a/b"), "--format", format])
    assert (answer.code, (tmp_path / "a" / "b" / f"x.{format}").read_bytes()[:5]) == (0, start)


def test_mistakes(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = tmp_path / "x.png"
    Image.new("RGB", (50, 50), "red").save(picture)
    command = ["explain", str(run), str(picture), "--output"]
    for given, words in (
        ([*command, str(picture)], ["--output", "x.png"]),
        (["explain", str(tmp_path), str(picture), "--output", str(tmp_path)], ["no run", str(tmp_path)]),
    ):
        answer = ask(cli.main, given)
        assert (answer.code, answer.err.count("\n"), answer.out) == (2, 1, "")
        assert not [word for word in words if word not in answer.err]
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    answer = ask(cli.main, [*command, str(tmp_path / "out")])
    assert (answer.code, answer.err.count("\n")) == (2, 1)
    assert "matplotlib" in answer.err
    assert not (tmp_path / "out").exists()
