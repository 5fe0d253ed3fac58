"""What README.md shows is so: its method runs, its table of speed and fidelity are those of the files it names."""

import importlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from running import ask
from test_learners import CLASSES, METHODS, clip_of, logits

from vlprompt import sweep
from vlprompt.learners.checks import CHECKS, Candidate
from vlprompt.learners.vpt import VPT
from vlprompt.results.store import find_records

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "README.md").read_text(encoding="utf-8")
DIFFERENCES = (ROOT / "docs" / "differences.md").read_text(encoding="utf-8")
CODE = re.findall(r"<!-- file: my_vpt.py -->\n```python\n(.*?)```", PAGE, re.DOTALL)[0]
SPEED = [
    ("CoOp's text side, 100 classes", ("coop", "text", 100, 4)),
    ("CoCoOp from cached features, 100 classes", ("cocoop", "banked", 100, 4)),
    ("MaPLe, 100 classes, 4 images", ("maple", "images", 100, 2)),
    ("deep VPT, 4 images", ("vpt_deep", "images", 50, 8)),
]


@pytest.fixture
def my_vpt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    (tmp_path / "my_vpt.py").write_text(CODE, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("my_vpt")
    del sys.modules["my_vpt"]


def test_its_method_is_deep_vpt(my_vpt: ModuleType) -> None:
    for check in CHECKS:
        check(Candidate(my_vpt.MyVPT, {}, clip_of("vit"), clip_of("resnet")))
    assert len([line for line in CODE.splitlines() if line]) <= 15
    clip = clip_of("vit")
    torch.manual_seed(1)
    mine = my_vpt.MyVPT(clip, CLASSES, n_tokens=3)
    torch.manual_seed(1)
    assert logits(mine).equal(logits(VPT(clip, CLASSES, n_tokens=3, depth=clip.image.depth)))


@pytest.mark.parametrize(("row", "case"), SPEED)
def test_speed_and_memory_are_those_measured(row: str, case: tuple[str, str, int, int]) -> None:
    measured = json.loads((ROOT / "results" / "benchmarks" / "speed.json").read_text())
    (line,) = [line for line in measured if tuple(line[k] for k in ("method", "case", "classes", "context")) == case]
    shown = re.findall(rf"{re.escape(row)} \| ([\d.]+) s, ([\d,]+) MB \| ([\d.]+) s, ([\d,]+) MB", PAGE)
    plain, plain_mb, ours, ours_mb = (float(number.replace(",", "")) for number in shown[0])
    assert [plain, ours] == pytest.approx([line["plain_cpu_seconds"], line["cpu_seconds"]], rel=0.01)
    assert [plain_mb, ours_mb] == pytest.approx([line["plain_saved"] / 1e6, line["saved"] / 1e6], rel=0.01)


def test_as_many_methods_are_compared_as_it_says() -> None:
    rows = re.findall(r"^\| (`.*?) \| .* \| (?:`pytest -k parity`|`tests/test_orig)", DIFFERENCES, re.MULTILINE)
    parity, original = ({*re.findall(r"`(\w+)`", row)} & {*METHODS} for row in rows)
    said = re.findall(r"(\d+) methods from the literature|code of (\d+) methods|code of (\d+) more methods", PAGE)
    assert [int("".join(numbers)) for numbers in said] == [len(METHODS), len(parity), len(original)]


@pytest.mark.slow
def test_the_first_run_ends_as_shown(results: Path) -> None:
    """Up to what training makes of another machine's rounding: 5 points."""
    answer = ask(sweep.main, [])
    assert answer.code == 0, answer.err
    shown = re.findall(r"<!-- first run: .*?```\n(.*?)```", PAGE, re.DOTALL)[0]
    rows = {
        method: re.findall(rf"^{method} .*?((?:\d+\.\d\d +){{4}})", shown, re.M) for method in ("zero_shot", "coop")
    }
    records = {record.method: record for record in find_records([results])}
    assert set(records) == set(rows)
    for method, (numbers,) in rows.items():
        base, novel, both, everything = map(float, numbers.split())
        scores = records[method].scores
        measured = [100 * scores[test]["accuracy"] for test in ("base", "novel", "all")]
        assert [base, novel, everything] == pytest.approx(measured, abs=5 if method == "coop" else 0.01)
        assert both == pytest.approx(2 * base * novel / (base + novel), abs=0.01)
