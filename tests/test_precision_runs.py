"""Whole runs in half precision and with compiled steps; what both need is in test_precision.py."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_stand_in import METHODS, WITHOUT_STEPS, overrides

import vlprompt
from vlprompt.config.compose import read_run
from vlprompt.results import costs
from vlprompt.results.record import Record
from vlprompt.run import run

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:Dynamo does not know")]


@pytest.fixture(autouse=True)
def timed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs, "TIMES", 1)


def trained(method: str, *more: str) -> Record:
    name = "-".join(more).replace("=", "-")
    return run(read_run([*overrides(method, "few_shot", bank=True), "device=cpu", *more, f"name={name}"]))


def losses(record: Record) -> list[float]:
    return [line["loss"] for line in record.curve]


def tensors(results: Path, name: str) -> dict[str, torch.Tensor]:
    (file,) = results.rglob(f"*{name}*/**/learner.safetensors")
    return load_file(file)


@pytest.mark.parametrize("method", [name for name in METHODS if name not in WITHOUT_STEPS])
def test_every_method_in_half_precision(results: Path, method: str) -> None:
    """Its learned tensors stay in float32, and its losses near those of float32."""
    if method == "qlora":
        pytest.importorskip("bitsandbytes")
    exact = losses(trained(method, "precision=fp32"))
    for precision in ("bf16", "fp16"):
        half = losses(trained(method, f"precision={precision}"))
        assert half == pytest.approx(exact, rel=0.1, abs=0.1)
        expected, learned = (tensors(results, name) for name in ("fp32", precision))
        assert [t.dtype for t in learned.values()] == [t.dtype for t in expected.values()]
        assert all(t.isfinite().all() for t in learned.values())
        assert any(not torch.equal(t, expected[name]) for name, t in learned.items())


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile, forward and backward, without the code for this machine, which would take minutes."""
    torch_compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda step, **more: torch_compile(step, backend="aot_eager", **more))


def compare_compiled(results: Path, capsys: pytest.CaptureFixture[str], method: str, precision: str) -> None:
    """A run whose steps are compiled has the losses, the files and the use of one whose steps are not."""
    from torch._dynamo.utils import counters  # which takes a second

    torch._dynamo.reset()
    counters.clear()
    plain = trained(method, f"precision={precision}", "compile=false")
    assert not counters["stats"]
    capsys.readouterr()
    fast = trained(method, f"precision={precision}", "compile=true")
    assert "does not work" not in "".join(capsys.readouterr())
    assert counters["stats"]["unique_graphs"] > 0
    rounding = 1e-4 if precision == "fp32" else 1e-2
    assert losses(fast) == pytest.approx(losses(plain), abs=rounding)
    expected, given = (tensors(results, f"compile-{compiled}") for compiled in ("false", "true"))
    torch.testing.assert_close(given, expected, rtol=0.01, atol=rounding)
    models: list[Any] = [vlprompt.load(record, device="cpu") for record in (plain, fast)]
    logits = [model.learner.encode_classes() for model in models]
    torch.testing.assert_close(logits[1], logits[0], rtol=0.01, atol=0.01)


@pytest.mark.parametrize(
    ("method", "precision"),
    [("coop", "fp32"), ("coop", "fp16"), ("vpt_deep", "fp32"), ("maple", "fp32"), ("lora", "fp16")],
)
def test_compiled_steps(
    results: Path, capsys: pytest.CaptureFixture[str], traced: None, method: str, precision: str
) -> None:
    compare_compiled(results, capsys, method, precision)


def test_steps_compiled_for_this_machine(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if not shutil.which("g++"):
        pytest.skip("needs a C++ compiler")
    compare_compiled(results, capsys, "coop", "fp32")
