"""A data set of which only a part is on the disk: counted by class, and read without the classes that lack images."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
from running import ask, check_mistake
from test_folder import draw, fill
from test_imagenet import make as make_imagenet
from tiny_data import CATALOGUE

from vlprompt import cli, sweep
from vlprompt.config.compose import compose
from vlprompt.config.datasets import load_dataset, load_datasets, load_source, stored_name
from vlprompt.config.identity import result_settings
from vlprompt.config.schema import read_settings
from vlprompt.data.dataset import PARTS, Dataset
from vlprompt.data.disk import complain
from vlprompt.data.presence import gaps, summary
from vlprompt.data.sources import folder, imagenet
from vlprompt.data.sources.layouts import warn
from vlprompt.errors import UserError

CLASSES = ("ant", "bee", "cat", "dog", "emu")
N_EACH = 6


@pytest.fixture(autouse=True)
def no_warning_was_given() -> None:
    complain.cache_clear()
    warn.cache_clear()


def lay_out(root: Path, name: str = "dtd") -> Path:
    """A published data set of five classes, labels in another order than names; -> the folder of its images."""
    source = CATALOGUE[name].source
    base, order = root / source["folder"], [3, 0, 4, 1, 2]
    split: dict[str, list[Any]] = {part: [] for part in PARTS}
    for label, index in enumerate(order):
        for i in range(N_EACH):
            image = f"{CLASSES[index]}/{i}.png"
            draw(base / source["images"] / image, 10 * label + i)
            split[PARTS[i // 2]].append([image, label, CLASSES[index]])
    (base / source["split"]).write_text(json.dumps(split))
    return base / source["images"]


def load(root: Path, name: str = "dtd", **more: Any) -> Dataset:
    return load_source(name, CATALOGUE[name].source, root, **more)


def by_class(dataset: Dataset) -> dict[str, set[str]]:
    return {
        name: {i.image for part in PARTS for i in getattr(dataset, part) if i.label == label}
        for label, name in enumerate(dataset.classes)
    }


def test_classes_that_are_not_there_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    images = lay_out(tmp_path)
    whole = load(tmp_path)
    shutil.rmtree(images / "emu")
    (images / "ant/4.png").unlink()
    part = load(tmp_path, present=True)
    assert part.classes == ("dog", "bee", "cat")  # the order of the split
    assert by_class(part) == {name: by_class(whole)[name] for name in part.classes}
    assert part.name.startswith("dtd-3of5-")
    assert part.fingerprint() != whole.fingerprint()
    (told,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    for words in ("3 of 5 classes", "7 of 30 images", "emu 6 of 6", "in part", "ant 1 of 6"):
        assert words in told


def test_other_classes_are_another_data_set(tmp_path: Path) -> None:
    images = lay_out(tmp_path)
    names = set()
    for name in ("ant", "emu"):
        moved = shutil.move(images / name, tmp_path / name)
        names.add(load(tmp_path, present=True).name)
        shutil.move(moved, images / name)
    assert len(names) == 2
    assert load(tmp_path, present=True).name == "dtd"  # all are there


def test_without_the_setting_a_part_is_an_error_that_names_it(tmp_path: Path) -> None:
    shutil.rmtree(lay_out(tmp_path) / "emu")
    with pytest.raises(UserError, match=r"emu/0\.png.*dataset\.classes=present"):
        load(tmp_path)


def test_a_target_has_to_be_whole(results: Path) -> None:
    """dataset.classes is the source's, so that it is proposed for the source alone."""
    of_source = lay_out(results.parent / "datasets")
    shutil.rmtree(lay_out(results.parent / "datasets", "eurosat") / "emu")
    settings = settings_of("protocol=cross_dataset", "protocol.targets=[eurosat]")
    with pytest.raises(UserError, match=r"cannot load the target eurosat: .*emu/0\.png") as caught:
        load_datasets(settings)
    assert "dataset.classes" not in str(caught.value)
    shutil.rmtree(of_source / "emu")
    with pytest.raises(UserError, match=r"dtd, eurosat, the first of them .*dataset\.classes=present"):
        load_datasets(settings)


def test_one_image_is_missing(tmp_path: Path) -> None:
    (lay_out(tmp_path) / "ant/0.png").unlink()
    dataset = load(tmp_path, need_images=False)
    assert summary(gaps(dataset), dataset) == "1 of 30 images is missing, in 1 of 5 classes: ant 1 of 6"


def test_one_class_is_too_few(tmp_path: Path) -> None:
    images = lay_out(tmp_path)
    for name in CLASSES[1:]:
        shutil.rmtree(images / name)
    with pytest.raises(UserError, match=r"leaves 1 of the 5 classes.*24 of 30"):
        load(tmp_path, present=True)


def settings_of(*overrides: str) -> Any:
    return read_settings(compose(["dataset=dtd", "backbone=shapes_vit", "method=zero_shot", *overrides]))


def test_a_part_is_never_the_run_of_the_whole(results: Path) -> None:
    images = lay_out(results.parent / "datasets")
    all_there, present = settings_of(), settings_of("dataset.classes=present")

    def relevant(settings: Any) -> dict[str, Any]:
        return result_settings(settings, "fp32", load_dataset(settings, settings.dataset), {})

    whole = relevant(all_there)
    assert relevant(present) == whole  # nothing is missing: the same run
    shutil.rmtree(images / "emu")
    part = relevant(present)
    assert part["split"] != whole["split"]
    assert part["dataset"]["name"].startswith("dtd-4of5-")
    assert stored_name(present.dataset) != stored_name(all_there.dataset)  # in a bank


def test_a_data_set_that_is_drawn_is_never_in_part(results: Path) -> None:
    settings = read_settings(compose(["dataset=shapes", "method=zero_shot", "dataset.classes=present"]))
    with pytest.raises(UserError, match=r"dataset\.classes=present"):
        load_dataset(settings, settings.dataset)


@pytest.mark.parametrize("layout", ["coop", "kaggle"])
def test_a_part_of_imagenet(tmp_path: Path, layout: str) -> None:
    base = make_imagenet(tmp_path, layout) / {"coop": "imagenet/images"}.get(layout, "imagenet/ILSVRC/Data/CLS-LOC")
    arguments: dict[str, Any] = {"root": tmp_path, "folder": "imagenet"}
    assert imagenet.load("imagenet", **arguments, present=True).name == "imagenet"
    shutil.rmtree(base / "train/n02012849")
    with pytest.raises(UserError, match=r"n02012849.*dataset\.classes=present"):
        imagenet.load("imagenet", **arguments)
    part = imagenet.load("imagenet", **arguments, present=True)
    assert part.classes == ("tench", "crane")
    assert {item.image.split("/")[1] for item in (*part.train, *part.test)} == {"n01440764", "n03126707"}
    assert {item.label for item in part.test} == {0, 1}
    assert part.name.startswith("imagenet-2of3-")
    for path in (base / "val").rglob("*09.JPEG"):  # tench's
        path.unlink()
    with pytest.raises(UserError, match=r"leaves 1 of the 3.*n01440764 \(tench\)"):
        imagenet.load("imagenet", **arguments, present=True)


def of_folder(root: Path, **more: Any) -> Dataset:
    return folder.load("folder", path=str(root), **more)


def test_a_folder_with_a_split(tmp_path: Path) -> None:
    whole = of_folder(fill(tmp_path, cat=4, dog=4, emu=4))
    shutil.rmtree(tmp_path / "dog")
    with pytest.raises(UserError, match=r"dataset\.classes=present"):
        of_folder(tmp_path)
    part = of_folder(tmp_path, present=True)
    assert by_class(part) == {name: by_class(whole)[name] for name in ("cat", "emu")}
    assert part.name.startswith(f"folder-{tmp_path.name}-2of3-")
    (tmp_path / "dog").mkdir()
    assert of_folder(tmp_path, present=True).name == part.name
    (listed,) = gaps(of_folder(tmp_path, need_images=False))
    assert (listed.name, listed.n_missing, listed.n_listed) == ("dog", 4, 4)


def test_a_table_with_images_that_are_not_there(tmp_path: Path) -> None:
    fill(tmp_path, cat=4, dog=4, emu=4)
    rows = [f"{p.relative_to(tmp_path).as_posix()},{p.parent.name}" for p in sorted(tmp_path.glob("*/*.png"))]
    (tmp_path / "table.csv").write_text("\n".join(["path,label", *rows]))
    (tmp_path / "emu/03.png").unlink()
    part = of_folder(tmp_path, labels="table.csv", present=True)
    assert part.classes == ("cat", "dog")
    draw(tmp_path / "emu/03.png", 3)
    whole = of_folder(tmp_path, labels="table.csv")  # the stored split is that of the whole
    assert by_class(part) == {name: by_class(whole)[name] for name in ("cat", "dog")}
    assert len(by_class(whole)["emu"]) == 4


def test_a_strangers_split_does_not_leave_the_folder(tmp_path: Path) -> None:
    of_folder(fill(tmp_path / "pets", cat=4, dog=4))
    draw(tmp_path / "out.png")
    stored = tmp_path / "pets" / folder.STORED
    for path in ("../out.png", "cat/../../out.png", str(tmp_path / "out.png"), "..\\out.png"):
        content = json.loads(stored.read_text())
        content["train"].append([path, 0, "cat"])
        (tmp_path / "split.json").write_text(json.dumps(content))
        for present in (False, True):
            with pytest.raises(UserError, match="not below the image folder"):
                of_folder(tmp_path / "pets", stored=str(tmp_path / "split.json"), present=present)


def test_check_and_list_count_by_class(results: Path) -> None:
    images = lay_out(results.parent / "datasets")
    shutil.rmtree(images / "emu")
    (images / "ant/0.png").unlink()
    answer = ask(cli.main, ["data", "check", "dtd"])
    assert answer.code == 1
    assert "7 of 30 images are missing, in 2 of 5 classes: ant 1 of 6, emu 6 of 6" in answer.err
    (line,) = [line for line in ask(cli.main, ["data", "list"]).out.splitlines() if line.startswith("dtd ")]
    assert "7 of 30" in line
    assert "2 of 5 classes" in line
    answer = ask(cli.main, ["data", "check", "dtd", "dataset.classes=present"])
    assert (answer.code, answer.err) == (0, "")
    assert "dtd-3of5-" in answer.out
    assert "18 images" in answer.out


def test_commands_on_a_folder(results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path / "ü b/pets", train__cat=4, train__dog=4, val__cat=2, val__dog=2, test__cat=3, test__dog=3)
    (tmp_path / "ü b/here").mkdir()
    monkeypatch.chdir(tmp_path / "ü b/here")
    given = ["dataset=folder", "dataset.root=../pets"]
    answer = ask(cli.main, ["data", "check", *given, "--decode"])
    assert (answer.code, answer.err) == (0, "")
    assert "2 classes, 18 images" in answer.out
    row = next(line for line in ask(cli.main, ["data", "list", *given]).out.splitlines() if line.startswith("folder "))
    assert row.split()[1:5] == ["2", "8", "4", "6"]
    assert ask(cli.main, ["data", "path", *given]).out == f"{tmp_path / 'ü b/pets'}\n"
    answer = ask(cli.main, ["data", "subset", "folder", "--shots", "1", "--json", given[1]])
    assert (answer.code, answer.err) == (0, "")
    assert [(line["split"], line["classname"]) for line in json.loads(answer.out)] == [
        *(("train", "cat"), ("train", "dog"), ("val", "cat"), ("val", "dog"))
    ]
    (tmp_path / "ü b/pets/test/dog/00.png").write_bytes(b"no image")
    answer = ask(cli.main, ["data", "check", *given, "--decode"])
    assert (answer.code, answer.err.count("\n")) == (1, 1)
    assert "test/dog/00.png" in answer.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["check", "folder"], "dataset.root=PATH"),
        (["subset"], "which data set"),
        (["check", "../pets"], "For a folder of your own: dataset=folder dataset.root=../pets"),
        (["subset", "dtd", "eurosat"], "give one"),
        (["subset", "dtd", "shots=2"], "'shots=2' cannot be set here"),
        pytest.param(["check", "dtd", "dataset.classes=some"], "'all' or 'present'", marks=pytest.mark.slow),
        pytest.param(["check", "folder", "dataset.root=nowhere"], "nowhere is no folder", marks=pytest.mark.slow),
        pytest.param(["list", "folder", "dataset.roots=x"], "dataset.root", marks=pytest.mark.slow),
    ],
)
def test_mistakes_in_one_sentence(results: Path, arguments: list[str], words: str) -> None:
    answer = ask(cli.main, ["data", *arguments])
    assert answer.code in (1, 2)
    assert words in answer.err
    assert answer.err.count("\n") == 1


def test_a_run_on_a_path_says_how_a_folder_is_given(results: Path) -> None:
    check_mistake(ask(sweep.main, ["dataset=../pets"]), ["dataset=folder dataset.root=../pets"], results)


@pytest.mark.slow
def test_published_numbers_are_not_held_against_a_part(results: Path) -> None:
    shutil.rmtree(lay_out(results.parent / "datasets") / "emu")
    arguments = ["reproduce", "zero_shot", "--datasets", "dtd", "--protocol", "few_shot", "--dry-run"]
    answer = ask(cli.main, [*arguments, "dataset.classes=present"])
    assert answer.code == 0
    assert "cannot run" in answer.out
    assert "in part" in answer.out
