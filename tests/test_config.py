"""Configurations: all of them compose and pass the checks, and who wins over whom."""

from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import hydra
import pytest
from omegaconf import DictConfig, OmegaConf

from vlprompt.config.compose import compose
from vlprompt.config.locate import locate, make_protocol
from vlprompt.config.paths import config_dir
from vlprompt.config.schema import Settings, check_arguments, read_settings
from vlprompt.errors import UserError
from vlprompt.learners.base import Learner
from vlprompt.tuning.space import read_space, value_at

CONF = config_dir()


def names(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


METHODS, DATASETS, PROTOCOLS, BACKBONES = map(names, ("method", "dataset", "protocol", "backbone"))


@cache
def composed(*overrides: str) -> DictConfig:
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose("config", list(overrides))


def plain(*overrides: str) -> dict[str, Any]:
    """The configuration with everything resolved."""
    return OmegaConf.to_container(composed(*overrides), resolve=True)


def settings(*overrides: str) -> Settings:
    return read_settings(plain(*overrides))


def check(*overrides: str) -> None:
    """What a run checks before it loads anything, and that a default lies in the method's search space."""
    read = settings(*overrides)
    locate(read.method, Learner, "method")
    make_protocol(read)
    space, values = read_space(read), read.model_dump()
    assert bool(space) == (read.fit is not None)
    if not any(override.startswith("recipe=") for override in overrides):  # not every recipe for a purpose is in it
        assert not [name for name in space if value_at(values, name) not in space[name]]


CHOICES = [f"{group}={name}" for group, names in
           zip(("method", "dataset", "protocol", "backbone"), (METHODS, DATASETS, PROTOCOLS, BACKBONES), strict=True)
           for name in names]  # fmt: skip


@pytest.mark.parametrize("choice", CHOICES)
def test_every_choice_composes(choice: str) -> None:
    """Groups meet in recipes only, and each recipe has a test of its own: all pairs are left to the slow test."""
    check(choice, *["dataset=caltech101"] * choice.startswith("method="))  # where no recipe of the demo applies


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_every_combination_composes(method: str) -> None:
    for protocol, dataset, backbone in product(PROTOCOLS, DATASETS, BACKBONES):
        check(f"method={method}", f"protocol={protocol}", f"dataset={dataset}", f"backbone={backbone}")


@pytest.mark.parametrize("dataset", DATASETS)
def test_sources_take_their_arguments(dataset: str) -> None:
    source = plain(f"dataset={dataset}")["dataset"]["source"]
    load = hydra.utils.get_method(source.pop("_target_"))
    check_arguments(load, {**source, "root": Path("datasets")}, "dataset.source")


def test_coop_as_published() -> None:
    """Zhou et al., IJCV 2022, section 4.1; as a baseline in CVPR 2022, section 4."""
    few_shot = settings("method=coop", "recipe=coop/ijcv", "dataset=caltech101")
    assert (few_shot.method["n_context"], few_shot.method["ctx_init"]) == (16, "")
    generalise = settings("method=coop", "protocol=base_to_novel", "dataset=caltech101")
    assert (generalise.method["n_context"], generalise.method["ctx_init"]) == (None, "a photo of a")
    assert (generalise.shots, generalise.fit.epochs, generalise.bank.views) == (16, 200, None)
    assert generalise.backbone.model == "ViT-B-16-quickgelu"
    for fit in (few_shot.fit, generalise.fit):
        assert (fit.optimizer, fit.lr, fit.momentum, fit.weight_decay) == ("sgd", 0.002, 0.9, 5e-4)
        assert (fit.batch_size, fit.drop_last) == (32, True)
        schedule = fit.schedule
        assert (schedule.shape, schedule.every, schedule.floor) == ("cosine", "epoch", 0)
        assert (schedule.warmup, schedule.warmup_epochs, schedule.warmup_lr) == ("constant", 1, 1e-5)


@pytest.mark.parametrize("protocol", ["cross_dataset", "domain_generalization"])
def test_transfer_from_imagenet_as_published(protocol: str) -> None:
    """Zhou et al., CVPR 2022, sections 4.2 and 4.3; Khattak et al., CVPR 2023, section 4.1."""
    chosen = {
        m: settings(f"method={m}", f"protocol={protocol}", "dataset=caltech101") for m in ("coop", "cocoop", "maple")
    }
    coop, cocoop, maple = chosen.values()
    assert (coop.method["n_context"], coop.method["ctx_init"], coop.fit.epochs) == (None, "a photo of a", 50)
    assert (cocoop.method["ctx_init"], cocoop.fit.epochs, cocoop.fit.batch_size) == ("a photo of a", 10, 1)
    assert (maple.method["depth"], maple.fit.lr, maple.fit.epochs, maple.fit.batch_size) == (3, 0.0026, 2, 4)
    assert {s.shots for s in chosen.values()} == {16}
    targets = {"cross_dataset": 10, "domain_generalization": 4}
    assert len(coop.protocol["targets"]) == targets[protocol]


def test_targets_of_the_demo_and_of_a_user() -> None:
    def targets(*overrides: str) -> list[str]:
        return settings(*overrides).protocol["targets"]

    assert targets("protocol=cross_dataset") == ["digits"]
    assert targets("protocol=domain_generalization") == ["shapes_sketch", "shapes_mosaic"]
    assert targets("protocol=cross_dataset", "protocol.targets=[shapes_mosaic]") == ["shapes_mosaic"]
    assert "targets" not in settings("protocol=few_shot").protocol


@pytest.mark.parametrize("protocol", ["cross_dataset", "domain_generalization"])
@pytest.mark.parametrize("method", ["coop", "maple", "lora"])
def test_the_demo_trains_for_transfer_as_for_few_shot(method: str, protocol: str) -> None:
    transfer, few_shot = (settings(f"method={method}", f"protocol={p}") for p in (protocol, "few_shot"))
    assert (transfer.method, transfer.fit, transfer.bank) == (few_shot.method, few_shot.fit, few_shot.bank)


@pytest.mark.parametrize(("shots", "key"), [(1, 1), (2, 2), (3, 4), (5, 8), (16, 16), (17, 16), (32, 16), ("all", 16)])
def test_between_two_numbers_of_shots_the_next_larger_counts(shots: int | str, key: int) -> None:
    assert settings(f"shots={shots}", "fit.epochs={1: 1, 2: 2, 4: 4, 8: 8, 16: 16}").fit.epochs == key
    of_coop = settings("recipe=coop/ijcv", "dataset=caltech101", f"shots={shots}").fit
    assert of_coop.epochs == {1: 50, 2: 100, 4: 100}.get(key, 200)


def test_the_command_line_wins() -> None:
    assert plain()["fit"]["epochs"] != 7  # the recipe of the demo says so
    ours = settings("fit.epochs=7", "method.ctx_init=a photo", "method.n_context=2", "bank.views=9", "fit.lr=0.5")
    assert (ours.fit.epochs, ours.method["ctx_init"], ours.bank.views, ours.fit.lr) == (7, "a photo", 9, 0.5)
    without = plain("~recipe", "~demo")
    assert without["method"]["n_context"] == 16
    assert isinstance(without["fit"]["epochs"], dict)


def test_a_data_set_brings_its_backbone_and_the_command_line_wins() -> None:
    assert settings().backbone.model == "shapes_vit"
    assert settings("dataset=caltech101").backbone.model == "ViT-B-16-quickgelu"
    for dataset in ("shapes", "caltech101"):
        assert settings("backbone=rn50", f"dataset={dataset}").backbone.model == "RN50-quickgelu"
        assert settings(f"dataset={dataset}", "backbone.weights=random").backbone.weights == "random"


def test_arguments_of_a_callable() -> None:
    def make(clip: object, classes: object, *, n: int, kind: str = "a") -> None: ...

    check_arguments(make, {"n": 1}, "method")
    for arguments, message in (
        ({"n": "1"}, "method.n is '1', allowed is a valid integer"),
        ({"n": True}, "method.n is True"),
        ({"kind": "b"}, "'method.n' is missing"),
        ({"n": 1, "kinds": "b"}, "unknown setting of method 'kinds': known are kind, n; did you mean 'kind'"),
        ({"n": 1, "clip": 2}, "unknown setting of method 'clip'"),
    ):
        with pytest.raises(UserError, match=message):
            check_arguments(make, arguments, "method")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fit": {"lr": 1e-3, "epochs": 1, "steps": 1}}, "either epochs or steps"),
        ({"fit": {"epochs": 1}}, "'fit.lr' is missing"),
        ({"fit": {"lr": 1e-3, "epochs": {1: -1, 16: 5}}, "shots": 1}, "fit.epochs is -1, allowed is greater than"),
        ({"fit": 5}, "fit is 5"),
        ({"seed": None}, "seed is None, allowed is a valid integer"),
        ({"seed": True}, "seed is True"),
        ({"shots": True}, "shots is True"),
        ({"extra": 1}, "unknown setting 'extra'"),
        ({"bank": {"views": 0}}, "bank.views is 0"),
    ],
)
def test_wrong_settings_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_settings({**plain(), **change})


def test_closed_forms_need_no_rate() -> None:
    assert [settings(f"method={m}").fit.lr for m in ("linear_probe", "lp_plus_plus", "tip_adapter")] == [None] * 3


def test_a_missing_setting_is_named() -> None:
    config = plain()
    del config["seed"]
    with pytest.raises(UserError, match="'seed' is missing"):
        read_settings(config)


# What the authors' code has for each data set: trainers/tcp.py (the text that is learned, that of the frozen features)
# and trainers/prograd.py; all that is not named here is the plain one.
PLAIN_TCP, PLAIN_PROGRAD = ("X X X X {}.", "a photo of a {}."), "a photo of a {}."
TCP_TEXTS = {
    "oxford_pets": ("X X X X {}, a type of pet.", "a photo of a {}, a type of pet."),
    "flowers102": ("X X X X {}, a type of flower.", "a photo of a {}, a type of flower."),
    "fgvc_aircraft": ("X X X X {}, a type of aircraft.", "a photo of an aircraft {}."),
    "dtd": ("X X X X {} texture.", "a photo of a {}, a type of texture."),
    "eurosat": ("X X X X {}.", "a centered satellite photo of {}."),
    "stanford_cars": ("X X X X {}, a type of car", "a photo of a {}."),
    "food101": ("X X X X {}, a type of food.", "a photo of a {}, a type of food."),
    "ucf101": ("a photo of a person doing {}.", "a photo of a person doing {}."),
}
PROGRAD_TEXTS = {
    "oxford_pets": "a type of pet, a photo of a {}.",
    "flowers102": "a type of flower, a photo of a {}.",
    "fgvc_aircraft": "a type of aircraft, a photo of a {}.",
    "dtd": "a texture of {}.",
    "eurosat": "a centered satellite photo of {}.",
    "food101": "a type of food, a photo of {}.",
    "ucf101": "a photo of a person doing {}.",
}


def texts_of(method: str, arguments: dict[str, Any]) -> Any:
    if method == "prograd":
        return arguments["template"]
    text = arguments["learned_template"]
    return ("a photo of a " if text.startswith("person") else "X X X X ") + text, arguments["template"]


@pytest.mark.parametrize(
    ("method", "texts", "otherwise"), [("tcp", TCP_TEXTS, PLAIN_TCP), ("prograd", PROGRAD_TEXTS, PLAIN_PROGRAD)]
)
def test_texts_of_the_authors(method: str, texts: dict[str, Any], otherwise: Any) -> None:
    """On the data set that is trained on, whatever the protocol, and on each that is tested after a transfer."""
    for dataset, protocol in (("oxford_pets", "few_shot"), ("caltech101", "train_val")):
        arguments = plain(f"method={method}", f"dataset={dataset}", f"protocol={protocol}")["method"]
        assert texts_of(method, arguments) == texts.get(dataset, otherwise)
    transfer = compose([f"method={method}", "dataset=imagenet", "protocol=cross_dataset"])
    tested = {name: texts_of(method, target["method"]) for name, target in transfer["targets"].items()}
    assert texts_of(method, transfer["method"]) == otherwise
    assert tested == {name: texts.get(name, otherwise) for name in tested}
    assert set(texts) <= set(tested)


def test_settings_of_tcp() -> None:
    ours = settings("method=tcp", "dataset=oxford_pets", "protocol=base_to_novel")
    assert ours.fit is not None
    assert (ours.fit.optimizer, ours.fit.lr, ours.fit.eps, ours.fit.weight_decay) == ("adam", 0.002, 1e-3, 5e-4)
    assert (ours.fit.epochs, ours.fit.batch_size, ours.method["ctx_init"], ours.method["layer"]) == (50, 32, "", 8)
    for dataset, protocol in (("sun397", "base_to_novel"), ("imagenet", "cross_dataset")):
        assert plain("method=tcp", f"dataset={dataset}", f"protocol={protocol}")["fit"]["epochs"] == 25


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (["sampler.name=imbalanced"], "needs sampler.total"),
        (["sampler.total=9"], "sampler.name=imbalanced"),
        (["sampler.every_class=true"], "is for sampler.name=imbalanced"),
    ],
)
def test_images_in_all_belong_to_their_sampler(asked: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        settings(*asked)
    sampler = settings("sampler.name=imbalanced", "sampler.total=9").sampler
    assert (sampler.drawn(16), sampler.may_lack_classes) == ("9-in-all", True)
    assert settings().sampler.drawn(16) == 16
