"""From checked settings to what they name, and to what makes a run this run and no other."""

import hashlib
import inspect
import mmap
import pydoc
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from vlprompt import demo
from vlprompt.data.dataset import Dataset
from vlprompt.data.get import ensure
from vlprompt.data.lists import ListSampler
from vlprompt.data.sampling import SAMPLERS, Sampler
from vlprompt.errors import UserError
from vlprompt.locations import data_root
from vlprompt.settings import Settings, check_arguments
from vlprompt.towers import RANDOM, WEIGHTS_FILE

PLACES = ("path", "labels", "names", "stored")  # of a source: where it lies, not what it is


def result_relevant(settings: Settings, precision: str, dataset: Dataset) -> dict[str, Any]:
    """The settings that can change a result: what the hash and the variant of a run are made of."""
    source = {key: value for key, value in settings.dataset.source.items() if key not in PLACES}
    chosen: dict[str, Any] = {
        "backbone": weights_identity(settings),
        "dataset": settings.dataset.model_dump() | {"name": dataset.name, "source": source},
        "split": dataset.fingerprint(),
        "protocol": settings.protocol,
        "method": settings.method,
        "precision": precision,
    }
    if settings.fit is not None:
        chosen |= {"fit": settings.fit.model_dump(), "bank": settings.bank.model_dump()}
        chosen |= {"augment": settings.augment.model_dump()}
        chosen |= {"seed": settings.seed, "shots": settings.shots}
        if settings.sampler.name != "coop":  # so that results from before there were others are found again
            file = settings.sampler.file
            chosen |= {"sampler": {"name": settings.sampler.name, "file": file and file_hash(Path(file))}}
    return chosen


def weights_identity(settings: Settings) -> dict[str, str]:
    """The backbone, with the content of local files in the place of their paths."""
    model, weights = settings.backbone.model, settings.backbone.weights
    if Path(weights).is_file():
        return {"model": model, "weights": file_hash(Path(weights))}
    folder = demo.BACKBONES.get(model, Path(model))
    inside = folder.is_dir() and weights != RANDOM
    return {"model": model, "weights": file_hash(folder / WEIGHTS_FILE) if inside else weights}


@cache
def file_hash(path: Path) -> str:
    """sha256 of a file; empty where there is none (what is missing is named when it is read)."""
    if not path.is_file() or not path.stat().st_size:
        return ""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return hashlib.sha256(content).hexdigest()


def locate(config: Mapping[str, Any], kind: type, where: str) -> tuple[Any, dict[str, Any]]:
    """The class that `_target_` names, and its checked arguments.

    Raises:
        UserError: nothing importable of that name, something of another kind, or a wrong argument.
    """
    target = config.get("_target_", "")
    try:
        found = pydoc.locate(target)
    except pydoc.ErrorDuringImport as error:
        raise UserError(f"{where}._target_={target} cannot be imported: {error}") from error
    if not (isinstance(found, type) and issubclass(found, kind)):
        raise UserError(f"{where}._target_ is '{target}', allowed is the import path of a {kind.__name__}")
    arguments = {key: value for key, value in config.items() if key != "_target_"}
    check_arguments(found, arguments, where)
    return found, arguments


def load_dataset(settings: Settings) -> Dataset:
    """The data set of a run; fetched before, where it is missing and the user wants that."""
    dataset, root = settings.dataset, data_root(settings.data.root)
    if dataset.about and not dataset.root:
        base = root.absolute() / dataset.source.get("folder", "")
        ensure(dataset.name, dataset.about, base, download=settings.data.download)
    return load_source(dataset.name, dataset.source, root)


def load_source(name: str, source: Mapping[str, Any], root: Path, **more: Any) -> Dataset:
    """The data set that `_target_` of a source reads; `more` are arguments that no configuration gives."""
    arguments = {key: value for key, value in source.items() if key != "_target_"} | {"root": root}
    target = source.get("_target_", "")
    load = pydoc.locate(target)
    if not callable(load):
        raise UserError(f"dataset.source._target_ is '{target}', allowed is the import path of a function")
    check_arguments(load, arguments, "dataset.source")
    known = inspect.signature(load).parameters
    found: Dataset = load(name=name, **arguments, **{key: value for key, value in more.items() if key in known})
    return found


def make_sampler(settings: Settings) -> Sampler:
    """The rule that draws the few-shot images."""
    if settings.sampler.file is not None:
        return ListSampler(Path(settings.sampler.file).expanduser())
    return SAMPLERS[settings.sampler.name]
