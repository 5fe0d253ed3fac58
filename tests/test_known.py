"""A finished run that is found without torch: the same answer, and never an old one."""

import random
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from running import end, environment_in, start

from vlprompt.config import known
from vlprompt.config.compose import composed, config_dirs, read_run
from vlprompt.config.spec import RunSpec
from vlprompt.results.record import Record
from vlprompt.results.store import open_run

RUN = ["method=zero_shot", "dataset=folder", "dataset.root=pets", "protocol=few_shot"]
RUN += ["backbone=shapes_vit", "backbone.weights=random", "workers=0"]


def add_image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.frombytes("RGB", (4, 4), random.Random(str(path)).randbytes(48)).save(path)


def make_images(root: Path) -> None:
    for name in ("cat", "dog"):
        for number in range(4):
            add_image(root / "pets" / name / f"{number}.png")


@pytest.fixture
def spec(results: Path) -> RunSpec:
    """A run whose record is there, with a file next to it."""
    make_images(Path())
    spec = read_run(RUN)
    with open_run(spec.folder) as run:
        (run.path / "predictions.npz").write_text("some")
        run.publish(Record(**spec.key.model_dump(), status="finished", config_hash=spec.hash))
    return spec


def note() -> tuple[Path | None, Any]:
    """Where the note on the command lies now, and its configuration."""
    with composed(RUN) as (config, choices):
        return known.note_of(config, choices, RUN, config_dirs()), config


def recalled() -> list[Path]:
    return [folder for folder, _ in known.recall(*note())]


def test_what_is_known(spec: RunSpec) -> None:
    assert recalled() == []
    record = Record.read(spec.folder)
    assert record
    known.remember(note()[0], spec, [(spec.folder, record)])
    assert recalled() == [spec.folder.absolute()]
    for name in ("predictions.npz", "result.json"):
        content = (spec.folder / name).read_bytes()
        (spec.folder / name).write_bytes(content.replace(b"e", b"o"))
        assert recalled() == []
        (spec.folder / name).write_bytes(content)
    assert recalled()
    Path("pets/vlprompt_split.json").unlink()
    add_image(Path("pets/cat/new.png"))
    assert recalled() == []


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"splits": 1, "runs": 2}'])
def test_a_damaged_note_is_none(spec: RunSpec, content: str) -> None:
    path, config = note()
    assert path
    path.parent.mkdir(parents=True)
    path.write_text(content)
    assert known.recall(path, config) == []


def test_whatever_decides_has_a_note_of_its_own(results: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    weights = tmp_path / "weights.pt"
    weights.write_text("1")
    config: dict[str, Any] = {"backbone": {"weights": str(weights)}, "method": {"_target_": "vlprompt.x"}, "seed": 1}

    def path(folder: Path = tmp_path / "conf", **more: Any) -> Path | None:
        return known.note_of({**config, **more}, {"method": "x"}, ["seed=1"], [folder])

    monkeypatch.setattr(known, "config_dir", lambda: tmp_path / "conf")
    first = path()
    assert first
    assert first == path()
    assert path(folder=tmp_path) is None
    assert path(force=True) is None
    assert path(method={"_target_": "my_methods.Mine"}) is None
    assert path(seed=2) != first
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "config.yaml").write_text("seed: 1")
    second = path()
    assert second != first
    weights.write_text("22")
    third = path()
    assert third != second
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert path() != third


@pytest.mark.slow
def test_a_finished_run_is_found_without_torch(tmp_path: Path) -> None:
    make_images(tmp_path)
    arguments = [*RUN[1:], "method=linear_probe", "shots=1"]
    code = "import sys; from vlprompt.sweep import main; print(main(sys.argv[1:]), 'torch' in sys.modules)"
    answers = [end(start(["-c", code], arguments, environment_in(tmp_path), tmp_path)) for _ in range(3)]
    assert [out.splitlines()[-1] for _, out, _ in answers] == ["0 True", "0 False", "0 False"]
    tables = {out[out.index("\nprotocol") : out.index("\nnext")] for _, out, _ in answers}
    assert len(tables) == 1
    assert answers[2][1].count("is finished already") == 2  # with what it is compared with
