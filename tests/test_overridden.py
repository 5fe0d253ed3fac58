"""A setting that is changed alone changes the learner or its training, or it is refused; none is taken in silence."""

import inspect
import itertools
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import torch
from running import ask, check_mistake
from test_learners import METHODS, SMALL, clip_of
from torch import Tensor

import vlprompt.train as training
from vlprompt import sweep
from vlprompt.config.compose import compose, given, read_run
from vlprompt.config.hashing import canonical
from vlprompt.config.locate import locate
from vlprompt.config.overridden import complete, overridden, refuse
from vlprompt.config.paths import config_dir
from vlprompt.config.schema import Fit, Schedule, at_these_shots, read_settings
from vlprompt.config.spec import check_steps
from vlprompt.data.dataset import Item, Split
from vlprompt.data.loader import Loader
from vlprompt.errors import OverriddenError, UserError
from vlprompt.learners.base import Batch, Learner
from vlprompt.protocols.base import Episode
from vlprompt.towers import Clip, Images
from vlprompt.train import Epoch, train
from vlprompt.training.progress import Reporter

CLASSES = ("zero", "one", "two")
N_IMAGES = 5  # in batches of two
Tensors = list[tuple[str, Tensor]]
PROTOCOLS = sorted(path.stem for path in (config_dir() / "protocol").glob("*.yaml"))
SHORT: dict[str, Any] = {
    "n_views": 2,
    "iterations": 12,
    "start": 1.0,
    "search_steps": [3, 2],
    "search_scale": [2000.0, 50.0],
}
DRAWN = {("p_tuning", "method.n_tokens")}  # without effect, but that the encoder starts from other random numbers
TIED = {
    ("linear_probe", "method.n_steps"),  # all C are equally good on so few images
    *(("gda", f"method.{name}") for name in ("n_nearest", "n_copies")),  # of new classes, which are not asked for here
}
QUICK = [("coop", "base_to_novel"), ("tip_adapter", "few_shot")]

# Values: what cannot be read off an annotation

DESCRIPTIONS = Path(__file__).parent / "fixtures" / "descriptions.json"
OTHERS: dict[str, list[Any]] = {
    "ctx_init": ["a photo of one", "a blurry photo of one", ""],
    "template": ["a blurry {}."],
    "learned_template": ["one {}."],
    "templates": ["a blurry {}."],
    "phrase": ["a blurry {description}"],
    "sites": [["q", "fc1"]],
    "search_scale": [None, [2.0, 5.0]],
    "alphas": [None, [3.0]],
    "penalty": ["uniform", 0.3],
    "search_steps": [[7, 5], [2, 9]],
    "n_steps": [1],  # of a bisection
    "descriptions": [str(DESCRIPTIONS)],
    "iterations": [1],  # before the epoch that is chosen
    "max_iter": [1],  # far from convergence
    "betas": [[0.5, 0.6]],
    "average": [{"mu": 1.0, "sigma": 0.5}],
    "weight_decay": [0.3],
    "eps": [0.01],
    "rates": [[0.03]],
    "decays": [[30.0]],
    "batch_sizes": [[3]],
}


def parts(annotation: Any) -> Iterator[Any]:
    """An annotation, and what it is made of."""
    yield annotation
    if get_origin(annotation) is not Literal:
        for part in get_args(annotation):
            yield from parts(part)


def others(name: str, annotation: Any, value: Any) -> list[Any]:
    """Other values of a setting, some of which may be out of range."""
    if name in OTHERS:
        return [other for other in OTHERS[name] if other != value]
    if isinstance(value, bool):
        return [not value]
    kinds = list(parts(annotation))
    if literal := [kind for kind in kinds if get_origin(kind) is Literal]:
        return [other for other in get_args(literal[0]) if other != value]
    if isinstance(value, int) or (value is None and int in kinds):
        return [(value or 0) + 1, (value or 2) - 1]
    if isinstance(value, float) or (value is None and float in kinds):
        return [value / 2 if value else 0.25]
    raise AssertionError(f"no other value of {name}={value!r} ({annotation}): add one to OTHERS")


# Runs: a few steps on noise


class Passes:
    """Batches of one split, as often as one iterates over them; `counted` says how often it was selected on."""

    def __init__(self, clip: Clip, split: Split, views: Iterator[int]) -> None:
        self.clip, self.split, self.views, self.counted = clip, split, views, 0

    def __iter__(self) -> Iterator[Batch]:
        yield batch(self.clip, self.split, range(len(self.split)), next(self.views))


class Noise(Loader):
    """A loader of noise, a little of it new for each view of an image."""

    def ordered(self, split: Split, *, augmented: bool = False) -> Any:
        return Passes(self.clip, split, itertools.count(1) if augmented else itertools.repeat(0))

    def shuffled(self, split: Split, *, batch_size: int, per_epoch: int, total: int, first: int = 0) -> Iterator[Batch]:
        for step in range(first, total):
            start = step % per_epoch * batch_size
            yield batch(self.clip, split, range(len(split))[start : start + batch_size], 1 + step // per_epoch)

    def read_views(self, split: Split, *, track: Any) -> None: ...


def batch(clip: Clip, split: Split, index: Sequence[int], view: int) -> Batch:
    """A view of images that are the same in each split, unlike some labels."""

    def noise(seed: int) -> Tensor:
        size = clip.preprocess.size
        return torch.randn(3, size, size, generator=torch.Generator().manual_seed(seed))

    pixels = torch.stack([noise(i) + 0.3 * noise(1000 * (view + 1) + i) for i in index])
    return Images(pixels), torch.tensor([split.items[i].label for i in index])


def episode(*, val: bool) -> Episode:
    def split(name: str) -> Split:
        moved = {"train": [], "val": [0, 4], "test": range(N_IMAGES)}[name]  # so that to fit well is not always best
        items = tuple(Item(str(i), (i + (i in moved)) % len(CLASSES)) for i in range(N_IMAGES))
        return Split(items, CLASSES, lambda image: image, origin=name)

    return Episode(train=split("train"), val=split("val") if val else None, tests={"test": split("test")})


def count_correct(learner: Learner, batches: Passes, precision: str) -> int:
    """As if the first epoch were best on validation images and the second on test images."""
    batches.counted += 1
    return -abs(batches.counted - {"val": 1, "test": 2}[batches.split.origin])


@cache
def composed(method: str, protocol: str, dataset: str) -> Any:
    return compose([f"method={method}", f"protocol={protocol}", f"dataset={dataset}"])


def short(method: str, protocol: str, dataset: str) -> dict[str, Any]:
    """A run's configuration, cut down to a few steps on towers of three blocks."""
    config = deepcopy(composed(method, protocol, dataset))
    config["method"] |= SMALL.get(method, {})
    config["method"] |= {name: n for name, n in SHORT.items() if name in config["method"]}
    fit = config["fit"]
    if fit and fit.get("epochs") != 0:
        fit |= {"lr": 0.01, "batch_size": min(fit["batch_size"], 2)}
        fit |= {"epochs": 3} if fit.get("epochs") else {"steps": 7}
        fit["schedule"] = {**fit["schedule"], "warmup_epochs": min(fit["schedule"].get("warmup_epochs", 1), 1)}
    return config


@dataclass(frozen=True)
class Case:
    """A method in a protocol."""

    method: str
    config: dict[str, Any]
    val: bool  # whether there are validation images

    @property
    def clip(self) -> Clip:
        return clip_of("vit:nf4" if self.config["backbone"]["quantize"] else "vit")

    @cached_property
    def before(self) -> Tensors:
        return self.start()

    @cached_property
    def after(self) -> Tensors:
        return self.result()

    def settings(self) -> dict[str, tuple[Any, Any]]:
        """Each setting below method and fit: its value here and its annotation."""
        kind, arguments = locate(at_these_shots(self.config)["method"], Learner, "method")
        parameters = inspect.signature(kind).parameters
        values = {f"method.{name}": value for name, value in complete(kind, arguments).items() if name in parameters}
        keys = {name: (value, parameters[name.removeprefix("method.")].annotation) for name, value in values.items()}
        if self.config["fit"] is None:
            return keys  # nothing of it can be set
        fit = read_settings(self.config).fit
        keys |= {f"fit.{name}": (getattr(fit, name), f.annotation) for name, f in Fit.model_fields.items()}
        schedule = keys.pop("fit.schedule")[0]
        fields = Schedule.model_fields.items()
        return keys | {f"fit.schedule.{name}": (getattr(schedule, name), f.annotation) for name, f in fields}

    def changed(self, key: str, value: Any) -> "Case":
        config, (*path, last) = deepcopy(self.config), key.split(".")
        node = config
        for part in path:
            node = node.setdefault(part, {})
        node[last] = value
        return replace(self, config=config)

    def check(self, given: Sequence[str]) -> None:
        """What `python run.py` checks. Raises: UserError."""
        check_steps(self.config)
        settings = read_settings(self.config)
        kind, _ = locate(settings.method, Learner, "method")
        refuse(overridden(settings, kind, val=self.val), given, settings)

    def learner(self) -> Learner:
        """Untrained. Raises: UserError."""
        kind, arguments = locate(read_settings(self.config).method, Learner, "method")
        torch.manual_seed(0)
        learner: Learner = kind(self.clip, CLASSES, **kind.resolved(arguments))
        return learner

    def start(self) -> Tensors:
        """The tensors before training and the logits. Raises: UserError."""
        learner = self.learner()
        return [*sorted(learner.state_dict().items()), ("logits", self.logits(learner))]

    def result(self) -> Tensors:
        """The trained tensors, the losses and the logits. Raises: UserError."""
        learner, fit, curve = self.learner(), read_settings(self.config).fit, list[Epoch]()
        if fit:
            chosen = episode(val=self.val)
            curve = train(learner, chosen, Noise(self.clip), fit, precision="fp32", reporter=Reporter())
        loss = torch.tensor([line.loss for line in curve])
        return [*sorted(learner.state_dict().items()), ("loss", loss), ("logits", self.logits(learner))]

    @torch.no_grad()
    def logits(self, learner: Learner) -> Tensor:
        images, _ = batch(self.clip, episode(val=self.val).tests["test"], range(N_IMAGES), 0)
        return learner.eval()(images, learner.encode_classes())


def same(a: Tensors, b: Tensors) -> bool:
    return len(a) == len(b) and all(x[0] == y[0] and torch.equal(x[1], y[1]) for x, y in zip(a, b, strict=True))


def judge(case: Case, key: str, *, exactly: bool = False) -> str | None:
    """What is wrong with a setting: changed alone it has no effect, or it is refused and would have one."""
    (value, annotation), problem = case.settings()[key], None
    for other in others(key.rpartition(".")[2], annotation, value):
        changed = case.changed(key, other)
        try:
            changed.check([key])
            refused = False
        except OverriddenError:
            refused = True
        except UserError:
            continue  # out of range
        if refused and key.startswith("fit.") and not exactly:
            return None  # these are the same for all methods, see below
        try:
            effect = has_effect(changed, case, start=not refused)
        except UserError:
            if refused:
                return None
            continue
        if effect and refused and (case.method, key) not in DRAWN:
            return f"{key}={other} is refused, and has an effect"
        if effect or refused or (case.method, key) in TIED:
            return None
        problem = f"{key}={other} has no effect"
    return problem


def runs(case: Case) -> bool:
    """Whether it can be trained as it stands; without validation images not all can."""
    try:
        return bool(case.after)
    except UserError:
        return False


def has_effect(a: Case, b: Case, *, start: bool = True) -> bool:
    """Whether two learners end differently, or with `start` also whether they start so. Raises: UserError."""
    return (start and not same(a.start(), b.before)) or not same(a.result(), b.after)


def case_of(method: str, protocol: str, dataset: str) -> Case:
    return Case(method, short(method, protocol, dataset), val=protocol != "train_val")


@pytest.fixture(autouse=True)
def best_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "count_correct", count_correct)


@pytest.mark.parametrize(("method", "protocol"), QUICK)
def test_a_setting_has_an_effect_or_is_refused(method: str, protocol: str) -> None:
    case = case_of(method, protocol, "caltech101")
    assert runs(case)
    assert [problem for key in case.settings() if (problem := judge(case, key))] == []


@pytest.mark.slow
@pytest.mark.parametrize("dataset", ["caltech101", "shapes"])
@pytest.mark.parametrize("method", METHODS)
def test_each_setting_of_each_method_in_each_protocol(method: str, dataset: str) -> None:
    seen = set()
    for protocol in PROTOCOLS:
        case = case_of(method, protocol, dataset)
        selects = "tip" in method or method in ("linear_probe", "lp_plus_plus", "gda", "cross_modal")
        about = canonical([case.config["method"], case.config["fit"], case.val or not selects])
        if about not in seen and runs(case):
            assert [(protocol, p) for key in case.settings() if (p := judge(case, key))] == []
        seen.add(about)


@pytest.mark.parametrize(
    "fit",
    [
        {"optimizer": "adamw", "batch_size": 1},
        pytest.param({"epochs": 1}, marks=pytest.mark.slow),
        pytest.param({}, marks=pytest.mark.slow),
        pytest.param({"epochs": 1, "average": {"mu": 1.0, "sigma": 1.0}}, marks=pytest.mark.slow),
        pytest.param({"epochs": 1, "schedule": {"warmup": "linear"}}, marks=pytest.mark.slow),
        pytest.param({"epochs": 2}, marks=pytest.mark.slow),
        pytest.param({"epochs": 2, "schedule": {"every": "step"}}, marks=pytest.mark.slow),
        pytest.param({"schedule": {"warmup": "none"}}, marks=pytest.mark.slow),
        pytest.param({"schedule": {"warmup_epochs": 0}}, marks=pytest.mark.slow),
        pytest.param({"schedule": {"shape": "constant"}}, marks=pytest.mark.slow),
        pytest.param({"schedule": {"shape": "constant", "warmup": "linear"}}, marks=pytest.mark.slow),
        pytest.param({"schedule": {"warmup": "linear", "every": "step", "warmup_epochs": 3}}, marks=pytest.mark.slow),
        pytest.param({"schedule": {"warmup_epochs": 3}}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_what_is_refused_of_the_fitting_has_no_effect(fit: dict[str, Any]) -> None:
    """And the rest has one, next to any other setting of it."""
    config = short("clip_adapter", "few_shot", "caltech101")
    whole = {"lr": 0.01, "batch_size": 2, "drop_last": True, "epochs": 3}
    case = Case("clip_adapter", {**config, "fit": whole | fit}, val=True)
    for key in [key for key in case.settings() if key.startswith("fit.")]:
        assert judge(case, key, exactly=True) is None


def test_what_a_user_gives() -> None:
    overrides = [
        "method=coop",
        "fit.lr=1",
        "+fit.betas=[0.1,0.2]",
        "fit.schedule={warmup: none}",
        "~recipe",
        "fit.epochs={1: 2}",
    ]
    assert given(overrides) == ["method", "fit.lr", "fit.betas", "fit.schedule.warmup", "fit.epochs"]


PHRASE = ["dataset=digits", "protocol=base_to_novel", "shots=1"]  # a recipe starts coop from "a photo of a"


@pytest.mark.usefixtures("results")
@pytest.mark.parametrize(
    "method", ["coop", "tcp", *(pytest.param(m, marks=pytest.mark.slow) for m in ("cocoop", "kgcoop"))]
)
def test_a_phrase_sets_the_length(method: str) -> None:
    run = [f"method={method}", *PHRASE]
    file = "recipe/coop/base_to_novel" if method == "coop" else f"method/{method}"
    if method == "tcp":  # starts from random values
        run, file = [*run, "method.ctx_init=a photo of a"], ""
    with pytest.raises(OverriddenError, match=rf"n_context=8 .*{file}.* method\.ctx_init=''"):
        read_run([*run, "method.n_context=8"])
    free = read_run([*run[:4], "method.ctx_init=''", "method.n_context=8"])
    assert free.config["method"]["n_context"] == 8
    short = read_run([*run[:4], "method.ctx_init=a photo"])
    assert short.config["method"]["n_context"] == short.arguments["n_context"] == 2


@pytest.mark.usefixtures("results")
def test_a_length_may_be_that_of_the_phrase() -> None:
    specs = [read_run(["method=coop", *PHRASE, f"method.n_context={n}"]) for n in ("null", 4)]
    assert specs[0].hash == specs[1].hash
    assert specs[0].key == specs[1].key
    assert [spec.config["method"]["n_context"] for spec in specs] == [4, 4]


@pytest.mark.usefixtures("results")
def test_a_yaml_may_hold_what_a_user_overrides_and_the_record_does_not() -> None:
    run = ["method=coop", *PHRASE, "fit.optimizer=adamw"]
    spec = read_run(run)
    assert "momentum" not in spec.config["fit"]
    assert read_run(run[:-1]).config["fit"]["momentum"] == 0.9
    with pytest.raises(OverriddenError, match=r"fit\.momentum=0\.9 .* fit\.optimizer=adamw"):
        read_run([*run, "fit.momentum=0.9"])


MISTAKES = {
    "method=coop method.n_context=8": ["method.n_context=8", "recipe/coop/base_to_novel", "method.ctx_init=''"],
    "method=coop method.class_specific=true": [
        "method.class_specific",
        "recipe/coop/base_to_novel",
        "method.ctx_init=''",
    ],
    "method=coop method.ctx_init=''": ["method.n_context", "number"],
    "method=maple method.n_context=9": ["method.n_context", "4"],
    "method=tip_adapter protocol=few_shot fit.epochs=1": ["fit.epochs=1", "tip_adapter_f"],
    "method=tip_adapter protocol=few_shot bank.views=4": ["bank.views=4", "fit.epochs=0", "method/tip_adapter"],
    "method=lp_plus_plus protocol=few_shot +fit.lr=0.1": ["fit.lr=0.1", "fit.epochs=0"],
    "method=zero_shot fit={lr:0.1,epochs:1}": ["ZeroShot", "fit.epochs=0"],
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_sentence(results: Path, mistake: str) -> None:
    check_mistake(ask(sweep.main, [*PHRASE, *mistake.split()]), MISTAKES[mistake], results)
