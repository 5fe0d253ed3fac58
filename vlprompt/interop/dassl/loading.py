"""Reading other people's checkpoints: tensors and plain values only, and nothing of a file is ever executed."""

import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlprompt.config.identity import file_hash
from vlprompt.errors import UserError
from vlprompt.towers.pickles import check_pickles
from vlprompt.towers.weights import name_start


class Ignored:
    """Stands for every object of a checkpoint that is no tensor and no plain value: made of anything, does nothing."""

    def __new__(cls, *args: object) -> "Ignored":
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        """Forget it."""


def ignored_dict(*args: object) -> dict[Any, Any]:
    """Stands for `defaultdict(dict)`, in which an optimiser keeps its state: must be filled while reading."""
    return {}


LARGEST = 2**26  # bytes of a log or a few-shot list; that of ImageNet with 16 shots has 4 MB
_SCHEDULERS = ("CosineAnnealingLR", "StepLR", "MultiStepLR", "ExponentialLR", "LambdaLR")
_OPTIMIZERS = ("sgd.SGD", "adam.Adam", "adamw.AdamW", "rmsprop.RMSprop", "radam.RAdam")
_NUMBERS = ("Bool", "Float16", "Float32", "Float64", "Int32", "Int64")
STAND_INS = (
    *((Ignored, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),  # accuracies in `val_result`
    (Ignored, "numpy.dtype"),
    *((Ignored, f"numpy.dtypes.{name}DType") for name in _NUMBERS),
    # Dassl's warm-up keeps the schedule that follows it, and that one its optimiser
    *((Ignored, f"torch.optim.lr_scheduler.{name}") for name in _SCHEDULERS),
    *((Ignored, f"torch.optim.{name}") for name in _OPTIMIZERS),
    *((Ignored, f"dassl.optim.lr_scheduler.{kind}WarmupScheduler") for kind in ("Constant", "Linear")),
    (ignored_dict, "collections.defaultdict"),
    (Ignored, "builtins.dict"),
)
"""Names that occur in Dassl's checkpoints, and what each is replaced with. A file with any other name is refused."""


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a Dassl checkpoint under their names in the whole model, its epoch, and its file's sha256."""

    tensors: dict[str, Tensor]
    epoch: int | None
    whole: bool  # it holds more of the model than the prompt learner
    sha256: str


def read_checkpoint(path: Path) -> Checkpoint:
    """Read `model.pth.tar-*` or a bare state dict.

    Raises:
        UserError: no such file, a damaged one, one without a state dict, or one that would need code to be run.
    """
    content = _load(path)
    state = content.get("state_dict", content) if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping):
        raise UserError(f"{path} holds no state dict: give a Dassl checkpoint, such as prompt_learner/model.pth.tar-50")
    named = {key: value for key, value in state.items() if isinstance(key, str) and isinstance(value, Tensor)}
    if not named or len(named) < len(state):
        raise UserError(f"the state dict of {path} holds no tensors, or other things too: give a Dassl checkpoint")
    named = {name.removeprefix("module."): tensor for name, tensor in named.items()}
    parts = ("prompt_learner.", "image_encoder.", "text_encoder.")
    if not any(name.startswith(parts) for name in named):
        named = {f"prompt_learner.{name}": tensor for name, tensor in named.items()}
    epoch = content.get("epoch")
    return Checkpoint(
        tensors=named,
        epoch=epoch if isinstance(epoch, int) else None,
        whole=any(name.startswith(parts[1:]) or name == "logit_scale" for name in named),
        sha256=file_hash(path),
    )


def _load(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            if what := name_start(file.read(512)):
                raise UserError(f"{path} is {what[0]}: {what[1]}")
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if sum(entry.file_size for entry in archive.infolist()) > path.stat().st_size:  # would grow in memory
                    raise UserError(f"{path} is a compressed archive, and PyTorch writes none: give the file as it was")
        check_pickles(path)
        with warnings.catch_warnings(), torch.serialization.safe_globals(list(STAND_INS)):
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    except UserError:
        raise
    except Exception as error:  # a damaged file fails in as many ways as there are bytes in it
        text = " ".join(str(error).split())
        if match := re.search(r"GLOBAL ([\w.<>]{1,100})|unrecognized function|blocked", text):
            wants = f"'{match[1]}'" if match[1] else "a function"
            raise UserError(
                f"{path} asks for {wants} to be run, which a checkpoint of prompts does not need: nothing of it was "
                "executed; save its state_dict alone if you trust it"
            ) from None
        raise UserError(f"{path} is no checkpoint of PyTorch, or a damaged one ({type(error).__name__})") from None


def as_float32(name: str, tensor: Tensor, path: Path) -> Tensor:
    """A trained tensor in full precision.

    Raises:
        UserError: not dense numbers, views of less than they claim, or values that are not finite.
    """
    if tensor.layout != torch.strided or not tensor.is_floating_point() or tensor.device.type != "cpu":
        raise UserError(f"'{name}' in {path} is no dense tensor of real numbers: the file is damaged")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise UserError(f"'{name}' in {path} claims more numbers than the file holds: the file is damaged")
    tensor = tensor.detach().float().contiguous().clone()
    if not torch.isfinite(tensor).all():
        raise UserError(
            f"'{name}' in {path} has values that are not finite: that training failed, there is no use in it"
        )
    return tensor


def read_small(path: Path) -> bytes:
    """A log or a few-shot list. Raises: UserError where it is larger than any of them, or cannot be read."""
    try:
        if path.stat().st_size > LARGEST:
            raise UserError(f"{path} has more than {LARGEST >> 20} MB, so it is no log or few-shot list: give another")
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
