"""Both commands as users give them: within a test's process, or in one of their own."""

import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 300  # until a command that hangs is ended
PROGRAM = [str(ROOT / "run.py")]
VLPROMPT = ["-c", "import sys; from vlprompt.cli import main; sys.exit(main(sys.argv[1:]))"]
COMPOSE = hydra.compose


def folders() -> str:
    """The folders of settings that Hydra reads now."""
    return str(GlobalHydra.instance().config_loader().get_search_path())


class Answer(NamedTuple):
    code: int
    out: str
    err: str


def ask(main: Callable[[list[str]], int], arguments: list[str]) -> Answer:
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main(arguments)
    return Answer(code, out.getvalue(), err.getvalue())


def succeed(main: Callable[[list[str]], int], arguments: list[str]) -> Answer:
    answer = ask(main, arguments)
    assert (answer.code, answer.err) == (0, ""), answer
    return answer


@cache
def composed(config: str, overrides: tuple[str, ...], whole: bool, _folders: str) -> Any:
    return COMPOSE(config, list(overrides), return_hydra_config=whole)


def set_up(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Results and data in `folder`, no W&B, and everything restored that a run sets for its process.

    What Hydra is asked to compose is composed once for all tests: it is what takes most of the time.
    """
    patch.setattr(hydra, "compose", lambda name, given, **more: composed(name, tuple(given), bool(more), folders()))
    patch.setenv("VLPROMPT_RESULTS", str(folder / "results"))
    patch.setenv("VLPROMPT_DATA", str(folder / "datasets"))
    patch.setenv("WANDB_MODE", "disabled")
    patch.setenv("VLPROMPT_ALLOW", "tiny_world")  # which records of these tests name
    patch.setenv("HYDRA_FULL_ERROR", "0")
    patch.setattr(sys, "argv", sys.argv)
    patch.chdir(folder)


def environment_in(folder: Path) -> dict[str, str]:
    """Results and data in `folder`; modules next to this file can be named in settings."""
    others = {key: value for key, value in os.environ.items() if not key.startswith(("WANDB", "HYDRA", "VLPROMPT"))}
    return others | {
        "VLPROMPT_RESULTS": str(folder / "results"),
        "VLPROMPT_DATA": str(folder / "datasets"),
        "WANDB_MODE": "disabled",
        "VLPROMPT_ALLOW": "tiny_world",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(Path(__file__).parent)]),
    }


def start(program: list[str], arguments: list[str], environment: dict[str, str], folder: Path) -> subprocess.Popen[str]:
    """`program` (`PROGRAM` or `VLPROMPT`) in a process of its own, which hears Ctrl-C."""

    def interruptible() -> None:  # a shell's background jobs, and so what they start, ignore Ctrl-C
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    return subprocess.Popen(
        [sys.executable, *program, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env=environment,
        start_new_session=True,
        preexec_fn=interruptible,
    )


def end(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=SECONDS)
    return process.returncode, out, err


def check_mistake(answer: Answer, words: list[str], root: Path) -> None:
    assert answer.code == 2
    assert answer.err.startswith("error: ")
    assert answer.err.count("\n") == 1
    assert not [word for word in words if word not in answer.err], answer.err
    assert "Traceback" not in answer.err + answer.out
    assert not list(root.rglob("result.json"))
    assert not list(root.rglob(".*.partial"))
