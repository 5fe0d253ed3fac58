"""The feature bank: what is computed once, what is shared, what is never taken for something else."""

import errno
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from running import Answer, ask, check_mistake, succeed
from safetensors.torch import load_file
from test_runs import make_caltech
from tiny_world import CLASSES, PER_CLASS, RUN, load

from vlprompt import cli, demo, sweep
from vlprompt.config.build import clip_at, features_at
from vlprompt.data.cache.feature_files import FeatureFiles
from vlprompt.data.cache.features import FeatureCache, tower_key, view_name
from vlprompt.data.cache.image_keys import image_key
from vlprompt.data.cache.portable import Manifest, pack
from vlprompt.data.dataset import Item
from vlprompt.data.disk import complain, used_below
from vlprompt.data.sources.banked import Contents
from vlprompt.data.sources.files import Files
from vlprompt.data.transforms import Augment
from vlprompt.errors import UserError
from vlprompt.results.record import Record
from vlprompt.results.store import find_records
from vlprompt.towers import load_clip

N_TEST = len(CLASSES) * PER_CLASS["test"]
N_TRAIN = 2 * 3  # shots and base classes
EPOCHS = 2


@pytest.fixture
def here(results: Path, tmp_path: Path) -> Path:
    """An empty working directory with folders for results and data."""
    fresh_process()
    return tmp_path


def fresh_process() -> None:
    """Forget what a process keeps, as if the next run were another's."""
    features_at.cache_clear()
    used_below.cache_clear()
    complain.cache_clear()


def start(*overrides: str) -> Answer:
    answer = succeed(sweep.main, [*RUN, *overrides])
    fresh_process()
    return answer


def record_of(root: Path, **fields: object) -> Record:
    (record,) = (r for r in find_records([root]) if all(getattr(r, k) == v for k, v in fields.items()))
    return record


def tensors(record: Record, root: Path) -> dict[str, torch.Tensor]:
    return load_file(record.folder(root) / "learner.safetensors")


def bank_of(folder: Path, **more: Any) -> FeatureCache:
    clip = clip_at("shapes_vit", "random", torch.device("cpu"))
    return FeatureCache(
        clip, precision="fp32", workers=0, files=FeatureFiles(folder / tower_key(clip, "fp32"), 10**9), **more
    )


# What is shared


def test_features_are_computed_once_for_all_methods_seeds_and_learning_rates(here: Path) -> None:
    start("seed=1", "fit.epochs=1")
    assert record_of(here / "results", method="coop").bank["computed"] == N_TEST + 2 * N_TRAIN
    start("seed=1", "fit.lr=0.001", "name=lr", "fit.epochs=1")
    bank = record_of(here / "results", variant="lr").bank
    assert bank == {"test_features": True, "views": 2, "read": N_TEST + 2 * N_TRAIN, "computed": 0}
    start("method=cocoop", "fit.batch_size=2", "fit.epochs=1")
    bank = record_of(here / "results", method="cocoop").bank
    assert (bank["computed"], bank["read"]) == (0, N_TEST + 2 * N_TRAIN)
    start("seed=2", "fit.epochs=1")
    bank = record_of(here / "results", method="coop", seed=2).bank
    assert (bank["read"], bank["computed"]) == (N_TEST, 2 * N_TRAIN)  # each seed has its views


def test_a_view_for_each_epoch_is_banked_and_gives_what_pixels_give(here: Path) -> None:
    """As published: no image is seen twice alike; the bank changes no more than rounding."""
    start("bank.views=null", "name=banked")
    start("bank.views=null", "name=again", "fit.lr=0.002")
    start("bank.views=null", "bank.use=false", "name=pixels")
    root = here / "results"
    banked, again, pixels = (record_of(root, variant=name) for name in ("banked", "again", "pixels"))
    assert banked.bank["computed"] == N_TEST + EPOCHS * N_TRAIN
    assert (again.bank["read"], again.bank["computed"]) == (N_TEST + EPOCHS * N_TRAIN, 0)
    assert pixels.bank == {"test_features": False, "views": None}
    assert banked.config_hash == pixels.config_hash  # one and the same run
    ours, theirs = tensors(banked, root), tensors(pixels, root)
    for name, tensor in ours.items():
        assert (tensor - theirs[name]).norm() <= 1e-5 * theirs[name].norm()
        assert torch.equal(tensor, tensors(again, root)[name])
    assert banked.scores.keys() == pixels.scores.keys()


def test_nothing_is_stored_where_the_disk_is_not_to_be_used(here: Path) -> None:
    start("bank.gb=0")
    assert not list((here / "datasets").rglob("*.safetensors"))


# What is never taken for something else


def test_another_seed_augmentation_precision_or_model_is_another_feature(here: Path) -> None:
    clip = clip_at("shapes_vit", "random", torch.device("cpu"))
    names = {view_name(None, 1, Augment()), view_name(0, 1, Augment()), view_name(0, 2, Augment())}
    names |= {view_name(1, 1, Augment()), view_name(0, 1, Augment(flip=0.0)), view_name(0, 1, Augment((0.5, 1.0)))}
    assert len(names) == 6
    changed = clip.with_weights({"visual.conv1.weight": clip.weights.tensor("visual.conv1.weight") * 1.001})
    larger = replace(clip, preprocess=replace(clip.preprocess, size=64))
    text = clip.with_weights({"text_projection": clip.weights.tensor("text_projection") * 2})
    keys = [tower_key(clip, "fp32"), tower_key(clip, "bf16"), tower_key(changed, "fp32"), tower_key(larger, "fp32")]
    assert len(set(keys)) == len(keys)
    other = load_clip(str(demo.BACKBONES["shapes_vit"]), "random")
    assert tower_key(replace(other, name="renamed"), "fp32") == keys[0]
    root: Any = other.weights.root
    root.visual.transformer.resblocks[1].mlp.gelu = torch.nn.ReLU()
    assert tower_key(replace(other, name="again"), "fp32") != keys[0]  # the same weights, another activation
    assert tower_key(text, "fp32") == keys[0]  # the text tower makes no image feature


def test_a_changed_image_is_another(tmp_path: Path) -> None:
    picture = tmp_path / "a.png"
    dataset = load("world")
    Image.new("RGB", (20, 20), "red").save(picture)
    split = replace(dataset.split("test", [Item("a.png", 0)]), open_image=Files(tmp_path))
    bank = bank_of(tmp_path / "bank")
    red, key = bank.features(split), image_key(split, "a.png")
    Image.new("RGB", (20, 20), "lime").save(picture)
    assert image_key(split, "a.png") != key
    assert not torch.allclose(bank.features(split), red)
    assert bank.use.computed == 2
    shown = replace(split, open_image=Files(tmp_path, as_shown=True))
    assert image_key(shown, "a.png") != image_key(split, "a.png")
    picture.unlink()
    with pytest.raises(UserError, match=r"a\.png is missing"):
        bank.features(split)


def test_drawn_images_of_one_name_differ_by_their_data_set() -> None:
    one, other = (replace(load("tiny", style=style), origin=f"style {style}").split("test") for style in (0, 1))
    assert image_key(one, one.items[0].image) != image_key(other, other.items[0].image)


# Files


def test_a_damaged_or_deleted_file_is_made_again(tmp_path: Path) -> None:
    split = load("tiny").split("test")
    whole = bank_of(tmp_path).features(split)
    (path,) = tmp_path.rglob("*.safetensors")
    for damage in (lambda: path.write_bytes(b"nothing"), lambda: path.write_bytes(path.read_bytes()[:-9]), path.unlink):
        damage()
        bank = bank_of(tmp_path)
        assert torch.equal(bank.features(split), whole)
        assert (bank.use.read, bank.use.computed) == (0, len(split))
    bank = bank_of(tmp_path)
    assert torch.equal(bank.features(split), whole)
    assert (bank.use.read, bank.use.computed) == (len(split), 0)


def test_a_full_bank_stores_no_more_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fresh_process()
    files = FeatureFiles(tmp_path / "tower", 1000)
    files.write("crop", {"a": torch.ones(100)})
    files.write("crop", {"b": torch.ones(200)})
    assert files.read("crop", ["a", "b"]).keys() == {"a"}
    assert "is full: raise bank.gb" in caplog.text


def test_two_processes_fill_one_bank(tmp_path: Path) -> None:
    """At once, from the same start, with part of the rows in common."""
    code = (
        "import sys, torch; from pathlib import Path; from vlprompt.data.cache.feature_files import FeatureFiles\n"
        "files = FeatureFiles(Path(sys.argv[1]) / 'tower', 10**9); start = int(sys.argv[2])\n"
        "for i in range(30):\n"
        "    files.write('crop', {str(k): torch.full((8,), float(k)) for k in range(start + i, start + i + 20)})\n"
    )
    made = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path), start]) for start in ("0", "10")]
    assert [process.wait(120) for process in made] == [0, 0]
    rows = FeatureFiles(tmp_path / "tower", 10**9).read("crop", map(str, range(59)))
    assert {key: row[0].item() for key, row in rows.items()} == {str(k): float(k) for k in range(59)}
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix not in (".safetensors", ".json")]


# Packed


def test_a_packed_bank_stands_for_the_images(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Packed where the images are, unpacked where they are not: the same run with the same numbers."""
    make_caltech(here / "datasets")
    told = ["dataset=caltech101", "backbone=shapes_vit", "backbone.weights=random", *RUN[3:], "workers=0"]
    told += ["fit.epochs=1"]
    assert ask(sweep.main, [*told, "seed=1"]).code == 0
    assert ask(cli.main, ["bank", "pack", "caltech.bank", "--seeds", "1,2", "method=coop", *told]).code == 0

    laptop = here / "laptop"
    laptop.mkdir()
    monkeypatch.chdir(laptop)
    monkeypatch.setenv("VLPROMPT_DATA", str(laptop / "datasets"))
    monkeypatch.setenv("VLPROMPT_RESULTS", str(laptop / "results"))
    fresh_process()
    assert ask(sweep.main, [*told, "seed=1"]).code == 2  # neither images nor features
    answer = succeed(cli.main, ["bank", "unpack", "../caltech.bank"])
    assert "seed=1,2 precision=fp32" in answer.out
    assert ask(sweep.main, [*told, "seed=1"]).code == 0
    there, ours = (record_of(root / "results", method="coop", seed=1) for root in (here, laptop))
    assert ours.config_hash == there.config_hash
    assert ours.bank["computed"] == 0
    for name, tensor in tensors(ours, laptop / "results").items():
        assert torch.equal(tensor, tensors(there, here / "results")[name])
    assert ask(sweep.main, [*told, "seed=2"]).code == 0  # packed, though no run made it
    answer = ask(sweep.main, [*told, "seed=3"])
    assert answer.code == 2
    assert "the images of caltech101 are not here" in answer.err
    pixels = [setting for setting in told if "method." not in setting]
    answer = ask(sweep.main, [*pixels, "method=vpt_shallow"])
    assert (answer.code, "the images of caltech101 are not here" in answer.err) == (2, True), answer.err
    assert "fp32" in ask(cli.main, ["bank", "list"]).out


def test_a_method_that_reads_views_before_its_steps_is_packed_with_them(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_caltech(here / "datasets")
    told = ["dataset=caltech101", "backbone=shapes_vit", "backbone.weights=random", "shots=2", "workers=0"]
    told += ["method=tip_adapter", "method.n_views=3", "method.search_scale=null", "protocol=few_shot"]
    assert ask(cli.main, ["bank", "pack", "tip.bank", *told]).code == 0
    shutil.rmtree(here / "datasets")
    fresh_process()
    assert ask(cli.main, ["bank", "unpack", "tip.bank"]).code == 0
    answer = ask(sweep.main, told)
    assert answer.code == 0, answer.err
    assert record_of(here / "results", method="tip_adapter").bank["computed"] == 0


def test_a_damaged_file_does_not_stop_the_list(here: Path) -> None:
    start()
    path = next((here / "datasets").rglob("crop/*.safetensors"))
    path.write_bytes(path.read_bytes()[:50])
    assert "fp32" in succeed(cli.main, ["bank", "list"]).out


def test_methods_that_edit_the_image_tower_have_no_use_for_a_bank(here: Path) -> None:
    command = ["bank", "pack", "x.bank", "method=vpt_shallow", "dataset=digits", "backbone.weights=random"]
    check_mistake(ask(cli.main, command), ["vpt_shallow edits the image tower"], here)


def test_features_that_cannot_be_stored_are_no_success(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = packed(here)
    monkeypatch.setattr("vlprompt.data.cache.feature_files.save_file", full_disk)
    check_mistake(ask(cli.main, ["bank", "unpack", str(path)]), ["not all features could be stored"], here)


def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_file_that_vanishes_counts_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"12345")
    (tmp_path / "b.safetensors").symlink_to(tmp_path / "gone")
    assert used_below(tmp_path, "*.safetensors") == [5]


@pytest.mark.parametrize("damage", ["cut", "text", "foreign", "climbing", "rows", "tower"])
def test_a_file_that_is_no_packed_bank_changes_nothing(here: Path, damage: str) -> None:
    path = packed(here, "../../outside" if damage == "tower" else "0123456789abcdef")
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-40])
    elif damage == "text":
        path.write_text("a letter")
    elif damage in ("foreign", "climbing", "rows"):
        with zipfile.ZipFile(path, "a") as archive:
            name = {"foreign": "run.sh", "climbing": "../../evil.py", "rows": "features/crop2.safetensors"}[damage]
            archive.writestr(name, "nothing")
    check_mistake(ask(cli.main, ["bank", "unpack", str(path)]), [f"{path} is no packed feature bank"], here)
    assert not (here / "datasets").exists()
    assert not (here / "evil.py").exists()


def packed(folder: Path, tower: str = "0123456789abcdef") -> Path:
    path = folder / "made.bank"
    manifest = Manifest(tower=tower, about={"model": "m", "precision": "fp32"}, command="python run.py")
    contents = Contents(name="world", classes=("a", "b"), train=[("1", 0, "ab")], val=[], test=[("2", 1, "")])
    pack(path, manifest, {"00ff00ff": contents}, {"crop": {"ab": torch.ones(4)}})
    return path
