"""Files as Dassl and the CoOp family write them, made from numbers at hand: checkpoints, logs, few-shot pickles."""

import pickle
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

DATUM_MODULES = ("dassl.data.datasets.base_dataset", "dassl.data.datasets", "datasets.utils")


def write_checkpoint(path: Path, tensors: Mapping[str, Tensor], *, epoch: int = 50, zipped: bool = True) -> Path:
    """A checkpoint with all that Dassl puts into one: momentum, and a warm-up that holds the schedule after it."""
    parameter = torch.nn.Parameter(torch.zeros(2, 3))
    optimizer = torch.optim.SGD([parameter], lr=0.002, momentum=0.9)
    later = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 50.0)
    parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    later.step()
    warmup = {"successor": later, "warmup_epoch": 1, "cons_lr": 1e-5, "base_lrs": [0.002], "last_epoch": 3}
    content = {
        "state_dict": dict(tensors),
        "epoch": epoch,
        "optimizer": optimizer.state_dict(),
        "scheduler": warmup,
        "val_result": np.float64(93.1),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path


def head(
    *, trainer: str = "CoOp", dataset: str = "Caltech101", shots: int = 16, seed: int = 1, half: str = "base",
    eval_only: bool = False, backbone: str = "ViT-B/16", model_dir: str = "", options: Mapping[str, Any] = {},
) -> str:  # fmt: skip
    """The arguments and the configuration at the head of a log, shortened."""
    section = "".join(f"    {key}: {value}\n" for key, value in ({"PREC": "fp16"} | dict(options)).items())
    return (
        "***************\n** Arguments **\n***************\n"
        f"backbone: \nconfig_file: configs/trainers/{trainer}/x.yaml\ndataset_config_file: configs/datasets/y.yaml\n"
        f"eval_only: {eval_only}\nmodel_dir: {model_dir}\nseed: {seed}\ntrainer: {trainer}\n"
        "************\n** Config **\n************\n"
        f"DATASET:\n  NAME: {dataset}\n  NUM_SHOTS: {shots}\n  ROOT: /data\n  SUBSAMPLE_CLASSES: {half}\n"
        f"MODEL:\n  BACKBONE:\n    NAME: {backbone}\n    PRETRAINED: True\n"
        f"SEED: {seed}\nTRAINER:\n  {trainer.upper()}:\n{section}  NAME: {trainer}\n"
        "Collecting env info ...\n** System info **\nseed: 9\n"
    )


def result(
    accuracy: str, *, total: str = "1,549", correct: str = "1,507", macro_f1: str = "95.7", part: str = "test"
) -> str:
    return (
        f"Evaluate on the *{part}* set\n=> result\n* total: {total}\n* correct: {correct}\n* accuracy: {accuracy}%\n"
        f"* error: 2.7%\n* macro_f1: {macro_f1}%\n"
    )


TRAINING = "epoch [1/2][5/25] loss 1.0\nepoch [2/2][25/25] loss 0.5\n"
END = "Finish training\nDeploy the last-epoch model\n"


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def few_shot_pickle(lists: Mapping[str, Sequence[tuple[str, int, str]]], module: str = DATUM_MODULES[0]) -> bytes:
    """A pickle of Dassl's Datum objects, whose class stands in the given module."""

    class Datum:
        def __init__(self, image: str, label: int, name: str) -> None:
            self._impath, self._label, self._domain, self._classname = image, label, 0, name

    Datum.__module__, Datum.__qualname__ = module, "Datum"
    stand_in = ModuleType(module)
    stand_in.Datum = Datum  # type: ignore[attr-defined]
    parents = [".".join(module.split(".")[:n]) for n in range(1, module.count(".") + 1)]
    with pytest.MonkeyPatch.context() as patch:
        for name in parents:
            patch.setitem(sys.modules, name, ModuleType(name))
        patch.setitem(sys.modules, module, stand_in)
        content = {part: [Datum(*item) for item in items] for part, items in lists.items()}
        return pickle.dumps(content, protocol=pickle.HIGHEST_PROTOCOL)


class Payload:
    """A pickle of it calls `function` when it is loaded."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call
