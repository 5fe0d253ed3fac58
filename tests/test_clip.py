"""Loading a CLIP: every kind of file, the hub, and what must not go through."""

import functools
import hashlib
import http.server
import json
import threading

import open_clip
import pytest
import safetensors.torch
import tiny
import torch

from vlprompt.errors import UserError
from vlprompt.towers import Images, load_clip
from vlprompt.towers.loading import make_model
from vlprompt.towers.weights import OPENAI_ARCHIVES


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
        settings = {"url": url, "quick_gelu": True, "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
        monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda model, tag: settings)
        clip = load_clip("tiny-quickgelu", "here")
        server.shutdown()
    assert torch.equal(clip.weights.root.state_dict()["visual.proj"], state["visual.proj"])
    assert clip.preprocess.mean == (0.5, 0.5, 0.5)
    again = load_clip("tiny-quickgelu", "here")  # the server is gone
    assert same(again, clip)


def test_a_tag_that_cannot_be_fetched(architectures, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(open_clip, "list_pretrained_tags_by_model", lambda model: ["gone"])
    settings = {"url": "http://127.0.0.1:9/gone.pt", "quick_gelu": False}
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda model, tag: settings)
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
