"""Configurations: all of them compose and pass the checks, and who wins over whom."""

from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import hydra
import pytest
import yaml
from omegaconf import DictConfig, OmegaConf

from vlprompt.config import recipes
from vlprompt.config.paths import config_dir
from vlprompt.config.schema import Settings, check_arguments, read_settings
from vlprompt.errors import UserError
from vlprompt.learners.base import Learner
from vlprompt.plan import locate
from vlprompt.protocols.base import Protocol

CONF = config_dir()


def names(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


METHODS, DATASETS, PROTOCOLS, BACKBONES = map(names, ("method", "dataset", "protocol", "backbone"))
RECIPES = [f"{top}/{name}" for top in ("recipe", "demo") for name in recipes.known(top, [CONF])]


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
    """What a run checks before it loads anything."""
    read = settings(*overrides)
    locate(read.method, Learner, "method")
    locate(read.protocol, Protocol, "protocol")


@pytest.mark.parametrize("choice", [f"method={m}" for m in METHODS] + [f"dataset={d}" for d in DATASETS]
                         + [f"backbone={b}" for b in BACKBONES])  # fmt: skip
def test_every_choice_composes(choice: str) -> None:
    """Groups meet in recipes only, and each recipe has a test of its own: all pairs are left to the slow test."""
    for protocol in PROTOCOLS if choice.startswith("method=") else PROTOCOLS[:1]:
        check(choice, f"protocol={protocol}")


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


def selections(recipe: str) -> list[list[str]]:
    """Overrides with which a recipe applies: what its name is made of, else the recipe itself, with related methods."""
    top, folder, name = recipe.split("/")
    known = {p: [f"protocol={p}"] for p in PROTOCOLS} | {b: [f"backbone={b}"] for b in BACKBONES}
    known |= {f"{p}_{d}": [f"protocol={p}", f"dataset={d}"] for p in PROTOCOLS for d in DATASETS}
    if name in known:
        return [[f"method={folder}", "dataset=caltech101", *known[name]]]  # nothing of the demo that could win
    methods = [m for m in METHODS if m == folder or m.startswith(f"{folder}_")]
    return [[f"method={m}", "dataset=caltech101", f"{top}={folder}/{name}"] for m in methods]


def leaves(tree: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    if not isinstance(tree, dict) or not tree or all(isinstance(key, int) for key in tree):
        return {path: tree}
    return {key: value for name, inner in tree.items() for key, value in leaves(inner, (*path, name)).items()}


def content(recipe: str) -> dict[tuple[str, ...], Any]:
    """The settings of a recipe, and of those that it is made of."""
    path = CONF / f"{recipe}.yaml"
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# @package _global_\n")
    tree = yaml.safe_load(text)
    parts = [content(part[1:]) for part in tree.pop("defaults", []) if part != "_self_"]
    return {key: value for part in [*parts, leaves(tree)] for key, value in part.items() if key}


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_can_be_selected_and_takes_effect(recipe: str) -> None:
    expected = content(recipe)
    assert expected
    assert selections(recipe), f"no method is called {recipe}"
    for overrides in selections(recipe):
        check(*overrides)
        given = leaves(plain(*overrides))
        assert {key: given[key] for key in expected} == expected


def test_coop_as_published() -> None:
    """Zhou et al., IJCV 2022, section 4.1; as a baseline in CVPR 2022, section 4."""
    few_shot = settings("method=coop", "recipe=coop/ijcv", "dataset=caltech101")
    assert (few_shot.method["n_context"], few_shot.method["ctx_init"]) == (16, "")
    generalise = settings("method=coop", "protocol=base_to_novel", "dataset=caltech101")
    assert (generalise.method["n_context"], generalise.method["ctx_init"]) == (4, "a photo of a")
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
    assert (coop.method["n_context"], coop.method["ctx_init"], coop.fit.epochs) == (4, "a photo of a", 50)
    assert (cocoop.method["n_context"], cocoop.fit.epochs, cocoop.fit.batch_size) == (4, 10, 1)
    assert (maple.method["depth"], maple.fit.lr, maple.fit.epochs, maple.fit.batch_size) == (3, 0.0026, 2, 4)
    assert {s.shots for s in chosen.values()} == {16}
    targets = {"cross_dataset": 10, "domain_generalization": 4}
    assert len(coop.protocol["targets"]) == targets[protocol]


def test_targets_of_the_demo_and_of_ones_own() -> None:
    def targets(*overrides: str) -> list[str]:
        return settings(*overrides).protocol["targets"]

    assert targets("protocol=cross_dataset") == ["digits"]
    assert targets("protocol=domain_generalization") == ["shapes_sketch", "shapes_mosaic"]
    assert targets("protocol=cross_dataset", "protocol.targets=[shapes_mosaic]") == ["shapes_mosaic"]
    assert "targets" not in settings("protocol=few_shot").protocol


@pytest.mark.parametrize("protocol", ["cross_dataset", "domain_generalization"])
@pytest.mark.parametrize("method", ["coop", "maple", "vpt_deep", "adapter", "lora"])
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


def test_spelling_of_before() -> None:
    """Recipes were METHOD_NAME in three groups; what was left out with one of these is left out now."""
    for old, new in {
        "recipe=coop_ijcv": ["recipe=coop/ijcv"],
        "recipe=tip_adapter_f_original,tip_adapter_original": ["recipe=tip_adapter_f/original,tip_adapter/original"],
        "recipe=vpt_linear": ["recipe=vpt/linear"],
        "recipe=mine": ["recipe=mine"],  # a user's own
        "recipe=null": ["~recipe"],
        "~recipe/dataset": ["~demo", "~recipe@_global_"],
        "recipe/dataset=null": ["~demo", "~recipe@_global_"],
        "recipe/dataset=coop_few_shot_shapes": ["demo=coop/few_shot_shapes", "~recipe@_global_"],
        "recipe/dataset=prograd_few_shot_dtd": ["recipe@_global_=prograd/few_shot_dtd", "~demo"],
        "recipe/backbone=maple_shapes_vit": ["demo@_global_=maple/shapes_vit"],
        "~recipe/backbone": ["~demo@_global_"],
        "fit.lr=1": ["fit.lr=1"],
    }.items():
        now, notices = recipes.modernize([old])
        assert now == new
        assert len(notices) == (old not in ("recipe=mine", "recipe=null", "fit.lr=1"))
        assert all(old in notice for notice in notices)
    assert recipes.of_record("recipe/coop_ijcv") == recipes.of_record("recipe/coop/ijcv") == "recipe/coop/ijcv"
    assert recipes.of_record("recipe/dataset/coop_few_shot_shapes") == "demo/coop/few_shot_shapes"


def test_left_out_recipes() -> None:
    """Those of a data set and of the demo one by one."""
    imagenet = ("method=coop", "dataset=imagenet", "protocol=base_to_novel")
    assert [plain(*imagenet, *more)["fit"]["epochs"] for more in ([], ["~recipe@_global_"])] == [50, 200]
    assert plain("method=maple", "~demo")["method"]["depth"] == 3  # the small tower's
    assert plain("method=maple", "~demo@_global_")["method"]["depth"] == 9


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("recipe/dataset/coop_few_shot_mine.yaml", "recipe/coop/few_shot_mine.yaml"),
        ("recipe/backbone/maple_mine.yaml", "demo/maple/mine.yaml"),
        ("recipe/mine_too_few_shot.yaml", "recipe/mine_too/few_shot.yaml"),
    ],
)
def test_recipes_of_ones_own(tmp_path: Path, old: str, new: str) -> None:
    """One that would not apply any more is refused with the place that it has to move to."""
    (tmp_path / "method").mkdir()
    (tmp_path / "method" / "mine_too.yaml").touch()
    for name in (new, old):
        recipes.check(["fit.lr=1", "~recipe"], [CONF, tmp_path])
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=f"{old}.* {tmp_path / new}"):
        recipes.check([], [CONF, tmp_path])


def test_a_recipe_of_ones_own_applies(tmp_path: Path) -> None:
    for name, text in {"few_shot_shapes": "epochs: 77", "base_to_novel": "lr: 0.5", "fast": "lr: 0.25"}.items():
        path = tmp_path / "recipe" / "taskres" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"# @package _global_\nfit:\n  {text}\n")
    asked = ("method=taskres", f"hydra.searchpath=[file://{tmp_path}]")
    assert plain(*asked)["fit"]["lr"] == 0.5
    assert plain(*asked, "recipe=taskres/fast")["fit"]["lr"] == 0.25
    assert plain(*asked, "protocol=few_shot", "~demo")["fit"]["epochs"] == 77
    assert recipes.known("recipe", [tmp_path]) == ["taskres/base_to_novel", "taskres/fast", "taskres/few_shot_shapes"]
    choices = {"recipe": "taskres/fast", "demo": "taskres/few_shot_shapes", "recipe@_global_": "taskres/few_shot_none"}
    assert recipes.applied(choices, [CONF, tmp_path]) == ["recipe/taskres/fast", "demo/taskres/few_shot_shapes"]


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
