"""What `vlprompt interpret` says of learners whose answer is planted, against direct computations."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from running import ask
from test_learners import METHODS, SMALL, configured
from tiny_world import RUN
from torch import Tensor, nn

from vlprompt.api import load_clip
from vlprompt.cli import main
from vlprompt.commands.interpret import show
from vlprompt.config.locate import locate
from vlprompt.errors import UserError
from vlprompt.interpret import words
from vlprompt.interpret.look import Asked, look
from vlprompt.interpret.view import View, rounded
from vlprompt.learners.adapter import Adapter
from vlprompt.learners.base import Learner
from vlprompt.learners.bitfit import BitFit
from vlprompt.learners.coop import CoOp
from vlprompt.learners.full_finetune import FullFinetune
from vlprompt.learners.ivlp import IVLP
from vlprompt.learners.linear_head import LinearHead
from vlprompt.learners.lora import LoRA
from vlprompt.learners.p_tuning import PTuning
from vlprompt.learners.taskres import TaskRes
from vlprompt.learners.tip_adapter import TipAdapter
from vlprompt.results import learner_files
from vlprompt.sweep import main as run
from vlprompt.towers import Clip, Images
from vlprompt.towers.weights import WordTable

CLASSES = ("cat", "dog", "red star")
DEMO = {"model": "shapes_vit", "weights": "pretrained"}
WORDS = ("photo", "of", "dog", "river")


class FewWords(WordTable):
    """Takes any text, and has a vocabulary of some 300 tokens, so that the tests are quick."""

    def vocabulary(self, n_rows: int) -> dict[int, str]:
        ids = {*range(300), *(self._encode(word)[0] for word in WORDS)}
        return WordTable(self.tokenizer, torch.tensor(sorted(ids))).vocabulary(n_rows)


@cache
def clip() -> Clip:
    made = tiny.clip(dtype=torch.float32)[0]
    assert made.words is not None
    return replace(made, words=FewWords(made.words.tokenizer))


def embedding(word: str) -> Tensor:
    assert clip().text is not None
    return clip().text.embed_phrase(word)[0]


def pixels(n: int = 2) -> Tensor:
    return torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(3))


def one(views: list[View], title: str) -> View:
    (view,) = [view for view in views if view.title.startswith(title)]
    return view


def first(view: View, measure: str = "cosine") -> Any:
    return view.table.query("rank == 1 and measure == @measure").reset_index(drop=True)


def set_(parameter: Tensor, value: Tensor) -> None:
    with torch.no_grad():
        parameter.copy_(value)


@pytest.mark.parametrize("position", ["end", pytest.param("middle", marks=pytest.mark.slow)])
def test_a_context_of_words_gives_these_words(position: Any) -> None:
    learner = CoOp(clip(), CLASSES, n_context=4, position=position)
    set_(learner.context, torch.stack([2 * embedding(word) for word in WORDS]))
    view = one(look(learner, Asked()), "nearest of")
    assert first(view)["word"].tolist() == list(WORDS)
    assert first(view)["value"].to_numpy() == pytest.approx(1, abs=1e-6)
    lengths = [float(embedding(word).norm()) for word in WORDS]  # a vector of twice the length
    chosen = first(view, "distance")
    same = [distance for distance, word in zip(chosen["value"], chosen["word"], strict=True) if word in WORDS]
    assert all(distance <= length + 1e-5 for distance, length in zip(chosen["value"], lengths, strict=True)), same
    assert all(word not in ("<start_of_text>", "<end_of_text>") for word in view.table["word"])


def test_cosines_distances_and_chance_are_those_of_numpy() -> None:
    names, table = clip().vocabulary()
    vector = torch.randn(32, generator=torch.Generator().manual_seed(5)).double() * 0.05
    rows = words.nearest(vector, names, table.double(), 2)
    t, v = table.double().numpy(), vector.numpy()
    cosines = t @ v / np.linalg.norm(t, axis=1) / np.linalg.norm(v)
    distances = np.linalg.norm(t - v, axis=1)
    by = {(row["measure"], row["rank"]): row for row in rows}
    assert by["cosine", 1]["word"] == names[int(cosines.argmax())]
    assert by["cosine", 2]["value"] == pytest.approx(np.sort(cosines)[-2])
    assert by["distance", 1]["value"] == pytest.approx(distances.min())
    random = words.shuffled(vector).numpy()
    assert np.allclose(np.sort(random, 1), np.sort(v)[None])  # its own numbers
    assert len(np.unique(random[:, 0])) > 20
    best = (random @ t.T / np.linalg.norm(t, axis=1) / np.linalg.norm(v)).max(1)
    assert by["cosine", 1]["random"] == pytest.approx(np.median(best), abs=1e-5)
    assert by["cosine", 1]["random_one_in_20"] == pytest.approx(np.quantile(best, 0.95), abs=1e-5)
    nearest = np.linalg.norm(random[:, None] - t, axis=2).min(1)
    assert by["distance", 1]["random_one_in_20"] == pytest.approx(np.quantile(nearest, 0.05), abs=1e-5)


def test_layers_and_classes_have_their_words() -> None:
    deep = IVLP(clip(), CLASSES, n_context=2, depth=3, n_tokens=2, image_depth=2)
    set_(deep.deep[1], torch.stack([embedding("river"), embedding("dog")]))
    views = look(deep, Asked(), pixels=pixels())
    table = first(one(views, "nearest of"))
    assert table[table["layer"] == 2]["word"].tolist() == ["river", "dog"]
    assert any("loose" in note for note in one(views, "nearest of").notes)
    each = CoOp(clip(), CLASSES, n_context=1, class_specific=True)
    set_(each.context, torch.stack([embedding(word) for word in WORDS[:3]])[:, None])
    table = first(one(look(each, Asked(classes=["red star", "cat"])), "nearest of"))
    assert list(zip(table["class"], table["word"], strict=True)) == [("red star", "dog"), ("cat", "photo")]
    with pytest.raises(UserError, match="river"):
        look(each, Asked(classes=["river"]))
    virtual = PTuning(clip(), CLASSES, n_tokens=1, encoder="none")
    set_(virtual.tokens["text"].start, embedding("river")[None])
    assert first(one(look(virtual, Asked()), "nearest of"))["word"].tolist() == ["river"]


def test_image_tokens_have_their_lengths_and_cosines() -> None:
    learner = IVLP(clip(), CLASSES, n_context=2, depth=1, n_tokens=3, image_depth=2)
    tokens = torch.zeros(3, 48)
    tokens[0, 0], tokens[1, 0], tokens[2, 1] = 2.0, 3.0, 5.0
    set_(learner.image_tokens[1], tokens)
    table = one(look(learner, Asked(), pixels=pixels()), "learned image tokens").table.query("layer == 1")
    assert table["length"].tolist() == [2, 3, 5]
    assert table["largest_cosine"].tolist() == pytest.approx([1, 1, 0])
    x = clip().image.blocks[0](clip().image.norm_in(clip().image.embed(pixels())))
    assert table["patches"].iloc[0] == pytest.approx(float(x[:, 1:].norm(dim=-1).median()))


def test_a_known_change_is_where_it_was_made() -> None:
    learner = LoRA(clip(), CLASSES, rank=2, sites=["q", "v", "fc2"])
    update: Any = learner.layers["text"][1]["v"]
    set_(update.a, torch.eye(2, 32) * torch.tensor([[3.0], [1.0]]))
    set_(update.b, torch.eye(32, 2))
    table = one(look(learner, Asked()), "change of").table
    moved = table[table["norm_of_change"] > 0]
    assert moved[["tower", "layer", "site"]].values.tolist() == [["text", 1, "v"]]
    frozen = np.linalg.norm(clip().weights.root.transformer.resblocks[1].attn.in_proj_weight[64:].numpy())  # type: ignore[index, union-attr]
    assert moved["change_percent"].item() == pytest.approx(100 * 0.5 * 10**0.5 / frozen, rel=1e-5)  # alpha / r is 1/2
    assert moved["stable_rank"].item() == pytest.approx(10 / 9, rel=1e-5)
    assert len(table) == 2 * 3 * 3


def test_biases_norms_and_what_is_outside_of_blocks_have_rows() -> None:
    bias, full = BitFit(clip(), CLASSES), FullFinetune(clip(), CLASSES)
    for learner, name in ((bias, "transformer.resblocks.2.attn.in_proj_bias"), (full, "visual.conv1.weight")):
        parameter = learner.weights.get_parameter(name)
        with torch.no_grad():
            parameter[32:64] += 1.0  # keys, or the last channels
    moved = one(look(bias, Asked()), "change of").table.query("norm_of_change > 0")
    assert moved[["tower", "kind", "layer", "site"]].values.tolist() == [["text", "biases", 2, "k"]]
    assert moved["norm_of_change"].item() == pytest.approx(32**0.5)
    view = one(look(full, Asked()), "change of")
    moved = view.table.query("norm_of_change > 0")
    assert moved[["tower", "kind", "site"]].values.tolist() == [["image", "outside the blocks", "visual.conv1.weight"]]
    assert {"ln_1.weight", "q", "visual.conv1.weight"} <= {*view.table["site"]}


def test_adapters_tell_how_much_they_add() -> None:
    learner = Adapter(clip(), CLASSES, bottleneck=4)
    added = []
    for size in (0.0, 1.0, 2.0):
        bottleneck: Any = learner.layers["image"][2]["mlp"]
        set_(bottleneck.up.bias, torch.full((48,), size))
        table = one(look(learner, Asked(), pixels=pixels()), "what is added").table
        assert len(table) == 2 * 3
        added.append(table.query("tower == 'image' and layer == 2")["added_percent"].item())
        assert table.query("tower == 'text' or layer < 2")["added_percent"].max() == 0
    assert added[0] == 0
    assert added[2] == pytest.approx(2 * added[1])
    assert learner.clip is clip()


def test_a_cache_names_the_images_that_it_holds() -> None:
    learner = TipAdapter(clip(), CLASSES, n_views=1, beta=2.0)
    images, labels = pixels(6), torch.tensor([0, 0, 1, 1, 2, 2])
    learner.prepare([(Images(images), labels)], None)
    names = [f"train/{i}" for i in range(6)]
    (view,) = look(learner, Asked(top=2), pixels=images[[4]], names=["x.png"], cached=names)
    assert view.table["training image"].iloc[0] == "train/4"
    assert view.table["class"].iloc[0] == "red star"
    assert view.table["affinity"].iloc[0] == pytest.approx(1, abs=1e-5)
    plane = torch.tensor([[1, 0], [1, 0.05], [0.1, 1], [1, 0.02], [-1, 0], [-1, 0.05]])
    set_(learner.keys, nn.functional.normalize(plane @ torch.eye(2, 24), dim=-1))
    (view,) = look(learner, Asked(), cached=names)
    rows = {row["class"]: row for row in view.table.to_dict("records")}
    assert {name: (row["other"], row["nearest in other"]) for name, row in rows.items()} == {
        "dog": ("cat", 2), "cat": ("dog", 2), "red star": ("dog", 0),
    }  # fmt: skip
    unit = learner.keys.double().numpy()
    affinities = np.exp(2.0 * (unit @ unit.T - 1))
    assert rows["cat"]["affinity"] == pytest.approx(affinities[:2, 2:4].mean())
    assert rows["cat"]["within"] == pytest.approx(affinities[0, 1])
    assert rows["dog"]["for example"] == "train/3 → train/0"
    (view,) = look(learner, Asked(classes=["red star"]), cached=names)
    assert (view.grids[""]["class"].tolist(), len(view.table)) == (["red star"], 3)
    (view,) = look(learner, Asked())  # without the data set
    assert "dog, 2 → cat, 1" in set(view.table["for example"])


def test_heads_and_residuals_are_compared_with_the_texts() -> None:
    plain = Learner(clip(), CLASSES)
    texts = plain.zero_shot_features([plain.template], normalize=False)
    head = LinearHead(clip(), CLASSES)
    set_(head.head.weight, 3 * texts[[1, 2, 0]])
    table = one(look(head, Asked()), "rows of the head").table
    assert table["nearest_text"].tolist() == ["dog", "red star", "cat"]
    assert table["nearest"].to_numpy() == pytest.approx(1, abs=1e-6)
    residual = TaskRes(clip(), CLASSES)
    set_(residual.residual, torch.cat([torch.zeros(2, 24), 4 * texts[2:]]))
    table = one(look(residual, Asked()), "class features").table
    assert table["residual_percent"].tolist() == pytest.approx([0, 0, 200], abs=1e-3)


def test_numbers_have_the_digits_that_they_say() -> None:
    given = [(12.04, "#.3g"), (150.2, "#.3g"), (0.98, "#.3g"), (-0.001, ".2f"), (-0.5, ".2f"), (float("nan"), ".2f")]
    assert [rounded(*each) for each in given] == ["12.0", "150", "0.980", "0.00", "-0.50", "–"]


class Stranger(Learner):
    """A method that nobody knows."""

    def __init__(self, clip: Clip, classes: Any) -> None:
        super().__init__(clip, classes)
        self.shift = nn.Parameter(torch.zeros(24))

    def encode_images(self, images: Images) -> Tensor:
        return super().encode_images(images) + self.shift


def test_a_method_of_a_stranger_shows_its_tensors_and_their_change() -> None:
    learner, start = Stranger(clip(), CLASSES), Stranger(clip(), CLASSES)
    set_(learner.shift, torch.full((24,), 2.0))
    (view,) = look(learner, Asked(), start=start)
    assert view.table[["tensor", "change"]].values.tolist() == [["shift", pytest.approx(2 * 24**0.5)]]
    assert (
        one(look(learner, Asked(), pixels=pixels(), names=["a", "b"]), "image features").table["change_percent"].min()
        > 0
    )


QUICK = {"clip_adapter", "cocoop", "flyp", "intrinsic_dimension", "llama_adapter", "lp_plus_plus", "maple",
         "prefix_tuning", "zero_shot"}  # fmt: skip
"""Between them they go all ways that there are."""


@pytest.mark.parametrize("method", [pytest.param(m, marks=[pytest.mark.slow] * (m not in QUICK)) for m in METHODS])
def test_every_method_shows_something(method: str, capsys: pytest.CaptureFixture[str]) -> None:
    kind, settings = locate(configured(method)["method"], Learner, "method")
    torch.manual_seed(0)
    learner = kind(clip(), CLASSES, **kind.resolved({**settings, **SMALL.get(method, {})}))
    batch = (Images(pixels(6)), torch.tensor([0, 0, 1, 1, 2, 2]))
    if hasattr(learner, "_set_cache"):
        learner.prepare([batch], [batch])
    views = look(learner.eval(), Asked())
    assert bool(views) == bool(learner.state_dict())
    assert all(len(view.table) and (view.grids or view.notes) for view in views)
    show(views, method, "json")
    assert len(json.loads(capsys.readouterr().out)["views"]) == len(views)


def test_the_command_reads_a_folder_and_draws(tmp_path: Path) -> None:
    demo = load_clip("shapes_vit")
    learner = CoOp(demo, ("zero", "one"), n_context=2, ctx_init="photo of")
    settings = {"n_context": 2, "ctx_init": "photo of"}
    about = {"target": "vlprompt.learners.coop.CoOp", "arguments": settings, "backbone": DEMO}
    learner_files.save(learner, tmp_path, about)
    answer = ask(main, ["interpret", str(tmp_path), "--output", str(tmp_path / "x.svg")])
    assert (answer.code, answer.err) == (0, "")
    assert "photo" in answer.out
    assert (tmp_path / "x.svg").stat().st_size > 1000
    answer = ask(main, ["interpret", str(tmp_path), "--format", "csv"])
    assert "photo" in answer.out.splitlines()[1]
    assert "note: " in answer.err
    for arguments in ([str(tmp_path / "x.svg")], ["--output", "x.gif"], ["--classes", "ten"]):
        wrong = ask(main, ["interpret", str(tmp_path), *arguments])
        assert (wrong.code, wrong.out) == (2, "")
        assert arguments[-1] in wrong.err
    assert ask(main, ["interpret", str(tmp_path / "none")]).code == 2


@pytest.mark.slow
def test_a_run_starts_again_where_it_started(results: Path) -> None:
    assert ask(run, [*RUN, "method=coop", "protocol=few_shot", "fit.lr=1e-9"]).code == 0
    (folder,) = {path.parent for path in results.rglob("learner.safetensors")}
    rows = json.loads(ask(main, ["interpret", str(folder), "--format", "json"]).out)["views"][0]["rows"]
    assert max(row["moved"] for row in rows) < 1e-6
    assert min(row["length"] for row in rows) > 0.01
