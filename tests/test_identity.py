"""Which runs are the same: finished ones are found, whatever settings came later."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from running import ROOT

from vlprompt import demo
from vlprompt.config import identity
from vlprompt.config.compose import read_run
from vlprompt.config.identity import first_hash, is_same_run, settings_hash
from vlprompt.config.spec import RunSpec
from vlprompt.learners.coop import CoOp
from vlprompt.results.record import Record
from vlprompt.results.store import find_records

DEMO = ROOT / "results" / "demo"
COMMITTED = {
    f"{record.protocol} {record.method}": record
    for protocol, methods in (("few_shot", None), ("cross_dataset", ("coop", "zero_shot")))
    for record in find_records([DEMO / protocol / "shapes"])
    if record.variant is None and (record.shots, record.seed) in ((16, 1), (0, 0))
    if methods is None or record.method in methods
}
"""Of every method, and two that have their targets in their identity."""


class Younger(CoOp):
    """CoOp, with a setting that came later."""

    def __init__(self, *args: Any, strength: int = 3, **keywords: Any) -> None:
        super().__init__(*args, **keywords)


def settings(**method: Any) -> dict[str, Any]:
    return {
        "method": {"_target_": "test_identity.Younger", "n_context": 4, **method},
        "protocol": {"_target_": "vlprompt.protocols.few_shot.FewShot", "part": "test"},
        "dataset": {"name": "x", "source": {"_target_": "tiny_world.load", "style": 0}},
        "fit": {"lr": 0.1, "epochs": 2, "steps": None, "schedule": {"shape": "cosine", "warmup_epochs": 1}},
        "bank": {"views": None},
        "augment": {"scale": [0.08, 1.0], "flip": 0.5},
        "seed": 1,
    }


def test_committed_records_are_of_all_methods() -> None:
    assert len(COMMITTED) > 33


def run_of(record: Record, *more: str) -> RunSpec:
    groups = ("method", "protocol", "dataset", "backbone")
    return read_run([*(f"{group}={getattr(record, group)}" for group in groups), *more])


@pytest.mark.usefixtures("results")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if i % 4 == 0 else pytest.mark.slow) for i, name in enumerate(COMMITTED)]
)
def test_runs_of_earlier_versions_are_found(name: str) -> None:
    spec, record = run_of(COMMITTED[name]), COMMITTED[name]
    assert spec.key == record.key  # so that it is looked for where it lies
    assert spec.matches(record)


@pytest.mark.usefixtures("results")
def test_another_revision_of_a_method_is_another_run(monkeypatch: pytest.MonkeyPatch) -> None:
    record = COMMITTED["few_shot coop"]
    monkeypatch.setattr(CoOp, "revision", 2)
    spec = run_of(record)
    assert not spec.matches(record)
    assert spec.key == record.key
    monkeypatch.setattr(CoOp, "revision", 3)
    assert run_of(record).hash != spec.hash


@pytest.mark.usefixtures("results")
def test_another_seed_is_another_run() -> None:
    record = COMMITTED["few_shot coop"]
    assert not run_of(record, "seed=2").matches(record)


@pytest.mark.usefixtures("results")
@pytest.mark.parametrize("weights", ["random", "pretrained"])
def test_a_folder_that_builds_another_model_is_another_run(tmp_path: Path, weights: str) -> None:
    folder = shutil.copytree(demo.BACKBONES["shapes_vit"], tmp_path / "model")

    def identity_now() -> str:
        identity.file_hash.cache_clear()
        spec = run_of(COMMITTED["few_shot coop"], f"backbone.model={folder}", f"backbone.weights={weights}")
        assert "absent" not in str(spec.changes)
        return spec.hash

    before = identity_now()
    assert identity_now() == before
    config = folder / "open_clip_config.json"
    config.write_text(config.read_text().replace('"heads": ', '"heads": 1'))
    assert identity_now() != before


def test_a_later_setting_at_its_default_changes_no_hash() -> None:
    before, default, other = settings(), settings(strength=3), settings(strength=4)
    assert settings_hash(before) == settings_hash(default) != settings_hash(other)
    config = {"method": {"n_context": 4}, "protocol": {"part": "test"}}  # of a record from before
    assert first_hash(before, config) == first_hash(default, config) != first_hash(other, config)
    old = Record(
        protocol="few_shot", dataset="x", backbone="b", method="m", shots=1, seed=1, status="finished",
        config=config, config_hash=first_hash(before, config),
    )  # fmt: skip
    assert is_same_run(old, default)
    assert not is_same_run(old, other)


def with_leaf(tree: dict[str, Any], path: str, value: int) -> dict[str, Any]:
    name, _, rest = path.partition(".")
    return {**tree, name: with_leaf(tree[name], rest, value) if rest else value}


@pytest.mark.parametrize("path", ["fit.x", "fit.schedule.x", "bank.x", "augment.x", "dataset.x", "dataset.source.x"])
def test_a_later_setting_of_any_section_changes_no_hash(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    defaults_of, before = identity.defaults_of, settings()
    hashes = settings_hash(before), first_hash(before, {})
    monkeypatch.setattr(identity, "defaults_of", lambda relevant: with_leaf(defaults_of(relevant), path, 3))
    default, other = with_leaf(before, path, 3), with_leaf(before, path, 4)
    assert (settings_hash(default), first_hash(default, {})) == hashes
    assert settings_hash(other) != hashes[0]
    assert first_hash(other, {}) != hashes[1]


@pytest.mark.parametrize(
    ("section", "change"),
    [
        ("fit", {"lr": 0.2}),
        ("fit", {"schedule": {"shape": "constant"}}),
        ("bank", {"views": 1}),
        ("method", {"depth": 1}),
    ],
)
def test_what_differs_makes_another_run(section: str, change: dict[str, Any]) -> None:
    assert settings_hash(settings()) != settings_hash({**settings(), section: {**settings()[section], **change}})


def test_defaults_are_no_part_of_a_hash() -> None:
    shorter = settings() | {"bank": {}, "protocol": {"_target_": "vlprompt.protocols.few_shot.FewShot"}}
    shorter |= {"fit": {"lr": 0.1, "epochs": 2, "schedule": {}}}
    assert settings_hash(settings()) == settings_hash(shorter)


@pytest.mark.parametrize("text", [f"{'a' * 300}.x", "~nobody/x.y", "a photo. of a"])
def test_a_text_that_is_no_path_stays(text: str) -> None:
    assert identity.with_contents({"ctx_init": text}) == {"ctx_init": text}
