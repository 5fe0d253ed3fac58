"""ImageNet in each layout that people have it in, and the data sets made after it."""

import random
from pathlib import Path

import pytest
from tiny_data import WNIDS, lay_out, picture

from vlprompt.data.dataset import Dataset
from vlprompt.data.sampling import sample_clip_lora, sample_few_shot
from vlprompt.data.sources import imagenet
from vlprompt.errors import UserError

PLACES = {"coop": "imagenet/images", "torchvision": "imagenet", "kaggle": "imagenet/ILSVRC/Data/CLS-LOC"}


def make(root: Path, layout: str, *, n_train: int = 3) -> Path:
    """Three classes, one validation image each; file names in an order that is not that of the alphabet."""
    base = root / PLACES[layout]
    for label, wnid in enumerate(WNIDS):
        (base / "train" / wnid).mkdir(parents=True)
        for i in reversed(range(n_train)):
            (base / "train" / wnid / f"{wnid}_{i}.JPEG").write_bytes(picture(label))
        image = f"ILSVRC2012_val_{9 - label:08d}"
        folder = base / "val" if layout == "kaggle" else base / "val" / wnid
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{image}.JPEG").write_bytes(picture(label))
    rows = [f"ILSVRC2012_val_{9 - label:08d},{wnid} 1 2 3 4\n" for label, wnid in enumerate(WNIDS)]
    if layout == "kaggle":
        (root / "imagenet/LOC_val_solution.csv").write_text("ImageId,PredictionString\n" + "".join(rows))
    (root / "imagenet/classnames.txt").write_text("".join(f"{wnid} {name}\n" for wnid, name in WNIDS.items()))
    return root


def load(root: Path, path: str | None = None) -> Dataset:
    return imagenet.load("imagenet", root=root, folder="imagenet", path=path)


@pytest.mark.parametrize("layout", PLACES)
def test_every_layout_is_the_same_data_set(tmp_path: Path, layout: str) -> None:
    dataset = load(make(tmp_path / layout, layout))
    assert dataset.classes == ("tench", "crane", "crane")
    assert [item.image for item in dataset.train[:3]] == [f"train/n01440764/n01440764_{i}.JPEG" for i in range(3)]
    assert (len(dataset.train), dataset.val, len(dataset.test)) == (9, (), 3)
    assert [dataset.open_image(item.image).getpixel((0, 0))[0] // 10 for item in dataset.test] == [0, 4, 8]
    assert dataset.fingerprint() == load(make(tmp_path / "other", "coop")).fingerprint()


def test_it_may_lie_anywhere(tmp_path: Path) -> None:
    make(tmp_path / "disk", "torchvision")
    assert len(load(tmp_path, str(tmp_path / "disk/imagenet")).train) == 9


def test_few_shot_subsets_depend_on_the_seed_alone(tmp_path: Path) -> None:
    dataset = load(make(tmp_path, "coop", n_train=20))
    train, val = sample_few_shot(dataset, shots=2, seed=1)
    rng = random.Random(1)  # over the files of each class in the order of their names
    files = [sorted(f"train/{wnid}/{wnid}_{i}.JPEG" for i in range(20)) for wnid in WNIDS]
    assert [item.image for item in train] == [image for of_class in files for image in rng.sample(of_class, 2)]
    assert val == []
    train, val = sample_clip_lora(dataset, shots=2, seed=1)
    assert (len(train), len(val)) == (6, 6)
    assert not {item.image for item in train} & {item.image for item in val}


def test_what_is_missing_is_said_with_the_layouts(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"imagenet/images/\{train,val\}.*imagenet/\{train,val\}.*CLS-LOC"):
        load(tmp_path)


def test_kaggle_needs_the_classes_of_validation_images(tmp_path: Path) -> None:
    (make(tmp_path, "kaggle") / "imagenet/LOC_val_solution.csv").unlink()
    with pytest.raises(UserError, match=r"put Kaggle's LOC_val_solution\.csv into"):
        load(tmp_path)


def test_a_class_without_images(tmp_path: Path) -> None:
    for file in (make(tmp_path, "coop") / "imagenet/images/train/n02012849").iterdir():
        file.unlink()
    with pytest.raises(UserError, match=r"has no images of 1 classes \(n02012849"):
        load(tmp_path)


@pytest.mark.parametrize("names", ["", "n1\n", "n2 a\nn1 b\n", "n1 a\nn1 b\n", b"\xff\xfe"])
def test_damaged_class_names(tmp_path: Path, names: str | bytes) -> None:
    path = make(tmp_path, "coop") / "imagenet/classnames.txt"
    path.write_bytes(names if isinstance(names, bytes) else names.encode())
    with pytest.raises(UserError, match=r"classnames\.txt"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("name", "rows"),
    [("imagenet_v2", (0, 1, 2)), ("imagenet_sketch", (0, 1)), ("imagenet_a", (0, 1)), ("imagenet_r", (0, 1))],
)
def test_variants_know_their_place_among_the_classes(tmp_path: Path, name: str, rows: tuple[int, ...]) -> None:
    entry = lay_out(name, tmp_path)
    source = {key: value for key, value in entry.source.items() if key != "_target_"}
    dataset = imagenet.load_variant(name, root=tmp_path, **source)
    assert dataset.rows == rows
    assert dataset.classes == tuple(list(WNIDS.values())[row] for row in rows)
    assert [item.label for item in dataset.test] == [label for label in range(len(rows)) for _ in range(2)]
    assert (dataset.train, dataset.val) == ((), ())
    with pytest.raises(UserError, match="is a test set"):
        sample_few_shot(dataset, shots=1, seed=1)


def test_class_names_of_imagenet_serve_its_variants(tmp_path: Path) -> None:
    entry = lay_out("imagenet_a", tmp_path)
    (tmp_path / "imagenet").mkdir()
    (entry.base(tmp_path) / "classnames.txt").rename(tmp_path / "imagenet/classnames.txt")
    assert entry.state(tmp_path) == "present"
    source = {key: value for key, value in entry.source.items() if key != "_target_"}
    assert imagenet.load_variant("imagenet_a", root=tmp_path, **source).classes == ("tench", "crane")
