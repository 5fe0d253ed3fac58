"""scripts/benchmark_banked.py: a small training, and what its table says."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[1]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import benchmark_banked

    return benchmark_banked


def test_a_training_is_that_of_the_configuration(script: Any) -> None:
    row = script.measure("lp_plus_plus", 3, torch.get_num_threads())
    assert (row["trained"], row["epochs"]) == (3 * (512 + 2), 0)
    assert row["seconds"] > 0
    assert row["bytes"] >= 0


def test_rows_say_why_a_method_is_slow(script: Any, tmp_path: Path) -> None:
    common = {"classes": 1000, "threads": 2}
    done = {"cpu_seconds": 9.0, "bytes": 2**21, "trained": 7, "epochs": 0}
    script.write(tmp_path, {
        "cross_modal": {**common, **done, "seconds": 301.0},
        "clap": {**common, **done, "seconds": 10.0},
        "linear_probe": {**common, "reason": "stopped at 1800 s"},
        "gda": {**common, "reason": "ValueError: no"},
    })  # fmt: skip
    assert json.loads((tmp_path / "banked.json").read_text())["clap"]["seconds"] == 10
    lines = (tmp_path / "banked.md").read_text().splitlines()
    remarks = {line.split("|")[1].strip(): line.split("|")[-2].strip() for line in lines if line.startswith("| ")}
    assert remarks.pop("method") == "remark"
    assert remarks == {
        "cross_modal": script.WHY["cross_modal"],
        "clap": "",
        "linear_probe": f"stopped at 1800 s; {script.WHY['linear_probe']}",
        "gda": "ValueError: no",
    }
