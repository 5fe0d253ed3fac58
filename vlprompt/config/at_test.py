"""A finished run once more, with another way of using its learner at test time: a run, too, that trains nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from vlprompt.config.allowed import from_file
from vlprompt.config.compose import composed, default
from vlprompt.config.hashing import config_hash
from vlprompt.config.paths import results_root
from vlprompt.config.schema import AT_TEST
from vlprompt.config.spec import RunSpec, Training, read_config, read_spec, spec_of_record
from vlprompt.errors import UserError
from vlprompt.results.record import Record


def settings_at_test(overrides: Sequence[str]) -> dict[str, Any]:
    """What `test_time=zero test_time.views=16` stand for, as a configuration has it. Raises: UserError."""
    with composed(list(overrides)) as (config, _):
        return {name: config[name] for name in AT_TEST if config.get(name)}


def spec_at_test(folder: Path, record: Record, settings: Mapping[str, Any], *, device: str = "auto") -> RunSpec:
    """The run with a finished run's training, in its results root, and these settings at test time.

    It is the one that `python run.py` makes with the same settings, unless the finished run has a name: this one's then
    begins with it.

    Raises:
        UserError: as `spec_of_record`.
    """
    finished = spec_of_record(folder, record, device=device)
    path = folder / "config.yaml"
    before = read_config(path)
    config = {name: value for name, value in before.items() if name not in settings}
    config |= {"device": device, "precision": finished.precision, "force": False, **settings}
    choices = {**record.model_dump(include={"protocol", "backbone", "method"}), "dataset": record.dataset}
    read: Any = partial(read_spec, choices=choices, recipes=record.recipe, held=partial(from_file, file=path))
    if config.get("name"):
        config["name"] = renamed(config["name"], {name: before.get(name) for name in settings}, settings)
    spec: RunSpec = read(config, default=lambda: default_of(record, choices, config))
    names = record.key.folder_names
    root = folder.parents[len(names)] if folder.parts[-len(names) :] == names else results_root()
    training = Training(folder, finished.result_settings, needed=True) if finished.trained else None
    return replace(spec, folder=spec.key.folder(root), training=training)


def renamed(name: str, before: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """The name with what stands for the settings, instead of for those of before; without any, that of the training."""
    first = name.removesuffix(suffix(before))
    return first if first != name and not any(settings.values()) else first + suffix(settings)


def suffix(settings: Mapping[str, Any]) -> str:
    return f"+{config_hash(settings)[:8]}"


def default_of(record: Record, choices: Mapping[str, str], config: Mapping[str, Any]) -> Any:
    """The configuration that a run's variant is told by; where its groups are no longer there, its own."""
    try:
        return default(dict(choices), [f"seed={record.seed}", f"shots={config['shots']}"])
    except UserError:  # a group of the user's, whose folder is not named now
        return {name: value for name, value in config.items() if name not in AT_TEST}
