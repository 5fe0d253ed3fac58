"""`vlprompt predict`: any names, files, folders and patterns; damaged pictures; all formats read back."""

import io
import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from rich.cells import cell_len
from running import ask, check_mistake, set_up
from tiny_world import CLASSES, draw

from vlprompt import cli, sweep
from vlprompt.api import Model, load_clip
from vlprompt.commands.pictures import find_pictures
from vlprompt.commands.predict import csv, jsonl, table
from vlprompt.data.photos import read_photos
from vlprompt.errors import UserError
from vlprompt.learners.base import Learner
from vlprompt.learners.coop import CoOp
from vlprompt.learners.linear_head import LinearHead
from vlprompt.results import learner_files
from vlprompt.results.store import find_runs
from vlprompt.towers import Preprocess

NASTY = ["with space.png", "com,ma.png", 'quo"te.png', "new\nline.png", "an\x1b[31msi.png", "=1+1.png", "<b>.png",
         "日本語.png", "x" * 150 + ".png", "[a].png", "-dash.png", "$x$.png", "tr\u202eick.png"]  # fmt: skip
BACKBONE = {"model": "shapes_vit", "weights": "pretrained"}


def paint(path: Path, name: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    draw(name or path.name, style=0, sealed="").save(path)
    return path


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Learners `coop` and `linear_head`, and `photos`: three that can be read and two that cannot."""
    folder = tmp_path_factory.mktemp("predict")
    with pytest.MonkeyPatch.context() as patch:
        set_up(patch, folder)
        clip = load_clip("shapes_vit")
        torch.manual_seed(1)
        learners: dict[str, Learner] = {"coop": CoOp(clip, CLASSES), "linear_head": LinearHead(clip, CLASSES)}
        for name, learner in learners.items():
            kind = type(learner)
            about = {"target": f"{kind.__module__}.{kind.__name__}", "arguments": {}, "backbone": BACKBONE}
            (folder / name).mkdir()
            learner_files.save(learner, folder / name, about)
        for name in ("b.png", "a.jpg", "sub/c.png"):
            paint(folder / "photos" / name)
        (folder / "photos" / "broken.jpg").write_bytes(b"no picture")
        cut = paint(folder / "photos" / "cut.png")
        cut.write_bytes(cut.read_bytes()[:400])
        yield folder


def test_files_folders_and_patterns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("p/b.jpg", "p/a.JPG", "p/[1].png", "p/q/c.png", "p/.hidden.png", "p/.hid/d.png", "empty/note.txt"):
        paint(tmp_path / f"{name}.png").rename(tmp_path / name)
    Path("p/circle").symlink_to("../p")
    Path("p/z.png").symlink_to("nowhere.png")
    everything = ["p/[1].png", "p/a.JPG", "p/b.jpg", "p/z.png", "p/q/c.png"]
    for names, expected in (
        (["p"], everything),
        (["p/b.jpg", "./p/b.jpg", "p/a.JPG"], ["p/b.jpg", "p/a.JPG"]),
        (["p/q/c.png", "p"], ["p/q/c.png", *everything[:-1]]),
        (["p/*.jpg"], ["p/b.jpg"]),
        (["p/[1].png"], ["p/[1].png"]),
        (["p/q*"], ["p/q/c.png"]),
        (["p/**/*.png"], ["p/[1].png", "p/q/c.png", "p/z.png"]),
        (["p/.hid/*"], ["p/.hid/d.png"]),
        (["empty/note.txt"], ["empty/note.txt"]),
        ([str(tmp_path / "p" / "b*")], [str(tmp_path / "p" / "b.jpg")]),
    ):
        assert list(map(str, find_pictures(names))) == expected
    for name in ("", "p/*.gif", "empty", "nothing.jpg", "a**b", "n" * 300 + ".jpg"):
        with pytest.raises(UserError, match=r"picture|cannot be read"):
            find_pictures([name])


def test_formats_agree_and_damaged_pictures_are_named(world: Path, tmp_path: Path) -> None:
    answers = {}
    for form in ("csv", "jsonl", "table"):
        output = tmp_path / "new" / f"p.{form}"
        ask_for = ["predict", str(world / "coop"), "photos", "--top", "2", "--format", form, "--output", str(output)]
        answer = ask(cli.main, ask_for)
        assert (answer.code, answer.out) == (1, "")
        assert [name for name in ("broken.jpg", "cut.png", "2 of 5") if name not in answer.err] == []
        answers[form] = output
    frame = pd.read_csv(answers["csv"])
    objects = [json.loads(line) for line in answers["jsonl"].read_text(encoding="utf-8").splitlines()]
    assert (
        [row["image"] for row in objects]
        == list(frame["image"])
        == ["photos/a.jpg", "photos/b.png", "photos/sub/c.png"]
    )
    for row, (_, of_csv) in zip(objects, frame.iterrows(), strict=True):
        first, second = row["classes"]
        assert (first["class"], second["class"]) == (of_csv["class"], of_csv["class_2"])
        assert first["probability"] == pytest.approx(of_csv["probability"])
        assert first["probability"] >= second["probability"]
        assert first["class"] in answers["table"].read_text(encoding="utf-8")


def test_classes_of_ones_own(world: Path) -> None:
    photo = "photos/a.jpg"
    answer = ask(
        cli.main, ["predict", str(world / "coop"), photo, "--top", "9", "--classes", "seven,eight", "--format", "jsonl"]
    )
    likely = json.loads(answer.out)["classes"]
    assert (answer.code, {one["class"] for one in likely}) == (0, {"seven", "eight"})
    assert sum(one["probability"] for one in likely) == pytest.approx(1)
    known = ask(cli.main, ["predict", str(world / "linear_head"), photo, "--classes", CLASSES[1], "--format", "csv"])
    assert known.code == 0
    bound = ask(cli.main, ["predict", str(world / "linear_head"), photo, "--classes", "seven"])
    assert (bound.code, bound.err.count("\n"), bound.err.count("seven")) == (2, 1, 1), bound


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere", "photos/a.jpg"], ["nowhere"]),
        (["photos", "photos/a.jpg"], ["photos"]),
        (["RUN", "nothing.jpg"], ["nothing.jpg"]),
        (["RUN", "photos/broken.jpg", "photos/cut.png"], []),
        (["RUN", "photos/a.jpg", "--output", "photos"], ["photos", "folder"]),
        (["RUN", "photos/a.jpg", "--output", "photos/a.jpg/p.csv"], ["a.jpg"]),
        (["RUN", "photos/a.jpg", "--device", "cuda:99"], ["cuda:99"]),
    ],
)  # fmt: skip
def test_mistakes(world: Path, tmp_path: Path, arguments: list[str], words: list[str]) -> None:
    answer = ask(cli.main, ["predict", *(str(world / "coop") if text == "RUN" else text for text in arguments)])
    mistake = answer._replace(
        err="".join(line for line in answer.err.splitlines(True) if not line.startswith("left out"))
    )
    check_mistake(mistake, words, tmp_path)
    assert answer.out == ""


@pytest.mark.parametrize("command", [["predict", "x", "a.jpg"], ["export", "x", "y", "--to", "onnx"]])
def test_no_names_at_all(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main([*command, "--classes", " , "])
    assert "--classes: ' , ' names nothing" in capsys.readouterr().err


def test_names_of_any_kind_stay_what_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [*NASTY, *(f"very/long/folder/{name}" for name in NASTY), os.fsdecode(b"byte\xff.png")]
    classes = ["cat", "国" * 30, "=2*3", "a class of many words " * 5, "\x1b[2J"]
    rows = [(name, [(classes[i % 5], 0.75), (classes[(i + 1) % 5], 0.25)]) for i, name in enumerate(names)]
    assert [json.loads(line)["image"] for line in jsonl(rows).splitlines()] == names
    frame = pd.read_csv(io.StringIO(csv(rows)))
    assert len(frame) == len(names)
    assert not frame["image"].str.startswith("=").any()
    for width in (60, 80, 120):
        monkeypatch.setattr("vlprompt.reports.terminal.terminal_width", lambda width=width: width)
        lines = table(rows).splitlines()
        assert max(map(cell_len, lines)) <= width
        assert sum("0.750" in line for line in lines) == len(names)
        assert not set("\x1b\u202e") & set("".join(lines))
    monkeypatch.setattr("vlprompt.reports.terminal.terminal_width", lambda: None)
    assert "x" * 150 + ".png" in table(rows)


def test_ctrl_c_is_one_line(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Model, "iterate", interrupt)
    answer = ask(cli.main, ["predict", str(world / "coop"), "photos/a.jpg", "--output", str(tmp_path / "p.csv")])
    assert (answer.code, answer.out, answer.err.strip().count("\n")) == (130, "", 0)
    assert "resumes" not in answer.err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_workers_keep_the_order(world: Path) -> None:
    photos = [world / "photos" / ("broken.jpg" if i % 7 == 3 else ("a.jpg", "b.png")[i % 2]) for i in range(210)]
    pre = Preprocess(size=8)
    lost: list[int] = []
    batches = {n: list(read_photos(photos, pre, workers=n, damaged=lambda i, _: lost.append(i))) for n in (0, 2)}
    for (indices, crops), (again, same) in zip(batches[0], batches[2], strict=True):
        assert indices == again
        assert crops.equal(same)
    assert lost == 2 * [i for i in range(210) if i % 7 == 3]


@pytest.mark.slow
def test_accuracy_on_a_folder_is_that_of_the_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_up(monkeypatch, tmp_path)
    random = np.random.default_rng(0)
    for part, n in {"train": 4, "val": 2, "test": 9}.items():
        for label, name in enumerate(("zero", "one", "two")):
            for i in range(n):
                path = tmp_path / "own" / part / name / ("deep" if i % 2 else "") / f"{i}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels = np.clip(random.normal(80 + 40 * label, 60, (70, 50, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(path)
    here = ["dataset=folder", "dataset.root=own", "protocol=few_shot", "backbone=shapes_vit", "shots=4", "fit.steps=5"]
    for method in ("coop", "lora"):
        assert ask(sweep.main, [*here, f"method={method}"]).code == 0
    runs = {
        folder: record for folder, record in find_runs([tmp_path / "results"]).items() if record.method != "zero_shot"
    }
    assert len(runs) == 2
    for folder, record in runs.items():
        answer = ask(cli.main, ["predict", str(folder), "own/test", "--format", "csv"])
        frame = pd.read_csv(io.StringIO(answer.out))
        right = [name in Path(image).parts for name, image in zip(frame["class"], frame["image"], strict=True)]
        assert (answer.code, len(right)) == (0, 27)
        assert np.mean(right) == pytest.approx(record.scores["test"]["accuracy"])
        assert 0 < sum(right) < 27
