"""Recipes: each can be selected and takes effect; how they are left out; those of a user; their former spelling."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from running import ask
from test_config import BACKBONES, CONF, DATASETS, METHODS, PROTOCOLS, check, plain
from tiny_world import RUN

import run
from vlprompt.config import recipes
from vlprompt.errors import UserError
from vlprompt.results.store import find_records

RECIPES = [f"{top}/{name}" for top in ("recipe", "demo") for name in recipes.known(top, [CONF])]


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


def quick() -> set[str]:
    """Of the recipes of a method that set the same settings, the first; none that is another one by its own name."""
    firsts = {}
    for recipe in reversed(RECIPES):
        tree = leaves(yaml.safe_load((CONF / f"{recipe}.yaml").read_text(encoding="utf-8")))
        firsts[(Path(recipe).parent, *tree)] = recipe
    return {recipe for (_, *names), recipe in firsts.items() if names != [("defaults",)]}


QUICK = quick()


@pytest.mark.parametrize("recipe", [pytest.param(r, marks=[pytest.mark.slow] * (r not in QUICK)) for r in RECIPES])
def test_every_recipe_can_be_selected_and_takes_effect(recipe: str) -> None:
    expected = content(recipe)
    assert expected
    assert selections(recipe), f"no method is called {recipe}"
    for overrides in selections(recipe):
        check(*overrides)
        given = leaves(plain(*overrides))
        assert {key: given[key] for key in expected} == expected


def test_spelling_of_before() -> None:
    """Recipes were METHOD_NAME in three groups; what was left out with one of these is left out now."""
    for old, new in {
        "recipe=coop_ijcv": ["recipe=coop/ijcv"],
        "recipe=tip_adapter_f_original,tip_adapter_original": ["recipe=tip_adapter_f/original,tip_adapter/original"],
        "recipe=vpt_linear": ["recipe=vpt/linear"],
        "recipe=mine": ["recipe=mine"],  # of a user
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
def test_recipes_of_a_user(tmp_path: Path, old: str, new: str) -> None:
    """One that would not apply any more is refused with the path that it has to move to."""
    (tmp_path / "method").mkdir()
    (tmp_path / "method" / "mine_too.yaml").touch()
    for name in (new, old):
        recipes.check(["fit.lr=1", "~recipe"], [CONF, tmp_path])
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=f"{old}.* {tmp_path / new}"):
        recipes.check([], [CONF, tmp_path])


def test_a_recipe_of_a_user_applies(tmp_path: Path) -> None:
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


@pytest.mark.slow
def test_recipes_of_a_sweep_and_what_records_say(results: Path) -> None:
    arguments = [argument for argument in RUN if not argument.startswith("method.")]
    answer = ask(run.main, ["-m", *arguments, "fit.epochs=1", "recipe=coop_ijcv,coop/base_to_novel"])
    (notice,) = answer.err.splitlines()
    assert (answer.code, "recipe=coop/ijcv,coop/base_to_novel" in notice) == (0, True)
    records = [record for record in find_records([results]) if record.method == "coop"]
    applied = {record.config["method"]["n_context"]: record.recipe for record in records}
    demo = "demo/coop/base_to_novel_digits"
    assert applied == {16: ["recipe/coop/ijcv", demo], 4: ["recipe/coop/base_to_novel", demo]}
