"""The cells of a sweep: expanded from its overrides, each checked with its own settings before the first one runs."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
from hydra._internal.hydra import Hydra
from hydra.core.override_parser.overrides_parser import OverridesParser

from vlprompt.config.build import make_clip, make_episode, make_learner
from vlprompt.config.compose import GROUPS, Choices, check_asked, chosen, composed, spec_of
from vlprompt.config.hashing import ABSENT, canonical, changed, config_hash
from vlprompt.config.identity import draws
from vlprompt.config.spec import check_name, check_settings, of_result
from vlprompt.errors import ChoiceError, ClassBoundError, UnknownSettingError, UserError, first_names

NOT_IN_A_VARIANT = ("seed", "shots", "name")


@dataclass(frozen=True)
class Cell:
    """One run of a sweep, as far as its settings tell; `refusal` is why it cannot be asked for."""

    overrides: list[str]
    config: Mapping[str, Any]
    choices: Choices
    refusal: UserError | None = None

    @property
    def key(self) -> dict[str, Any]:
        """The key of its record; what other settings cannot be asked for is a variant of its own."""
        config, variant = self.config, self.config.get("name") or None
        if self.refusal and not variant:
            texts = [t for t in self.overrides if t.partition("=")[0].lstrip("+") not in (*GROUPS, *NOT_IN_A_VARIANT)]
            variant = config_hash({"overrides": texts})[:8]
        return key_of(config, self.choices) | {"variant": variant}

    @property
    def changes(self) -> dict[str, Any]:
        """What was asked for that is no choice of a group, by dotted key."""
        parsed = OverridesParser.create().parse_overrides(self.overrides)
        settings = [one for one in parsed if one.key_or_group not in (*GROUPS, *NOT_IN_A_VARIANT)]
        return {one.key_or_group: ABSENT if one.is_delete() else one.value() for one in settings}


def key_of(config: Mapping[str, Any], choices: Mapping[str, Any]) -> dict[str, Any]:
    """The key of a run, as far as its configuration tells before it is checked."""
    shots = config.get("shots") if draws(config) else 0
    names = {group: choices.get(group) for group in ("protocol", "dataset", "backbone", "method")}
    return names | {"variant": config.get("name"), "shots": shots, "seed": config.get("seed") if shots else 0}


def expand(overrides: Sequence[str], hydra: Hydra) -> list[list[str]]:
    """The overrides of each cell: a later value of a key replaces an earlier one, as in a single run."""
    values: dict[str, list[str]] = {}
    for override in OverridesParser.create(config_loader=hydra.config_loader).parse_overrides(list(overrides)):
        key = override.get_key_element()
        values[key] = [str(override.input_line)]
        if override.is_sweep_override():
            if not override.is_discrete_sweep():
                raise UserError(f"{override.input_line} is no list of values: sweep over a,b,c, range(a,b) or glob(a*)")
            values[key] = [f"{key}={value}" for value in override.sweep_string_iterator()]
            if not values[key]:
                raise UserError(f"{override.input_line} stands for no value at all")
    return [list(cell) for cell in dict.fromkeys(product(*values.values()))]


def check(cells: Sequence[list[str]], shared: list[str], arguments: Sequence[str]) -> tuple[list[Cell], list[Cell]]:
    """The cells that can run, each once, and those whose settings refuse them. `shared` are Hydra's own overrides.

    Raises:
        UserError: a choice or a setting that no cell can have, two cells with one folder, or no cell that can run.
    """
    checked = [read(overrides, shared, arguments) for overrides in cells]
    if mistake := mistake_of(checked):
        raise mistake
    able = once([cell for cell in checked if not cell.refusal])
    check_one_can_run(able, shared)
    return able, [cell for cell in checked if cell.refusal]


def read(overrides: list[str], shared: list[str], arguments: Sequence[str]) -> Cell:
    """A cell, its settings checked as far as that needs no data."""
    try:
        with composed([*shared, *overrides], arguments=arguments) as (config, choices):
            check_asked(config, overrides)
            check_settings(config)
            return Cell(overrides, config, choices)
    except ChoiceError:
        raise
    except UserError as error:
        least = [t for t in overrides if t.partition("=")[0] in GROUPS] + chosen(overrides, NOT_IN_A_VARIANT)
        try:
            with composed([*shared, *least], arguments=arguments) as (config, choices):
                return Cell(overrides, config, choices, error)
        except UserError:
            return Cell(overrides, {}, {}, error)


def mistake_of(cells: Sequence[Cell]) -> UserError | None:
    """What is wrong with a sweep as a whole: a setting that all of its cells refuse."""
    texts = dict.fromkeys(text for cell in cells for text in cell.overrides if text.partition("=")[0] not in GROUPS)
    for text in texts if len(cells) > 1 else ():
        with_it = [cell.refusal for cell in cells if text in cell.overrides]
        if all(with_it):
            return shared_mistake([error for error in with_it if error])
    return shared_mistake([c.refusal for c in cells if c.refusal]) if all(c.refusal for c in cells) else None


def shared_mistake(errors: Sequence[UserError]) -> UserError:
    """One sentence for what all of some cells refuse: a wrong value before a name that none of them knows."""
    unknown = [error for error in errors if isinstance(error, UnknownSettingError)]
    if wrong := [error for error in errors if error not in unknown]:
        return wrong[0]
    name = unknown[0].name
    if len({error.name for error in unknown}) > 1 or len({str(error) for error in unknown}) == 1 or not name:
        return unknown[0]
    known = sorted({one for error in unknown for one in error.known})
    near = difflib.get_close_matches(name, known, n=3) or known
    return UserError(f"no run of this sweep has a setting '{name}': the nearest are {first_names(near)}")


def once(cells: Sequence[Cell]) -> list[Cell]:
    """The cells without those that ask for the same run once more.

    Raises:
        UserError: two that differ and would have one folder.
    """
    runs: dict[str, Cell] = {}
    for cell in cells:
        config = of_result(cell.config)
        name = canonical(cell.key) if cell.key["variant"] else canonical([cell.key, config])
        first = runs.setdefault(name, cell)
        if different := changed(config, of_result(first.config)):
            named = cell.key["variant"]
            swept = [text.lstrip("+").partition("=")[0] for text in cell.overrides if text not in first.overrides]
            key = next((key for key in swept if key in different), next(iter(different)))
            raise UserError(
                f"name={named} is one folder for runs that differ in {first_names(list(different))}, each would "
                f"replace the one before: leave name out, or put the value into it, as in 'name={named}-${{{key}}}'"
            )
    return list(runs.values())


def check_one_can_run(cells: Sequence[Cell], shared: list[str]) -> None:
    """Refuse a sweep where no cell has its images, its weights, its name to itself and settings for its model."""
    problems, firsts = list[UserError](), dict[str, Cell]()
    for cell in cells:
        firsts.setdefault(canonical({key: value for key, value in cell.config.items() if key != "seed"}), cell)
    for cell in firsts.values():
        try:
            with composed([*shared, *cell.overrides]) as (config, choices):
                spec = spec_of(config, choices, [*cell.overrides, *shared])
            check_name(spec)
            spec = replace(spec, device=torch.device("cpu"))  # GPUs are for the processes of the jobs
            make_learner(spec, make_clip(spec), make_episode(spec))
            return
        except ClassBoundError:  # a cell that makes no sense, and no mistake
            return
        except UserError as error:
            problems.append(error)
    raise problems[0]
