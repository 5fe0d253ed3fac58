"""What a run in training keeps, so that the same command resumes it after a stop, bit for bit as if undisturbed.

What is computed before and after the steps (closed forms, searches, tests) is no part of it: a resumed run repeats it.
"""

import hashlib
import json
import logging
import random
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from vlprompt.data.disk import is_full, whole_file
from vlprompt.errors import DamagedError, UserError
from vlprompt.results.record import versions
from vlprompt.results.store import STATE, OpenRun
from vlprompt.textfiles import ordinary
from vlprompt.training import stops
from vlprompt.training.progress import Reporter

FORMAT = 1
CPU = torch.device("cpu")
TENSOR = "/tensor"  # what stands in the tree where there was one
SHORT = 10.0  # seconds of training that are not kept at its end
T = TypeVar("T")
logger = logging.getLogger(__name__)


@runtime_checkable
class Part(Protocol):
    """What has a state: a learner, an optimiser, a mean of parameters, a curve."""

    def state_dict(self) -> dict[str, Any]:
        """Tensors and what JSON holds, in mappings and lists."""

    def load_state_dict(self, state: Any, /) -> Any:
        """Continue from there."""


class State:
    """The state of one training, kept in the folder of its run every `minutes`, when it is stopped, and at its end.

    Without a folder nothing is kept. `run_hash`: of the settings; a state of others is left out, as is one of another
    version of the package or of torch, which may count otherwise.
    """

    def __init__(
        self,
        folder: OpenRun | None = None,
        *,
        run_hash: str = "",
        resume: bool = True,
        minutes: float = 0.0,
        device: torch.device = CPU,
        reporter: Reporter | None = None,
    ) -> None:
        self.folder, self.resume, self.minutes, self.device = folder, resume, minutes, device
        self.reporter = reporter
        known = versions() if folder else {}
        self.about = {"format": FORMAT, "hash": run_hash, **{name: known.get(name) for name in ("vlprompt", "torch")}}
        self.kept: int | None = None  # steps in the file
        self.stops, self.seconds, self.total = 0, 0.0, 0  # seconds: of training before this process
        self._parts: Mapping[str, Part] = {}
        self._random: dict[str, Any] = {}

    def restore(self, total: int, parts: Mapping[str, Part]) -> int:
        """Put what was kept into the parts of a training of `total` steps; -> how many of these are done.

        Raises: UserError for a state that is this training's, and yet cannot be put there.
        """
        self._parts, self.total = parts, total
        self._start = self._last = time.monotonic()
        if self.folder is None or not self.resume or not (path := self.folder.path / STATE).exists():
            return 0
        try:
            about, tree = read(path)
            check_fits(self.about, about, parts, tree, total)
        except UserError as error:
            logger.warning("this run starts anew, as the state in '%s' is left out: %s", path, error)
            return 0
        try:
            for name, part in parts.items():
                load(part, tree[name])
            set_random_state(tree["random"], self.device)
        except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
            said = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise UserError(
                f"the state in '{path}' cannot be resumed ({said}): start anew with resume=false"
            ) from error
        self.kept, self.stops, self.seconds = about["step"], about["stops"] + 1, about["seconds"]
        self._say(f"resumes after step {self.kept} of {total} (resume=false starts anew)")
        return self.kept

    def steps(self, batches: Iterable[T], done: int = 0) -> Iterator[tuple[int, T]]:
        """(0-based step, batch), as `enumerate` gives them after `done` steps. Each step is taken whole.

        A signal that comes while a batch is read stops at once, one that comes in a step at its end. Raises: Stopped.
        """
        if self.folder is None:
            yield from enumerate(batches, done)
            return
        self._random = random_state(self.device)
        try:
            for batch in batches:
                stops.defer()
                yield done, batch
                done += 1
                # of here: a signal may come while an augmentation has set other numbers
                self._random = random_state(self.device)
                if stops.asked() or time.monotonic() - self._last >= 60 * self.minutes:
                    self.write(done)  # before a signal is answered: submitit does so by giving its job back to SLURM
                stops.allow()
            if time.monotonic() - self._last >= SHORT:
                self.write(done)
        except (KeyboardInterrupt, SystemExit, Exception) as error:
            if not isinstance(error, Exception) or stops.asked():  # submitit's own error where no time is left
                self.write(done)
            raise

    def write(self, done: int) -> None:
        """Keep the state after so many steps, whole or not at all. A disk that is full costs no more than the state."""
        if self.folder is None or done in (0, self.kept):
            return
        folder, path = self.folder, self.folder.path / STATE
        seconds = self.seconds + time.monotonic() - self._start
        about = {**self.about, "step": done, "total": self.total, "seconds": seconds, "stops": self.stops}
        tree = {name: part.state_dict() for name, part in self._parts.items()} | {"random": self._random}
        try:
            folder.write(lambda: write(path, about, tree))
            self.kept = done
        except (OSError, safetensors.SafetensorError) as error:
            why = "no space left on the disk" if is_full(error) else str(error)
            logger.warning("the state of this run cannot be kept in '%s' (%s)", path, why)
            self.folder = None if self.kept is None else self.folder
        self._last = time.monotonic()

    def __enter__(self) -> "State":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """A stop says what was kept."""
        if isinstance(error, stops.Stopped) and self.folder and self.kept and not error.kept:
            again = "the same command" if self.resume else "the same command with resume=true"
            error.keep(f"{self.folder.target} is kept at step {self.kept} of {self.total}, and {again} resumes it")

    def _say(self, line: str) -> None:
        if self.reporter:
            self.reporter.say(line)


def random_state(device: torch.device) -> dict[str, Any]:
    """The random numbers to come, of Python, NumPy, torch and, where that is a GPU, the device."""
    version, numbers, gauss = random.getstate()
    legacy = np.random.get_state(legacy=False)
    known = {**legacy, "state": {**legacy["state"], "key": legacy["state"]["key"].tolist()}}
    state = {"python": [version, list(numbers), gauss], "numpy": known, "torch": torch.get_rng_state()}
    if device.type == "cuda" and torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: Mapping[str, Any], device: torch.device) -> None:
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    key = np.array(state["numpy"]["state"]["key"], dtype=np.uint32)
    np.random.set_state({**state["numpy"], "state": {**state["numpy"]["state"], "key": key}})
    torch.set_rng_state(state["torch"])
    if "cuda" in state and device.type == "cuda" and torch.cuda.is_available():  # else it resumes on another machine
        torch.cuda.set_rng_state(state["cuda"], device)


def write(path: Path, about: Mapping[str, Any], tree: Mapping[str, Any]) -> None:
    """A tree of mappings, lists, tensors and plain values as one file: safetensors, with JSON in its header.

    Raises: OSError, SafetensorError.
    """
    tensors: dict[str, Tensor] = {}
    plain = json.dumps({**about, "tree": packed(tree, "", tensors)})
    with whole_file(path) as draft:
        safetensors.torch.save_file(tensors, draft, {"about": plain, "checksum": checksum(plain, tensors)})


def read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `write` was given. Raises: DamagedError."""
    try:
        with safetensors.safe_open(ordinary(path), "pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if header.get("checksum") != checksum(header.get("about", ""), tensors):
            raise ValueError("it does not have its checksum")
        about = json.loads(header["about"])
        if not isinstance(about, dict) or not isinstance(about.get("tree"), dict):
            raise ValueError("it holds no tree")
        return about, unpacked(about.pop("tree"), tensors)
    except (OSError, safetensors.SafetensorError, ValueError, LookupError, RecursionError, TypeError) as error:
        raise DamagedError(f"it is damaged ({error})") from None


def packed(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """The tree with names instead of tensors, which go into `tensors`."""
    if isinstance(value, Tensor):
        tensors[name] = value.detach().cpu().contiguous()
        return {TENSOR: name}
    if isinstance(value, Mapping):
        return {key: packed(part, f"{name}/{key}", tensors) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [packed(part, f"{name}/{i}", tensors) for i, part in enumerate(value)]
    return value


def unpacked(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, dict):
        if value.keys() == {TENSOR}:
            return tensors[value[TENSOR]]
        return {key: unpacked(part, tensors) for key, part in value.items()}
    return [unpacked(part, tensors) for part in value] if isinstance(value, list) else value


def checksum(plain: str, tensors: Mapping[str, Tensor]) -> str:
    """sha256 of the JSON and of all tensors, their names, types and shapes."""
    digest = hashlib.sha256(plain.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def check_fits(
    expected: Mapping[str, Any],
    about: Mapping[str, Any],
    parts: Mapping[str, Part],
    tree: Mapping[str, Any],
    total: int,
) -> None:
    """Before anything is changed. Raises: UserError for the state of other settings, of other code, or of none."""
    for name, value in expected.items():
        if about.get(name) != value:
            of = "other settings" if name == "hash" else f"another version of {name}"
            raise UserError(f"it is of {of}")
    try:
        same = about["total"] == total and 0 < about["step"] <= total
        same &= {int, float} >= {type(about[name]) for name in ("step", "stops", "seconds")}
        for name, part in parts.items():
            if isinstance(part, nn.Module):
                same &= shapes(part.state_dict()) == shapes(tree[name])
            if isinstance(part, torch.optim.Optimizer):
                groups = part.state_dict()["param_groups"], tree[name]["param_groups"]
                same &= [group["params"] for group in groups[0]] == [group["params"] for group in groups[1]]
    except (KeyError, TypeError, AttributeError):
        same = False
    if not same:
        raise UserError("it is of another training")


def shapes(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}


@torch.no_grad()
def load(part: Part, state: Any) -> None:
    """Into a learner in place, as its parameters are the optimiser's, which are numbers there."""
    if isinstance(part, nn.Module):
        for name, tensor in part.state_dict(keep_vars=True).items():
            tensor.copy_(state[name])
        return
    if isinstance(part, torch.optim.Optimizer):
        state = {**state, "state": {int(number): values for number, values in state["state"].items()}}
    part.load_state_dict(state)
