"""scripts/benchmark_gpu.py and compare_precisions.py on the demo's backbone, on the CPU."""

import json
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import stand_in
import torch

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def row(method: str, algorithm: str, rate: float | None, **more: Any) -> dict[str, Any]:
    return {
        "method": method, "algorithm": algorithm, "precision": "bf16", "compiled": False, "batch": 32,
        "steps_per_second": rate, "peak_bytes": 2**20, "reason": "the time was up", **more,
    }  # fmt: skip


def test_cells_an_hour(scripts: None) -> None:
    import gpu_report

    assert gpu_report.work("coop", "caltech101") == (200 * 25, 2465)  # 16 shots of 50 classes in batches of 32
    reading = {"images_read": 100.0, "images_encoded": 1e9}
    rows = [row("coop", "originals", 1e6), row("coop", "vlprompt", 50.0), row("coop", "vlprompt", None)]
    (line,) = gpu_report.cells(rows, reading)
    steps = 3 * sum(gpu_report.work("coop", name)[0] for name in gpu_report.DATASETS)
    tests = 3 * sum(gpu_report.work("coop", name)[1] for name in gpu_report.DATASETS)
    hours = (steps / 50 + tests / 100) / 3600
    assert line == f"| coop | 33 | {steps:,} | {hours:.2g} | {33 / hours:.3g} |"
    assert gpu_report.cells([row("coop", "originals", 5.0)], reading) == []
    for method in ("cocoop", "maple", "vpt_deep", "lora"):
        assert all(n > 0 for name in gpu_report.DATASETS for n in gpu_report.work(method, name))


def test_what_was_not_measured_says_why(scripts: None) -> None:
    import gpu_report

    assert gpu_report.line(row("lora", "vlprompt", None, peak_bytes=None)).count("not measured: the time was up") == 1


def test_a_case_that_fails_costs_the_others_nothing(scripts: None, monkeypatch: pytest.MonkeyPatch) -> None:
    import benchmark_gpu
    import gpu_report
    from speed_cases import DEFAULTS

    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("CUDA error: no kernel image\nand a long trace")

    monkeypatch.setattr(benchmark_gpu, "make_step", fails)
    measured = benchmark_gpu.measure(benchmark_gpu.Row("coop", "vlprompt", "bf16", False, 32), DEFAULTS["coop"], CPU, 1)
    assert measured.steps_per_second is None
    assert measured.reason == "RuntimeError: CUDA error: no kernel image"
    head = {"backbone": "b", "classes": 1, "device": "d", "torch": "t", "seconds": 1.0}
    assert "no kernel image" in gpu_report.page({**head, "rows": [vars(measured)]})  # nor does one without loading


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set")
@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_all_methods_in_a_small_size(
    scripts: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    """Also on the stand-in, whose steps are those of the CPU."""
    import benchmark_gpu

    options = [
        f"--device={device}",
        "--backbone=shapes_vit",
        "--classes=5",
        "--batch=2",
        "--seconds=9999",
        "--images=20",
    ]
    monkeypatch.setattr(benchmark_gpu, "VARIANTS", [v for v in benchmark_gpu.VARIANTS if not v[2]])
    monkeypatch.setattr(benchmark_gpu, "default_workers", lambda: 0)
    monkeypatch.setattr(benchmark_gpu, "SHARE", 0)  # a few steps of each
    monkeypatch.setattr(sys, "argv", ["benchmark_gpu.py", *options, f"--output={tmp_path}"])
    with nullcontext() if device == "cpu" else stand_in.cuda():
        benchmark_gpu.main()
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert len(report["rows"]) == 6 * 5
    for one in report["rows"]:
        assert (one["steps_per_second"] is None) == (device == "cpu" and one["precision"] == "tf32"), one
        assert device == "cpu" or one["peak_bytes"] == stand_in.PEAK
    page = (tmp_path / "gpu.md").read_text()
    assert page.count("not measured: cpu has none") == 5 * (device == "cpu")
    assert "| coop | 33 |" in page
    assert {"loading", "precisions"} < report.keys()


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["originals", "vlprompt"])
def test_a_step_trains(scripts: None, algorithm: str) -> None:
    from dataclasses import replace

    import benchmark_gpu
    from speed_cases import DEFAULTS

    case = replace(DEFAULTS["lora"], case="step", backbone="shapes_vit", classes=3, batch=2)
    step = benchmark_gpu.make_step(case, algorithm, "fp32", CPU, compile=False)
    step()
    rate, _ = benchmark_gpu.timed(step, 0.1, CPU)
    assert rate > 0


def test_deviations_of_each_precision(scripts: None) -> None:
    from compare_precisions import deviation, deviations
    from speed_cases import class_names, random_clip

    exact = torch.tensor([[3.0, 1.0], [2.0, 1.9]])
    turned = deviation("bf16", exact + torch.tensor([[0.0, 0.0], [0.0, 0.5]]), exact)
    assert (turned.turned, turned.images, turned.largest) == (1, 2, pytest.approx(0.5))
    made = deviations(random_clip("shapes_vit", CPU), class_names(4, "shapes_vit"), 3)
    assert [row.precision for row in made] == ["bf16", "fp16"]
    assert 0 < made[1].median < made[0].median < 2  # float16 has three bits more
