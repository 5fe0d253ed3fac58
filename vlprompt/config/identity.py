"""What makes two runs the same: the settings that can change a result, and their hash."""

import hashlib
import inspect
import mmap
import pydoc
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from vlprompt import demo
from vlprompt.config.datasets import dataset_identity, target_names
from vlprompt.config.hashing import canonical, config_hash
from vlprompt.config.schema import Bank, Fit, Settings
from vlprompt.data.dataset import Dataset
from vlprompt.results.record import Record
from vlprompt.towers import RANDOM, WEIGHTS_FILE

FIRST_FIT_SETTINGS = (
    *("optimizer", "lr", "momentum", "betas", "eps", "weight_decay", "batch_size", "drop_last", "epochs", "steps"),
    "schedule",
)
"""Those that the first hashes held even at their defaults."""


def result_settings(
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
        fit = settings.fit.model_dump()
        defaults = Fit.model_fields
        fit = {k: v for k, v in fit.items() if k in FIRST_FIT_SETTINGS or v != defaults[k].default}
        chosen |= {"fit": fit, "bank": settings.bank.model_dump(), "augment": settings.augment.model_dump()}
        chosen |= {"seed": settings.seed, "shots": settings.shots}
        if settings.sampler.name != "coop":
            file = settings.sampler.file
            chosen |= {"sampler": {"name": settings.sampler.name, "file": file and file_hash(Path(file))}}
    return chosen


def settings_hash(relevant: Mapping[str, Any]) -> str:
    """The hash of `result_settings` that are not at their default: later settings change no hash of earlier runs.

    A default therefore never changes its value: a better one is a recipe, or the YAML of a method.
    """
    defaults = {
        "fit": {name: field.default for name, field in Fit.model_fields.items() if not field.is_required()},
        "bank": {name: field.default for name, field in Bank.model_fields.items()},
        "method": argument_defaults(relevant["method"]),
        "protocol": argument_defaults(relevant["protocol"]),
        "dataset": {"source": argument_defaults(relevant["dataset"]["source"])},
    }
    defaults["fit"]["schedule"] = defaults["fit"]["schedule"].model_dump()
    return config_hash(without_defaults(relevant, defaults))


def argument_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults of what `_target_` names."""
    parameters = inspect.signature(pydoc.locate(config["_target_"])).parameters  # type: ignore[arg-type]
    return {name: p.default for name, p in parameters.items() if p.default is not p.empty}


def without_defaults(settings: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that differ from their defaults, as far as there are any."""
    changed: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping) and isinstance(defaults.get(name), Mapping):
            changed[name] = without_defaults(value, defaults[name])
        elif name not in defaults or canonical(value) != canonical(defaults[name]):
            changed[name] = value
    return changed


def is_same_run(record: Record, relevant: Mapping[str, Any]) -> bool:
    """Whether a record is that of a run with these `result_settings`."""
    return record.config_hash in (settings_hash(relevant), first_hash(relevant, record.config))


def first_hash(relevant: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """The hash of the first versions, of all settings that existed: those at their default included.

    `config` is the record's configuration, by which it is known what existed.
    """
    past: dict[str, Any] = dict(relevant)
    for section in ("method", "protocol"):
        settings, known = relevant[section], config.get(section) or {}
        defaults = argument_defaults(settings)
        past[section] = {
            name: value
            for name, value in settings.items()
            if name in known or name not in defaults or canonical(value) != canonical(defaults[name])
        }
    if "fit" in past and past["fit"]["lr"] is None:  # closed forms had to have one
        past["fit"] = past["fit"] | {"lr": (config.get("fit") or {}).get("lr")}
    return config_hash(past)


def target_identity(settings: Settings, name: str, targets: Mapping[str, Dataset]) -> dict[str, Any]:
    described = settings.targets.get(name)
    identity = {"dataset": dataset_identity(described.dataset), "method": described.method} if described else {}
    return identity | ({"split": targets[name].fingerprint()} if name in targets else {})


def with_contents(method: Mapping[str, Any]) -> dict[str, Any]:
    """A method's settings, with the content of files instead of their paths."""
    texts = {key: Path(value).expanduser() for key, value in method.items() if isinstance(value, str) and value}
    files = {key: path for key, path in texts.items() if path.suffix and path.is_file()}
    return {**method, **{key: file_hash(path) for key, path in files.items()}}


def weights_identity(settings: Settings) -> dict[str, str]:
    """The backbone, with the content of local files instead of their paths."""
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
