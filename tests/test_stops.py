"""A training that was stopped and resumed is the one that nobody disturbed, bit for bit."""

import errno
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import made_records
import numpy as np
import pytest
import safetensors.torch
import stand_in
import test_learners
import tiny
import tiny_world
import torch
from running import PROGRAM, ask, end, environment_in, start, succeed
from tiny_world import RUN
from torch import Tensor

from vlprompt import cli, sweep
from vlprompt.config.launch import outcomes
from vlprompt.config.schema import Average, Fit, Schedule
from vlprompt.data import views
from vlprompt.data.cache.features import FeatureCache
from vlprompt.data.loader import Loader
from vlprompt.data.sampling import sample_few_shot
from vlprompt.learners.base import Learner
from vlprompt.learners.clip_adapter import CLIPAdapter
from vlprompt.learners.coop import CoOp
from vlprompt.learners.dylora import DyLoRA
from vlprompt.learners.linear_head import LinearHead
from vlprompt.learners.lora import LoRA
from vlprompt.learners.maple import MaPLe
from vlprompt.learners.promptsrc import PromptSRC
from vlprompt.learners.tip_adapter import TipAdapter
from vlprompt.learners.vpt import VPT
from vlprompt.learners.zero_shot import ZeroShot
from vlprompt.protocols.base import Episode
from vlprompt.protocols.few_shot import FewShot
from vlprompt.results.predictions import PREDICTIONS
from vlprompt.results.record import Record
from vlprompt.results.store import STATE, find_records, open_run, stored_run
from vlprompt.towers import Clip
from vlprompt.train import Epoch, Meter, train
from vlprompt.training import state, stops
from vlprompt.training.precision import Scaler
from vlprompt.training.progress import Reporter
from vlprompt.training.state import State
from vlprompt.training.stops import Stopped, heard, served

SCHEDULE = Schedule(warmup="none", every="step")
EPOCHS = 2  # of ten images


def fit(**settings: Any) -> Fit:
    return Fit(**{"lr": 0.01, "epochs": EPOCHS, "batch_size": 3, "schedule": SCHEDULE, **settings})


@dataclass(frozen=True)
class Case:
    kind: type[Learner]
    settings: dict[str, Any] = field(default_factory=dict)
    fit: Fit = field(default_factory=fit)
    n_views: int | None = None
    clip: Clip | None = None


AVERAGE = Average(mu=1, sigma=1)
CASES = {
    "coop": Case(CoOp, {"ctx_init": "", "n_context": 2}, fit(drop_last=False)),
    "lora": Case(LoRA, {"rank": 2, "dropout": 0.3}, fit(optimizer="adamw")),
    "dylora": Case(DyLoRA, {"rank": 4, "dropout": 0.3}),
    "promptsrc": Case(PromptSRC, {"depth": 2, "image_depth": 2, "templates": "openai_7"}, fit(average=AVERAGE)),
    "maple": Case(MaPLe, {"depth": 2}, fit(momentum=0.0)),
    "vpt": Case(VPT, {"depth": 2}),
    "clip_adapter": Case(CLIPAdapter, {}, fit(keep="best", optimizer="adam"), n_views=3),
    "tip_adapter_f": Case(TipAdapter, {"finetune": True, "search_scale": [2.0, 2.0], "search_steps": [3, 2]}),
    "linear_head": Case(LinearHead, {}, fit(keep="best")),
}


@pytest.fixture(scope="module")
def episode() -> Episode:
    dataset = tiny_world.load("tiny")
    return FewShot().episode(dataset, sample_few_shot(dataset, shots=2, seed=1))


@cache
def small_clip() -> Clip:
    return tiny.clip("vit", torch.float32)[0]


QUICK = CASES["clip_adapter"]
Trained = tuple[dict[str, Tensor], list[Epoch]]


def trained(
    case: Case,
    episode: Episode,
    folder: Path | None = None,
    *,
    run_hash: str = "a",
    minutes: float = 99.0,
    resume: bool = True,
    **more: Any,
) -> Trained:
    """A training as in a process of its own: nothing in memory, and random numbers that are anywhere.

    `more`: the precision, and whether steps are compiled.
    """
    clip = case.clip or small_clip()
    torch.manual_seed(0)
    learner = case.kind(clip, episode.train.classes, **case.settings).to(clip.device)
    for module in (torch.manual_seed, random.seed, np.random.seed):
        module(int.from_bytes(random.SystemRandom().randbytes(3), "big"))
    features = None if learner.edits_image else FeatureCache(clip, precision="fp32", workers=0)
    loader = Loader(clip, features, n_views=case.n_views)
    with ExitStack() as held:
        kept = State()
        if folder:
            held.enter_context(heard())
            run = held.enter_context(open_run(folder))
            kept = held.enter_context(State(run, run_hash=run_hash, minutes=minutes, resume=resume, device=clip.device))
        how: dict[str, Any] = {"precision": "fp32", "reporter": Reporter(quiet=True), "state": kept, **more}
        curve = train(learner, episode, loader, case.fit, **how)
    return {name: tensor.clone() for name, tensor in learner.state_dict().items()}, curve


def same(one: Trained, other: Trained) -> bool:
    tensors = zip(one[0].items(), other[0].items(), strict=True)
    return one[1] == other[1] and all(a == b and x.dtype == y.dtype and torch.equal(x, y) for (a, x), (b, y) in tensors)


@pytest.fixture
def stopping(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Signals in the middle of steps, counted from 1, of all trainings of a test together."""
    update, taken = Meter.update, iter(range(1, 10**6))

    def stop(steps: Sequence[int], sent: signal.Signals = signal.SIGTERM) -> None:
        def stopped(*arguments: Any) -> None:
            if next(taken) in steps:
                signal.raise_signal(sent)
            update(*arguments)

        monkeypatch.setattr(Meter, "update", stopped)

    return stop


QUICKEST = {"lora", "clip_adapter"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name not in QUICKEST)) for name in CASES]
)
def test_stopped_anywhere_it_ends_as_if_undisturbed(
    name: str, episode: Episode, tmp_path: Path, stopping: Callable[..., None]
) -> None:
    case, undisturbed = CASES[name], trained(CASES[name], episode)
    steps = EPOCHS * (10 // 3 if case.fit.drop_last else 10 // 3 + 1)
    moments = sorted(random.Random(name).sample(range(1, steps), 2))  # no step is taken twice, so these are its steps
    stopping(moments, random.Random(name).choice([signal.SIGTERM, signal.SIGINT, signal.SIGUSR1]))
    for moment in moments:
        with pytest.raises(Stopped, match=f"is kept at step {moment} of {steps},"):
            trained(case, episode, tmp_path / "run")
    assert same(trained(case, episode, tmp_path / "run"), undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("case", test_learners.CASES, ids=lambda case: case.name)
def test_every_method_ends_as_if_undisturbed(
    case: test_learners.Case, episode: Episode, tmp_path: Path, stopping: Callable[..., None]
) -> None:
    """Those alone that an optimiser trains: the others' work is done before the first step."""
    candidate = test_learners.candidate_of(case)
    if not candidate.kind.takes_steps(dict(candidate.settings)) or candidate.kind is ZeroShot:
        return
    mine = Case(candidate.kind, dict(candidate.settings), fit(optimizer="adamw", lr=1e-3), clip=candidate.clip)
    undisturbed = trained(mine, episode)
    assert same(stopped_twice(mine, episode, tmp_path / "run", stopping), undisturbed)


def stopped_twice(case: Case, episode: Episode, folder: Path, stopping: Any, **more: Any) -> Trained:
    """What comes of it in the end."""
    stopping([2, 5])
    for _ in range(2):
        with pytest.raises(Stopped):
            trained(case, episode, folder, **more)
    return trained(case, episode, folder, **more)


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set")
def test_on_a_gpu(episode: Episode, tmp_path: Path, stopping: Any) -> None:
    with stand_in.cuda():
        case = replace(QUICK, clip=tiny.clip("vit", torch.float32)[0].to(stand_in.DEVICE))
        undisturbed = trained(case, episode)
        assert all(map(stand_in.is_ours, undisturbed[0].values()))
        assert same(stopped_twice(case, episode, tmp_path / "run", stopping), undisturbed)


def test_the_scale_of_a_loss_in_half_precision(
    episode: Episode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopping: Any
) -> None:
    scalers: list[Scaler] = []

    class Growing(Scaler):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            self.set_growth_interval(3)
            scalers.append(self)

    monkeypatch.setattr("vlprompt.train.Scaler", Growing)
    undisturbed = trained(QUICK, episode, precision="fp16")
    assert same(stopped_twice(QUICK, episode, tmp_path / "run", stopping, precision="fp16"), undisturbed)
    scales = [scaler.get_scale() for scaler in scalers]
    assert scales[-1] == scales[0] == 4 * scales[1]  # after 6 steps, after 2


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Dynamo does not know")
def test_compiled_steps(episode: Episode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopping: Any) -> None:
    """Through the tracer alone, without the code that it would generate."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    undisturbed = trained(CASES["lora"], episode, compile=True)
    assert same(stopped_twice(CASES["lora"], episode, tmp_path / "run", stopping, compile=True), undisturbed)


# What is kept, and when


@pytest.fixture(scope="module")
def undisturbed(episode: Episode) -> Trained:
    return trained(QUICK, episode)


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The warnings about states."""
    lines: list[str] = []
    monkeypatch.setattr(state.logger, "warning", lambda text, *values: lines.append(text % values))
    return lines


def kept_at(folder: Path) -> int:
    return int(state.read(folder.with_name(f".{folder.name}.partial") / STATE)[0]["step"])


@pytest.mark.parametrize("minutes", [0.0, 99.0])
def test_a_process_that_dies_in_a_step_costs_the_interval(
    episode: Episode, undisturbed: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, minutes: float
) -> None:
    backward, left = CLIPAdapter.backward, iter(range(4))

    def die(*batch: Any) -> Any:
        if next(left, None) is None:
            raise MemoryError
        return backward(*batch)

    with monkeypatch.context() as patch:
        patch.setattr(CLIPAdapter, "backward", die)
        with pytest.raises(MemoryError):
            trained(QUICK, episode, tmp_path / "run", minutes=minutes)
    if minutes:
        assert list(tmp_path.iterdir()) == [tmp_path / ".run.lock"]
    else:
        assert kept_at(tmp_path / "run") == 4
    assert same(trained(QUICK, episode, tmp_path / "run"), undisturbed)


def test_a_signal_while_images_are_read(episode: Episode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In an augmentation, which has set the random numbers to its own."""
    case, transform, left = CASES["vpt"], views.train_transform, iter(range(100))
    undisturbed = trained(case, episode)

    def interrupted(*arguments: Any) -> Callable[[Any], Any]:
        def augment(image: Any) -> Any:
            if next(left) == 13:
                signal.raise_signal(signal.SIGTERM)
            return transform(*arguments)(image)

        return augment

    with monkeypatch.context() as patch:
        patch.setattr(views, "train_transform", interrupted)
        with pytest.raises(Stopped, match="step 4 of 6"):
            trained(case, episode, tmp_path / "run")
    assert same(trained(case, episode, tmp_path / "run"), undisturbed)


def stop_once(case: Case, episode: Episode, folder: Path, stopping: Callable[..., None], step: int = 5) -> Path:
    """The file of the state of a training that was stopped."""
    stopping([step])
    with pytest.raises(Stopped):
        trained(case, episode, folder)
    assert kept_at(folder) == step
    return folder.with_name(f".{folder.name}.partial") / STATE


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda content: content[:-7],
    "empty": lambda content: b"",
    "a bit of a tensor": lambda content: content[:-100] + bytes([content[-100] ^ 1]) + content[-99:],
    "a number in its header": lambda content: content.replace(b'step\\": 5', b'step\\": 4'),
    "no state": lambda content: safetensors.torch.save({"a": torch.zeros(1)}),
    "no JSON": lambda content: safetensors.torch.save({}, {"about": "[", "checksum": state.checksum("[", {})}),
    "a list": lambda content: safetensors.torch.save({}, {"about": "[]", "checksum": state.checksum("[]", {})}),
}


TOLD_ALIKE = ("cut", "empty", "no state", "a number in its header", "no JSON", "a list")


@pytest.mark.parametrize("damage", [pytest.param(d, marks=[pytest.mark.slow] * (d in TOLD_ALIKE)) for d in DAMAGE])
def test_a_damaged_state_is_left_out(
    episode: Episode, undisturbed: Trained, tmp_path: Path, stopping: Any, said: list[str], damage: str
) -> None:
    path = stop_once(QUICK, episode, tmp_path / "run", stopping)
    content = DAMAGE[damage](path.read_bytes())
    assert content != path.read_bytes()
    path.write_bytes(content)
    assert same(trained(QUICK, episode, tmp_path / "run"), undisturbed)
    assert [line.count("\n") for line in said] == [0]
    assert str(path) in said[0]


@pytest.mark.parametrize(
    ("changed", "reason"),
    [({"run_hash": "b"}, "other settings"), ({"torch": "0.1"}, "torch"),
     pytest.param({"vlprompt": "9"}, "vlprompt", marks=pytest.mark.slow),
     pytest.param({"case": replace(QUICK, settings={"reduction": 3})}, "another training", marks=pytest.mark.slow),
     ({"case": Case(CLIPAdapter, {}, fit(keep="best", optimizer="adam", steps=5, epochs=None), 3)}, "another training"),
     ({"resume": False}, None)],
)  # fmt: skip
def test_a_state_of_something_else_is_left_out(
    episode: Episode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopping: Any, said: list[str],
    changed: dict[str, Any], reason: str | None,
) -> None:  # fmt: skip
    stop_once(QUICK, episode, tmp_path / "run", stopping)
    version = {**state.versions(), **{name: value for name, value in changed.items() if name in ("torch", "vlprompt")}}
    monkeypatch.setattr(state, "versions", lambda: version)
    more = {name: value for name, value in changed.items() if name in ("run_hash", "resume")}
    case = changed.get("case", QUICK)
    assert same(trained(case, episode, tmp_path / "run", **more), trained(case, episode))
    assert [str(reason) in line for line in said] == [True] * bool(reason)


def test_a_full_disk_costs_the_state_alone(
    episode: Episode, undisturbed: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(state.safetensors.torch, "save_file", refuse)
    assert same(trained(QUICK, episode, tmp_path / "run", minutes=0), undisturbed)
    assert ["no space left" in line for line in said] == [True]


def test_a_failed_run_resumes_too(episode: Episode, undisturbed: Trained, tmp_path: Path, stopping: Any) -> None:
    """Out of memory next to another process, say."""
    stop_once(QUICK, episode, folder := tmp_path / "run", stopping)
    with open_run(folder) as run:
        run.publish(made_records.record("coop", status="failed", reason="out of memory"))
    assert stored_run(folder) is not None
    assert same(trained(QUICK, episode, folder), undisturbed)
    with open_run(folder) as run:
        run.publish(made_records.record("coop"))
    assert {path.name for path in folder.iterdir()} == {"result.json"}


def test_what_a_link_leads_to_is_no_state(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / STATE).touch()
    (tmp_path / ".run.partial").symlink_to(tmp_path / "other")
    with open_run(tmp_path / "run") as run:
        assert list(run.path.iterdir()) == []
        (run.path / STATE).symlink_to(tmp_path / "other" / STATE)
    assert not run.path.exists()
    assert (tmp_path / "other" / STATE).exists()


# Signals


@pytest.fixture
def handled() -> Iterator[None]:
    """Signals have Python's own handlers, also where these tests are a job of a shell's background; so they stay."""
    before = {number: signal.getsignal(number) for number in (*stops.SIGNALS, signal.SIGALRM)}
    plain = dict.fromkeys(before, signal.SIG_DFL) | {signal.SIGINT: signal.default_int_handler}
    for number, handler in plain.items():
        signal.signal(number, handler)
    yield
    assert {number: signal.getsignal(number) for number in plain} == plain
    for number, handler in before.items():
        signal.signal(number, handler)


def a_step(*numbers: int, ended: bool = True) -> None:
    """A step in which signals come; not `ended`: it goes on for long."""
    with heard(), heard():
        stops.defer()
        for number in numbers:
            signal.raise_signal(number)
        if not ended:
            time.sleep(1)
            pytest.fail("it was waited for")
        stops.allow()
    pytest.fail("the next run began")


@pytest.mark.usefixtures("handled")
@pytest.mark.parametrize("number", stops.SIGNALS)
def test_a_signal_stops_at_once_or_at_the_end_of_a_step(number: signal.Signals) -> None:
    with pytest.raises(Stopped) as stopped, heard():
        signal.raise_signal(number)
    assert stopped.value.number == number
    assert "nothing" in str(stopped.value)
    with pytest.raises(Stopped):
        a_step(number, number)  # an echo


@pytest.mark.usefixtures("handled")
def test_a_long_step_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(stops, "PATIENCE", 0.01)
        with pytest.raises(Stopped):
            a_step(signal.SIGTERM, ended=False)
    monkeypatch.setattr(stops, "ECHO", 0.0)
    with pytest.raises(Stopped):
        a_step(signal.SIGINT, signal.SIGINT, ended=False)


@pytest.mark.usefixtures("handled")
@pytest.mark.parametrize("error", [ValueError, partial(cast("Any", Stopped), "a text of OmegaConf's"), None])
def test_a_library_that_swallows_a_stop(error: Callable[[], BaseException] | None) -> None:
    def swallow() -> None:
        with heard():
            try:
                signal.raise_signal(signal.SIGTERM)
            except KeyboardInterrupt:
                if error:
                    raise error() from None

    with pytest.raises(Stopped) as stopped:
        swallow()
    assert stopped.value.number == signal.SIGTERM


@pytest.mark.usefixtures("handled")
def test_a_step_that_fails_does_not_swallow_a_signal() -> None:
    def fail() -> None:
        with heard():
            with suppress(ValueError), heard():
                stops.defer()
                signal.raise_signal(signal.SIGTERM)
                raise ValueError
            pytest.fail("the next run began")

    with pytest.raises(Stopped):
        fail()


@pytest.mark.usefixtures("handled")
def test_what_others_have_a_signal_do_is_done_at_the_end_of_a_step() -> None:
    told: list[int] = []
    before = signal.signal(signal.SIGUSR2, lambda number, _: told.append(number))
    ignored = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with heard():
            signal.raise_signal(signal.SIGINT)
            stops.defer()
            signal.raise_signal(signal.SIGUSR2)
            assert told == []
            stops.allow()
            assert told == [signal.SIGUSR2]
    finally:
        signal.signal(signal.SIGUSR2, before)
        signal.signal(signal.SIGINT, ignored)


@pytest.mark.usefixtures("handled")
def test_what_lets_a_signal_pass_finds_the_state_kept(tmp_path: Path) -> None:
    """SLURM sends SIGTERM, which submitit lets pass, and SIGUSR2, at which it gives the job back, at once after it."""
    kept: list[tuple[int, bool]] = []
    others = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR2)}
    for number in others:
        signal.signal(number, lambda number, _: kept.append((number, (run.path / STATE).exists())))
    try:
        with heard(), open_run(tmp_path / "run") as run:
            kept_by = State(run, minutes=1000)
            kept_by.restore(5, {})
            for step, _ in kept_by.steps(range(5)):
                if step == 1:
                    signal.raise_signal(signal.SIGTERM)
                    signal.raise_signal(signal.SIGUSR2)
            assert kept_by.kept == 2
    finally:
        for number, handler in others.items():
            signal.signal(number, handler)
    assert kept == [(signal.SIGTERM, True), (signal.SIGUSR2, True)]


@pytest.mark.usefixtures("handled")
@pytest.mark.parametrize("error", [SystemExit, RuntimeError])
def test_what_others_raise_while_a_batch_is_read_keeps_the_state(tmp_path: Path, error: type[BaseException]) -> None:
    def leave(*_: object) -> None:
        raise error

    def batches() -> Iterator[int]:
        yield from range(3)
        signal.raise_signal(signal.SIGUSR2)

    def train_on() -> None:
        with heard(), open_run(tmp_path / "run") as run:
            kept_by.folder = run
            kept_by.restore(5, {})
            for _ in kept_by.steps(batches()):
                assert kept_by.kept is None

    kept_by, before = State(minutes=1000), signal.signal(signal.SIGUSR2, leave)
    try:
        with pytest.raises(error):
            train_on()
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert kept_by.kept == 3


@pytest.mark.usefixtures("handled")
def test_another_thread_is_not_the_one_to_stop() -> None:
    def within() -> None:
        with heard():
            stops.defer()

    def both() -> None:
        with heard():
            thread = threading.Thread(target=within)
            thread.start()
            thread.join()
            signal.raise_signal(signal.SIGTERM)
            pytest.fail("it waits for the thread's step")

    with pytest.raises(Stopped):
        both()


@pytest.fixture
def serving(monkeypatch: pytest.MonkeyPatch, handled: None) -> Iterator[None]:
    """This process runs the jobs of another one."""
    before = {number: signal.getsignal(number) for number in stops.SIGNALS}
    monkeypatch.setattr(stops.multiprocessing, "parent_process", lambda: "a sweep")
    for name in ("serves", "earlier", "deferring", "numbers", "raised"):  # all that it notes, to be put back
        monkeypatch.setattr(stops._Now, name, getattr(stops._Now, name))
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("serving")
def test_a_process_of_a_launcher_gives_what_stopped_its_job_and_lives_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def kept() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        except Stopped as stop:
            stop.keep("step 3 is kept")
            raise

    stopped = served(kept)
    assert isinstance(stopped, Stopped)
    assert (stopped.number, stopped.kept) == (signal.SIGTERM, "step 3 is kept")
    monkeypatch.setattr(stops, "ECHO", 0.0)
    assert served(lambda: "done") == "done"
    signal.raise_signal(signal.SIGINT)  # between two jobs: the next one is not begun
    stopped = served(lambda: pytest.fail("it was begun"))
    assert isinstance(stopped, Stopped)
    assert stopped.number == signal.SIGINT
    assert served(lambda: "done") == "done"


class Launcher:
    """Runs jobs as joblib does, and gets a signal with one of them."""

    def __init__(self, asked: int | None, kept: Sequence[str | None]) -> None:
        self.asked, self.kept = asked, kept

    def launch(self, cells: Sequence[list[str]], initial_job_idx: int) -> list[SimpleNamespace]:
        given = []
        for number, _ in enumerate(cells, initial_job_idx):
            if number == self.asked:
                signal.raise_signal(signal.SIGTERM)
            text = self.kept[number]
            given.append(SimpleNamespace(return_value=None if text is None else Stopped(signal.SIGTERM, text)))
        return given


@pytest.mark.usefixtures("handled")
@pytest.mark.parametrize(
    ("asked", "kept", "line"),
    [(None, [None] * 3, ""), (2, [None, None, "A"], "A"), (1, ["A", "B", "never begun"], r"A \(and 1 more: .*\)"),
     (0, ["", "", ""], "nothing of a run .*"), (None, [None, "A", None], "A")],
)  # fmt: skip
def test_a_stop_of_processes_says_what_they_kept(asked: int | None, kept: list[str | None], line: str) -> None:
    launcher: Any = Launcher(asked, kept)
    stops_it = pytest.raises(Stopped, match=f"^stopped by SIGTERM: {line}$") if line else nullcontext()
    with stops_it, heard():
        assert outcomes(launcher, [["a"], ["b"], ["c"]], 0, in_processes=True) == [None] * 3


@pytest.mark.usefixtures("handled")
def test_a_launcher_that_does_not_end_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stops, "PATIENCE", 0.01)
    monkeypatch.setattr(stops, "MORE_PATIENCE", 0.01)

    def launch(*_: Any, **__: Any) -> None:
        signal.raise_signal(signal.SIGTERM)
        time.sleep(1)

    launcher: Any = SimpleNamespace(launch=launch)
    with pytest.raises(Stopped, match="`vlprompt status` says what is kept"), heard():
        outcomes(launcher, [["a"]], 0, in_processes=True)


def test_a_stop_survives_the_way_between_processes() -> None:
    stopped = pickle.loads(pickle.dumps(Stopped(signal.SIGTERM, "step 3 is kept")))
    assert (stopped.number, stopped.kept) == (signal.SIGTERM, "step 3 is kept")
    assert isinstance(stopped, KeyboardInterrupt)


# Whole runs


SWEEP = ["-m", *RUN, "seed=1,2", "fit.epochs=3", "fit.batch_size=4", "protocol=few_shot", "bank.views=null"]
LAST = "runs/few_shot/digits/shapes_vit/coop@*/shots2/seed2"


def outcome(results: Path, pattern: str = LAST) -> dict[str, Any]:
    """What a run came to: its tensors, curve, predictions and scores."""
    (folder,) = results.glob(pattern)
    record = Record.read(folder)
    assert record is not None
    arrays = np.load(folder / PREDICTIONS, allow_pickle=False)
    return {
        "learner": (folder / "learner.safetensors").read_bytes(),
        "predictions": {name: arrays[name].tobytes() for name in arrays.files},
        **record.model_dump(include={"status", "curve", "scores", "headline", "selection"}),
    }


@pytest.mark.slow
def test_the_same_command_resumes_a_sweep(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopping: Callable[..., None]
) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("VLPROMPT_RESULTS", str(tmp_path / "undisturbed"))
        assert ask(sweep.main, SWEEP).code == 0
    stopping([6 + 5])
    stopped = ask(sweep.main, SWEEP)
    (draft,) = results.glob(LAST.replace("seed2", ".seed2.partial"))
    assert (stopped.code, stopped.err.count("\n")) == (128 + signal.SIGTERM, 1)
    assert "SIGTERM" in stopped.err
    assert f"{draft.with_name('seed2')} is kept at step 5 of 6" in stopped.err
    assert {path.name for path in draft.iterdir()} == {STATE, "log.txt"}
    assert [(record.seed, record.status) for record in find_records([results]) if record.shots] == [(1, "finished")]
    resumed = ask(sweep.main, SWEEP)
    assert resumed.code == 0
    assert resumed.out.count("is finished already") == 3  # the cell before, and the reference of both
    assert resumed.out.count("resumes after step 5 of 6") == 1
    assert outcome(results) == outcome(tmp_path / "undisturbed")
    assert not list(results.rglob(f"**/*{STATE}")) + list(results.rglob("*.partial"))
    (record,) = (record for record in find_records([results]) if record.seed == 2)
    assert record.cost["stops"] == 1
    assert not record.config.keys() & {"resume", "state_minutes"}


def living(session: int) -> list[str]:
    """The processes of a session, without those that ended and that nobody waits for."""
    listed = subprocess.run(
        ["ps", "-o", "stat=,args=", "-s", str(session)], capture_output=True, text=True, check=False
    )
    return [line for line in listed.stdout.splitlines() if not line.startswith("Z")]


@pytest.mark.slow
@pytest.mark.parametrize(("sent", "to_all"), [(signal.SIGTERM, False), (signal.SIGINT, True)])
def test_a_sweep_of_joblib_resumes(results: Path, tmp_path: Path, sent: signal.Signals, to_all: bool) -> None:
    """A terminal sends Ctrl-C to all processes, others a signal to the first one alone."""
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="needs the extra sweep")
    of_joblib = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    given = ["-m", *RUN, "method=coop", "seed=1,2,3", "protocol=few_shot", "threads=1", "name=x", "fit.epochs=600"]
    environment = environment_in(tmp_path) | {"TMPDIR": str(tmp_path / "temporary")}
    (tmp_path / "temporary").mkdir()
    process = start(PROGRAM, [*given, *of_joblib], environment, tmp_path)
    while sum("epoch 1 " in path.read_text() for path in results.rglob(".*.partial/log.txt")) < 2:
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    (os.killpg if to_all else os.kill)(process.pid, sent)
    code, _, err = end(process)
    assert (code, err.strip().count("\n")) == (128 + sent, 0)
    until = time.monotonic() + 20  # that joblib's own watcher, which ends by itself, may take on a busy machine
    while living(process.pid) and time.monotonic() < until:
        time.sleep(0.1)
    assert living(process.pid) == []
    assert "is kept at step" in err
    assert "the same command resumes it (and 1 more" in err
    assert not [path for path in (tmp_path / "temporary").iterdir() if "torchinductor" not in path.name]
    assert len([*results.rglob(STATE)]) == 2
    assert not [*results.rglob("result.json")]

    told = succeed(cli.main, ["status"]).out.splitlines()
    assert told[1] == "3 cells: 2 stopped, 1 to do"
    code, out, err = end(start(PROGRAM, [*given, *of_joblib], environment, tmp_path))
    assert (code, err, out.count("resumes after step")) == (0, "", 2)
    pattern = "runs/few_shot/digits/shapes_vit/coop@x/shots2/seed{}"
    resumed = [outcome(results, pattern.format(seed)) for seed in (1, 2, 3)]
    shutil.rmtree(results)
    assert ask(sweep.main, given).code == 0
    assert resumed == [outcome(results, pattern.format(seed)) for seed in (1, 2, 3)]


# Any moment

PLAIN = [setting for setting in RUN if not setting.startswith(("method", "bank"))]
MOMENTS = 34  # of each method: a hundred in all
MANY = {
    "coop": [*RUN, "bank.views=null", "bank.gb=0", "fit.batch_size=3", "fit.epochs=40"],
    "lora": [*PLAIN, "method=lora", "method.dropout=0.3", "fit.batch_size=3", "fit.epochs=15", "workers=0"],
    "vpt_deep": [
        *PLAIN,
        "method=vpt_deep",
        "+fit.keep=best",
        "+fit.select_on=test",
        "fit.batch_size=3",
        "fit.epochs=20",
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("method", MANY)
def test_a_hundred_stops_at_any_moment(results: Path, tmp_path: Path, method: str) -> None:
    """Processes that were forked, as the imports take ten times as long as a run."""
    dice, given = random.Random(method), [*MANY[method], "protocol=few_shot", "name=x", "state_minutes=0.002"]
    pattern = f"runs/few_shot/digits/shapes_vit/{method}@x/shots2/seed1"
    start = time.monotonic()
    assert forked(given, tmp_path / "said", None, 0)[0] == 0
    seconds, expected = time.monotonic() - start, outcome(results, pattern)
    shutil.rmtree(results)
    stopped, resumed = Counter[int](), 0
    while stopped.total() < MOMENTS or results.exists():
        sent = dice.choice([signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGKILL])
        code, out, err = forked(given, tmp_path / "said", sent, dice.uniform(0, seconds))
        resumed += out.count("resumes after step")
        if code == 0:
            assert outcome(results, pattern) == expected
            assert not [path for path in results.rglob(".*") if path.suffix != ".lock"]
            shutil.rmtree(results)
            continue
        stopped[sent] += 1
        assert code in (-sent, 128 + sent), (code, out, err)  # the first before anything began
        assert len(err.split("\n")) <= 3, err
        files = [path for path in results.rglob("*") if path.is_file() and path.suffix not in (".lock", ".holder")]
        names = {path.name for path in files if "zero_shot" not in str(path)}
        assert sent == signal.SIGKILL or names <= {STATE, "log.txt"} or (results / pattern).exists(), names
    print(f"{method}: {dict(stopped)}, {resumed} times resumed")
    assert len(stopped) == 4
    assert resumed > MOMENTS / 4


def forked(given: list[str], log: Path, sent: signal.Signals | None, seconds: float) -> tuple[int, str, str]:
    """A command in a process of its own, which gets a signal after so many seconds; -> its exit code and words."""
    process = os.fork()
    if not process:
        with log.with_suffix(".out").open("w") as out, log.with_suffix(".err").open("w") as err:
            sys.stdout, sys.stderr = out, err
            code = 99
            try:
                code = sweep.main(given)
            except KeyboardInterrupt:  # before or after it
                code = 130
            except BaseException:
                traceback.print_exc()
            out.flush()
            err.flush()
            os._exit(code)
    if sent:
        time.sleep(seconds)
        with suppress(ProcessLookupError):
            os.kill(process, sent)
    _, status = os.waitpid(process, 0)
    texts = [log.with_suffix(end).read_text() for end in (".out", ".err")]
    return os.waitstatus_to_exitcode(status), texts[0], texts[1]
