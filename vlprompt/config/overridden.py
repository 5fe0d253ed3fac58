"""Settings that others override: who gives one is told, and no record says that it had an effect."""

import inspect
from collections.abc import Callable, Collection, Iterable, Mapping
from copy import deepcopy
from typing import Any

from vlprompt.config.schema import Fit, Schedule, Settings
from vlprompt.errors import OverriddenError
from vlprompt.learners.base import Learner, Overridden

STEPS = tuple(sorted({*Fit.model_fields} - {"epochs", "steps", "schedule", "select_on"})) + tuple(
    f"schedule.{name}" for name in Schedule.model_fields
)
"""What of `fit` matters to the steps of an optimiser alone."""
Origin = Callable[[str], str | None]


def overridden(settings: Settings, learner: type[Learner], *, val: bool) -> Overridden:
    """The settings that have no effect next to others, by dotted name: next to which, and why.

    `val`: whether there are validation images to select on.
    """
    arguments, fit = complete(learner, settings.method), settings.fit
    select = val or (fit is not None and fit.select_on == "test")
    steps = fit is not None and fit.epochs != 0
    of_method = [kind.overridden(arguments, val=select, steps=steps) for kind in (learner, Learner)]  # Learner: heads
    rules = {f"method.{name}": rule for told in of_method for name, rule in told.items()}
    if fit is not None:
        if not steps and not learner.augmented:
            why = "which trains on no view of an image but its centre: drop it"
            rules |= dict.fromkeys(("augment.scale", "augment.flip", "augment.crop"), ("fit.epochs", why))
        elif settings.augment.crop == "center":
            rules["augment.scale"] = ("augment.crop", "which draws no share of the area: drop it, or use random")
        if not steps:
            why = "which takes no step of an optimiser: drop it"
            rules |= dict.fromkeys(("bank.views", "bank.pooled"), ("fit.epochs", why))
        rules |= {f"fit.{name}": rule for name, rule in of_fit(fit, searches=learner.searches(arguments)).items()}
    return rules


def complete(learner: type[Learner], method: Mapping[str, Any]) -> dict[str, Any]:
    """A method's settings, with the defaults of all others, its base classes' included."""
    kinds = (kind for kind in reversed(learner.__mro__) if issubclass(kind, Learner))
    parameters = [p for kind in kinds for p in inspect.signature(kind).parameters.values()]
    return {p.name: p.default for p in parameters if p.default is not p.empty} | dict(method)


def of_fit(fit: Fit, *, searches: bool) -> Overridden:
    """Those of the fitting. What depends on the number of images, as the steps in an epoch do, is not known here."""
    rules: Overridden = {}

    def add(names: Iterable[str], other: str, why: str) -> None:
        rules.update(dict.fromkeys(names, (f"fit.{other}", why)))

    if not searches and (fit.keep == "last" or fit.epochs in (0, 1)):
        add(["select_on"], "keep", "which selects nothing: drop it, or use fit.keep=best and several epochs")
    if fit.epochs == 0:
        add(STEPS, "epochs", "which takes no step of an optimiser: drop it")
        return rules
    if fit.optimizer == "sgd":
        add(["betas", "eps"], "optimizer", "which has fit.momentum: drop it, or use adam or adamw")
    else:
        add(["momentum"], "optimizer", "which has fit.betas: drop it, or use sgd")
    if fit.batch_size == 1:
        add(["drop_last"], "batch_size", "which leaves no smaller batch: drop it")
    if fit.epochs == 1 and fit.average is not None:
        add(["average"], "epochs", "whose mean is itself: drop it, or train longer")
    if fit.epochs == 1 and fit.keep == "best":
        add(["keep"], "epochs", "which is the best of one: drop it, or train longer")

    schedule, by_epoch = fit.schedule, fit.schedule.every == "epoch"
    no_warmup = schedule.warmup == "none" or not schedule.warmup_epochs
    left = None if fit.epochs is None else fit.epochs - (0 if no_warmup else schedule.warmup_epochs)
    if schedule.warmup == "none":
        why = "so that there is no warm-up: drop it, or use constant or linear"
        add(["schedule.warmup_epochs", "schedule.warmup_lr"], "schedule.warmup", why)
    if not schedule.warmup_epochs:
        why = "so that there is no warm-up: drop it, or give a number of epochs"
        add(["schedule.warmup", "schedule.warmup_lr"], "schedule.warmup_epochs", why)
    if no_warmup:
        other = "schedule.warmup" if schedule.warmup == "none" else "schedule.warmup_epochs"
        add(["schedule.period"], other, "so that the rest is the whole training: drop it")
    if schedule.shape == "constant":
        add(["schedule.period", "schedule.floor"], "schedule.shape", "which does not fall: drop it, or use cosine")
        if no_warmup or schedule.warmup == "constant":
            add(["schedule.every"], "schedule.shape", "which does not change: drop it, or use cosine")
    if left is not None and left <= int(by_epoch):
        why = "in which the rate has no time to fall: drop it, or train longer"
        add(["schedule.shape", "schedule.period", "schedule.floor"], "epochs", why)
    if left is not None and left <= 0 and (schedule.warmup == "constant" or (by_epoch and fit.epochs == 1)):
        why = "all of it warm-up at one rate: drop it, train longer, or use fit.schedule.warmup=none"
        add(["lr"] + (["schedule.warmup_epochs"] if left < 0 else []), "epochs", why)
        if schedule.warmup == "constant":
            add(["schedule.every"], "epochs", why)
    return rules


def refuse(
    rules: Overridden, given: Collection[str], settings: Settings, *, origin: Origin = lambda name: None
) -> None:
    """Refuse what a user gave and another setting overrides. `origin` names the file that a setting comes from.

    Raises:
        OverriddenError: with both settings, where the other one comes from, why, and what to do.
    """
    for name, (other, why) in rules.items():
        for key in given:
            if within(key, name):
                file = None if given_at(other, given) else origin(other)
                next_to = assigned(settings, other) + (f" (set by {file})" if file else "")
                raise OverriddenError(f"{assigned(settings, key)} has no effect next to {next_to}, {why}")


def without(config: Mapping[str, Any], rules: Overridden, given: Collection[str]) -> dict[str, Any]:
    """A configuration without the settings that a user has overridden, but for a rate, which a fit cannot lack."""
    names = [name for name, (other, _) in rules.items() if given_at(other, given) and name != "fit.lr"]
    remaining = deepcopy(dict(config))
    for name in names:
        *path, last = name.split(".")
        node: Any = remaining
        for part in path:
            node = node.get(part) or {}
        node.pop(last, None)
    return remaining


def given_at(name: str, given: Collection[str]) -> bool:
    """Whether a user gave a setting, or a part of it."""
    return any(within(key, name) for key in given)


def within(key: str, name: str) -> bool:
    return key == name or key.startswith(f"{name}.")


def assigned(settings: Settings, name: str) -> str:
    """A setting as on the command line."""
    node: Any = settings
    for part in name.split("."):
        node = node.get(part) if isinstance(node, Mapping) else getattr(node, part, None)
    node = list(node) if isinstance(node, tuple) else node
    if isinstance(node, str):
        return f"{name}='{node}'" if " " in node or not node else f"{name}={node}"
    return f"{name}={'null' if node is None else str(node).lower() if isinstance(node, bool) else node}"
