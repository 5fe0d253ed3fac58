"""The drawn data set, the captions and the backbone that was trained on them."""

import json
import pickle
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from vlprompt.data.sources import digits
from vlprompt.demo import shapes
from vlprompt.demo.drawing import COLOURS, PATTERNS
from vlprompt.demo.looks import STYLES
from vlprompt.demo.outlines import SHAPES
from vlprompt.errors import UserError

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "vlprompt" / "demo" / "shapes_vit"
CONFIG = json.loads((FOLDER / "open_clip_config.json").read_text())
SIDE = CONFIG["preprocess_cfg"]["size"][0]
DIGEST = """
import hashlib
from vlprompt.demo.shapes import STYLES, load
for style in STYLES:
    data = load(style)
    print(hashlib.sha256(data.open_image(data.test[123].image).tobytes()).hexdigest())
"""


def pixels(names, data):
    images = [data.open_image(name).resize((SIDE, SIDE), 3) for name in names]
    return torch.from_numpy(np.stack(images).astype(np.float32)).permute(0, 3, 1, 2) / 127.5 - 1


def test_the_same_picture_in_every_process():
    seen = {
        subprocess.run(  # hash() differs between the two
            [sys.executable, "-c", DIGEST], cwd=ROOT, env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
            capture_output=True, text=True, check=True,
        ).stdout
        for seed in "12"
    }  # fmt: skip
    assert len(seen) == 1
    assert len(set(seen.pop().split())) == 3


def test_parts_have_their_sizes_and_share_no_picture():
    data = shapes.load()
    assert (len(data.classes), len(data.train), len(data.val), len(data.test)) == (40, 1280, 640, 2000)
    assert all(
        set(Counter(i.label for i in getattr(data, part)).values()) == {n} for part, n in shapes.PER_CLASS.items()
    )
    assert all(i.image.split("/")[1].replace("_", " ") == data.classes[i.label] for i in data.train + data.test)
    first = {data.open_image(f"{part}/striped_red_ring/000").tobytes() for part in shapes.PER_CLASS}
    assert len(first) == 3


def test_each_half_of_the_classes_mixes_every_word():
    for half in (shapes.HELD_OUT[:20], shapes.HELD_OUT[20:]):
        assert [set(column) for column in zip(*half, strict=True)] == [set(PATTERNS), set(COLOURS), set(SHAPES)]
    assert len(set(shapes.HELD_OUT)) == 40


def test_classes_do_not_move():
    """The weights were trained without these combinations: another choice would make them known."""
    assert shapes.load().classes[:3] == ("plain orange triangle", "checkered yellow flower", "dotted brown moon")
    assert shapes.load().classes[-1] == "checkered brown square"


def test_pictures_are_small_and_travel_to_workers():
    data = pickle.loads(pickle.dumps(shapes.load()))
    images = [data.open_image(i.image) for i in data.val[:5]]
    assert {(i.size, i.mode) for i in images} == {((96, 96), "RGB")}


def test_styles_draw_the_same_class_differently():
    name = "test/dotted_blue_heart/007"
    drawn = [np.asarray(shapes.load(style).open_image(name), float) for style in STYLES]
    assert min(abs(a - b).mean() for i, a in enumerate(drawn) for b in drawn[:i]) > 5
    assert [shapes.load(s).name for s in STYLES] == ["shapes", "shapes_sketch", "shapes_mosaic"]


def test_an_unknown_style_is_a_users_mistake():
    with pytest.raises(UserError, match="mosaic"):
        shapes.load("mosaik")


@pytest.fixture(scope="module")
def pretraining():
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        import pretrain_demo
    finally:
        sys.path.pop(0)
    return pretrain_demo


def test_pretraining_leaves_the_classes_out(pretraining):
    train, held = pretraining.combinations()
    assert len(train) + len(held) + 40 == len(shapes.COMBINATIONS) == 400
    assert not set(train) & set(shapes.HELD_OUT)
    assert not set(held) & {*shapes.HELD_OUT, *train}
    assert [set(column) for column in zip(*train, strict=True)] == [set(PATTERNS), set(COLOURS), set(SHAPES)]
    assert not set(STYLES) & set(pretraining.PRETRAINING_LOOKS)


def test_every_caption_has_known_tokens_and_tells_the_truth(pretraining):
    from random import Random

    words, random = pretraining.Vocabulary(), Random(0)
    looks, known = tuple(pretraining.PRETRAINING_LOOKS), tuple(pretraining.combinations()[0])
    source = pretraining.Source("test", looks, known, (("",),), (0.6, 0.2, 0.2))
    lengths = []
    for facts in [pretraining.render(source, i)[1] for i in range(40)]:
        for _ in range(40):
            text, codes = pretraining.write(random, facts, pretraining.TEMPLATES)
            lengths.append(len(words.rows(text)))
            for field, code in zip(("pattern", "colour", "shape"), codes[1:4], strict=True):
                assert (code > 0) == (facts.kind == "shape" and getattr(facts, field) in re.findall(r"\w+", text))
    assert min(lengths) <= 4
    assert max(lengths) > 32


def test_pairs_that_fit_are_no_negatives(pretraining):
    images = F.normalize(torch.tensor([[1.0, 0.0], [0.9, 0.1]]), dim=-1)
    same, other = torch.tensor([[1, 2, 3], [1, 2, 3]]), torch.tensor([[1, 2, 3], [1, 2, 4]])
    scale = torch.tensor(10.0)
    assert pretraining.contrast(images, images, scale, same, same).item() < 1e-3
    assert pretraining.contrast(images, images, scale, other, other).item() > 0.1


@pytest.fixture(scope="module")
def backbone():
    """The model with a whole table of tokens, and the numbers of the tokens that it knows."""
    config = CONFIG["model_cfg"]
    state = {k: v.float() for k, v in load_file(FOLDER / "open_clip_model.safetensors").items()}
    known = state.pop("token_embedding.ids").long()
    table = torch.zeros(config["text_cfg"]["vocab_size"], config["text_cfg"]["width"])
    state["token_embedding.weight"] = table.index_copy(0, known, state["token_embedding.weight"])
    clip = open_clip.CLIP(
        config["embed_dim"], config["vision_cfg"], config["text_cfg"], quick_gelu=config["quick_gelu"]
    )
    clip.load_state_dict(state, strict=True)
    return clip.eval().requires_grad_(False), set(known.tolist())


def test_weights_are_small_and_widths_differ(backbone):
    clip, known = backbone
    assert (FOLDER / "open_clip_model.safetensors").stat().st_size < 8e6
    assert len({clip.visual.conv1.out_channels, clip.token_embedding.embedding_dim, clip.visual.output_dim}) == 3
    texts = [t("X X X plain red star") for t in open_clip.OPENAI_IMAGENET_TEMPLATES]
    tokens = set(open_clip.tokenize([*texts, "a photo of a 7, zero."]).unique().tolist())
    assert tokens - {0} <= known


def zero_shot(clip, data, template):
    """Accuracy on a third of the validation images."""
    items = data.val[::3]
    texts = clip.encode_text(open_clip.tokenize([template.format(name) for name in data.classes]), normalize=True)
    predicted = (clip.encode_image(pixels([i.image for i in items], data)) @ texts.T).argmax(1)
    return (predicted == torch.tensor([i.label for i in items])).float().mean().item()


def test_zero_shot_is_well_above_chance(backbone):
    assert zero_shot(backbone[0], shapes.load(), "a photo of a {}.") > 0.2  # chance is 0.025


def test_zero_shot_reads_handwritten_digits(backbone):
    assert zero_shot(backbone[0], digits.load("digits"), "a photo of the digit {}.") > 0.4  # chance is 0.1


@pytest.mark.slow
def test_pretraining_runs(tmp_path):
    script = [sys.executable, "scripts/pretrain_demo.py", "--smoke", "--out", str(tmp_path), "--threads", "1"]
    subprocess.run(script, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, check=True, timeout=240)
    assert set(load_file(tmp_path / "open_clip_model.safetensors")) == set(
        load_file(FOLDER / "open_clip_model.safetensors")
    )
    assert json.loads((tmp_path / "pretraining.json").read_text())[-1]["step"] == 4
