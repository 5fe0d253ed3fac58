"""From checked settings to what they name, and to what makes a run this run and no other."""

import hashlib
import inspect
import mmap
import pydoc
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from vlprompt import demo
from vlprompt.config.hashing import config_hash
from vlprompt.config.paths import bank_folder, data_root
from vlprompt.config.schema import DataSource, Settings, check_arguments
from vlprompt.data.cache.portable import DATASETS
from vlprompt.data.dataset import Dataset
from vlprompt.data.download.get import ensure
from vlprompt.data.lists import ListSampler
from vlprompt.data.sampling import SAMPLERS, Sampler
from vlprompt.data.sources import banked
from vlprompt.errors import UserError
from vlprompt.protocols.base import Protocol
from vlprompt.towers import RANDOM, WEIGHTS_FILE
from vlprompt.training.progress import Reporter

PLACES = ("path", "labels", "names", "stored")  # of a source: where it lies, not what it is


def result_relevant(
    settings: Settings, precision: str, dataset: Dataset, targets: Mapping[str, Dataset]
) -> dict[str, Any]:
    """The settings that can change a result: what the hash and the variant of a run are made of.

    `targets` are those that this run tests; of others, which a default may name, nothing but the settings is known.
    """
    chosen: dict[str, Any] = {
        "backbone": weights_identity(settings),
        "dataset": dataset_identity(settings.dataset) | {"name": dataset.name},
        "split": dataset.fingerprint(),
        "protocol": {key: value for key, value in settings.protocol.items() if key != "targets"},
        "method": with_contents(settings.method),
        "precision": precision,
    }
    if names := target_names(settings, dataset.name):  # their order changes nothing
        chosen["targets"] = {name: target_identity(settings, name, targets) for name in names}
    if settings.fit is not None:
        chosen |= {"fit": settings.fit.identity(), "bank": settings.bank.model_dump()}
        chosen |= {"augment": settings.augment.model_dump()}
        chosen |= {"seed": settings.seed, "shots": settings.shots}
        if settings.sampler.name != "coop":  # so that results from before there were others are found again
            file = settings.sampler.file
            chosen |= {"sampler": {"name": settings.sampler.name, "file": file and file_hash(Path(file))}}
    return chosen


def dataset_identity(described: DataSource) -> dict[str, Any]:
    """A data set's settings without those that say where it lies."""
    source = {key: value for key, value in described.source.items() if key not in PLACES}
    return described.model_dump() | {"source": source}


def target_identity(settings: Settings, name: str, targets: Mapping[str, Dataset]) -> dict[str, Any]:
    described = settings.targets.get(name)
    found = {"dataset": dataset_identity(described.dataset), "method": described.method} if described else {}
    return found | ({"split": targets[name].fingerprint()} if name in targets else {})


def with_contents(method: Mapping[str, Any]) -> dict[str, Any]:
    """A method's settings, with the content of files in the place of their paths."""
    texts = {key: Path(value).expanduser() for key, value in method.items() if isinstance(value, str) and value}
    files = {key: path for key, path in texts.items() if path.suffix and path.is_file()}
    return {**method, **{key: file_hash(path) for key, path in files.items()}}


def weights_identity(settings: Settings) -> dict[str, str]:
    """The backbone, with the content of local files in the place of their paths."""
    model, weights = settings.backbone.model, settings.backbone.weights
    changed = {"quantize": settings.backbone.quantize} if settings.backbone.quantize else {}
    if Path(weights).is_file():
        return {"model": model, "weights": file_hash(Path(weights)), **changed}
    folder = demo.BACKBONES.get(model, Path(model))
    inside = folder.is_dir() and weights != RANDOM
    return {"model": model, "weights": file_hash(folder / WEIGHTS_FILE) if inside else weights, **changed}


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


def make_protocol(settings: Settings) -> Protocol:
    protocol, arguments = locate(settings.protocol, Protocol, "protocol")
    return protocol(**arguments)


def target_names(settings: Settings, source: str) -> list[str]:
    """The data sets that the protocol tests beside the source, which is left out where it is one of them."""
    return [name for name in dict.fromkeys(make_protocol(settings).targets) if name != source]


def load_dataset(settings: Settings, described: DataSource | None = None) -> Dataset:
    """The data set of a run, or another that is described; fetched first, where it is missing and the user agrees."""
    described, root = described or settings.dataset, data_root(settings.data.root)
    base = Path(described.root or root / described.source.get("folder", "")).expanduser().absolute()
    contents = bank_folder(root) / DATASETS / f"{stored_name(described)}.json"
    if contents.is_file() and not base.exists():
        return replace(banked.read(contents).dataset(), origin=stored_name(described))
    if described.about and not described.root:
        ensure(described.name, described.about, base, download=settings.data.download, reporter=Reporter())
    dataset = load_source(described.name, described.source, root)
    origin = {**described.source, "root": str(root), "split": dataset.fingerprint()}
    return replace(dataset, origin=config_hash(origin))


def stored_name(described: DataSource) -> str:
    """What a data set is called in a feature bank."""
    return config_hash(dataset_identity(described))


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


def load_datasets(settings: Settings) -> tuple[Dataset, dict[str, Dataset]]:
    """The data set that is trained on, and those that the protocol tests beside it.

    Raises: UserError that names all which cannot be loaded.
    """
    loaded: dict[str, Dataset] = {}
    problems: dict[str, UserError] = {}

    def attempt(name: str, described: DataSource) -> None:
        try:
            loaded[name] = load_dataset(settings, described)
        except UserError as error:
            problems[name] = error

    source = settings.dataset.name
    attempt(source, settings.dataset)
    dataset = loaded.pop(source, None)
    names = target_names(settings, dataset.name if dataset else source)
    if unknown := [name for name in names if name not in settings.targets]:
        raise UserError(f"protocol.targets names {', '.join(unknown)}, which conf/dataset does not describe.")
    for name in names:
        attempt(name, settings.targets[name].dataset)
    if dataset is None or problems:
        raise not_loaded(problems, source, names)
    return dataset, loaded


def not_loaded(problems: Mapping[str, UserError], source: str, names: Sequence[str]) -> UserError:
    """One sentence for all data sets that cannot be loaded, with the reason of the first."""
    first = next(iter(problems.values()))
    if list(problems) == [source]:
        return first
    which = (
        f"{', '.join(problems)}, the first of them because"
        if len(problems) > 1
        else f"the target {next(iter(problems))}:"
    )
    left = [name for name in names if name not in problems]
    without = f" protocol.targets=[{','.join(left)}] does without targets that are not there." if left else ""
    return UserError(f"cannot load {which} {str(first).rstrip('.')}.{without}")
