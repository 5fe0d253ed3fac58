"""`vlprompt data get` and what a run fetches, over a server on this machine: each data set's real layout in small."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from running import VLPROMPT, ask, check_mistake
from serving import Served, Server, serving
from tiny_data import CATALOGUE, FETCHED, FOLDERS, lay_out, make_files, pack, picture

from vlprompt import cli, sweep
from vlprompt.commands import data as commands
from vlprompt.config.datasets import load_source
from vlprompt.config.paths import config_dir
from vlprompt.data import disk
from vlprompt.data.download import get as getting
from vlprompt.data.download import resumable as downloads
from vlprompt.data.download.check import content_hash
from vlprompt.errors import UserError


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as running:
        yield running


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty data root."""
    monkeypatch.setenv("VLPROMPT_DATA", str(tmp_path / "datasets"))
    monkeypatch.setattr(downloads, "BACK_OFF", 0.01)
    return tmp_path / "datasets"


def serve(name: str, server: Server, folder: Path) -> dict[str, Any]:
    """Put every mirror of a data set on the server; -> its facts, which say so, in a configuration folder."""
    node = yaml.safe_load((config_dir() / "dataset" / f"{name}.yaml").read_text())
    files, about = make_files(name), node["dataset"]["about"]
    for part, mirrors in about["parts"].items():
        for mirror in mirrors:
            content = files.get(part.split("|")[0], b"")
            if mirror.get("members"):
                content = pack(files, mirror["members"], mirror["url"])
            mirror["url"] = server.put(f"/{hashlib.sha1(mirror['url'].encode()).hexdigest()}", content, etag='"1"')
            if mirror.get("checksum"):
                mirror["checksum"] = f"md5:{hashlib.md5(content).hexdigest()}"
    if name in ("food101", "sun397"):  # known by their counts
        about["counts"] = {"classes": 2, "train": 4, "val": 4, "test": 4}
    for text in about.get("hashes", {}):
        path = folder / text
        folder.mkdir(exist_ok=True)
        path.write_bytes(files[text])
        about["hashes"][text] = content_hash(path)
    return node


def configure(node: dict[str, Any], folder: Path) -> list[str]:
    """Arguments that make `vlprompt data` read this node instead of the published one."""
    (folder / "dataset").mkdir(parents=True, exist_ok=True)
    (folder / "dataset" / f"{node['dataset']['name']}.yaml").write_text(yaml.safe_dump(node))
    return ["--config-dir", str(folder)]


def start(arguments: list[str], root: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "VLPROMPT_DATA": str(root), "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen([sys.executable, *VLPROMPT, *arguments], env=environment, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip


def first(node: dict[str, Any], part: str, server: Server) -> tuple[dict[str, Any], Served]:
    """The first mirror of a part, and what is served there."""
    mirror = node["dataset"]["about"]["parts"][part][0]
    return mirror, server.files["/" + mirror["url"].rpartition("/")[2]]


@pytest.mark.parametrize("name", FETCHED)
def test_every_data_set_is_fetched_whole(server: Server, root: Path, tmp_path: Path, name: str) -> None:
    flags = configure(serve(name, server, tmp_path / "texts"), tmp_path / "conf")
    answer = ask(cli.main, ["data", "get", name, *flags])
    assert (answer.code, answer.err) == (0, ""), answer
    entry = CATALOGUE[name]
    assert entry.state(root) == "present"
    dataset = load_source(name, entry.source, root)
    assert len(dataset.test) >= 2
    assert not [path for path in root.rglob("*") if path.suffix in (".part", ".zip", ".tgz")]
    n_asked = len(server.asked)
    assert ask(cli.main, ["data", "get", name, *flags]).code == 0
    assert len(server.asked) == n_asked  # nothing is fetched twice


@pytest.mark.parametrize("name", ["caltech101", "stanford_cars"])
def test_the_other_mirror_serves_too(server: Server, root: Path, tmp_path: Path, name: str) -> None:
    """The first mirror of each part is gone, the second gives a byte too much or too little where it has a checksum."""
    node = serve(name, server, tmp_path / "texts")
    for part in node["dataset"]["about"]["parts"]:
        first(node, part, server)[1].status = 404
    answer = ask(cli.main, ["data", "get", name, *configure(node, tmp_path / "conf")])
    assert answer.code == 0, answer
    assert "HTTP 404" in answer.out
    assert CATALOGUE[name].state(root) == "present"


def only_first(node: dict[str, Any]) -> dict[str, Any]:
    for mirrors in node["dataset"]["about"]["parts"].values():
        del mirrors[1:]
    return node


def test_one_corrupt_byte(server: Server, root: Path, tmp_path: Path) -> None:
    node = only_first(serve("dtd", server, tmp_path / "texts"))
    _, served = first(node, "images", server)
    served.content = served.content[:50] + bytes([served.content[50] ^ 1]) + served.content[51:]
    answer = ask(cli.main, ["data", "get", "dtd", *configure(node, tmp_path / "conf")])
    assert answer.code == 2
    assert "its md5 is" in answer.err
    assert "no mirror gave" in answer.err
    assert not (root / "dtd/images").exists()


@pytest.mark.parametrize("name", ["dtd", "food101", "sun397"])
def test_another_split_file(server: Server, root: Path, tmp_path: Path, name: str) -> None:
    """It differs from the published hash, or counts where there is none."""
    node = only_first(serve(name, server, tmp_path / "texts"))
    about = node["dataset"]["about"]
    about["hashes"] = dict.fromkeys(about.get("hashes", {}), "0" * 64)
    about["counts"]["val"] = 5
    answer = ask(cli.main, ["data", "get", name, "--lists", *configure(node, tmp_path / "conf")])
    assert answer.code == 2
    assert "is not the published one" in answer.err
    assert not list((root / CATALOGUE[name].source["folder"]).glob("*.json"))


def test_an_archive_that_is_none_is_fetched_again(server: Server, root: Path, tmp_path: Path) -> None:
    """Where no checksum is published, what came is noticed when it is unpacked, and does not stand in the way."""
    node = only_first(serve("stanford_cars", server, tmp_path / "texts"))
    _, served = first(node, "cars_train", server)
    good, served.content = served.content, served.content[:-30]
    arguments = ["data", "get", "stanford_cars", *configure(node, tmp_path / "conf")]
    assert ask(cli.main, arguments).code == 2
    assert CATALOGUE["stanford_cars"].state(root) == "missing"
    served.content = good
    assert ask(cli.main, arguments).code == 0
    assert CATALOGUE["stanford_cars"].state(root) == "present"


@pytest.mark.parametrize("answer", ["y", "n"])
def test_a_terminal_is_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    asked: list[str] = []
    fetched: list[str] = []
    terminal = type("Terminal", (), {"isatty": lambda self: True, "write": lambda self, text: None})()
    monkeypatch.setattr(getting.sys, "stdin", terminal)
    monkeypatch.setattr(getting.sys, "stdout", terminal)
    monkeypatch.setattr("builtins.input", lambda question: asked.append(question) or answer)
    monkeypatch.setattr(getting, "get", lambda name, about, base, **more: fetched.append(name))
    about = CATALOGUE["dtd"].about
    assert about is not None
    for _ in range(2):  # two cells of a sweep
        if answer == "y":
            getting.ensure("dtd", about, tmp_path, download=False)
        else:
            with pytest.raises(UserError, match="vlprompt data get dtd"):
                getting.ensure("dtd", about, tmp_path, download=False)
    assert len(asked) == 1
    assert "about 625" in asked[0]
    assert fetched == (["dtd", "dtd"] if answer == "y" else [])


def pad(served: Served, mirror: dict[str, Any], *, pause: float) -> None:
    """Make a zip file slow to fetch: it may end in anything."""
    served.content, served.pause = served.content + b"\0" * 600_000, pause
    mirror["checksum"] = f"md5:{hashlib.md5(served.content).hexdigest()}"


def test_killed_and_resumed(server: Server, root: Path, tmp_path: Path) -> None:
    node = serve("eurosat", server, tmp_path / "texts")
    mirror, served = first(node, "2750", server)
    pad(served, mirror, pause=0.05)
    arguments = ["data", "get", "eurosat", *configure(node, tmp_path / "conf")]
    process = start(arguments, root)
    until = time.monotonic() + 60
    while not any(p.stat().st_size > 100_000 for p in root.rglob("*.part")) and time.monotonic() < until:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    received = max(path.stat().st_size for path in root.rglob("*.part"))
    served.pause = 0.0
    answer = ask(cli.main, arguments)
    assert answer.code in (0, 2), answer
    ranges = [asked.range for asked in server.asked if asked.range]
    assert ranges == [f"bytes={received}-"]
    assert "resumed at" in answer.out


def test_two_at_once_fetch_once(server: Server, root: Path, tmp_path: Path) -> None:
    node = serve("caltech101", server, tmp_path / "texts")
    mirror, served = first(node, "101_ObjectCategories", server)
    pad(served, mirror, pause=0.3)
    arguments = ["data", "get", "caltech101", *configure(node, tmp_path / "conf")]
    one = start(arguments, root)
    while not server.asked:
        time.sleep(0.02)
    other = start(arguments, root)
    assert other.stdout is not None
    assert f"caltech101: another process ({one.pid} on " in other.stdout.readline()
    served.pause = 0.0
    assert [process.wait(timeout=120) for process in (one, other)] == [0, 0]
    assert len(server.asked) == len(node["dataset"]["about"]["parts"])
    assert CATALOGUE["caltech101"].state(root) == "present"


def test_a_disk_too_small(server: Server, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node = serve("dtd", server, tmp_path / "texts")
    free = type("Usage", (), {"free": 10})
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda folder: free)
    answer = ask(cli.main, ["data", "get", "dtd", *configure(node, tmp_path / "conf")])
    assert answer.code == 2
    assert "but 10 bytes are free" in answer.out + answer.err
    assert not (root / "dtd/images").exists()


def test_imagenet_is_explained(root: Path) -> None:
    (root / "imagenet").mkdir(parents=True)
    (root / "imagenet/classnames.txt").write_text("n01440764 tench\n")
    answer = ask(cli.main, ["data", "get", "imagenet"])
    assert answer.code == 2
    for word in ("image-net.org", "kaggle.com", "dataset.root=PATH", "LOC_val_solution.csv"):
        assert word in answer.err


def test_a_run_says_which_command_gets_its_data(results: Path) -> None:
    answer = ask(sweep.main, ["dataset=dtd"])
    check_mistake(answer, ["dtd is not complete", "vlprompt data get dtd", "625", "data.download=true"], results)


def test_a_run_fetches_what_it_lacks(
    server: Server, root: Path, results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FOLDERS, "oxford_pets", {"one": "red star", "two": "blue ring"})  # words of the demo's backbone
    node = serve("oxford_pets", server, tmp_path / "texts")
    node["dataset"]["template"] = "a photo of a {}."
    text = yaml.safe_dump({**node, "workers": 0})
    (tmp_path / "conf/dataset").mkdir(parents=True)
    (tmp_path / "conf/dataset/pets_here.yaml").write_text("# @package _global_\n" + text)
    monkeypatch.setenv("VLPROMPT_DATA", str(root))
    arguments = [f"--config-dir={tmp_path / 'conf'}", "dataset=pets_here", "backbone=shapes_vit", "method=zero_shot"]
    assert ask(sweep.main, arguments).code == 2
    answer = ask(sweep.main, [*arguments, "data.download=true"])
    assert (answer.code, answer.err) == (0, ""), answer
    assert "zero_shot" in answer.out


def test_check_names_what_is_wrong(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay_out("dtd", root)
    (root / "dtd/images/banded/image_05.jpg").write_bytes(picture(1)[:200])
    (root / "dtd/images/zigzagged/image_13.jpg").unlink()
    answer = ask(cli.main, ["data", "check", "dtd", "--decode"])
    assert answer.code == 1
    for words in ("2 classes, published are 47", "is not the published one", "1 of 12 images",
                  "1 of 2 classes: zigzagged 1 of 6", "zigzagged/image_13.jpg", "1 images cannot be read"):  # fmt: skip
        assert words in answer.err


def test_list_and_path(root: Path) -> None:
    lay_out("eurosat", root)
    answer = ask(cli.main, ["data", "list"])
    lines = {line.split()[0]: line.split() for line in answer.out.splitlines() if line.strip()}
    assert lines["eurosat"][-1] == "present"
    assert lines["dtd"][-1] == "missing"
    assert "13,500" in lines["eurosat"]
    assert set(CATALOGUE) <= set(lines)
    assert ask(cli.main, ["data", "path", "eurosat"]).out == f"{root / 'eurosat'}\n"


@pytest.mark.parametrize("flags", [[], ["--half", "novel"], ["--sampler", "tip_adapter"]])
def test_subset(root: Path, flags: list[str]) -> None:
    lay_out("dtd", root)
    for image in (root / "dtd/images").rglob("*.jpg"):
        image.unlink()  # it needs none
    (root / "dtd/images/banded").rmdir()
    answer = ask(cli.main, ["data", "subset", "dtd", "--shots", "1", "--seed", "2", "--json", *flags])
    assert (answer.code, answer.err) == (0, "")
    lines = json.loads(answer.out)
    assert {tuple(line) for line in lines} == {("split", "path", "label", "classname")}
    labels = {1} if "novel" in flags else {0, 1}
    assert {line["label"] for line in lines} == labels
    assert sum(line["split"] == "train" for line in lines) == len(labels)
    assert ask(cli.main, ["data", "subset", "dtd", "--shots", "x"]).code == 2


def test_a_strangers_split_file_does_not_steer_the_terminal(root: Path) -> None:
    (root / "dtd/images").mkdir(parents=True)
    rows = [["a\x1b[2J.jpg", 0, "x\x1b]0;y\x07"]]
    split = json.dumps({"train": rows, "val": [], "test": rows})
    (root / "dtd/split_zhou_DescribableTextures.json").write_text(split)
    answer = ask(cli.main, ["data", "subset", "dtd", "--shots", "1"])
    assert answer.code == 0
    assert "\x1b" not in answer.out
    assert "[2J.jpg" in answer.out


def test_a_description_in_another_encoding(root: Path, tmp_path: Path) -> None:
    (tmp_path / "conf/dataset").mkdir(parents=True)
    (tmp_path / "conf/dataset/mine.yaml").write_bytes(b"\xff")
    answer = ask(cli.main, ["data", "list", "--config-dir", str(tmp_path / "conf")])
    assert answer.code == 2
    assert "mine.yaml" in answer.err
    assert commands.cost_of(None) == "-"
