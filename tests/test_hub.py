"""Learners on a model hub: the folder to upload, its card, and loading one from a server on this machine."""

import getpass
import hashlib
import json
import socket
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import made_records
import pytest
import torch
import yaml
from huggingface_hub import ModelCard, constants
from serving import Server, serving

import vlprompt
from vlprompt import demo
from vlprompt.errors import UserError
from vlprompt.interop.hub import write_hub
from vlprompt.learners.base import Learner
from vlprompt.learners.coop import CoOp
from vlprompt.learners.hard_prompts import HardPrompts
from vlprompt.towers import Clip, Images, load_clip
from vlprompt.towers.origin import origin_of

SHA = "5" * 40
CLASSES = ["red star", "blue circle", "green square"]
FILES = ["README.md", "learner.safetensors", "learner_config.json"]
ABOUT: dict[str, Any] = {
    "method": "coop",
    "target": "vlprompt.learners.coop.CoOp",
    "arguments": {"n_context": 2},
    "backbone": {"model": "shapes_vit", "weights": "pretrained"},
    "dataset": "shapes",
    "protocol": "few_shot",
    "split_hash": "abc",
    "precision": "fp32",
    "as_shown": True,
    "folder": "/home/somebody/runs",  # what a later version may add does not travel
}


@cache
def clip() -> Clip:
    return load_clip(str(demo.BACKBONES["shapes_vit"]), "pretrained")


def coop(classes: list[str] = CLASSES) -> Learner:
    torch.manual_seed(1)
    return CoOp(clip(), classes, n_context=2).eval()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A hub without models, and an empty cache."""
    with serving() as server:
        point_to(monkeypatch, server.url(""), tmp_path / "cache")
        yield server


def point_to(monkeypatch: pytest.MonkeyPatch, endpoint: str, cache: Path) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


def publish(server: Server, folder: Path, name: str = "me/coop", revision: str = "main") -> None:
    """Serve a folder as the hub does."""
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    api, json_type = f"/api/models/{name}", {"type": "application/json"}
    siblings = [{"rfilename": file} for file in files]
    server.put(
        f"{api}/revision/{revision}", json.dumps({"id": name, "sha": SHA, "siblings": siblings}).encode(), **json_type
    )
    tree = [{"type": "file", "path": file, "size": len(content), "oid": "0" * 40} for file, content in files.items()]
    server.put(f"{api}/tree/{SHA}", json.dumps(tree).encode(), **json_type)
    for file, content in files.items():
        etag = hashlib.sha1(content).hexdigest()
        server.put(f"/{name}/resolve/{SHA}/{file}", content, etag=f'"{etag}"', headers={"X-Repo-Commit": SHA})


def test_a_learner_travels(hub: Server, tmp_path: Path) -> None:
    """Its two files are fetched, whatever else lies there, and give the same logits."""
    learner, folder = coop(), tmp_path / "out"
    assert write_hub(learner, ABOUT, None, folder) == FILES
    (folder / "evil.py").write_text("raise SystemExit")
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    publish(hub, folder)
    publish(hub, folder, revision="v1.0")
    pixels = torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        expected = learner.logits(Images(pixels), learner.encode_classes())
    for source in ("hf://me/coop", "hf://me/coop@v1.0", Path("hf://me/coop")):
        model = vlprompt.load(source, device="cpu")
        assert model.classes == tuple(CLASSES)
        assert torch.allclose(model.logits(pixels), expected, atol=1e-5)
    fetched = {asked.path.rpartition("/")[2] for asked in hub.asked if "/resolve/" in asked.path}
    assert fetched == {"learner.safetensors", "learner_config.json"}


def test_what_is_no_model_of_the_hub(hub: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for source in ("hf://", "hf://me", "hf://me/a/b", "hf://me/..", "hf://../x", "hf://me/x@../y", "hf://me/x y"):
        with pytest.raises(UserError, match="names nothing on the hub"):
            vlprompt.load(source)
    hub.put("/api/models/me/none/revision/main", b"{}", status=404, headers={"X-Error-Code": "RepoNotFound"})
    with pytest.raises(UserError, match="there is no such model"):
        vlprompt.load("hf://me/none")
    hub.put("/api/models/me/x/revision/v9", b"{}", status=404, headers={"X-Error-Code": "RevisionNotFound"})
    with pytest.raises(UserError, match="no revision 'v9'"):
        vlprompt.load("hf://me/x@v9")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text("{}")
    publish(hub, tmp_path / "other", "me/other")
    with pytest.raises(UserError, match=r"holds no learner_config\.json"):
        vlprompt.load("hf://me/other")
    point_to(monkeypatch, "http://127.0.0.1:9", tmp_path / "cache")
    with pytest.raises(UserError, match="connect this machine to the network") as caught:
        vlprompt.load("hf://me/new")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"target": "evil.Learner"}, "VLPROMPT_ALLOW=evil"),
        ({"target": "os.system"}, "was neither imported"),
        ({"backbone": {"model": "/srv/model", "weights": "random"}}, "names a file"),
        ({"backbone": {"model": "ViT-B-16", "weights": r"\\host\share\w.pt"}}, "names a file"),
        ({"arguments": {"descriptions": "~/.ssh/id"}}, "names a file"),
        ({"backbone": {"model": "local-dir:x", "weights": "random"}}, "no such model"),
        ({"classes": 3}, "is damaged"),
        ({"arguments": {"n_context": 10**15}}, "more memory than there is"),
    ],
)
def test_what_a_hub_may_not_name(
    changed: dict[str, Any], words: str, hub: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "evil.py").write_text("raise SystemExit")
    monkeypatch.syspath_prepend(str(tmp_path))
    folder = tmp_path / "out"
    write_hub(coop(), ABOUT, None, folder)
    config = json.loads((folder / "learner_config.json").read_text())
    (folder / "learner_config.json").write_text(json.dumps(config | changed))
    publish(hub, folder)
    with pytest.raises(UserError, match=words):
        vlprompt.load("hf://me/coop")
    assert "evil" not in sys.modules


NASTY = ["<script>alert(1)</script>", "a | b", "[x](javascript:1)", "```\n---\nlicense: x", "$\\alpha$", "é: 'ü'"]


def test_the_card_is_read_by_the_hub(tmp_path: Path) -> None:
    """What a record says is text, for the YAML and the Markdown of a card."""
    changes = {"fit.lr": 0.5, "sampler.file": "/home/somebody/list.json", "method.x": "`$(x)`\n# y"}
    record = made_records.few_shot("coop", "shapes", 0.5, changes=changes, variant="a", headline={"<b>": 0.5})
    record.scores["<img src=x>|"] = {"accuracy": 0.25, "total": 8, "nll": 1.5}
    about = {**ABOUT, "dataset": "</td>\n---\nlicense: gpl"}
    write_hub(coop(NASTY), about, record, tmp_path)
    text = (tmp_path / "README.md").read_text()
    card = ModelCard.load(tmp_path / "README.md")
    assert (card.data.license, card.data.library_name) == ("mit", "vlprompt")
    assert [result.metric_value for result in card.data.eval_results] == [50, 25]
    assert yaml.safe_load(text.split("---\n")[1])["tags"][:4] == ["vlprompt", "clip", "few-shot", "coop"]
    prose = card.text.split("## Use")[0] + card.text.split("## Scores")[1].split("## Training")[0]
    for raw in ("<script", "x](javascript", "</td>", "<img", "<b>", "```"):
        assert raw not in prose
    assert "Zhou et al., IJCV 2022" in text
    assert "fit.lr=0.5" in text
    assert "sampler.file=list.json" in text
    assert "\n# y" not in text
    assert json.loads((tmp_path / "learner_config.json").read_text())["classes"] == NASTY


def test_nothing_of_this_machine_travels(tmp_path: Path) -> None:
    changes = {"method.descriptions": str(tmp_path / "texts.json"), "protocol.targets": [r"C:\Users\me\x"]}
    config = {"dataset": {"root": str(tmp_path)}, "data": {"root": "~/data"}, "method": {"descriptions": changes}}
    origin = {"config": config, "device": "GPU of mine", "weights": str(tmp_path), "git": "0" * 40}
    record = made_records.few_shot("coop", "shapes", changes=changes, **origin)
    folder = tmp_path / "out"
    write_hub(coop(), ABOUT, record, folder)
    content = b"".join(path.read_bytes() for path in folder.iterdir()).decode("utf-8", "replace")
    for private in (
        str(tmp_path),
        str(Path.home()),
        "somebody",
        "~/data",
        "GPU of mine",
        "Users",
        socket.gethostname(),
    ):
        assert private not in content
    assert f"/{getpass.getuser()}/" not in content


@pytest.mark.parametrize(
    ("backbone", "arguments", "words"),
    [
        ({"model": "{here}", "weights": "pretrained"}, {}, "backbone.model"),
        ({"model": "ViT-B-16", "weights": "{here}/w.pt"}, {}, "backbone.weights"),
        ({"model": "ViT-B-16", "weights": "~/w.pt"}, {}, "backbone.weights"),
        ({"model": "shapes_vit", "weights": "pretrained"}, {"descriptions": "{here}/d.json"}, "method.descriptions"),
    ],
)
def test_a_file_of_ones_own_does_not_travel(
    backbone: dict[str, str], arguments: dict[str, str], words: str, tmp_path: Path
) -> None:
    backbone, arguments = (
        {name: value.replace("{here}", str(tmp_path)) for name, value in given.items()}
        for given in (backbone, arguments)
    )
    with pytest.raises(UserError, match=words):
        write_hub(coop(), {**ABOUT, "backbone": backbone, "arguments": arguments}, None, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_learner_that_trains_nothing_travels(tmp_path: Path) -> None:
    about = {**ABOUT, "method": "hard_prompts", "target": "vlprompt.learners.hard_prompts.HardPrompts"}
    about["arguments"] = {"templates": ["a {}.", "the {}."]}
    learner = HardPrompts(clip(), CLASSES, **about["arguments"]).eval()
    assert write_hub(learner, about, None, tmp_path) == ["README.md", "learner_config.json"]
    pixels = torch.randn(2, 3, 48, 48)
    expected = learner.logits(Images(pixels), learner.encode_classes())
    assert torch.allclose(vlprompt.load(tmp_path, device="cpu").logits(pixels), expected, atol=1e-5)


def test_licences_of_backbones() -> None:
    assert origin_of("ViT-B-16-quickgelu", "openai") == ("timm/vit_base_patch16_clip_224.openai", "mit")
    assert origin_of("ViT-B-32", "laion2b_s34b_b79k") == ("laion/CLIP-ViT-B-32-laion2B-s34B-b79K", "mit")
    assert origin_of("MobileCLIP-S1", "datacompdr")[1] is None
    assert origin_of("hf-hub:a/b", "pretrained") == ("a/b", None)
    assert origin_of("ViT-B-16", "random") == (None, None)
    assert origin_of("timm:vit_base_patch14_dinov2.lvd142m", "pretrained")[1] == "apache-2.0"
