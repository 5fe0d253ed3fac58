"""Which GPU a process gets, with cards that are none."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from running import environment_in

from vlprompt.errors import UserError
from vlprompt.training import lease as leases

ANY = torch.device("cuda")


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Three cards, and this process has none of them."""
    monkeypatch.setattr(leases, "leased", None)
    monkeypatch.setattr(leases, "visible_cards", lambda: ["a", "b", "c"])
    monkeypatch.setattr(leases, "lock_folder", lambda: tmp_path / "locks")


def as_another_process(jobs_per_gpu: int | None = None) -> str:
    """What a process that has no card yet gets."""
    leases.leased = None
    device = leases.lease(ANY, jobs_per_gpu, on_wait=pytest.fail)
    others.append(leases.leased)
    return str(device)


others: list[object] = []  # so that their locks are not collected


def test_each_process_gets_the_first_free_card() -> None:
    assert [as_another_process() for _ in range(3)] == ["cuda:0", "cuda:1", "cuda:2"]


def test_a_process_has_one_card() -> None:
    assert {str(leases.lease(ANY, None, on_wait=pytest.fail)) for _ in range(3)} == {"cuda:0"}


def test_cards_are_shared_evenly() -> None:
    got = [as_another_process(2) for _ in range(6)]
    assert got == ["cuda:0", "cuda:1", "cuda:2"] * 2


def test_all_cards_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(3):
        as_another_process()
    told, holders = list[str](), [one for one in others[-3:] if isinstance(one, tuple)]

    def let_go(_: float) -> None:
        slept.append(1)
        if len(slept) == 2:
            holders[1][1].release()

    slept: list[int] = []
    monkeypatch.setattr(leases, "time", SimpleNamespace(sleep=let_go))
    leases.leased = None
    assert str(leases.lease(ANY, None, told.append)) == "cuda:1"
    assert len(slept) == 2
    assert len(told) == 1  # once
    assert "jobs_per_gpu" in told[0]


@pytest.mark.parametrize("visible", [["a"], []])
def test_a_single_card_is_shared_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch, visible: list[str]) -> None:
    monkeypatch.setattr(leases, "visible_cards", lambda: visible)
    assert [as_another_process() for _ in range(3)] == ["cuda"] * 3
    if visible:
        assert as_another_process(1) == "cuda:0"


def test_processes_that_see_other_cards_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    assert as_another_process() == "cuda:0"  # which is a
    monkeypatch.setattr(leases, "visible_cards", lambda: ["c", "a"])  # CUDA_VISIBLE_DEVICES=2,0
    assert as_another_process() == "cuda:0"  # which is c
    monkeypatch.setattr(leases, "visible_cards", lambda: ["a", "b", "c"])
    assert as_another_process() == "cuda:1"


@pytest.mark.parametrize("name", ["cpu", "cuda:2"])
def test_a_device_that_was_named_is_no_lease(name: str, tmp_path: Path) -> None:
    assert str(leases.lease(torch.device(name), 1, on_wait=pytest.fail)) == name
    assert not (tmp_path / "locks").exists()


def test_a_folder_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr(leases, "lock_folder", lambda: tmp_path / "file" / "locks")
    with pytest.raises(UserError, match="TMPDIR"):
        leases.lease(ANY, 1, on_wait=pytest.fail)


HOLD = """
import sys, torch
from pathlib import Path
from vlprompt.training import lease
lease.visible_cards = lambda: ["a", "b", "c"]
lease.lock_folder = lambda: Path(sys.argv[1])
print(lease.lease(torch.device("cuda"), None, print), flush=True)
sys.stdin.read()
"""


@pytest.mark.slow
def test_a_process_that_is_killed_gives_its_card_back(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path / "locks")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment_in(tmp_path), **pipes) as process:  # type: ignore[call-overload]
        assert process.stdout.readline() == "cuda:0\n"
        assert as_another_process() == "cuda:1"
        process.kill()
        process.wait()
    assert as_another_process() == "cuda:0"
