"""scripts/benchmark_speed.py on the demo's backbone: both sides of every case have the same numbers, or it fails."""

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")
SMALL = {
    **{("coop", case): 3 for case in ("text", "csc", "front", "middle", "images", "banked", "step")},
    **{("cocoop", case): 3 for case in ("images", "banked", "step", "memory")},
    **{(method, "images"): 2 for method in ("maple", "ivlp", "vpt_deep", "lora")},
    ("maple", "step"): 2,
    ("zero_shot", "templates"): 0,
}
"""By method and case: context tokens."""


@pytest.fixture
def scripts(monkeypatch):
    """The scripts' folder as one to import from; the number of threads is restored."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"):
        monkeypatch.setenv(name, "")  # set by the script, which reads them before torch is loaded
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def small(method, case):
    from speed_cases import Case

    return Case(
        case, method, classes=5, context=SMALL[method, case], batch=1 if case == "memory" else 2, backbone="shapes_vit"
    )


@pytest.mark.parametrize(
    ("method", "case"),
    [pytest.param(*key, marks=() if key[1] == "step" else pytest.mark.slow) for key in SMALL],
)
def test_both_sides_have_the_same_numbers(scripts, method, case):
    from speed_measures import compare_speed

    row = compare_speed(small(method, case), device=CPU, repeats=1)
    assert row.exact, row
    assert row.logits_difference > 0  # two computations, not one
    assert (row.method, row.case, row.classes, row.context) == (method, case, 5, SMALL[method, case])
    assert row.saved < row.plain_saved or case == "templates"
    assert min(row.cpu_ratio, row.wall_ratio, row.cpu_seconds, row.plain_cpu_seconds) > 0
    assert row.batch > 1 if case == "memory" else row.batch == 2


def test_other_numbers_are_noticed(scripts, monkeypatch):
    import speed_cases
    from speed_measures import compare_speed

    def wrong(learner, plain=speed_cases.plain_logits):
        return lambda images: plain(learner)(images) * 1.0001

    monkeypatch.setattr(speed_cases, "plain_logits", wrong)
    assert not compare_speed(small("coop", "text"), device=CPU, repeats=1).exact


def test_a_gradient_that_is_no_number_is_noticed(scripts):
    from speed_measures import Watched, differences

    right = Watched(torch.ones(2), [torch.ones(2), torch.ones(2)], 0, 0)
    assert differences(right, right) == (0.0, 0.0)
    wrong = Watched(torch.ones(2), [torch.ones(2), torch.tensor([1.0, math.nan])], 0, 0)
    assert math.isnan(differences(wrong, right)[1])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--method", "maple", "--case", "banked"], "no case banked"),
        (["--method", "cocoop", "--case", "memory", "--batch", "4"], "leave --batch out"),
    ],
)
def test_what_does_not_fit_is_refused(scripts, monkeypatch, arguments, words):
    import benchmark_speed

    monkeypatch.setattr(sys, "argv", ["benchmark_speed.py", *arguments])
    with pytest.raises(SystemExit, match=words):
        benchmark_speed.main()


def test_other_numbers_end_the_run(scripts, monkeypatch, capsys):
    import benchmark_speed

    def compare(case, **_):
        row = speed_measures.compare_speed(small("coop", "text"), device=CPU, repeats=1)
        return replace(row, exact=False)

    import speed_measures

    monkeypatch.setattr(benchmark_speed, "compare_speed", compare)
    monkeypatch.setattr(sys, "argv", ["benchmark_speed.py", "--method", "coop"])
    with pytest.raises(SystemExit, match="not the same numbers: coop text"):
        benchmark_speed.main()
    assert "NOT THE SAME NUMBERS" in capsys.readouterr().out


def test_the_sweep_of_two_checkouts(scripts, monkeypatch):
    """Each method from both, in turn; ratios of the second's time over the first's."""
    import whole_run

    order = []

    def sweep(root, method, folder):
        order.append((method, root == ROOT))
        return whole_run.Spent(2.0, 3.0) if root == ROOT else whole_run.Spent(5.0, 6.0)

    commands = []
    monkeypatch.setattr(whole_run, "sweep", sweep)
    monkeypatch.setattr(whole_run.subprocess, "run", lambda command, **_: commands.append(command[:3]))
    lines = whole_run.measure("main").splitlines()
    assert order[:4] == [("zero_shot", True), ("zero_shot", False), ("coop", True), ("coop", False)]
    assert commands == [["git", "worktree", "add"], ["git", "worktree", "remove"]]
    assert lines[-1] == "| all | 20.0 | 30.0 | 50.0 | 60.0 | 2.50 | 2.00 |"


def test_every_row_of_the_table_can_be_asked_for(scripts):
    from speed_cases import CASES, DEFAULTS, MAKE, TABLE

    assert {row.case for row in TABLE} <= set(CASES)
    assert set(DEFAULTS) <= set(MAKE)
    assert all(row == row.filled() for row in TABLE if row.method != "zero_shot")
    assert replace(DEFAULTS["coop"], classes=0, context=0).filled(context=16) == replace(DEFAULTS["coop"], context=16)


def chart(scripts, rows, tmp_path):
    """Its texts, with those that are paths written out as text; None where nothing is drawn."""
    import matplotlib
    import speed_chart

    with matplotlib.rc_context(), pytest.MonkeyPatch.context() as patch:
        patch.setitem(speed_chart.SETTINGS, "svg.fonttype", "none")
        speed_chart.draw(rows, tmp_path / "speed.svg")
    if not (tmp_path / "speed.svg").exists():
        return None
    return [e.text for e in ElementTree.parse(tmp_path / "speed.svg").iter() if e.tag.endswith("}text")]


def test_the_chart_has_plain_ticks_and_says_how_much_less(scripts, tmp_path):
    from speed_measures import Row

    measured = [Row(**row) for row in json.loads((ROOT / "results/benchmarks/speed.json").read_text())]
    texts = chart(scripts, measured, tmp_path)
    assert {"0.2", "1", "20", "10", "50", "100", "originals' algorithm", "vlprompt"} <= set(texts)
    assert {"22x less", "14x less"} <= set(texts)
    assert not any("^" in str(text) for text in texts)
    one = chart(scripts, measured[:1], tmp_path)
    assert one.count("22x less") == 2
    (tmp_path / "speed.svg").unlink()
    assert chart(scripts, [row for row in measured if row.method != "coop"], tmp_path) is None


def test_ours_and_the_originals_differ_in_grey(scripts):
    import speed_chart

    ours, originals = speed_chart.OURS, speed_chart.ORIGINALS
    assert ours["linestyle"] != originals["linestyle"]
    assert "markerfacecolor" in originals
    assert "markerfacecolor" not in ours  # full


@pytest.mark.slow
def test_command(tmp_path):
    """One case: a table, a JSON file, a page and a chart; exit code 0."""
    file, folder = tmp_path / "speed.json", tmp_path / "out"
    options = ["--method=coop", "--classes=5", "--context=3", "--batch=4", "--backbone=shapes_vit", "--repeats=1"]
    command = [sys.executable, "scripts/benchmark_speed.py", *options, "--json", str(file), "--output", str(folder)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(file.read_text())
    told = {key: row[key] for key in ("case", "method", "classes", "context", "batch")}
    assert told == {"case": "text", "method": "coop", "classes": 5, "context": 3, "batch": 4}
    assert "| coop (shapes_vit) | text" in (folder / "speed.md").read_text()
    assert "| coop (shapes_vit) | text" in done.stdout
    drawn = (folder / "speed.svg").read_text()
    assert drawn.startswith("<?xml")
    command = [sys.executable, "scripts/benchmark_speed.py", "--redraw", str(file)]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, timeout=300)
    assert file.with_suffix(".svg").read_text() == drawn
