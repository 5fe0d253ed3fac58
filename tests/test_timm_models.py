"""timm's models as backbones: names, files and folders of weights, how images are prepared, and users' mistakes."""

import json
from argparse import Namespace
from pathlib import Path

import numpy as np
import open_clip
import pytest
import safetensors.torch
import timm
import tiny
import torch
from PIL import Image
from running import ask
from timm.data import create_transform, resolve_model_data_config

from vlprompt import sweep
from vlprompt.config.build import restore_learner
from vlprompt.config.compose import compose
from vlprompt.config.identity import weights_identity
from vlprompt.config.schema import read_settings
from vlprompt.data.transforms import eval_transform, normalise, train_transform
from vlprompt.errors import UserError
from vlprompt.towers import Images, Preprocess, is_timm, load_clip
from vlprompt.towers.geometry import read_geometry
from vlprompt.towers.loading import make_model
from vlprompt.towers.timm_models import published_preprocess

NAME = "test_vit"  # timm's own, for tests: 160 pixels, patches of 16, width 64


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(3)
    return timm.create_model(NAME, num_classes=5).eval()


@pytest.fixture(scope="module")
def state(net):
    return net.state_dict()


def halves(state, path):
    safetensors.torch.save_file({name: tensor.half() for name, tensor in state.items()}, path)


def as_jax(state, path, depth):
    """The archive that the first ViTs were published as."""
    arrays = {name: tensor.numpy() for name, tensor in state.items()}
    d, heads = arrays["cls_token"].shape[-1], 2
    out = {
        "embedding/kernel": arrays["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
        "embedding/bias": arrays["patch_embed.proj.bias"],
        "cls": arrays["cls_token"],
        "Transformer/posembed_input/pos_embedding": arrays["pos_embed"],
        "Transformer/encoder_norm/scale": arrays["norm.weight"],
        "Transformer/encoder_norm/bias": arrays["norm.bias"],
    }
    for i in range(depth):
        at, block = f"Transformer/encoderblock_{i}/", f"blocks.{i}."
        for part, name in {"LayerNorm_0": "norm1", "LayerNorm_2": "norm2"}.items():
            out[f"{at}{part}/scale"], out[f"{at}{part}/bias"] = (
                arrays[f"{block}{name}.{p}"] for p in ("weight", "bias")
            )
        attention = f"{at}MultiHeadDotProductAttention_1/"
        for j, part in enumerate(("query", "key", "value")):
            rows = slice(j * d, (j + 1) * d)
            out[f"{attention}{part}/kernel"] = arrays[f"{block}attn.qkv.weight"][rows].T.reshape(d, heads, -1)
            out[f"{attention}{part}/bias"] = arrays[f"{block}attn.qkv.bias"][rows].reshape(heads, -1)
        out[f"{attention}out/kernel"] = arrays[f"{block}attn.proj.weight"].T.reshape(heads, -1, d)
        out[f"{attention}out/bias"] = arrays[f"{block}attn.proj.bias"]
        for j, part in enumerate(("fc1", "fc2")):
            out[f"{at}MlpBlock_3/Dense_{j}/kernel"] = arrays[f"{block}mlp.{part}.weight"].T
            out[f"{at}MlpBlock_3/Dense_{j}/bias"] = arrays[f"{block}mlp.{part}.bias"]
    np.savez(path, **out)


def wrapped(name, prefix=""):
    def write(state, path):
        torch.save({"epoch": 3, name: {prefix + key: tensor for key, tensor in state.items()}}, path)

    return write


WRITERS = {
    "m.safetensors": safetensors.torch.save_file,
    "half.safetensors": halves,
    "m.pth": torch.save,
    "m.bin": torch.save,
    "state_dict.pt": wrapped("state_dict", "module."),
    "model.pth": wrapped("model"),
    "compiled.pth": wrapped("model", "_orig_mod.module."),
    "average.pth": wrapped("state_dict_ema"),
    "model_best.pth.tar": lambda state, path: torch.save({"args": Namespace(lr=0.1), "state_dict": state}, path),
    "no_head.pth": lambda state, path: torch.save({k: t for k, t in state.items() if not k.startswith("head")}, path),
    "ViT-B_16.npz": lambda state, path: as_jax(state, path, 6),
}


QUICK = ("half.safetensors", "compiled.pth", "model_best.pth.tar", "no_head.pth", "ViT-B_16.npz")


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n not in QUICK)) for n in WRITERS])
def test_files_of_weights(name, net, state, tmp_path):
    WRITERS[name](state, tmp_path / name)
    clip = load_clip(NAME, str(tmp_path / name))
    x = torch.randn(2, 3, 160, 160)
    with torch.no_grad():
        expected = net.forward_head(net.forward_features(x), pre_logits=True)
    bound = 2e-2 if name.startswith("half") else 1e-5
    torch.testing.assert_close(clip.image(Images(x)), expected, atol=bound, rtol=bound)
    assert clip.weights.tensor("cls_token").dtype == torch.float32
    assert clip.name == f"{NAME}/{name}"


def test_positions_of_another_grid_are_resampled(state, tmp_path):
    """As timm does it, whether the file or the images are of another size."""
    torch.save(state, tmp_path / "m.pth")
    small = timm.create_model(NAME, num_classes=0, img_size=96)
    expected = timm.models.vision_transformer.checkpoint_filter_fn(dict(state), small)["pos_embed"]
    clip = load_clip(NAME, str(tmp_path / "m.pth"), images={"size": 96})
    assert clip.preprocess.size == 96
    assert expected.shape[1] == 37
    torch.testing.assert_close(clip.weights.tensor("pos_embed"), expected)
    assert clip.image(Images(torch.randn(1, 3, 96, 96))).shape == (1, 64)
    torch.save(clip.weights.root.state_dict(), tmp_path / "small.pth")
    large = load_clip(NAME, str(tmp_path / "small.pth"))
    assert large.preprocess.size == 160
    assert large.weights.tensor("pos_embed").shape == state["pos_embed"].shape
    for size in (97, 8):
        with pytest.raises(UserError, match=f"size is {size}.* multiples of 16"):
            load_clip(NAME, str(tmp_path / "m.pth"), images={"size": size})


def write_folder(folder, state, **changed):
    folder.mkdir()
    images = {"input_size": [3, 96, 96], "mean": [0.1, 0.2, 0.3], "std": [0.5, 0.5, 0.6], "interpolation": "bilinear"}
    images |= {"crop_pct": 0.8, "crop_mode": "squash"}
    config = {
        "architecture": NAME,
        "num_classes": 5,
        "pretrained_cfg": images,
        "model_args": {"img_size": 96},
        **changed,
    }
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    if state:
        safetensors.torch.save_file(state, folder / "model.safetensors")
    return str(folder)


@pytest.fixture(scope="module")
def small_state():
    return timm.create_model(NAME, num_classes=5, img_size=96).state_dict()


def test_a_folder_of_the_hubs_form(small_state, tmp_path):
    folder = write_folder(tmp_path / "m", small_state)
    clip = load_clip(folder, "pretrained")
    assert torch.equal(clip.weights.tensor("pos_embed"), small_state["pos_embed"])
    assert clip.preprocess == Preprocess(96, (0.1, 0.2, 0.3), (0.5, 0.5, 0.6), "bilinear", "squash", 0.8)
    assert load_clip(folder, "random").preprocess == clip.preprocess
    assert read_geometry(folder, "pretrained") is None
    flat = {"pretrained_cfg": None, "model_args": None, "mean": [0.2, 0.2, 0.2]}  # an earlier form
    assert load_clip(write_folder(tmp_path / "flat", {}, **flat), "random").preprocess.mean == (0.2, 0.2, 0.2)
    (tmp_path / "m" / "model.safetensors").rename(tmp_path / "moved.safetensors")
    torch.save(small_state, tmp_path / "m" / "pytorch_model.bin")
    assert torch.equal(load_clip(folder, "pretrained").weights.tensor("pos_embed"), small_state["pos_embed"])


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"architecture": None, "architectures": ["ViTModel"]}, "Transformers"),
        ({"architecture": "test_vitt"}, "did you mean 'test_vit'"),
        ({"architecture": 3}, "architecture"),
        ({"model_args": {"checkpoint_path": "x"}}, "'checkpoint_path'"),
        ({"model_args": {"img_size": "large"}}, "cannot be built"),
        ({"model_args": []}, "objects"),
        ({"pretrained_cfg": {"crop_mode": "border"}}, "center, squash"),
        ({"pretrained_cfg": {"crop_pct": 2}}, "crop_pct is 2"),
        ({"pretrained_cfg": {"crop_pct": "much"}}, "crop_pct is much"),
        ({"pretrained_cfg": {"mean": "grey"}}, "mean is grey"),
        ({"pretrained_cfg": {"input_size": 96}}, "input_size"),
    ],
)
def test_a_folder_is_checked(changed, words, tmp_path):
    with pytest.raises(UserError, match=words) as caught:
        load_clip(write_folder(tmp_path / "m", {}, **changed), "random")
    assert "\n" not in str(caught.value)


def clip_state():
    return make_model(tiny.CONFIGS["vit"]).state_dict()


def without(state, name):
    return {key: tensor for key, tensor in state.items() if key != name}


MISTAKES = {
    "clip": (lambda state: clip_state(), ["a CLIP", "backbone=vit_b16"]),
    "transformers": (lambda state: {f"vit.embeddings.{k}": t for k, t in state.items()}, ["Transformers", "timm's"]),
    "other": (
        lambda state: timm.create_model("vit_tiny_patch16_224", depth=1).state_dict(),
        ["'cls_token' is [1, 1, 192]", "vit_tiny_patch16_224"],
    ),
    "deeper": (
        lambda state: {**state, "blocks.6.norm1.weight": torch.ones(64)},
        ["'blocks.6.norm1.weight' is not part"],
    ),
    "missing": (lambda state: without(state, "norm.bias"), ["'norm.bias' is missing"]),
    "patches": (lambda state: {**state, "patch_embed.proj.weight": torch.ones(64, 3, 8, 8)}, ["[64, 3, 8, 8]", NAME]),
    "grid": (lambda state: {**state, "pos_embed": torch.ones(1, 90, 64)}, ["'pos_embed' is [1, 90, 64]"]),
    "nan": (lambda state: {**state, "norm.bias": torch.full((64,), torch.nan)}, ["NaN", "norm.bias"]),
    "empty": (lambda state: {"model": {}}, ["'model'"]),
}


QUICK_MISTAKES = ("clip", "other", "missing", "grid", "nan")


@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=[pytest.mark.slow] * (k not in QUICK_MISTAKES)) for k in MISTAKES]
)
def test_weights_that_do_not_fit(kind, state, tmp_path):
    make, words = MISTAKES[kind]
    torch.save(make(state), tmp_path / "m.pth")
    with pytest.raises(UserError) as caught:
        load_clip(NAME, str(tmp_path / "m.pth"))
    message = str(caught.value)
    assert [word for word in [*words, "m.pth"] if word not in message] == [], message
    assert "\n" not in message


@pytest.mark.parametrize(("model", "depth"), [("test_vit", 5), ("test_vit2", 6)])
def test_an_archive_of_another_model(model, depth, state, tmp_path):
    as_jax(state, tmp_path / "m.npz", depth)
    with pytest.raises(UserError, match=r"m\.npz .*backbone\.model"):
        load_clip(model, str(tmp_path / "m.npz"))


def test_weights_of_timm_for_a_clip(state, tmp_path):
    torch.save(state, tmp_path / "m.pth")
    as_jax(state, tmp_path / "m.npz", 6)
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": tiny.CONFIGS["vit"]}))
    with pytest.raises(UserError, match=r"backbone=timm_vit"):
        load_clip(str(folder), str(tmp_path / "m.pth"))
    with pytest.raises(UserError, match="NumPy archive"):
        load_clip(str(folder), str(tmp_path / "m.npz"))
    assert load_clip(str(folder), images={"crop_pct": 0.5}).preprocess == Preprocess(32, crop_pct=0.5)
    with pytest.raises(UserError, match=r"size is 48, .* 32 pixels"):
        load_clip(str(folder), images={"size": 48})


@pytest.mark.parametrize(
    ("model", "weights", "words"),
    [
        ("vit_tiny_patch16", "random", ["'vit_tiny_patch16'", "vit_tiny_patch16_224", "vit_tiny_patch16_384"]),
        ("timm:vit_tiny_patch16", "random", ["vit_tiny_patch16_224"]),
        ("timm:zzz", "random", ["vit_tiny_patch16_224"]),
        ("vit_tiny_patch16_224.augreg_in22k", "random", ["augreg_in21k", "augreg_in21k_ft_in1k"]),
        ("vit_small_patch16_dinov3", "pretrained", ["Eva", "VisionTransformer"]),
        ("vit_base_patch16_gap_224", "pretrained", ["timm has no weights", "backbone.weights=PATH"]),
        (NAME, "imagenet", ["'imagenet'", "pretrained", "random", "file"]),
        (NAME, ".", ["folder", "backbone.model=."]),
        ("ViT-B-61", "random", ["ViT-B-16"]),
    ],
)
def test_names_that_do_not_exist(model, weights, words):
    with pytest.raises(UserError) as caught:
        load_clip(model, weights)
    message = str(caught.value)
    assert [word for word in words if word not in message] == [], message
    assert "\n" not in message


def test_a_tag_without_a_network(monkeypatch, caplog):
    def fail(*args, **more):
        raise OSError("no network")

    monkeypatch.setattr(timm.models._builder, "load_state_dict_from_hf", fail)
    with pytest.raises(UserError, match=r"could not be fetched .*no network.*backbone\.weights=PATH"):
        load_clip(NAME + ".r160_in1k", "pretrained")
    assert not caplog.records


# --- how images are prepared


@pytest.mark.parametrize(
    "model",
    [
        "vit_tiny_patch16_224",
        "vit_base_patch16_224.orig_in21k",
        "vit_small_patch14_dinov2",
        "vit_base_patch16_clip_384",
    ],
)
@pytest.mark.parametrize("shape", [(40, 60), (300, 200)])
def test_crops_are_timms(model, shape):
    with torch.device("meta"):
        net = timm.create_model(model, depth=1)
    pre, settings = published_preprocess(model), resolve_model_data_config(net)
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8))
    expected = create_transform(**settings, is_training=False)(image)
    ours = normalise(eval_transform(pre)(image)[None], pre)[0]
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)
    assert ours.shape[-1] == pre.size == settings["input_size"][-1]


def test_crop_pct_is_for_tests_and_whole_crops_are_as_before():
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (50, 70, 3), dtype=np.uint8))
    whole, part = Preprocess(size=24), Preprocess(size=24, crop_pct=0.5)
    assert torch.equal(
        eval_transform(part)(image)[:, :, :], eval_transform(Preprocess(size=48))(image)[:, 12:36, 12:36]
    )
    views = []
    for pre in (whole, part):
        torch.manual_seed(1)
        views.append(train_transform(pre)(image))
    assert torch.equal(*views)
    assert not torch.equal(eval_transform(whole)(image), eval_transform(part)(image))
    assert str(whole) == repr(whole).replace(", crop_pct=1.0", "")  # the caches of CLIPs keep their names
    assert str(part) != str(whole)


def identity(*overrides):
    return weights_identity(read_settings(compose(["backbone=timm_vit", *overrides])))


def test_what_identifies_a_run_on_a_model_of_timms(state, small_state, tmp_path):
    torch.save(state, tmp_path / "m.pth")
    file = f"backbone.weights={tmp_path / 'm.pth'}"
    assert identity(file) == identity(file, "backbone.model=timm:vit_tiny_patch16_224")
    assert identity(file)["crop_pct"] == 0.9
    assert "crop_pct" not in identity(file, "backbone.model=vit_small_patch14_dinov2")
    assert "images" not in identity(file)
    changed = identity(file, "backbone.images.crop_pct=1", "backbone.images.mean=[0.5,0.4,0.3]")
    assert changed["images"] == {"crop_pct": 1, "mean": (0.5, 0.4, 0.3)}
    folder = write_folder(tmp_path / "m", small_state)
    before = identity(f"backbone.model={folder}")
    content = json.loads((tmp_path / "m" / "config.json").read_text())
    content["pretrained_cfg"]["crop_pct"] = 0.7
    other = tmp_path / "other"
    (tmp_path / "m").rename(other)
    (other / "config.json").write_text(json.dumps(content))
    after = identity(f"backbone.model={other}")
    assert before["weights"].split()[0] == after["weights"].split()[0]
    assert before["weights"] != after["weights"]


@pytest.fixture(scope="module")
def config():
    return compose(["backbone=timm_vit"])


@pytest.mark.parametrize(
    ("images", "words"),
    [
        ({"crop_pct": 0}, "crop_pct"),
        ({"crop_pct": 1.5}, "crop_pct"),
        ({"mean": [0.5]}, "mean"),
        ({"std": [0, 1, 1]}, "std"),
        ({"interpolation": "nearest"}, "'bicubic' or 'bilinear'"),
        ({"crop_mode": "border"}, "'center' or 'squash'"),
        ({"size": 0}, "size"),
        ({"crop": 1}, "crop"),
    ],
)
def test_settings_of_images_are_checked(images, words, config):
    with pytest.raises(UserError, match=words):
        read_settings({**config, "backbone": {**config["backbone"], "images": images}})


@pytest.mark.slow
def test_a_whole_run(state, tmp_path, monkeypatch):
    """The documented command; its record says how images were prepared, with the user's values."""
    monkeypatch.setenv("VLPROMPT_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("VLPROMPT_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("WANDB_MODE", "disabled")
    halves(state, tmp_path / "m.safetensors")
    for part in ("train", "test"):
        for label, name in enumerate(("cat", "dog")):
            for i in range(3):
                path = tmp_path / "pets" / part / name / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (30, 20), (200 * label, 40 * i + 7 * (part == "test"), 9)).save(path)
    run = ["method=linear_probe", "dataset=folder", f"dataset.root={tmp_path / 'pets'}", "protocol=few_shot", "shots=2"]
    run += ["backbone=timm_vit", f"backbone.model={NAME}", f"backbone.weights={tmp_path / 'm.safetensors'}"]
    for more, crop_pct in (([], 0.95), (["backbone.images.crop_pct=0.5", "name=half"], 0.5)):
        answer = ask(sweep.main, [*run, "backbone.images.size=32", "device=cpu", "workers=0", *more])
        assert answer.code == 0, answer
        (file,) = [f for f in (tmp_path / "results").rglob("result.json") if ("half" in str(f.parent)) == bool(more)]
        record = json.loads(file.read_text())
        assert record["preprocess"]["crop_pct"] == crop_pct
        assert record["preprocess"]["size"] == 32
        assert record["scores"]["test"]["total"] == 6
        assert restore_learner(file.parent).clip.preprocess.crop_pct == crop_pct
    assert len(list(Path(tmp_path / "data").rglob("about.json"))) in (
        0,
        2,
    )  # features of both crops, next to each other


def test_open_clip_sees_no_model_of_timms():
    """Names of both libraries stand for open_clip's."""
    both = set(open_clip.list_models()) & set(timm.list_models())
    assert both
    assert not [name for name in both if is_timm(name)]
