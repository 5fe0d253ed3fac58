"""What makes two runs the same: the settings that can change a result, and their hash."""

import contextlib
import hashlib
import inspect
import mmap
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import BaseModel

from vlprompt import demo
from vlprompt.config.datasets import dataset_identity, ood_names, target_names
from vlprompt.config.hashing import canonical, config_hash
from vlprompt.config.locate import import_named, make_named
from vlprompt.config.schema import Augmentation, Backbone, Bank, DataSource, Fit, Settings
from vlprompt.data.dataset import Dataset
from vlprompt.inference import ADAPTATIONS, CALIBRATIONS
from vlprompt.results.record import Record
from vlprompt.towers import RANDOM, files_of, full_name, is_timm, published_preprocess

FIRST: dict[str, dict[str, Any]] = {
    "fit": {
        **dict.fromkeys(("optimizer", "lr", "momentum", "betas", "eps", "weight_decay", "batch_size", "drop_last")),
        **dict.fromkeys(("epochs", "steps")),
        "schedule": dict.fromkeys(("shape", "every", "warmup", "warmup_epochs", "warmup_lr", "period", "floor")),
    },
    "bank": {"views": None},
    "augment": {"scale": None, "flip": None},
    "dataset": {"name": None, "template": None},
}
"""The settings that the first hashes held even at their defaults."""


def draws(settings: Settings | Mapping[str, Any]) -> bool:
    """Whether few-shot images are drawn: to train on, or to calibrate on."""
    given = settings if isinstance(settings, Mapping) else vars(settings)
    return bool(given.get("fit") or given.get("calibration"))


def result_settings(
    settings: Settings,
    precision: str,
    dataset: Dataset,
    others: Mapping[str, Dataset],
    *,
    drawn: bool | None = None,
) -> dict[str, Any]:
    """The settings that can change a result: what the hash and the variant of a run are made of.

    `others` are the data sets that this run reads in addition; of more, which a default may name, nothing but the
    settings is known. `drawn`: whether few-shot images are, if it is another run that says so.
    """
    chosen: dict[str, Any] = {
        "backbone": weights_identity(settings),
        "dataset": dataset_identity(settings.dataset) | {"name": dataset.name},
        "split": dataset.fingerprint(),
        "protocol": {key: value for key, value in settings.protocol.items() if key not in ("targets", "ood")},
        "method": with_contents(settings.method),
        "precision": precision,
    }
    if (revision := getattr(import_named(settings.method["_target_"], "setting"), "revision", 1)) > 1:
        chosen["method"] |= {"revision": revision}
    if names := target_names(settings, dataset.name):  # their order changes nothing
        chosen["targets"] = {name: target_identity(settings, name, others) for name in names}
    if names := ood_names(settings, dataset.name):
        identities = {name: target_identity(settings, name, others) for name in names}
        for identity in identities.values():
            identity.pop("method", None)  # its classes' names are never read, so that words around them are none
        chosen["ood"] = identities
    if settings.test_time:
        chosen["test_time"] = named_identity(settings.test_time, ADAPTATIONS, "test_time")
        chosen["seed"] = settings.seed  # of the views, and of the order
    if settings.debug:
        chosen["debug"] = settings.debug.model_dump()
    if settings.fit is not None:
        fit = settings.fit.model_dump()
        # settings that came later count where they are set, so that variants and their folders keep their names
        later = {name: default for name, default in model_defaults(Fit).items() if name not in FIRST["fit"]}
        chosen["fit"] = {name: v for name, v in fit.items() if name not in later or v != later[name]}
        chosen |= {"bank": settings.bank.model_dump(), "augment": settings.augment.model_dump()}
    if draws(settings) if drawn is None else drawn:
        chosen |= {"seed": settings.seed, "shots": settings.shots}
        if settings.sampler.name != "coop":
            file = settings.sampler.file
            chosen |= {"sampler": {"name": settings.sampler.name, "file": file and file_hash(Path(file))}}
            if settings.sampler.total is not None:
                chosen["sampler"] |= settings.sampler.model_dump(include={"total", "every_class"})
    if settings.calibration:
        chosen["calibration"] = named_identity(settings.calibration, CALIBRATIONS, "calibration")
    return chosen


def named_identity(given: Mapping[str, Any], known: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The name of one of those that are known, and its arguments that are not their defaults."""
    return without_defaults(given, keyword_defaults(type(make_named(given, known, where))))


def settings_hash(relevant: Mapping[str, Any]) -> str:
    """The hash of `result_settings` without those at their default, so that a later setting changes no earlier hash.

    So never change a default here: a better value belongs into a recipe, or into the YAML of a method.
    """
    return config_hash(without_defaults(relevant, defaults_of(relevant)))


def defaults_of(relevant: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults of `result_settings`, in the same tree, of what has one."""
    defaults: dict[str, Any] = {name: argument_defaults(relevant[name]) for name in ("method", "protocol")}
    defaults |= {"fit": model_defaults(Fit), "bank": model_defaults(Bank), "augment": model_defaults(Augmentation)}

    def of_source(dataset: Mapping[str, Any]) -> dict[str, Any]:
        return model_defaults(DataSource) | {"source": argument_defaults(dataset["source"])}

    for key in ("targets", "ood"):
        described = {name: other for name, other in relevant.get(key, {}).items() if "dataset" in other}
        defaults[key] = {name: {"dataset": of_source(other["dataset"])} for name, other in described.items()}
    return defaults | {"dataset": of_source(relevant["dataset"])}


def model_defaults(model: type[BaseModel]) -> dict[str, Any]:
    """The defaults of a part of the settings, models within it as trees."""
    values = {name: field.get_default() for name, field in model.model_fields.items() if not field.is_required()}
    return {name: v.model_dump() if isinstance(v, BaseModel) else v for name, v in values.items()}


def argument_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults of what `_target_` names."""
    return keyword_defaults(import_named(config["_target_"], "setting"))


def keyword_defaults(function: Callable[..., Any]) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters
    return {name: p.default for name, p in parameters.items() if p.default is not p.empty}


def without_defaults(
    settings: Mapping[str, Any], defaults: Mapping[str, Any], known: Mapping[str, Any] = MappingProxyType({})
) -> dict[str, Any]:
    """The settings that differ from their defaults, that have none, or whose names are known."""
    changed: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping) and isinstance(defaults.get(name), Mapping):
            changed[name] = without_defaults(value, defaults[name], part(known, name))
        elif name in known or name not in defaults or canonical(value) != canonical(defaults[name]):
            changed[name] = value
    return {name: value for name, value in changed.items() if value != {} or name in known or name not in defaults}


def part(whole: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A part of a configuration from a file; empty where there is none."""
    return value if isinstance(value := whole.get(name), Mapping) else {}


def is_same_run(record: Record, relevant: Mapping[str, Any]) -> bool:
    """Whether a record is that of a run with these `result_settings`."""
    return record.config_hash in (settings_hash(relevant), first_hash(relevant, record.config))


def first_hash(relevant: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """The hash as the first versions computed it: of all settings that existed then, those at their default included.

    `config` is the record's configuration, which tells the arguments that existed.
    """
    known: dict[str, Any] = {**FIRST, **{name: part(config, name) for name in ("method", "protocol", "targets")}}
    known["dataset"] = {**FIRST["dataset"], "source": part(part(config, "dataset"), "source")}
    past = without_defaults(relevant, defaults_of(relevant), known)
    if "fit" in past and past["fit"]["lr"] is None:  # closed forms had to have one
        past["fit"] = past["fit"] | {"lr": part(config, "fit").get("lr")}
    return config_hash(past)


def target_identity(settings: Settings, name: str, targets: Mapping[str, Dataset]) -> dict[str, Any]:
    described = settings.targets.get(name)
    identity = {"dataset": dataset_identity(described.dataset), "method": described.method} if described else {}
    return identity | ({"split": targets[name].fingerprint()} if name in targets else {})


def with_contents(method: Mapping[str, Any]) -> dict[str, Any]:
    """A method's settings, with the content of files instead of their paths."""
    files = {}
    for key, value in method.items():
        if isinstance(value, str) and value:
            with contextlib.suppress(RuntimeError, OSError):  # a text that starts with ~ or is too long, and is no path
                path = Path(value).expanduser()
                if path.suffix and path.is_file():
                    files[key] = file_hash(path)
    return {**method, **files}


def weights_identity(settings: Settings) -> dict[str, Any]:
    """The backbone, with the content of local files instead of their paths; of a folder, what builds it counts, too.

    How its images are prepared counts where the user sets it, or where timm says so and earlier versions did not obey.
    """
    model, weights, quantize, images = (getattr(settings.backbone, name) for name in Backbone.model_fields)
    changed: dict[str, Any] = {"quantize": quantize} if quantize else {}
    folder = demo.BACKBONES.get(model, Path(model))
    checkpoint, others = files_of(folder)
    if Path(weights).is_file():
        weights = file_hash(Path(weights))
    elif folder.is_dir() and weights != RANDOM:
        weights = file_hash(checkpoint)
    if model not in demo.BACKBONES and folder.is_dir():  # those that ship keep the hashes of the first versions
        weights = " ".join([weights, *map(file_hash, others)])
    elif is_timm(model):
        model = full_name(model)
        if (crop_pct := published_preprocess(model).crop_pct) != 1:
            changed["crop_pct"] = crop_pct
    if images is not None:
        changed["images"] = images.model_dump(exclude_none=True)
    return {"model": model, "weights": weights, **changed}


@cache
def file_hash(path: Path) -> str:
    """sha256 of a file; empty where there is none (what is missing is named when it is read)."""
    if not path.is_file() or not path.stat().st_size:
        return ""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return hashlib.sha256(content).hexdigest()
