"""The script that runs the committed demo records again finds those that are not the present code's."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from vlprompt.results.record import FILE, Record

ROOT = Path(__file__).parents[1]
DIGITS = ROOT / "results" / "demo" / "base_to_novel" / "digits"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, results: Path) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    monkeypatch.chdir(Path.cwd())  # and back, when the script has gone elsewhere
    import check_demo

    return check_demo


@pytest.fixture
def demo(tmp_path: Path) -> Path:
    """The records of one data set, copied to be changed."""
    return Path(shutil.copytree(DIGITS, tmp_path / "demo" / "base_to_novel" / "digits")).parents[1]


def change(demo: Path, **update: Any) -> Path:
    """Give seed 1 of CoOp other fields; -> its folder."""
    (folder,) = (path.parent for path in demo.rglob(FILE) if path.parent.parts[-3:] == ("coop", "shots16", "seed1"))
    record = Record.read(folder)
    assert record is not None
    (folder / FILE).write_text(record.model_copy(update=update).text(), encoding="utf-8")
    return folder


@pytest.mark.slow
def test_records_that_differ_are_named_and_replaced(
    script: Any, demo: Path, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--demo", str(demo), "--folder", str(results), "--where", "method=coop"]
    assert script.main([*asked, "--bound", "5"]) == 0
    record = Record.read(change(demo))
    assert record is not None
    correct, total = record.scores["base"]["correct"] - 20, record.scores["base"]["total"]
    base = {**record.scores["base"], "correct": correct, "accuracy": correct / total}
    for update, word in (({"scores": record.scores | {"base": base}}, "scores"), ({"config_hash": "0"}, "settings")):
        change(demo, **update)
        capsys.readouterr()
        assert script.main([*asked, "--bound", "5"]) == 1
        shown = capsys.readouterr().out
        assert "1 records run again, 1 differ" in shown
        assert word in shown.rpartition("points  test")[2]
        assert script.main([*asked, "--bound", "5", "--write"]) == 0
        assert script.main([*asked, "--bound", "0"]) == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "where",
    [
        ["method=zero_shot", "protocol=few_shot"],
        ["method=coop", "protocol=base_to_novel", "dataset=shapes"],
        ["method=dylora", "protocol=few_shot", "shots=16"],
        ["method=vpt_shallow", "protocol=base_to_novel"],
        ["method=taskres", "protocol=few_shot"],
        ["method=hard_prompts"],
    ],
    ids=lambda where: where[0],
)
def test_a_sample_of_the_committed_records(script: Any, results: Path, where: list[str]) -> None:
    assert script.main(["--folder", str(results), "--where", *where]) == 0
