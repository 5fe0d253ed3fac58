"""The examples run: the notebook cell by cell, and a folder of photos from the command line."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from running import ROOT, environment_in, set_up
from sklearn.datasets import load_digits

EXAMPLES = ROOT / "examples"
NOTEBOOK = EXAMPLES / "quickstart.ipynb"


def test_the_notebook_is_small_and_has_its_outputs() -> None:
    assert NOTEBOOK.stat().st_size < 100_000
    text = NOTEBOOK.read_text(encoding="utf-8")
    for shown in ('"image/png"', "ClassBoundError", "vlprompt.benchmark", "read_results", "with_classes", "%"):
        assert shown in text
    assert not re.search(r"/(?:home|root|tmp|work)/", text), "a path of the machine that made it"


@pytest.mark.slow
def test_the_notebook_runs_and_gives_what_it_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts that hold no measured number are equal; the figure and the table are there."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    for name, value in environment_in(tmp_path).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("VLPROMPT_RESULTS")  # results next to the notebook, as for its readers
    stored = nbformat.read(NOTEBOOK, as_version=4)
    made = nbformat.read(NOTEBOOK, as_version=4)
    client = nbclient.NotebookClient(made, timeout=1200, kernel_name="python3",
                                     resources={"metadata": {"path": str(tmp_path)}})  # fmt: skip
    client.execute()
    assert list(tmp_path.glob("results/runs/few_shot/digits/*/coop*/shots16/seed1/result.json"))
    assert [kinds(cell) for cell in made.cells] == [kinds(cell) for cell in stored.cells]


def kinds(cell: Any) -> list[list[str]]:
    return [sorted(output.get("data", {"stream": ""})) for output in cell.get("outputs", [])]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Digits as someone's photos: three classes, and one that is new."""
    digits = load_digits(n_class=3)
    for i, (pixels, label) in enumerate(zip(digits.images[:45], digits.target[:45], strict=True)):
        folder = tmp_path / "my photos" / ["zero", "one", "two"][label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels * 15).astype("uint8")).save(folder / f"{i}.png")
    Image.fromarray((digits.images[100] * 15).astype("uint8")).save(tmp_path / "new.png")
    return tmp_path


@pytest.mark.slow
def test_photos_of_ones_own(photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    set_up(monkeypatch, photos)
    spec = importlib.util.spec_from_file_location("own_photos", EXAMPLES / "own_photos.py")
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    more = ["--backbone", "shapes_vit", "--epochs", "4", "--settings", "bank.views=1"]
    assert example.main(["my photos", "new.png", *more]) == 0
    *_, accuracy, new = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"accuracy on the folder's test photos: [\d.]+% of \d+", accuracy)
    assert re.fullmatch(r"new\.png(  (zero|one|two) [\d.]+%){3}", new)
    assert example.main(["my photos", "gone.png", *more]) == 2
    assert "there is no picture 'gone.png'" in capsys.readouterr().err
    assert example.main(["no photos", "new.png", *more]) == 2
    assert "no photos" in capsys.readouterr().err


@pytest.mark.slow
def test_photos_from_the_command_line(photos: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "own_photos.py"), "my photos", "new.png", "--backbone", "shapes_vit"]
    environment = environment_in(photos) | {"COLUMNS": "80", "PATH": os.environ["PATH"]}
    answer = subprocess.run(
        [*command, "--method", "tip_adapter", "--top", "1"], capture_output=True, text=True, cwd=photos, env=environment
    )
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.splitlines()[-1].startswith("new.png  ")
