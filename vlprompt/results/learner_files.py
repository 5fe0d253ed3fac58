"""A trained learner as a folder: `learner.safetensors` (trained tensors only) and `learner_config.json`."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from vlprompt import __version__
from vlprompt.errors import UserError
from vlprompt.learners.base import Learner

TENSORS, CONFIG = "learner.safetensors", "learner_config.json"


def save(learner: Learner, folder: Path, about: Mapping[str, Any]) -> int:
    """Write a learner with what is needed to build it again; -> bytes of its tensors.

    `about` names the method, its arguments and the backbone; the training classes and the preprocessing are added.
    """
    about = {**about, "classes": list(learner.trained_classes), "preprocess": asdict(learner.clip.preprocess)}
    return write(folder, learner.state_dict(), about)


def write(folder: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> int:
    """The two files of a learner, from its tensors under the names of its state dict; -> bytes of the first."""
    path = folder / TENSORS
    safetensors.torch.save_file({name: t.contiguous().cpu() for name, t in tensors.items()}, path)
    config = {**about, "vlprompt_version": __version__}
    (folder / CONFIG).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return path.stat().st_size


def read_config(folder: Path) -> dict[str, Any]:
    """What `learner_config.json` says.

    Raises:
        UserError: no such file, or a damaged one.
    """
    try:
        return json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} holds no saved learner: {CONFIG} cannot be read ({error})") from None


def load_tensors(learner: Learner, folder: Path) -> None:
    """Put saved tensors into a learner built alike; every name and shape has to match.

    Raises:
        UserError: a missing or damaged file, or tensors of another learner.
    """
    try:
        learner.load_state_dict(safetensors.torch.load_file(folder / TENSORS), strict=True)
    except (OSError, safetensors.SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{folder / TENSORS} does not fit {type(learner).__name__}: {reason}") from None
