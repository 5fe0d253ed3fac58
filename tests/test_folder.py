"""Data sets of one's own: layouts, tables, names, the stored split, odd image files, and a whole run."""

import errno
import json
import logging
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from io import StringIO
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from PIL import Image
from running import ask, check_mistake

from vlprompt import cli, sweep
from vlprompt.config.build import clip_at
from vlprompt.config.compose import compose, with_quotes
from vlprompt.config.datasets import load_dataset
from vlprompt.config.paths import data_root
from vlprompt.config.schema import read_settings
from vlprompt.data.dataset import PARTS, Dataset
from vlprompt.data.disk import complain
from vlprompt.data.sources import digits, folder
from vlprompt.data.sources.files import Files
from vlprompt.data.sources.layouts import warn
from vlprompt.errors import UserError
from vlprompt.learners.linear_probe import LinearProbe
from vlprompt.results.costs import costs_of_use
from vlprompt.textfiles import absolute


@pytest.fixture(autouse=True)
def no_warning_was_given() -> None:
    warn.cache_clear()
    complain.cache_clear()


def draw(path: Path, shade: int = 0, suffix: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (4, 3), shade).save(path)
    return path


def fill(root: Path, **n: int) -> Path:
    """n[name] images below root/name; `train__cat` stands for train/cat."""
    for name, count in n.items():
        folder = root / name.replace("__", "/")
        folder.mkdir(parents=True, exist_ok=True)
        for i in range(count):
            draw(folder / f"{i:02d}.png", i)
    return root


def load(root: Path, **more: Any) -> Dataset:
    return folder.load("folder", path=str(root), **more)


def same(one: Dataset, other: Dataset) -> bool:
    return (one.name, one.fingerprint()) == (other.name, other.fingerprint())


def images(dataset: Dataset) -> dict[str, set[str]]:
    return {part: {item.image for item in getattr(dataset, part)} for part in PARTS}


def counts(dataset: Dataset) -> dict[str, list[int]]:
    """Of each class: its images in train, val and test."""
    labels = {part: Counter(item.label for item in getattr(dataset, part)) for part in PARTS}
    return {name: [labels[part][label] for part in PARTS] for label, name in enumerate(dataset.classes)}


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


# layouts


def test_class_folders_are_split_50_20_30_and_the_split_is_stored(tmp_path: Path) -> None:
    dataset = load(fill(tmp_path, cat=10, big_dog=20, ant=2, bee=5))
    assert counts(dataset) == {"ant": [1, 0, 1], "bee": [2, 2, 1], "big_dog": [10, 4, 6], "cat": [5, 2, 3]}
    stored = json.loads((tmp_path / folder.STORED).read_text())
    for part in PARTS:
        entries = [[item.image, item.label, dataset.classes[item.label]] for item in getattr(dataset, part)]
        assert stored[part] == entries
    assert sum(map(len, images(dataset).values())) == len(set().union(*images(dataset).values())) == 37
    assert images(dataset)["train"] != {f"cat/{i:02d}.png" for i in range(5)}  # shuffled
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_file()) == [folder.STORED]  # no draft is left


def test_the_split_of_a_class_depends_on_that_class_alone(tmp_path: Path) -> None:
    few = load(fill(tmp_path / "a", cat=20, dog=4))
    many = load(fill(tmp_path / "b", cat=20, dog=9, ant=9))
    of_cats = [{image for image in images(d)["test"] if image.startswith("cat/")} for d in (few, many)]
    assert of_cats[0] == of_cats[1] != set()


def test_part_folders_are_taken_as_they_are(tmp_path: Path) -> None:
    fill(tmp_path, Training__cat=3, Training__dog=2, valid__cat=1, test__dog=2)
    (tmp_path / "valid" / "dog").mkdir()  # empty, but not for training
    dataset = load(tmp_path)
    assert counts(dataset) == {"cat": [3, 1, 0], "dog": [2, 0, 2]}
    assert images(dataset)["val"] == {"valid/cat/00.png"}
    assert not (tmp_path / folder.STORED).exists()


@pytest.mark.parametrize(
    ("tree", "expected", "warning"),
    [
        ({"train__cat": 10, "train__dog": 1, "test__cat": 2, "test__dog": 3}, {"cat": [8, 2, 2], "dog": [1, 0, 3]}, ""),
        ({"train__cat": 5, "train__dog": 5, "val__cat": 2, "val__dog": 3}, {"cat": [4, 1, 2], "dog": [4, 1, 3]},
         "the validation images are the test"),
        ({"train__cat": 10, "train__dog": 10}, {"cat": [5, 2, 3], "dog": [5, 2, 3]}, ""),
        ({"bus": 4, "train": 4, "train__steam": 6}, {"bus": [2, 1, 1], "train": [5, 2, 3]}, ""),  # a class called train
    ],
)  # fmt: skip
def test_parts_that_are_not_given(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, tree: dict[str, int], expected: dict[str, Any], warning: str
) -> None:
    dataset = load(fill(tmp_path, **tree))
    assert counts(dataset) == expected
    assert same(load(tmp_path), dataset)
    assert [warning in text for text in warnings(caplog)] == [True] * bool(warning)


def test_what_lies_next_to_part_folders_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    dataset = load(fill(tmp_path, train__cat=2, train__dog=2, test__cat=1, masks=3, train=1))
    assert dataset.classes == ("cat", "dog")
    assert ["masks" in text for text in warnings(caplog)] == [True, False]
    assert "left out: 1" in warnings(caplog)[1]


def test_what_is_no_image_is_skipped(tmp_path: Path) -> None:
    fill(tmp_path, cat=2, dog=2, **{".hidden": 2, "__MACOSX": 0, "cat__.thumbs": 1})
    draw(tmp_path / "__MACOSX" / "cat" / "a.png")
    draw(tmp_path / "cat" / "._00.png")
    for junk in ("cat/.DS_Store", "cat/Thumbs.db", "dog/notes.txt", "README.md", "dog/jpg"):
        (tmp_path / junk).write_bytes(b"x")
    assert counts(load(tmp_path)) == {"cat": [1, 0, 1], "dog": [1, 0, 1]}


def test_links_depths_and_letters_of_any_kind(tmp_path: Path) -> None:
    base, other = tmp_path / "my päges" / "ün", tmp_path / "other"
    draw(base / "Schöne Katze" / "tief" / "sehr tief" / "a b.JPG")
    draw(base / "Schöne Katze" / "写真 1.PNG")
    draw(base / "do\u0308g" / "a.png")  # the o and its dots are two letters, as macOS has it
    draw(other / "x.png")
    (base / "Schöne Katze" / "circle").symlink_to(base / "Schöne Katze", target_is_directory=True)
    (base / "do\u0308g" / "b.png").symlink_to(other / "x.png")
    (base / "linked").symlink_to(other, target_is_directory=True)
    draw(other / "y.png")
    dataset = load(base)
    assert counts(dataset) == {"Schöne Katze": [1, 0, 1], "dög": [1, 0, 1], "linked": [1, 0, 1]}
    assert same(load(base), dataset)
    assert dataset.name.startswith("folder-ün-")
    for item in (*dataset.train, *dataset.test):
        assert dataset.open_image(item.image).mode == "RGB"


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({}, "has no class folders: put the images of each class"),
        ({"cat": 2}, "has one class, 'cat'"),
        ({"train__cat": 2, "test__cat": 1}, "has one class, 'cat'"),
        ({"cat": 3, "dog": 1}, "class 'dog' has one image"),
        ({"train": 3, "test": 3}, "test has no class folders"),
        ({"train__cat": 2, "train__dog": 2, "test": 3}, "test has no class folders"),
        ({"test__cat": 2, "test__dog": 2}, "no training images"),
        ({"train__cat": 2, "train__dog": 2, "test__cat": 0, "test__dog": 0}, "test holds no images"),
        ({"train__cat": 2, "train__dog": 2, "test__cat": 1, "val__dog": 0}, "val holds no images"),
        ({"train__cat": 2, "train__dog": 2, "val__cat": 1, "validation__cat": 1}, "mean the same"),
        ({"train__cat": 2, "train__dog": 2, "test__ant": 2}, "class 'ant' has no training images"),
        ({"cat": 2, "dog": 2, "ant": 0}, "ant holds no images"),
        ({"train__cat": 2, "train__dog": 2, "train__ant": 0, "test__cat": 1}, "ant holds no images"),
    ],
)
def test_a_wrong_layout_is_explained(tmp_path: Path, tree: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load(fill(tmp_path, **tree))
    assert "\n" not in str(caught.value)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    for path in (None, "", "  "):
        with pytest.raises(UserError, match=r"dataset\.root=PATH"):
            folder.load("folder", path=path)
    with pytest.raises(UserError, match="nowhere is no folder"):
        load(tmp_path / "nowhere")
    (fill(tmp_path, cat=2, dog=2) / "cat" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(UserError, match=r"gone\.png"):
        load(tmp_path)


@pytest.mark.skipif(os.name == "nt" or os.uname().sysname == "Darwin", reason="file names are Unicode there")
def test_a_name_in_no_alphabet_is_refused(tmp_path: Path) -> None:
    fill(tmp_path, cat=2, dog=2)
    draw(tmp_path / "a.png").rename(os.fsdecode(bytes(tmp_path / "cat") + b"/\xff.png"))
    with pytest.raises(UserError, match="is not in UTF-8"):
        load(tmp_path)


# the stored split


def test_a_new_image_does_not_reshuffle(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = load(fill(tmp_path, cat=10, dog=10))
    stored = (tmp_path / folder.STORED).read_bytes()
    draw(tmp_path / "cat" / "99.png")
    fill(tmp_path, ant=12)
    for _ in range(2):
        assert same(load(tmp_path), before)
    (text,) = warnings(caplog)
    assert "ant/00.png" in text
    assert "and 3 more" in text
    assert "ant/10.png" not in text
    assert (tmp_path / folder.STORED).read_bytes() == stored
    (tmp_path / folder.STORED).unlink()
    assert counts(load(tmp_path)) == {"ant": [6, 2, 4], "cat": [6, 2, 3], "dog": [5, 2, 3]}


def test_a_missing_image_of_the_stored_split_is_an_error(tmp_path: Path) -> None:
    load(fill(tmp_path, cat=4, dog=4))
    (tmp_path / "dog" / "02.png").unlink()
    with pytest.raises(UserError, match=r"dog/02\.png of the stored split is not there") as caught:
        load(tmp_path)
    assert str(tmp_path / folder.STORED) in str(caught.value)


def test_an_image_that_changed_its_part_is_an_error(tmp_path: Path) -> None:
    fill(tmp_path, cat=4, dog=4)
    dataset = load(tmp_path)
    moved = dataset.test[0].image
    rows = [f"{item.image},{dataset.classes[item.label]},{part}" for part in ("train", "test")
            for item in getattr(dataset, part) if item.image != moved]  # fmt: skip
    rows += [f"{item.image},{dataset.classes[item.label]},train" for item in dataset.val]
    (tmp_path / "table.csv").write_text("\n".join(["path,label,split", *rows, f"{moved},cat,train"]))
    with pytest.raises(UserError, match=f"{moved} is in train, but .* has it in test"):
        load(tmp_path, labels="table.csv")


@pytest.mark.parametrize("content", ["{", '{"train": []}', '{"train": [["cat/00.png", 0]], "val": [], "test": []}'])
def test_a_damaged_stored_split_is_explained(tmp_path: Path, content: str) -> None:
    fill(tmp_path, cat=4, dog=4)
    (tmp_path / folder.STORED).write_text(content)
    with pytest.raises(UserError, match=f"not a valid split file: .*delete .*{folder.STORED} to split again"):
        load(tmp_path)


def test_the_split_can_be_stored_elsewhere(tmp_path: Path) -> None:
    fill(tmp_path / "data", cat=4, dog=4)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot store .*/file/split\.json .*: set dataset\.split=FILE"):
        load(tmp_path / "data", stored=str(tmp_path / "file" / "split.json"))
    load(tmp_path / "data", stored=str(tmp_path / "split.json"))
    assert (tmp_path / "split.json").is_file()
    assert not (tmp_path / "data" / folder.STORED).exists()


def test_the_name_identifies_a_data_set_wherever_it_lies(tmp_path: Path) -> None:
    first = load(fill(tmp_path / "a" / "my pets!", cat=4, dog=4))
    assert first.name.rpartition("-")[0] == "folder-my_pets_"
    shutil.move(tmp_path / "a", tmp_path / "b")
    assert load(tmp_path / "b" / "my pets!").name == first.name
    other = fill(tmp_path / "c" / "my pets!", cat=4, dog=4)
    Image.effect_noise((50, 50), 90).save(other / "cat" / "00.png")
    assert load(other).fingerprint() == first.fingerprint()
    assert load(other).name != first.name


def read_only(monkeypatch: pytest.MonkeyPatch, tree: Path) -> None:
    """As if `tree` lay on a file system that cannot be written."""
    real = folder.whole_file

    @contextmanager
    def whole_file(path: Path) -> Iterator[Path]:
        if path.is_relative_to(tree):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        with real(path) as draft:
            yield draft

    monkeypatch.setattr(folder, "whole_file", whole_file)


def test_images_that_cannot_be_written_to(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The split is made again each time, always alike; a note says how to keep it."""
    tree = fill(tmp_path / "data", cat=10, dog=10)
    read_only(monkeypatch, tree)
    first = load(tree)
    assert same(load(tree), first)
    (text,) = warnings(caplog)
    assert all(word in text for word in ("Read-only", str(tree / folder.STORED), "dataset.split=FILE"))
    assert same(load(tree, stored=str(tmp_path / "split.json")), first)
    draw(tree / "cat" / "99.png")
    assert same(load(tree, stored=str(tmp_path / "split.json")), first)
    with pytest.raises(UserError, match=r"cannot store .*Read-only.*dataset\.split=FILE"):
        load(tree, stored=str(tree / "other.json"))


GIVEN = [parts for n in (1, 2, 3) for parts in combinations(PARTS, n)]


@pytest.mark.parametrize("before", [parts for parts in GIVEN if "train" in parts])
@pytest.mark.parametrize("after", GIVEN)
def test_parts_that_come_and_go(tmp_path: Path, before: tuple[str, ...], after: tuple[str, ...]) -> None:
    """Every combination is read, and again, or refused for good; what its advice says helps the first time."""

    def attempt() -> str:
        try:
            first = load(tmp_path)
        except UserError as error:
            return str(error)
        assert same(load(tmp_path), first)
        return ""

    for part in before:
        fill(tmp_path, **{f"{part}__{name}": 6 for name in ("cat", "dog")})
    assert attempt() == ""
    for part in set(before) - set(after):
        shutil.rmtree(tmp_path / part)
    for part in set(after) - set(before):
        fill(tmp_path, **{f"{part}__{name}": 6 for name in ("cat", "dog")})
    text = attempt()
    assert ("no training images" in text) == ("train" not in after)
    if text and "train" in after:
        assert f"delete {tmp_path / folder.STORED}" in text
        (tmp_path / folder.STORED).unlink()
        assert attempt() == ""


def test_a_table_of_other_labels_says_what_to_delete(tmp_path: Path) -> None:
    """The same images, split for the labels of another table: one class has no training images then."""
    fill(tmp_path, pics=12)
    rows = [f"pics/{i:02d}.png,{i % 2}" for i in range(12)]
    trained = {item.image for item in load(tmp_path, labels=table(tmp_path, "\n".join(["path,label", *rows]))).train}
    other = [f"pics/{i:02d}.png,{'a' if f'pics/{i:02d}.png' in trained else 'b'}" for i in range(12)]
    file = table(tmp_path, "\n".join(["path,label", *other]))
    with pytest.raises(UserError, match=f"'b' has no training images.* delete {tmp_path / folder.STORED}"):
        load(tmp_path, labels=file)
    (tmp_path / folder.STORED).unlink()
    assert load(tmp_path, labels=file).classes == ("a", "b")


# tables


def table(root: Path, text: str) -> str:
    (root / "my labels.csv").write_text(text, encoding="utf-8")
    return "my labels.csv"


def test_a_table_with_parts(tmp_path: Path) -> None:
    fill(tmp_path, pics=6)
    file = table(
        tmp_path,
        "\ufeffID, Split ,label,Path\n1,train,dög,pics/00.png\n2,Train,cat,./pics/01.png\n3,test,cat,pics/02.png\n"
        f'4,valid,"cat","pics/03.png"\n5,test,dög,{tmp_path}/pics/04.png\n5,test,dög,pics/04.png\n',
    )
    dataset = load(tmp_path, labels=file)
    assert counts(dataset) == {"cat": [1, 1, 1], "dög": [1, 0, 1]}
    assert images(dataset)["test"] == {"pics/02.png", "pics/04.png"}
    assert same(load(tmp_path, labels=str(tmp_path / file)), dataset)


def test_a_table_without_parts_is_split(tmp_path: Path) -> None:
    fill(tmp_path, pics=20)
    rows = [f"pics/{i:02d}.png,{i % 2}" for i in range(20)]
    dataset = load(tmp_path, labels=table(tmp_path, "\n".join(["path,label", *rows])))
    assert counts(dataset) == {"0": [5, 2, 3], "1": [5, 2, 3]}
    assert (tmp_path / folder.STORED).is_file()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "begins with '', allowed is the header path,label,split"),
        ("pics/00.png,cat\n", "begins with 'pics/00.png,cat', allowed"),
        ("path|label\n", "begins with 'path|label', allowed"),
        ("path,label,label\n", "two columns 'label'"),
        ("path,label\npics/00.png,crane, bird\n", "line 2 has 3 cells, the header 2"),
        ("path;label\npics/00.png;crane; bird\n", "line 2 has 3 cells, the header 2"),
        ('path,label\npics/00.png,"cat"x\n', "line 2 is no row of a CSV file"),
        ("path,label\npics/00.png\n", "line 2: path or label is empty"),
        ("path,label\npics/00.png,cat\npics/77.png,cat\n", "line 3: there is no file .*77.png; paths are relative"),
        ("path,label\n../x.png,cat\n", "line 2: ../x.png is not below"),
        ("path,label\n/etc/x.png,cat\n", "line 2: /etc/x.png is not below"),
        ("path,label,split\npics/00.png,cat,tset\n", "line 2: split is 'tset', allowed are train, val and test"),
        ("path,label,split\npics/00.png,cat\n", "line 2: split is ''"),
        ("path,label\npics/00.png,cat\npics/00.png,dog\n", "line 3: pics/00.png has another label or split"),
        ("path,label\n", "has no images"),
        ("path,label\npics/00.png,cat\n", "has one class, 'cat'"),
        ("path,label,split\npics/00.png,cat,test\npics/01.png,dog,test\n", "no training images"),
        ('path,label\n"pics/00.png,cat\n', "line 2 is no row of a CSV file"),
    ],
)
def test_a_wrong_table_is_explained(tmp_path: Path, text: str, message: str) -> None:
    fill(tmp_path, pics=2)
    with pytest.raises(UserError, match=message):
        load(tmp_path, labels=table(tmp_path, text))


def test_a_table_in_another_encoding_or_nowhere(tmp_path: Path) -> None:
    fill(tmp_path, pics=2)
    (tmp_path / "a.csv").write_bytes("path,label\npics/00.png,dög\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"a\.csv is not in UTF-8"):
        load(tmp_path, labels="a.csv")
    with pytest.raises(UserError, match=r"dataset\.labels=b\.csv: there is no such file"):
        load(tmp_path, labels="b.csv")


# names


@pytest.mark.parametrize(
    "text",
    ["n02,dog\nn01,cat, domestic\n", "n01\tcat, domestic\nn02\tdog\nn03\tunused\n", "cat, domestic\n\ndog\n",
     "\ufefffolder,name\nn01,cat, domestic\nn02,dog", '"n01","cat, domestic"\r\n"n02","dog"\r\n',
     "n02;dog\nn01;cat, domestic",
     'sep=;\nn01;"cat, domestic"\nn02;dog\n', 'name\n"cat, domestic"\ndog\n',
     'n01, "cat,\ndomestic"\nn02, dog\n;\n'],
)  # fmt: skip
def test_names_from_a_file(tmp_path: Path, text: str) -> None:
    fill(tmp_path, n01=4, n02=2)
    (tmp_path / "names.txt").write_text(text, encoding="utf-8")
    assert counts(load(tmp_path, names="names.txt")) == {"cat, domestic": [2, 1, 1], "dog": [1, 0, 1]}


def test_names_may_repeat_and_change_after_the_split(tmp_path: Path) -> None:
    before = load(fill(tmp_path, n01=4, n02=4))
    (tmp_path / "names.txt").write_text("crane\ncrane\n")
    after = load(tmp_path, names="names.txt")
    assert after.classes == ("crane", "crane")
    assert images(after) == images(before)
    assert after.name != before.name


def test_numbered_folders_are_in_the_order_of_numbers(tmp_path: Path) -> None:
    fill(tmp_path, **{str(i): 2 for i in range(11)})
    (tmp_path / "names.txt").write_text("\n".join(f"name {i}" for i in range(11)))
    dataset = load(tmp_path, names="names.txt")
    assert dataset.classes[10] == "name 10"
    assert {item.image.split("/")[0] for item in dataset.train if item.label == 10} == {"10"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cat\n", "has 1 names for 2 classes .'n01' to 'n02'.: .* lines such as 'n01,NAME'"),
        ("n01,cat\nn03,dog\n", "has no name for 'n02': add a line 'n02,NAME'"),
        ("n01,cat\nn02,\n", "has no name for 'n02'"),
        ("", "has 0 names"),
        ("n01,cat,animal\nn02,dog,animal\n", "line 1 has 3 cells, allowed are two"),
        ("n01, cat, 1\nn02, dog, 2\n", "line 1 has 3 cells, allowed are two"),
        ('n01,"cat\nn02,dog\n', "line 1 is no row of a CSV file"),
        ('n02,dog\nn01,"cat"s\n', "line 2 is no row of a CSV file"),
        ("n01,cat\nn02,dog\nn01,bird\n", "line 3: 'n01' has another name"),
        ("N1,cat\nN2,dog\n", "the first is none of the classes .'n01' to 'n02'.: give lines such as 'n01,NAME'"),
        ("cat,n01\ndog,n02\n", "the first is none of the classes"),
        ("cat, domestic\ndog, wild\n", "put quotes around names that hold a comma"),
        ("n02\nn01\n", "own names in another order"),
        ("n01 cat\nn02 dog\n", "begin with the classes .'n01 cat'.: give lines such as 'n01,NAME'"),
        ("n01: cat\nn02: dog\n", "begin with the classes"),
    ],
)  # fmt: skip
def test_a_wrong_file_of_names_is_explained(tmp_path: Path, text: str, message: str) -> None:
    fill(tmp_path, n01=2, n02=2)
    (tmp_path / "names.txt").write_text(text)
    with pytest.raises(UserError, match=message):
        load(tmp_path, names="names.txt")


def test_names_in_another_encoding(tmp_path: Path) -> None:
    fill(tmp_path, n01=2, n02=2)
    for encoding in ("utf-16", "latin-1"):
        (tmp_path / "names.txt").write_text("n01,kätzchen\nn02,dog\n", encoding=encoding)
        with pytest.raises(UserError, match=r"names\.txt is not in UTF-8 .*: save it as UTF-8"):
            load(tmp_path, names="names.txt")


@pytest.mark.parametrize("names", ["big_cat\nbig cat\ndog\n", "A_Cat\na cat\na_cat\n"])
def test_classes_with_one_prompt_are_named_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, names: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(fill(tmp_path, n01=3, n02=3, n03=3))
    (tmp_path / "names.txt").write_text(names)
    settings = read_settings(compose(["dataset=folder", f"dataset.root={tmp_path}", "dataset.names=names.txt"]))
    for _ in range(2):
        load_dataset(settings, settings.dataset)
    (text,) = warnings(caplog)
    assert "same prompt" in text
    assert all(name in text for name in names.split("\n") if name != "dog")
    assert "dog" not in text


# image files


def test_classes_of_one_picture_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fill(tmp_path, cat=4, dog=4, ant=4)
    load(tmp_path)
    assert warnings(caplog) == []  # files of one size, but other pictures
    for i in range(4):
        draw(tmp_path / "cat" / f"{i:02d}.png", 7)
        draw(tmp_path / "ant" / f"{i:02d}.png", i // 3)
    load(tmp_path)
    (text,) = warnings(caplog)
    assert ("'cat'" in text, "'dog'" in text, "'ant'" in text) == (True, False, False)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("whole", [True, False])
def test_pixels_that_are_no_numbers(tmp_path: Path, value: float, whole: bool) -> None:
    pixels = np.full((3, 4), value, "<f4")
    pixels[whole:] = value if whole else 1.0
    pixels[0, 0] = value
    Image.fromarray(pixels).save(tmp_path / "a.tif")
    for as_shown in (False, True):
        with pytest.raises(UserError, match=r"a\.tif cannot be read .*NaN or infinite"):
            opened(tmp_path / "a.tif", as_shown=as_shown)


RAMP = np.arange(6, dtype=np.float64).reshape(2, 3) / 5


def opened(path: Path, **more: Any) -> np.ndarray:
    image = Files(path.parent, **more)(path.name)
    assert image.mode == "RGB"
    return np.asarray(image)


@pytest.mark.parametrize(
    ("kind", "scale", "suffix"),
    [("<u2", 65535, "png"), ("<u2", 65535, "tif"), (">u2", 65535, "tif"), ("<i4", 65535, "tif"),
     ("<i4", 10**6, "tif"), ("<f4", 1, "tif"), ("u1", 255, "png")],
)  # fmt: skip
def test_deep_grey_values_are_scaled_not_clipped(tmp_path: Path, kind: str, scale: float, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(np.round(RAMP * scale, 3).astype(kind)).save(path)
    for as_shown in (False, True):
        grey = opened(path, as_shown=as_shown)
        assert np.abs(grey - (RAMP * 255)[..., None]).max() <= 1


def test_dark_and_flat_images(tmp_path: Path) -> None:
    Image.fromarray((RAMP * 257).astype("<u2")).save(tmp_path / "dark.png")
    assert opened(tmp_path / "dark.png").max() == 1
    Image.fromarray(np.full((2, 2), 3, "<f4")).save(tmp_path / "flat.tif")
    assert opened(tmp_path / "flat.tif").tolist() == [[[0, 0, 0]] * 2] * 2


def transparent(mode: str) -> Image.Image:
    """A dark pixel, and a transparent one that is red (grey) underneath."""
    image = Image.new("RGBA", (2, 1), (40, 0, 0, 255))
    image.putpixel((1, 0), (200, 0, 0, 0))
    if mode != "P":
        return image.convert(mode)
    palette = Image.new("P", (2, 1))
    palette.putpalette([40, 0, 0, 200, 0, 0])
    palette.putpixel((1, 0), 1)
    return palette


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
@pytest.mark.filterwarnings("error")
def test_transparent_pixels(tmp_path: Path, mode: str) -> None:
    """White where people see white; what is underneath where the published code sees that."""
    transparent(mode).save(tmp_path / "a.png", **({"transparency": b"\xff\x00"} if mode == "P" else {}))
    with Image.open(tmp_path / "a.png") as stored:
        assert stored.mode == mode
    assert opened(tmp_path / "a.png", as_shown=True)[0, 1].tolist() == [255, 255, 255]
    for as_shown in (False, True):
        assert opened(tmp_path / "a.png", as_shown=as_shown)[0, 0, 0] in (40, 12)
    assert opened(tmp_path / "a.png")[0, 1, 0] in (200, 60)


def test_a_palette_without_transparency(tmp_path: Path) -> None:
    transparent("P").save(tmp_path / "a.gif")
    assert opened(tmp_path / "a.gif", as_shown=True)[0].tolist() == [[40, 0, 0], [200, 0, 0]]


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_exif_turns_images_of_a_folder_only(tmp_path: Path, suffix: str) -> None:
    exif = Image.Exif()
    exif[274] = 6  # the first row is the right side
    pixels = np.zeros((16, 32), np.uint8)
    pixels[:8] = 255
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(pixels).save(path, exif=exif)
    shown, stored = opened(path, as_shown=True), opened(path)
    assert (shown.shape, stored.shape) == ((32, 16, 3), (16, 32, 3))
    assert shown[:, 12:].min() > 200
    assert shown[:, :4].max() < 50
    dataset = load(fill(tmp_path / "pets", cat=2, dog=2))
    draw(tmp_path / "pets" / "cat" / "00.png")
    shutil.copy(path, tmp_path / "pets" / "cat" / f"turned.{suffix}")
    assert dataset.open_image(f"cat/turned.{suffix}").size == (16, 32)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_broken_exif_is_no_broken_image(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    Image.new("L", (8, 4), 200).save(path, exif=b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\x00\xff\x01\x12")
    assert opened(path, as_shown=True).shape == (4, 8, 3)


# where paths lead


@pytest.fixture
def visited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder `pets` in the home folder, and a working directory next to it, reached through a link."""
    fill(tmp_path / "pets", cat=4, dog=4)
    (tmp_path / "there/deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "there/deep")
    (tmp_path / "there/pets").symlink_to(tmp_path / "pets")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path / "there")
    return tmp_path


@pytest.mark.parametrize("root", ["../pets", "~/pets", "~/there/../pets", "pets", "../link/../pets", "deep/../pets/."])
def test_a_root_is_seen_from_the_working_directory(visited: Path, root: str) -> None:
    assert same(folder.load("folder", path=root), load(visited / "pets"))


def test_the_working_directory_itself_and_the_one_above(visited: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = load(visited / "pets").name
    for here, root in (("pets", "."), ("pets/cat", "..")):
        monkeypatch.chdir(visited / here)
        assert folder.load("folder", path=root).name == name


@pytest.mark.parametrize("prefix", ["", "./", "cat/../", "~/pets/", "{home}/pets/", "{home}/there/pets/", "..\\pets\\"])
@pytest.mark.parametrize("root", ["../pets", "pets"])
def test_paths_in_a_table_are_seen_from_the_root(visited: Path, prefix: str, root: str) -> None:
    prefix = prefix.format(home=visited)
    slash = "\\" if "\\" in prefix else "/"
    names = sorted(path.relative_to(visited / "pets") for path in visited.glob("pets/*/*.png"))
    rows = [f"{prefix}{slash.join(name.parts)},{name.parent}" for name in names]
    (visited / "table.csv").write_text("\n".join(["path,label", *rows]))
    dataset = folder.load("folder", path=root, labels="~/table.csv", stored="../split.json")
    assert images(dataset) == images(folder.load("folder", path=root, stored="~/split.json"))
    assert (visited / "split.json").is_file()


@pytest.mark.parametrize("path", ["../out.png", "cat/../../out.png", "~/out.png", "{home}/out.png", "..\\out.png"])
def test_a_table_does_not_leave_the_root(visited: Path, path: str) -> None:
    draw(visited / "out.png")
    (visited / "table.csv").write_text(f"path,label\n{path.format(home=visited)},cat\ncat/00.png,cat\ndog/00.png,dog\n")
    for gaps in (False, True):
        with pytest.raises(UserError, match=r"line 2: .*out\.png is not below"):
            folder.load("folder", path="../pets", labels="../table.csv", present=gaps)


def test_names_by_a_path(visited: Path) -> None:
    (visited / "names.csv").write_text("cat,tabby\ndog,hound\n")
    for path in ("~/names.csv", "../names.csv", "deep/../../names.csv"):
        assert folder.load("folder", path="pets", names=path).classes == ("tabby", "hound")


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ("dataset.root=~/pets", "~/pets"),
        ("data.root=/home/Jürgen/Bilder (neu)", "/home/Jürgen/Bilder (neu)"),
        ("backbone.weights=~/w.pt", "~/w.pt"),
        ("dataset.root='~/a, b'", "~/a, b"),
        ("dataset.root=../pets", "../pets"),
    ],
)
def test_a_path_needs_no_second_quotes(given: str, read: str) -> None:
    assert OverridesParser.create().parse_override(with_quotes(given)).value() == read
    assert with_quotes("dataset.root=a,ü") == "dataset.root=a,ü"  # two values, perhaps
    assert with_quotes("fit.lr=~1") == "fit.lr=~1"


def test_data_below_a_root_with_dots(visited: Path) -> None:
    assert absolute("../link/../pets") == visited / "there/pets"  # what the system opens
    assert absolute("~/link") == visited / "link"
    assert data_root("~/data") == visited / "data"


# captions


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("t.csv", "image,caption\n1.jpg,A dog runs.\n"),
        ("t.csv", "path,text\n1.jpg,A dog runs.\n"),
        ("t.tsv", "filepath\ttitle\n1.jpg\tA dog runs.\n"),
        ("t.csv", 'image;"Description"\n1.jpg;"A dog, running"\n'),
        ("t.csv", "image_name| comment_number| comment\n1.jpg| 0| A dog runs.\n"),
        ("t.jsonl", '{"file_name": "1.jpg", "text": "A dog runs."}\n'),
        ("t.csv", "path,prompt\n1.jpg,A dog runs.\n"),
        ("t.json", '[\n {\n  "image": "1.jpg",\n  "caption": "A dog runs."\n }\n]\n'),  # of several lines
        ("t.json", '{"images": [{"file_name": "1.jpg"}], "annotations": [{"image_id": 1, "caption": "A dog"}]}'),
        ("t.json", '[{"image": "1.jpg", "conversations": [{"from": "gpt", "value": "A dog runs."}]}]'),
        ("t.tsv", "a very typical bus station\thttp://example.com/1.jpg\n"),
        ("t.txt", "1000268201.jpg#0\tA child in a pink dress .\n"),
        ("t.csv", "path,label\ncat/00.png,a small cat on a mat\ndog/00.png,two dogs in the snow\n"),
    ],
)
def test_captions_are_no_classes(tmp_path: Path, name: str, text: str) -> None:
    fill(tmp_path, cat=4, dog=4)
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=r"image-text pairs is not built.*a column label") as caught:
        load(tmp_path, labels=name)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("header", ["path,label,caption", "path,label,text"])
def test_captions_next_to_classes_are_ignored(tmp_path: Path, header: str) -> None:
    fill(tmp_path, cat=4, dog=4)
    rows = [f"{name}/{i:02d}.png,{name},a photo of one {name} number {i}" for name in ("cat", "dog") for i in range(4)]
    (tmp_path / "t.csv").write_text("\n".join([header, *rows]))
    assert load(tmp_path, labels="t.csv").classes == ("cat", "dog")


@pytest.mark.parametrize(
    ("name", "text", "do"),
    [
        ("t.json", '{"info": {"description": "COCO"}, "annotations": [{"category_id": 1}]}', "the header path"),
        ("t.jsonl", '{"file_name": "1.jpg", "label": 0, "text": "A dog"}', "the header path"),
        ("t.parquet", "PAR1", "save it as CSV"),
    ],
)
def test_other_files_than_tables_are_told_from_captions(tmp_path: Path, name: str, text: str, do: str) -> None:
    (fill(tmp_path, cat=4, dog=4) / name).write_text(text)
    with pytest.raises(UserError, match=rf"{name}.*{do}"):
        load(tmp_path, labels=name)


def test_class_names_of_many_words_are_classes(tmp_path: Path) -> None:
    names = ["a bird of the deep woods", "the old dog of my aunt"]
    rows = [f"{n}/{i:02d}.png,{names[n == 'dog']}" for n in ("cat", "dog") for i in range(4)]
    (fill(tmp_path, cat=4, dog=4) / "t.csv").write_text("\n".join(["path,label", *rows]))
    assert set(load(tmp_path, labels="t.csv").classes) == set(names)


@pytest.mark.parametrize(
    "files", [["0.tar"], ["0.tar.gz"], ["1.jpg", "1.txt"], ["a.parquet"], ["1.jpg", "metadata.csv"]]
)
def test_shards_and_pairs_are_no_class_folders(tmp_path: Path, files: list[str]) -> None:
    for file in files:
        (tmp_path / file).write_bytes(b"")
    with pytest.raises(UserError, match="image-text pairs is not built"):
        load(tmp_path)


# from nothing to a row of a table

RUN = ["dataset=folder", "protocol=few_shot", "shots=4", "fit.epochs=1", "bank.views=1", "workers=0"]
RUN += ["backbone=shapes_vit", "method=coop"]


@pytest.fixture
def scans(results: Path, tmp_path: Path) -> Path:
    """scikit-learn's digits as files, ten of each in a folder "zero" to "nine"; results go next to it."""
    source = digits.load("digits")
    for label, name in enumerate(source.classes):
        (tmp_path / "my scans" / name).mkdir(parents=True)
        for item in [item for item in source.train if item.label == label][:10]:
            source.open_image(item.image).convert("L").save(tmp_path / "my scans" / name / f"{item.image}.png")
    return tmp_path / "my scans"


def test_a_probe_needs_no_words_for_the_classes() -> None:
    probe = LinearProbe(clip_at("shapes_vit", "pretrained", torch.device("cpu")), ("Wald", "Wüste"))
    costs = costs_of_use(probe, autocast=nullcontext)
    assert costs["flops_per_image"] >= costs["flops_per_image_frozen"] > 0
    assert costs["flops_classes_frozen"] == 0


@pytest.mark.slow
def test_a_folder_of_scans_becomes_a_row(scans: Path) -> None:
    assert ask(sweep.main, [*RUN, f"dataset.root={scans}"]).code == 0
    assert counts(load(scans)) == {name: [5, 2, 3] for name in digits.CLASSES}
    table = pd.read_csv(StringIO(ask(cli.main, ["table", "--format", "csv"]).out))
    assert table["method"].tolist() == ["zero_shot", "coop"]
    assert set(table["dataset"]) == {load(scans).name}
    assert load(scans).name.startswith("folder-my_scans-")
    assert table["test"].between(0, 100).all()
    again = ask(sweep.main, [*RUN, f"dataset.root={os.path.relpath(scans)}"])
    assert (again.code, "is finished already" in again.out) == (0, True)


def test_mistakes_end_a_run_in_one_sentence(scans: Path) -> None:
    def check(words: str, *arguments: str) -> None:
        check_mistake(ask(sweep.main, [*RUN, *arguments]), [words], scans.parent)

    check("dataset.root=PATH")
    for key in ("root", "labels", "names", "split"):
        check(f"dataset.{key} is ''", f"dataset.{key}=")
    check("nowhere is no folder", "dataset.root=nowhere")
    check("dataset.root is 5", "dataset.root=5")
    parts = scans.parent / "parts"
    for name in ("five", "four", "one", "six"):
        shutil.copytree(scans / name, parts / "train" / name)
    for name in ("five", "four"):
        shutil.copytree(scans / name, parts / "test" / name)
    check("'novel'", f"dataset.root={parts}", "protocol=base_to_novel")
    damaged = sorted((scans / "nine").iterdir())[3]
    damaged.write_bytes(damaged.read_bytes()[:60])
    for workers in (0, 1):
        check(str(damaged), f"dataset.root={scans}", "shots=all", f"workers={workers}", "fit.epochs=1")
