"""One run: everything that it is asked for, checked, with nothing heavy loaded."""

import contextlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
import yaml

from vlprompt import demo
from vlprompt.config.allowed import from_file
from vlprompt.config.changes import changes_of, words
from vlprompt.config.datasets import load_datasets, ood_names, target_names
from vlprompt.config.hashing import changed, variant_of
from vlprompt.config.identity import draws, is_same_run, result_settings, settings_hash
from vlprompt.config.locate import locate, make_named, make_protocol
from vlprompt.config.overridden import Origin, complete, overridden, refuse, without
from vlprompt.config.paths import results_root
from vlprompt.config.schema import AT_TEST, Settings, at_these_shots, read_settings
from vlprompt.data.dataset import Dataset
from vlprompt.errors import DamagedError, OverriddenError, UserError, first_names
from vlprompt.inference import ADAPTATIONS, CALIBRATIONS, Adaptation
from vlprompt.learners.base import Learner
from vlprompt.protocols.base import Protocol
from vlprompt.results.record import Record, RunKey, checked, damaged
from vlprompt.textfiles import ordinary
from vlprompt.towers import check_model, has_text
from vlprompt.training.device import device_name, resolve_device
from vlprompt.training.precision import precision_again, resolve_precision

MOST_BYTES = 10**6  # of a configuration: the longest recipes have some thousand
UNRECORDED = ("search", "sweep", "wording", "resume", "state_minutes")
"""What a search may vary, what is in the method's settings already, and what says how runs come about."""
OF_MACHINE = (
    *("name", "force", "wandb", "device", "jobs_per_gpu", "threads", "text_chunk", "workers", "cache", "compile"),
    *("selection", *UNRECORDED),
)
MODEL = "the backbone, which has a text tower or not"
OF_TRAINING = ("fit", "bank", "augment", "sampler", "seed", "shots")


@dataclass(frozen=True)
class Training:
    """Where the run lies whose trained tensors this one would come to, too, and the settings of it that count."""

    folder: Path
    result_settings: dict[str, Any]
    needed: bool = False  # whether nothing is trained where its tensors cannot be read

    def matches(self, record: Record) -> bool:
        """Whether a record is that run's."""
        return is_same_run(record, self.result_settings)


@dataclass(frozen=True)
class RunSpec:
    """A validated run, not started."""

    settings: Settings
    config: dict[str, Any]  # as composed, resolved; without what only a search for settings reads
    key: RunKey
    folder: Path  # of its record
    result_settings: dict[str, Any]  # those that can change the result
    changes: dict[str, Any]  # those that are not the default's, by dotted key, for readers
    recipes: list[str]
    dataset: Dataset
    targets: Mapping[str, Dataset]  # other data sets that it tests
    ood: Mapping[str, Dataset]  # others whose test images are out of distribution
    protocol: Protocol
    learner: type[Learner]
    arguments: dict[str, Any]  # of the learner
    adaptation: Adaptation | None  # of the trained learner at test time
    training: Training | None  # of a run that is the same but for what happens at test time
    device: torch.device
    precision: str

    @property
    def trained(self) -> bool:
        return self.settings.fit is not None

    @property
    def draws(self) -> bool:
        """Whether few-shot images are drawn: to train on, or to calibrate on."""
        return draws(self.settings)

    @cached_property
    def hash(self) -> str:
        return settings_hash(self.result_settings)

    @property
    def others(self) -> dict[str, Dataset]:
        """The data sets that it reads in addition to its own."""
        return {**self.targets, **self.ood}

    def matches(self, record: Record) -> bool:
        """Whether a record is this run's."""
        return is_same_run(record, self.result_settings)

    def __str__(self) -> str:
        key = self.key
        training = f", {key.shots} shots, seed {key.seed}" if self.draws else ""
        changes = f" ({words(self.changes)})" if self.changes else ""
        return (
            f"{key.learner}{changes} on {key.dataset}: {key.protocol}{training}; {key.backbone} "
            f"({self.settings.backbone.weights}), {self.precision} on {device_name(self.device)}"
        )


def read_spec(
    config: Mapping[str, Any],
    *,
    choices: Mapping[str, str],
    default: Callable[[], Mapping[str, Any]],
    recipes: list[str] | None = None,
    given: Collection[str] = (),
    origin: Origin = lambda name: None,
    held: Callable[[Settings], Settings] = lambda settings: settings,
    images: Dataset | None = None,
) -> RunSpec:
    """Check a composed configuration.

    `choices` are the names of the chosen groups; `default()` is the configuration that these choices alone give. Of the
    settings in `given`, by dotted names, none may be without effect; `origin` names the file that another comes from.
    `held` is asked before anything that the settings name is imported. `images`: a data set at hand instead of the one
    that is described.

    Raises:
        UserError: a wrong setting, a missing data set, a device that this machine lacks.
        OverriddenError: a setting in `given` that another one overrides.
    """
    settings = held(read_settings(config))
    device = resolve_device(settings.device)
    precision = resolve_precision(settings.precision, device)
    learner, _ = locate(settings.method, Learner, "method")
    protocol = make_protocol(settings)
    adaptation = make_named(settings.test_time, ADAPTATIONS, "test_time") if settings.test_time else None
    dataset, others = (images, {}) if images else load_datasets(settings)
    if by_model := settings.method.get("head") == "auto":
        model = settings.backbone.model
        check_model(str(demo.BACKBONES.get(model, model)))
    settings = for_model(settings, learner)
    rules = overridden(settings, learner, val=protocol.has_validation(dataset))
    refuse(rules, given, settings, origin=lambda name: MODEL if by_model and name == "method.head" else origin(name))
    settings = resolve(settings, learner)
    arguments = {name: value for name, value in settings.method.items() if name != "_target_"}
    config = with_resolved_method(without(config, rules, given))
    relevant = result_settings(settings, precision, dataset, others)
    default_settings = resolve(read_settings(default()), learner)
    auto = resolve_precision("auto", device)
    by_default = result_settings(default_settings, auto, dataset, others, drawn=draws(settings))
    by_default |= {name: relevant[name] for name in ("seed", "shots") if name in relevant}  # of the key, no change
    key = RunKey(
        protocol=choices["protocol"],
        dataset=dataset.name,
        backbone=choices["backbone"],
        method=choices["method"],
        variant=settings.name or variant_of(relevant, by_default),
        shots=settings.sampler.drawn(settings.shots) if draws(settings) else 0,
        seed=settings.seed if draws(settings) or adaptation else 0,
    )
    training = None
    after_training = (*AT_TEST, "ood")
    if settings.fit and not relevant.keys().isdisjoint(after_training):
        plain = {name: value for name, value in relevant.items() if name not in after_training}
        of_plain = key.model_copy(update={"variant": variant_of(plain, by_default)})
        training = Training(of_plain.folder(results_root()), plain)
    return RunSpec(
        settings=settings,
        config=recorded(config),
        key=key,
        folder=key.folder(results_root()),
        result_settings=relevant,
        changes=changes_of(settings, default_settings, relevant, by_default),
        recipes=recipes or [],
        dataset=dataset,
        targets={name: others[name] for name in target_names(settings, dataset.name) if name in others},
        ood={name: others[name] for name in ood_names(settings, dataset.name) if name in others},
        protocol=protocol,
        learner=learner,
        arguments=arguments,
        adaptation=adaptation,
        training=training,
        device=device,
        precision=precision,
    )


def for_model(settings: Settings, learner: type[Learner]) -> Settings:
    """The settings with what the method leaves to the model, its head, filled in."""
    method = learner.for_model(settings.method, text=has_text(settings.backbone.model))
    return settings.model_copy(update={"method": method})


def resolve(settings: Settings, learner: type[Learner]) -> Settings:
    """The settings with those of the method filled in that the model or others of them set."""
    settings = for_model(settings, learner)
    return settings.model_copy(update={"method": learner.resolved(settings.method)})


def with_resolved_method(config: Mapping[str, Any]) -> dict[str, Any]:
    """A composed configuration as a record of its run has it: with what the model and settings of the method set."""
    learner, _ = locate(at_these_shots(config)["method"], Learner, "method")
    method = learner.for_model(config["method"], text=has_text(config["backbone"]["model"]))
    return {**config, "method": learner.resolved(method)}


def check_steps(config: Mapping[str, Any]) -> None:
    """Refuse steps of an optimiser where there are none to take, before their learning rate is asked for."""
    config = at_these_shots(config)
    method, fit = config.get("method"), config.get("fit")
    if not isinstance(method, Mapping) or not isinstance(fit, Mapping):
        return
    asked = [f"fit.{name}={fit[name]}" for name in ("epochs", "steps") if fit.get(name)]
    learner, _ = locate(method, Learner, "method")
    if asked and not learner.takes_steps(complete(learner, method)):
        other = f", or method={learner.with_steps}" if learner.with_steps else ""
        raise OverriddenError(
            f"{asked[0]} asks for steps of an optimiser, and {learner.__name__} as it is set here has nothing that one "
            f"trains: use fit.epochs=0{other}"
        )


def check_settings(config: Mapping[str, Any]) -> Settings:
    """The settings of a composed configuration, checked as far as that needs no data.

    Raises:
        UserError: a wrong setting, a device that this machine lacks.
    """
    settings = read_settings(config)
    resolve_precision(settings.precision, resolve_device(settings.device))
    locate(settings.method, Learner, "method")
    make_protocol(settings)
    if settings.test_time:
        make_named(settings.test_time, ADAPTATIONS, "test_time")
    if settings.calibration:
        make_named(settings.calibration, CALIBRATIONS, "calibration")
    return settings


def check_name(spec: RunSpec) -> None:
    """Refuse a name under which a finished run has other settings, unless that run is to be replaced.

    Raises:
        UserError: it says which settings differ.
    """
    record = None
    with contextlib.suppress(DamagedError):  # which is made again
        record = Record.read(spec.folder) if spec.settings.name and not spec.settings.force else None
    if record is None or record.status != "finished" or record.imported or spec.matches(record):
        return
    new, old = of_result(spec.config), of_result(record.config)
    other = changed(old, new)
    differing = [f"{key} is {other[key]}, now {value}" for key, value in changed(new, old).items()]
    raise UserError(
        f"name={spec.settings.name} is the name of a finished run with other settings "
        f"({first_names(differing, most=5) or 'its images or weights differ'}): choose another name, or replace "
        "that run with force=true"
    )


def of_result(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a configuration that tell one run from another: of training only where images are drawn."""
    drawn = draws(config)
    return {key: v for key, v in config.items() if key not in OF_MACHINE and (drawn or key not in OF_TRAINING)}


def recorded(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration as records keep it: without keys that affect no run."""
    config = {
        name: value for name, value in config.items() if name not in UNRECORDED and (value or name not in AT_TEST)
    }
    protocol = {name: value for name, value in config["protocol"].items() if value or name != "ood"}
    dataset = {name: value for name, value in config["dataset"].items() if name != "about"}
    return config | {"protocol": protocol, "dataset": dataset}


def spec_of_record(folder: Path, record: Record, *, device: str = "auto", allow: Sequence[str] = ()) -> RunSpec:
    """The run that a record is of, to be tested once more. `allow`: modules that it may name, as in VLPROMPT_ALLOW.

    Raises:
        DamagedError: its configuration is gone, or is none.
        UserError: it names what is neither the package's own nor allowed, or its data set has changed.
    """
    precision = record.precision and precision_again(record.precision, resolve_device(device))
    config = read_config(folder / "config.yaml") | {"device": device, "precision": precision}
    choices = record.model_dump(include={"protocol", "backbone", "method"})
    held = partial(from_file, file=folder / "config.yaml", allow=allow)
    spec = read_spec(config, choices=choices, default=lambda: config, held=held)
    if spec.dataset.fingerprint() != record.split_hash:
        raise UserError(f"{folder} was trained on another split of {record.dataset}: run it again with force=true")
    return spec


def read_config(path: Path) -> dict[str, Any]:
    """The configuration of a run as it lies next to its record. Raises: DamagedError."""
    try:
        text = ordinary(checked(path), MOST_BYTES).read_text(encoding="utf-8")
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text)):  # runs write none
            raise damaged(path, "it has aliases, and a few of them stand for a tree without end")
        config = yaml.safe_load(text)
        if not isinstance(config, dict):
            raise damaged(path, f"it holds {config!r}, not settings by name")
        read_settings(config)
    except DamagedError:
        raise
    except OSError as error:
        raise DamagedError(f"{path.parent} cannot be tested again: {path.name}: {error.strerror}") from None
    except (UserError, ValueError, yaml.YAMLError, RecursionError, TypeError, KeyError, AttributeError) as error:
        raise damaged(path, str(error)) from None
    return config
