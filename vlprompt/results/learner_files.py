"""A trained learner as a folder: `learner.safetensors` (trained tensors only) and `learner_config.json`."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import safetensors.torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from vlprompt import __version__
from vlprompt.errors import DamagedError, UserError
from vlprompt.learners.base import Learner
from vlprompt.results.record import checked, damaged
from vlprompt.textfiles import ordinary

MOST_BYTES = 10**8  # of a description: 20,000 classes take a hundredth
TENSORS, CONFIG = "learner.safetensors", "learner_config.json"


def save(learner: Learner, folder: Path, about: Mapping[str, Any]) -> int:
    """Write a learner with what is needed to build it again; -> bytes of its tensors.

    `about` names the method, its arguments and the backbone; the training classes and the preprocessing are added.
    """
    return write(folder, learner.state_dict(), _described(learner, about))


def describe(learner: Learner, folder: Path, about: Mapping[str, Any]) -> None:
    """The description alone, of a learner without tensors."""
    _write_config(folder, _described(learner, about))


def _described(learner: Learner, about: Mapping[str, Any]) -> dict[str, Any]:
    fitted = {} if learner.calibration is None else {"calibration": learner.calibration.stored}
    known = {"classes": list(learner.trained_classes), "preprocess": asdict(learner.clip.preprocess)}
    return {**about, **known, **fitted}


def write(folder: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> int:
    """The two files of a learner, from its tensors under the names of its state dict; -> bytes of the first."""
    path = folder / TENSORS
    safetensors.torch.save_file({name: t.contiguous().cpu() for name, t in tensors.items()}, path)
    _write_config(folder, about)
    return path.stat().st_size


def _write_config(folder: Path, about: Mapping[str, Any]) -> None:
    config = {**about, "vlprompt_version": __version__}
    (folder / CONFIG).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


class Backbone(BaseModel):
    """The frozen model that a learner was trained on."""

    model_config = ConfigDict(extra="allow")

    model: str
    weights: str
    quantize: str | None = None


class Calibration(BaseModel):
    """How the logits are calibrated; what else it says are the numbers that were fitted."""

    model_config = ConfigDict(extra="allow", strict=True)
    __pydantic_extra__: dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(init=False)

    name: str
    arguments: dict[str, Any]


class About(BaseModel):
    """What `learner_config.json` has to say; the rest of it is for people, or of a later version."""

    model_config = ConfigDict(extra="allow", strict=True)

    target: str  # the import path of the learner's class
    arguments: dict[str, Any]
    backbone: Backbone
    classes: list[str]
    precision: str | None = None  # earlier files say neither this nor what follows
    as_shown: bool = True
    calibration: Calibration | None = None
    test_time: str | None = None  # what adapted it to the images that its run was tested on


def read_config(folder: Path) -> dict[str, Any]:
    """What `learner_config.json` says.

    Raises:
        DamagedError: no such file, or a damaged one.
    """
    path = folder / CONFIG
    try:
        about = json.loads(ordinary(checked(path), MOST_BYTES).read_text(encoding="utf-8"))
        About.model_validate(about)
    except ValidationError as error:
        first = error.errors()[0]
        raise damaged(path, f"{'.'.join(map(str, first['loc'])) or 'it'}: {first['msg']}") from None
    except OSError as error:
        raise DamagedError(f"{folder} holds no saved learner: {CONFIG} cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise damaged(path, f"it is no JSON: {error}") from None
    return about


def load_tensors(learner: Learner, folder: Path) -> None:
    """Put saved tensors into a learner built alike; every name and shape has to match.

    Raises:
        DamagedError: a missing or damaged file, or values that are not finite.
        UserError: tensors of another learner.
    """
    path = folder / TENSORS
    try:
        tensors = safetensors.torch.load_file(checked(path))
    except FileNotFoundError:
        raise DamagedError(f"{folder} holds no {TENSORS}: run it again with force=true") from None
    except (OSError, safetensors.SafetensorError, ValueError, KeyError) as error:
        raise damaged(path, str(error)) from None
    for name, tensor in tensors.items():
        if tensor.is_complex() or (tensor.is_floating_point() and tensor.element_size() < 2):
            raise damaged(path, f"'{name}' holds numbers of the kind {str(tensor.dtype).removeprefix('torch.')}")
        if not tensor.isfinite().all():
            raise damaged(path, f"'{name}' holds NaN or infinite values")
    try:
        learner.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        kind, said = type(learner).__name__, " ".join(str(error).split())[:300]
        raise UserError(f"{path} does not fit {kind} over {learner.clip.name}: {said}") from None
