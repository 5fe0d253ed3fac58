"""Loading a CLIP: every kind of file, the hub, and what must not go through."""

import functools
import gzip
import hashlib
import http.server
import json
import threading
import zipfile

import numpy as np
import open_clip
import pytest
import safetensors.torch
import tiny
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from vlprompt.errors import UserError
from vlprompt.towers import Images, load_clip
from vlprompt.towers.loading import make_model
from vlprompt.towers.weights import OPENAI_ARCHIVES, read_state


def same(a, b):
    """Whether two models have equal weights."""
    a, b = a.weights.root.state_dict(), b.weights.root.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


OPENAI = {"input_resolution": torch.tensor(32), "context_length": torch.tensor(77), "vocab_size": torch.tensor(49408)}


@pytest.fixture(scope="module")
def architectures(tmp_path_factory):
    """Two small architectures known to open_clip by name; only the activation differs."""
    folder = tmp_path_factory.mktemp("configs")
    config = {**tiny.CONFIGS["vit"], "quick_gelu": False}
    (folder / "tiny.json").write_text(json.dumps(config))
    (folder / "tiny-quickgelu.json").write_text(json.dumps({**config, "quick_gelu": True}))
    open_clip.add_model_config(folder)


@pytest.fixture(scope="module")
def state(architectures):
    return make_model(tiny.CONFIGS["vit"], seed=5).state_dict()


def write_safetensors(state, path):
    safetensors.torch.save_file(state, path)


def write_wrapped(state, path):
    torch.save({"epoch": 3, "state_dict": {"module." + k: v for k, v in state.items()}}, path)


def write_openai_dict(state, path):
    torch.save({**{k: v.half() for k, v in state.items()}, **OPENAI}, path)


def write_openai_archive(state, path):
    net = make_model(tiny.CONFIGS["vit"], seed=5).eval()
    torch.jit.save(torch.jit.script(net), path)
    OPENAI_ARCHIVES[hashlib.sha256(path.read_bytes()).hexdigest()] = "tiny"  # as if OpenAI had published it


WRITERS = {
    "m.safetensors": write_safetensors,
    "m.pt": torch.save,
    "wrapped.pt": write_wrapped,
    "openai.pt": write_openai_dict,
    "archive.pt": write_openai_archive,
}  # fmt: skip


@pytest.mark.parametrize("name", WRITERS)
def test_local_files(name, state, tmp_path):
    WRITERS[name](state, tmp_path / name)
    clip = load_clip("tiny-quickgelu", str(tmp_path / name))
    bound = 1e-3 if name == "openai.pt" else 0  # halves
    for key, tensor in clip.weights.root.state_dict().items():
        assert tensor.dtype == torch.float32
        torch.testing.assert_close(tensor, state[key], atol=bound, rtol=bound)
    assert not any(p.requires_grad for p in clip.weights.root.parameters())
    assert clip.image(Images(torch.randn(2, 3, 32, 32))).shape == (2, 24)


@pytest.mark.parametrize("name", ["openai.pt", "archive.pt"])
def test_openai_weights_need_quick_gelu(name, state, tmp_path):
    WRITERS[name](state, tmp_path / name)
    with pytest.raises(UserError, match=r"trained with QuickGELU.*backbone.model=tiny-quickgelu"):
        load_clip("tiny", str(tmp_path / name))


def test_a_tag_of_the_other_activation_is_an_error():
    with pytest.raises(UserError, match=r"backbone\.model=ViT-B-32-quickgelu"):
        load_clip("ViT-B-32", "openai")


def test_random_weights_depend_on_the_seed_alone(architectures):
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = load_clip("tiny", "random")
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(2)
    assert same(load_clip("tiny", "random"), first)
    assert not same(load_clip("tiny", "random", seed=1), first)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda s: {k: v for k, v in s.items() if k != "visual.proj"}, "'visual.proj' is missing"),
        (lambda s: {}, "is missing; .* more"),
        (lambda s: {**s, "extra": torch.zeros(1)}, "'extra' is not part of the model"),
        (lambda s: {**s, "visual.proj": torch.zeros(48, 7)}, r"'visual.proj' is \[48, 7\], needed \[48, 24\]"),
    ],
)
def test_weights_that_do_not_fit(damage, message, state, tmp_path):
    torch.save(damage(dict(state)), tmp_path / "m.pt")
    with pytest.raises(UserError, match=message):
        load_clip("tiny-quickgelu", str(tmp_path / "m.pt"))


@pytest.mark.parametrize("name", ["m.safetensors", "m.pt", "archive.pt"])
def test_truncated_files(name, state, tmp_path):
    WRITERS[name](state, tmp_path / name)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="cannot be read as weights"):
        load_clip("tiny-quickgelu", str(tmp_path / name))


def numpy_archive(path):
    with path.open("wb") as file:
        np.savez(file, x=np.array([object()], dtype=object))


def zipped(path, **members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name.replace("_", "."), content)


NO_WEIGHTS = {
    "empty": (lambda path: path.write_bytes(b""), "an empty file"),
    "blank": (lambda path: path.write_bytes(b"\r\n "), "white space"),
    "lfs": (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:a\n"), "git lfs pull"),
    "page": (lambda path: path.write_bytes(b"\xef\xbb\xbf\n<!DOCTYPE html><html>"), "a web page"),
    "xml": (lambda path: path.write_text("<Error><Code>AccessDenied</Code></Error>"), "a web page"),
    "json": (lambda path: path.write_text('{"message": "Not Found"}'), "JSON, perhaps a server's message"),
    "list": (lambda path: path.write_text("[1, 2]"), "JSON"),
    "text": (lambda path: path.write_text("Entry not found, größer"), "a text file"),
    "gzip": (lambda path: path.write_bytes(gzip.compress(b"weights")), "a gzip archive: unpack"),
    "npy": (lambda path: np.save(path.open("wb"), np.zeros(3)), "a NumPy array"),
    "npz": (numpy_archive, "a NumPy archive"),
    "zip": (lambda path: zipped(path, weights_bin=b"\0" * 9), "without weights of torch"),
    "bomb": (lambda path: zipped(path, data_pkl=b"\0" * 10**6), "compressed archive"),
    "noise": (lambda path: path.write_bytes(bytes(range(256)) * 9), "cannot be read as weights"),
    "tensor": (lambda path: torch.save(torch.zeros(3), path), "no state dict"),
    "training": (lambda path: torch.save({"epoch": 1, "model": {}}, path), "no state dict but 'epoch', 'model'"),
    "module": (
        lambda path: torch.save(nn.Linear(2, 2), path),
        "'torch.nn.modules.linear.Linear', which would run code",
    ),
    "sparse": (lambda path: torch.save({"w": torch.eye(2).to_sparse()}, path), "'w' in .* no dense tensor"),
    "expanded": (lambda path: torch.save({"w": torch.zeros(1).expand(10**12)}, path), "'w' in .* no dense tensor"),
    "number": (lambda path: torch.save({"w": 3}, path), "'w' in .* no dense tensor"),
}


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("kind", NO_WEIGHTS)
def test_a_file_is_named_for_what_it_is(kind, suffix, tmp_path):
    path = tmp_path / f"m{suffix}"
    NO_WEIGHTS[kind][0](path)
    with pytest.raises(UserError, match=NO_WEIGHTS[kind][1]) as caught:
        read_state(path)
    text = str(caught.value)
    assert path.name in text
    assert "\n" not in text
    assert "weights_only" not in text


@pytest.mark.parametrize(("name", "suffix"), [("m.safetensors", ".pt"), ("m.pt", ".safetensors")])
def test_the_content_tells_the_format(name, suffix, state, tmp_path):
    WRITERS[name](state, tmp_path / "written")
    path = (tmp_path / "written").rename(tmp_path / f"m{suffix}")
    assert torch.equal(load_clip("tiny-quickgelu", str(path)).weights.tensor("visual.proj"), state["visual.proj"])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite(value, state, tmp_path):
    broken = state["visual.proj"].clone()
    broken[3, 5] = value
    torch.save({**state, "visual.proj": broken}, tmp_path / "m.pt")
    with pytest.raises(UserError, match=r"m\.pt hold values that are NaN or infinite .'visual.proj'"):
        load_clip("tiny-quickgelu", str(tmp_path / "m.pt"))


@pytest.mark.parametrize(("name", "value"), [("visual.proj", 1e300), ("logit_scale", 1e5)])
def test_weights_that_overflow(name, value, state, tmp_path):
    torch.save({**state, name: torch.full_like(state[name], value, dtype=torch.float64)}, tmp_path / "m.pt")
    with pytest.raises(UserError, match=f"infinite|{name}"):
        load_clip("tiny-quickgelu", str(tmp_path / "m.pt"))


def test_weights_of_another_type(state, tmp_path):
    torch.save({name: t.to(torch.int8) for name, t in state.items()}, tmp_path / "m.pt")
    with pytest.raises(UserError, match=r"is of type torch\.int8, needed torch\.float32"):
        load_clip("tiny-quickgelu", str(tmp_path / "m.pt"))


class Writer(nn.Module):
    """Writes a file when torch.jit.load restores it."""

    def __init__(self, path):
        super().__init__()
        self.path, self.w = path, nn.Parameter(torch.zeros(2))

    def forward(self, x: torch.Tensor):
        return x + self.w

    @torch.jit.export
    def __getstate__(self):
        return self.path, self.w, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[str, torch.Tensor, bool]):
        self.path, self.w, self.training = state
        torch.save(self.w, self.path)


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_torchscript_is_not_executed(suffix, architectures, tmp_path):
    harm, path = tmp_path / "harm", tmp_path / f"m{suffix}"
    torch.jit.save(torch.jit.script(Writer(str(harm))), path)
    harm.unlink(missing_ok=True)
    for model in ("tiny", "timm:test_vit"):
        with pytest.raises(UserError, match="a TorchScript archive, which could run code"):
            load_clip(model, str(path))
    write_folder(tmp_path / "folder")
    with pytest.raises(UserError, match="a TorchScript archive, which could run code"):
        load_clip(str(tmp_path / "folder"), str(path))
    assert not harm.exists()
    torch.jit.load(path)
    assert harm.exists()  # the test can fail


def test_the_archives_of_openai_are_those_that_open_clip_fetches():
    urls = {open_clip.get_pretrained_url(model, "openai") for model in open_clip.list_openai_models()}
    known = {url.split("/")[-2]: url.split("/")[-1] for url in urls if "openaipublic" in url}
    assert len(known) == 9
    for sha256, file in known.items():
        assert file.removesuffix("px.pt").removesuffix(".pt") == OPENAI_ARCHIVES[sha256]


def test_a_pickle_is_not_executed(architectures, tmp_path):
    class Harm:
        def __reduce__(self):
            return (open, (str(tmp_path / "harm"), "w"))

    torch.save({"state_dict": Harm()}, tmp_path / "m.pt")
    with pytest.raises(UserError, match="cannot be read"):
        load_clip("tiny", str(tmp_path / "m.pt"))
    assert not (tmp_path / "harm").exists()


def test_unknown_names_list_the_known(architectures):
    with pytest.raises(UserError, match=r"unknown model 'ViT-B-61'.*did you mean 'ViT-B-16'\?"):
        load_clip("ViT-B-61", "random")
    with pytest.raises(UserError, match=r"unknown weights 'nothing'.*random"):
        load_clip("tiny", "nothing")


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


def test_a_tag_is_fetched_once(state, tmp_path, monkeypatch):
    """The real download code against a server on this machine."""
    (tmp_path / "served").mkdir()
    write_safetensors(state, tmp_path / "served" / "tiny.safetensors")
    handler = functools.partial(Quiet, directory=tmp_path / "served")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/tiny.safetensors"
        monkeypatch.setattr(open_clip, "list_pretrained_tags_by_model", lambda model: ["here"])
        served = {"url": url, "quick_gelu": True, "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
        monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda model, tag: served)
        clip = load_clip("tiny-quickgelu", "here")
        server.shutdown()
    assert torch.equal(clip.weights.root.state_dict()["visual.proj"], state["visual.proj"])
    assert clip.preprocess.mean == (0.5, 0.5, 0.5)
    again = load_clip("tiny-quickgelu", "here")  # the server is gone
    assert same(again, clip)


def test_a_tag_that_cannot_be_fetched(architectures, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(open_clip, "list_pretrained_tags_by_model", lambda model: ["gone"])
    served = {"url": "http://127.0.0.1:9/gone.pt", "quick_gelu": False}
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda model, tag: served)
    with pytest.raises(UserError, match=r"tiny/gone could not be fetched.*backbone\.weights=PATH"):
        load_clip("tiny", "gone")


def test_a_folder_with_part_of_the_vocabulary(state, tmp_path):
    ids = torch.tensor([49406, 49407, *open_clip.SimpleTokenizer().encode("a photo of a cat dog.")]).unique()
    rows = state["token_embedding.weight"][ids].half()
    partial = {**state, "token_embedding.weight": rows, "token_embedding.ids": ids.int()}
    safetensors.torch.save_file(partial, tmp_path / "open_clip_model.safetensors")
    config = {"model_cfg": tiny.CONFIGS["vit"], "preprocess_cfg": {"mean": [0.1, 0.2, 0.3], "size": [32, 32]}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    clip = load_clip(str(tmp_path), "pretrained")
    assert clip.preprocess.size == 32
    assert clip.preprocess.mean == (0.1, 0.2, 0.3)
    whole = make_model(tiny.CONFIGS["vit"], seed=5).eval()
    prompts = clip.text.prompts(["cat", "dog"], template="a photo of a {}.")
    expected = whole.encode_text(open_clip.tokenize(["a photo of a cat.", "a photo of a dog."]))
    torch.testing.assert_close(clip.text(prompts), expected, atol=1e-3, rtol=1e-3)
    with pytest.raises(UserError, match="does not know the word 'zebra'"):
        clip.text.prompts(["cat", "zebra"], template="a photo of a {}.")


def write_folder(folder, config=tiny.CONFIGS["vit"], **more):
    folder.mkdir(exist_ok=True)
    content = {"model_cfg": config, **more}
    (folder / "open_clip_config.json").write_text("\ufeff" + json.dumps(content), encoding="utf-8")
    return str(folder)


def changed(part=None, **values):
    """The tiny configuration with other values in one of its parts; None: without that key."""
    config = json.loads(json.dumps(tiny.CONFIGS["vit"]))
    inside = config[part] if part else config
    inside.update(values)
    for key in [key for key, value in values.items() if value is None]:
        del inside[key]
    return config


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (changed("vision_cfg", image_size=[32, 48]), r"\[32, 48\] pixels, allowed are square"),
        (changed("vision_cfg", image_size=16, patch_size=32), "patches are larger"),
        (changed("vision_cfg", width="48"), r"vision_cfg\.width"),
        (changed("vision_cfg", layers=0), r"vision_cfg\.layers"),
        (changed("vision_cfg", head_width=9), "divisible"),
        (changed("vision_cfg", colour=1), "unexpected keyword argument 'colour'"),
        (changed("vision_cfg", pool_type="most"), "cannot be used"),
        (changed("vision_cfg", timm_model_name="nothing"), "nothing"),
        (changed("text_cfg", vocab_size=100), "vocab_size is 100"),
        (changed("text_cfg", context_length=-1), r"text_cfg\.context_length"),
        (changed("text_cfg", hf_model_name="bert"), "not supported"),
        (changed("text_cfg", hf_tokenizer_name="bert"), "tokenizer, whose files are not there"),
        (changed("text_cfg", tokenizer_kwargs={"trust_remote_code": True}), "trust_remote_code"),
        (changed(embed_dim=None), r"model_cfg\.embed_dim: Field required"),
        (changed(vision_cfg=None), r"model_cfg\.vision_cfg: Field required"),
        (changed(text_cfg=[]), r"model_cfg\.text_cfg: it should be an object"),
        (changed(multimodal_cfg={}), "CoCa"),
        (None, "model_cfg: it should be an object"),
    ],
)
def test_a_folder_is_checked(tmp_path, config, words):
    with pytest.raises(UserError, match=words) as caught:
        load_clip(write_folder(tmp_path / "m", config), "random")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"mean": [0.5]}, "mean"),
        ({"mean": [0.5, 0.5, "0.5"]}, "mean"),
        ({"mean": 0.5}, "mean"),
        ({"std": [0.0, 1.0, 1.0]}, "std"),
        ({"std": [float("nan"), 1.0, 1.0]}, "std"),
        ({"interpolation": "nearest"}, "bicubic, bilinear"),
        ({"resize_mode": "longest"}, "shortest, squash"),
    ],
)
def test_preparations_of_images_are_checked(tmp_path, settings, words):
    with pytest.raises(UserError, match=words):
        load_clip(write_folder(tmp_path / "m", preprocess_cfg=settings), "random")


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b"{", b'{"model_cfg": {}, "model_cfg": {}}', b'"\xe9"', None])
def test_a_folder_without_a_configuration(tmp_path, content):
    if content is not None:
        (tmp_path / "open_clip_config.json").write_bytes(content)
    with pytest.raises(UserError, match=r"open_clip_config\.json"):
        load_clip(str(tmp_path), "random")


def test_a_folder_with_weights_of_the_other_activation(state, tmp_path):
    write_openai_dict(state, tmp_path / "m.pt")
    with pytest.raises(UserError, match="quick_gelu is not true"):
        load_clip(write_folder(tmp_path / "m", changed(quick_gelu=False)), str(tmp_path / "m.pt"))
    load_clip(write_folder(tmp_path / "m"), str(tmp_path / "m.pt"))


@pytest.mark.parametrize("ids", [torch.tensor([0, 1, 49408]), torch.tensor([-1, 0, 1]), torch.tensor([0, 1])])
def test_token_ids_that_do_not_fit(state, tmp_path, ids):
    part = {**state, "token_embedding.weight": state["token_embedding.weight"][:3].clone(), "token_embedding.ids": ids}
    torch.save(part, tmp_path / "m.pt")
    with pytest.raises(UserError, match=r"token_embedding\.ids"):
        load_clip(write_folder(tmp_path / "m"), str(tmp_path / "m.pt"))


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 70) | st.floats() | st.sampled_from(["", "tok", "learnable", "gelu"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["width", "layers", "x"]), inner),
    max_leaves=4,
)
MORE = ["pool_type", "patch_dropout", "ls_init_value", "mlp_ratio", "heads", "norm_kwargs", "pos_embed_type"]
PLACES = [(part, key) for part in ("vision_cfg", "text_cfg") for key in [*tiny.CONFIGS["vit"][part], *MORE]]


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(where=st.sampled_from(PLACES), value=JUNK)
def test_any_value_in_a_configuration_is_read_or_refused(tmp_path, where, value):
    config = changed("text_cfg", layers=1)
    config["vision_cfg"]["layers"] = 1
    config[where[0]][where[1]] = value
    try:
        clip = load_clip(write_folder(tmp_path / "m", config), "random")
    except UserError:
        return
    with torch.no_grad():
        image = clip.image(Images(torch.zeros(1, 3, clip.preprocess.size, clip.preprocess.size)))
        text = clip.text(clip.text.prompts(["cat"], template="a {}"))
    assert image.shape == text.shape == (1, clip.image.embed_dim)
