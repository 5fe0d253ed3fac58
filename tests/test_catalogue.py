"""What the configuration says about each data set."""

import json
from pathlib import Path

import pytest
from tiny_data import CATALOGUE, FETCHED, lay_out

from vlprompt.config.datasets import load_source
from vlprompt.data.download.catalogue import content_hash, read_catalogue
from vlprompt.errors import UserError

ELEVEN = ["imagenet", "caltech101", "oxford_pets", "stanford_cars", "flowers102", "food101", "fgvc_aircraft", "sun397",
          "dtd", "eurosat", "ucf101"]  # fmt: skip
VARIANTS = ["imagenet_v2", "imagenet_sketch", "imagenet_a", "imagenet_r"]


def test_the_data_sets_of_the_field() -> None:
    assert set(CATALOGUE) == {*ELEVEN, *VARIANTS, "shapes", "shapes_sketch", "shapes_mosaic", "digits", "folder"}
    assert set(FETCHED) == {*ELEVEN, *VARIANTS} - {"imagenet"}


@pytest.mark.parametrize("name", sorted(set(CATALOGUE) - {"folder"}))
def test_facts_are_complete(name: str) -> None:
    about = CATALOGUE[name].about
    assert about is not None
    assert all((about.title, about.home, about.licence, about.citation))
    assert about.counts.classes >= 10
    assert all(len(digest) == 64 for digest in about.hashes.values())
    for mirrors in about.parts.values():
        assert all(m.url.startswith(("https://", "http://", "hf://", "gdrive:")) for m in mirrors)
        checksums = [m.checksum.partition(":") for m in mirrors if m.checksum]
        assert all((kind, len(digest)) in (("md5", 32), ("sha256", 64)) for kind, _, digest in checksums)


@pytest.mark.parametrize("name", sorted(FETCHED))
def test_each_layout_is_read(tmp_path: Path, name: str) -> None:
    entry = CATALOGUE[name]
    assert entry.state(tmp_path) == "missing"
    lay_out(name, tmp_path)
    assert entry.state(tmp_path) == "present"
    dataset = load_source(name, entry.source, tmp_path)
    assert dataset.name == name
    assert len(dataset.classes) >= 2
    assert {dataset.open_image(item.image).size for item in dataset.test} == {(20, 16)}
    assert dataset.classes == load_source(name, entry.source, tmp_path, need_images=False).classes


@pytest.mark.parametrize("name", ["caltech101", "fgvc_aircraft"])
def test_a_data_set_in_part(tmp_path: Path, name: str) -> None:
    entry = lay_out(name, tmp_path)
    (first, *_) = (path for path in entry.base(tmp_path).iterdir() if path.is_file())
    first.unlink()
    assert entry.state(tmp_path) == "partial"


def test_a_hash_is_of_what_a_text_says(tmp_path: Path) -> None:
    one, two, names = (tmp_path / name for name in ("one.json", "two.json", "names.txt"))
    content = {"train": [["a.jpg", 0, "ä"]], "val": []}
    one.write_text(json.dumps(content))
    two.write_text(json.dumps(dict(reversed(content.items())), indent=2) + "\n")
    assert content_hash(one) == content_hash(two)
    names.write_bytes(b"n1 a\r\nn2 b \n\n")
    before = content_hash(names)
    names.write_bytes(b"n1 a\nn2 b")
    assert content_hash(names) == before
    names.write_bytes(b"n1 a\nn2 c")
    assert content_hash(names) != before


def test_hashes_are_those_of_the_published_files(splits_folder: Path) -> None:
    checked = 0
    for entry in CATALOGUE.values():
        for name, expected in (entry.about.hashes if entry.about else {}).items():
            file = splits_folder / ("imagenet_classnames.txt" if name == "classnames.txt" else name)
            assert content_hash(file) == expected
            checked += 1
    assert checked == 7 + 5


def test_a_new_data_set_is_one_yaml(tmp_path: Path) -> None:
    (tmp_path / "dataset").mkdir()
    text = (Path(__file__).parent.parent / "conf/dataset/dtd.yaml").read_text().replace("dtd", "mine")
    (tmp_path / "dataset/mine.yaml").write_text(text)
    assert read_catalogue([tmp_path])["mine"].about


@pytest.mark.parametrize("text", ["", "dataset: 3", "dataset: {source: {}, about: {title: 1}}", "a: [", "dataset: {}"])
def test_a_yaml_that_describes_no_data_set(tmp_path: Path, text: str) -> None:
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset/mine.yaml").write_text(text)
    with pytest.raises(UserError, match=r"mine\.yaml does not describe a data set"):
        read_catalogue([tmp_path])
