"""Where data sets come from: split files, image files, digits."""

import io
import json
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import EpsImagePlugin, Image

from vlprompt.data.dataset import Dataset
from vlprompt.data.sources import digits
from vlprompt.data.sources.files import Files
from vlprompt.errors import UserError

CONF = Path(__file__).parent.parent / "conf"
SPLIT = "caltech-101/split_zhou_Caltech101.json"
IMAGES = "caltech-101/101_ObjectCategories"


def make_content() -> dict[str, Any]:
    """Two classes, one image of each in each part."""
    labels = (("Faces", 0, "face"), ("airplanes", 1, "airplane"))
    return {
        part: [[f"{folder}/image_000{i}.jpg", label, name] for folder, label, name in labels]
        for i, part in enumerate(("train", "val", "test"))
    }


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A data root with caltech101 in the published layout."""
    content = make_content()
    for entries in content.values():
        for image, label, _ in entries:
            path = tmp_path / IMAGES / image
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (6, 4), (250 * label, 0, 0)).save(path)
    (tmp_path / SPLIT).write_text(json.dumps(content))
    return tmp_path


def make_noise(suffix: str) -> bytes:
    file = io.BytesIO()
    Image.effect_noise((64, 64), 90).save(file, suffix)
    return file.getvalue()


def load(root: Path | str) -> Dataset:
    config = OmegaConf.load(CONF / "dataset" / "caltech101.yaml").dataset
    source = instantiate(config.source, _partial_=True, name=config.name, root=root)
    return source()  # called here: Hydra would put an error of its own around a UserError


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\n(x) (w) file\n%%EOF\n"


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.eps"])
def test_no_image_is_a_program_for_another_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """An EPS file is PostScript, which Pillow has Ghostscript execute, whatever the file is called."""
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("Ghostscript was called"))
    (tmp_path / name).write_bytes(EPS)
    with Image.open(tmp_path / name) as opened:
        assert opened.format == "EPS"  # so it would be read as such
    with pytest.raises(UserError, match=f"{name} cannot be read"):
        Files(tmp_path)(name)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP", "JPEG2000", "TGA"])
def test_other_formats_are_read(tmp_path: Path, kind: str) -> None:
    Image.new("RGB", (8, 8), "red").save(tmp_path / "image", kind)
    assert Files(tmp_path)("image").size == (8, 8)


def test_caltech101_is_read_as_published(root: Path) -> None:
    dataset = load(str(root))
    assert dataset.name == "caltech101"
    assert dataset.classes == ("face", "airplane")
    images = [(item.image, item.label) for item in dataset.train]
    assert images == [("Faces/image_0000.jpg", 0), ("airplanes/image_0000.jpg", 1)]
    assert [item.image[-5] for item in (*dataset.val, *dataset.test)] == ["1", "1", "2", "2"]


def test_images_open_in_a_worker_process(root: Path) -> None:
    dataset = pickle.loads(pickle.dumps(load(root)))
    image = dataset.open_image(dataset.test[1].image)
    assert (image.mode, image.size) == ("RGB", (6, 4))
    assert image.getpixel((0, 0))[0] > 200


def test_white_space_in_the_split_file_changes_nothing(root: Path) -> None:
    before = load(root).fingerprint()
    (root / SPLIT).write_text(json.dumps(make_content(), indent=1) + "\n")
    assert load(root).fingerprint() == before


def test_what_is_missing_is_named(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(UserError) as caught:
        load(empty)
    for part in (str(empty / SPLIT), str(empty / IMAGES), "vlprompt data get caltech101", "data.root"):
        assert part in str(caught.value)
    (root / SPLIT).unlink()
    with pytest.raises(UserError) as caught:
        load(root)
    assert SPLIT in str(caught.value)
    assert IMAGES not in str(caught.value)


def change(part: str, index: int, entry: list[Any]) -> dict[str, Any]:
    content = make_content()
    content[part][index] = entry
    return content


NO_CLASS_1 = {part: entries[:1] if part == "train" else entries for part, entries in make_content().items()}


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"{", "no JSON"),
        ([], "should be an object"),
        (b"\xff\xfe", "not in UTF-8"),
        (b'{"train": [], "train": [], "val": [], "test": []}', "'train' twice"),
        ({"train": make_content()["train"], "val": []}, "test: Field required"),
        ({**make_content(), "test": []}, "test: List should have at least 1 item"),
        (change("val", 1, ["a.jpg", "1", "airplane"]), r"val\[1\]\[1\]: Input should be a valid integer"),
        (change("val", 1, ["a.jpg", 1.0, "airplane"]), r"val\[1\]\[1\]: Input should be a valid integer"),
        (change("val", 1, ["a.jpg", True, "airplane"]), r"val\[1\]\[1\]: Input should be a valid integer"),
        (change("val", 1, ["a.jpg", -1, "airplane"]), r"val\[1\]\[1\]: .*greater than or equal to 0"),
        (change("test", 0, ["a.jpg", 0]), r"test\[0\]\[2\]: Field required"),
        (change("test", 0, ["a.jpg", 0, ""]), r"test\[0\]\[2\]: .*at least 1 character"),
        (change("test", 1, ["a.jpg", 1, "plane"]), r"test\[1\] calls label 1 'plane', but it is 'airplane'"),
        (change("test", 1, ["a.jpg", 10**12, "plane"]), "labels go from 0 to 1000000000000"),
        (NO_CLASS_1, "train has no image of label 1"),
        (change("train", 0, ["/etc/a.jpg", 0, "face"]), r"train\[0\] has the path '/etc/a.jpg'"),
        (change("train", 0, ["Faces/../../a.jpg", 0, "face"]), r"train\[0\] has the path .* not below"),
        (change("train", 0, ["C:\\a.jpg", 0, "face"]), r"train\[0\] has the path .* not below"),
        (change("train", 0, ["", 0, "face"]), r"train\[0\] has the path '', .* not below"),
    ],
)
def test_a_wrong_split_file_is_explained(root: Path, content: Any, why: str) -> None:
    (root / SPLIT).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    with pytest.raises(UserError, match=why) as caught:
        load(root)
    assert str(root / SPLIT) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("part", [0, 2])
def test_an_incomplete_archive_is_noticed_when_loading(root: Path, part: int) -> None:
    content = make_content()
    for image, _, _ in content["test"]:
        moved = root / IMAGES / "more" / image
        moved.parent.mkdir(parents=True, exist_ok=True)
        (root / IMAGES / image).rename(moved)
    content["test"] = [[f"more/{image}", *rest] for image, *rest in content["test"]]
    (root / SPLIT).write_text(json.dumps(content))
    lost = content[("train", "val", "test")[part]][1][0]
    load(root)
    (root / IMAGES / lost).unlink()
    with pytest.raises(UserError, match=f"lists {lost}, which is not below"):
        load(root)


NO_IMAGES = [b"", b"GIF89a", b"BM", b"no image", b"\x89PNG\r\n\x1a\n" + bytes(9), b"\xff\xd8\xff\xe0" + bytes(9)]
NO_IMAGES += [make_noise(suffix)[:end] for suffix in ("jpeg", "png", "gif") for end in (40, -2000)]


@pytest.mark.parametrize("content", NO_IMAGES)
@pytest.mark.parametrize("as_shown", [False, True])
def test_a_damaged_image_is_named(tmp_path: Path, content: bytes, as_shown: bool) -> None:
    (tmp_path / "a b.jpg").write_bytes(content)
    with pytest.raises(UserError, match=r"a b\.jpg cannot be read") as caught:
        Files(tmp_path, as_shown=as_shown)("a b.jpg")
    assert "\n" not in str(caught.value)


def test_a_missing_image_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a/b\.jpg is missing"):
        Files(tmp_path)("a/b.jpg")
    (tmp_path / "a.jpg").mkdir()
    with pytest.raises(UserError, match=r"a\.jpg cannot be read"):
        Files(tmp_path)("a.jpg")


@pytest.mark.parametrize(
    ("mode", "colour", "suffix"),
    [("L", 200, "jpg"), ("L", 200, "png"), ("1", 1, "png"), ("P", 3, "png"), ("LA", (200, 255), "png"),
     ("RGBA", (200, 10, 10, 255), "png"), ("CMYK", (10, 200, 10, 10), "jpg")],
)  # fmt: skip
@pytest.mark.parametrize("as_shown", [False, True])
def test_other_modes_become_rgb(tmp_path: Path, mode: str, colour: Any, suffix: str, as_shown: bool) -> None:
    stored = Image.new(mode, (8, 8), colour)
    if mode == "P":
        stored.putpalette([0, 0, 0] * 3 + [200, 10, 10])
    stored.save(tmp_path / f"a.{suffix}")
    image = Files(tmp_path, as_shown=as_shown)(f"a.{suffix}")
    grey = mode in ("L", "1", "LA")
    red, green, blue = image.getpixel((4, 4))
    assert image.mode == "RGB"
    assert (red == green == blue) == grey
    assert red >= 200


def test_digits_are_split_50_20_30_in_each_class_and_always_alike() -> None:
    dataset = digits.load("digits")
    whole = Counter(item.label for part in (dataset.train, dataset.val, dataset.test) for item in part)
    images = {item.image for part in (dataset.train, dataset.val, dataset.test) for item in part}
    assert (sum(whole.values()), len(images)) == (1797, 1797)
    for part, share in (("train", 0.5), ("val", 0.2), ("test", 0.3)):
        counts = Counter(item.label for item in getattr(dataset, part))
        assert all(abs(counts[label] - share * whole[label]) <= 1 for label in range(10))
    assert digits.load("digits") == dataset
    assert dataset.fingerprint() == "7c34a928c55f6c2e949a7a98752f99142d26abcf6119209696f9401e1ea2cdda"


def test_a_digit_is_white_on_black() -> None:
    dataset = digits.load("digits")
    zero = dataset.open_image("0000")
    assert (zero.mode, zero.size) == ("RGB", (8, 8))
    low, high = zero.convert("L").getextrema()
    assert (low, high) == (0, 239)  # 15 of 16
    assert zero.getpixel((0, 0)) == (0, 0, 0)
    assert zero.getpixel((3, 4)) == (0, 0, 0)  # the hole of the zero
    label = {item.image: item.label for part in (dataset.train, dataset.val, dataset.test) for item in part}["0000"]
    assert dataset.classes[label] == "zero"


def test_digits_configuration_loads() -> None:
    config = OmegaConf.load(CONF / "dataset" / "digits.yaml").dataset
    assert instantiate(config.source, name=config.name, root="nowhere").name == config.name == "digits"
