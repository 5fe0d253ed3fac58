"""The few-shot sampler against the published selections."""

import itertools
import json
import logging
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlprompt.data.dataset import Dataset, Item
from vlprompt.data.lists import ListSampler, make_lines
from vlprompt.data.sampling import SAMPLERS, ImbalancedSampler, Shots, draw, sample_clip_lora, sample_few_shot
from vlprompt.data.sources import split_file
from vlprompt.errors import UserError
from vlprompt.protocols.base_to_novel import BaseToNovel, halves

DATA = Path(__file__).parent / "fixtures" / "data"
DIRECT = json.loads((DATA / "fewshot_direct.json").read_text())


def no_image(image: str) -> Image.Image:
    raise AssertionError(f"sampling opened {image}")


def make_dataset(train: list[int], val: list[int] | None = None) -> Dataset:
    """A data set with these labels; images are named by part and index."""
    parts = {
        part: tuple(Item(f"{part}{i}", label) for i, label in enumerate(labels))
        for part, labels in (("train", train), ("val", val or []), ("test", train))
    }
    classes = tuple(f"class {label}" for label in range(max(train) + 1))
    return Dataset(name="made", classes=classes, open_image=no_image, **parts)


@pytest.mark.parametrize(
    "record",
    DIRECT["records"],
    ids=lambda r: f"seed{r['seed']}-shots{r['shots']}-{'repeat' if r['repeat'] else 'whole'}",
)
def test_draw_equals_the_published_sampler(record: dict) -> None:
    items = [Item(str(i), label) for i, label in enumerate(DIRECT["input_labels"])]
    picked = draw(items, record["shots"], random.Random(record["seed"]), repeat=record["repeat"])
    assert [int(item.image) for item in picked] == record["picked"]


def test_validation_continues_the_stream_of_training() -> None:
    dataset = make_dataset([0] * 30 + [1] * 30, [0] * 30 + [1] * 30)
    train, val = sample_few_shot(dataset, shots=16, seed=1)
    assert (len(train), len(val)) == (32, 8)
    rng = random.Random(1)
    for part, picked, k in ((dataset.train, train, 16), (dataset.val, val, 4)):
        assert picked == rng.sample(part[:30], k) + rng.sample(part[30:], k)


def test_groups_are_in_order_of_first_appearance() -> None:
    train, _ = sample_few_shot(make_dataset([2, 0, 1, 2, 0, 1]), shots=1, seed=1)
    assert [item.label for item in train] == [2, 0, 1]


def test_the_same_seed_gives_the_same_images_whatever_else_draws_random_numbers() -> None:
    dataset = make_dataset([0, 1] * 20, [0, 1] * 20)
    random.seed(5)
    first = sample_few_shot(dataset, shots=4, seed=2)
    random.seed(6)
    assert sample_few_shot(dataset, shots=4, seed=2) == first
    assert sample_few_shot(dataset, shots=4, seed=3) != first


def test_all_keeps_both_lists() -> None:
    dataset = make_dataset([1, 0, 1, 0, 0], [0, 1])
    assert sample_few_shot(dataset, shots="all", seed=1) == (list(dataset.train), list(dataset.val))


def test_a_small_class_is_taken_whole_with_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    dataset = make_dataset([0, 1, 0, 2, 0, 2, 0], [0, 0, 1])
    with caplog.at_level(logging.WARNING):
        train, val = sample_few_shot(dataset, shots=3, seed=1)
    assert [item.label for item in train] == [0, 0, 0, 1, 2, 2]
    assert len(set(train)) == 6
    assert [item.label for item in val] == [0, 0, 1]
    assert len(caplog.records) == 1
    message = caplog.records[0].getMessage()
    assert "class 1 (1), class 2 (2)" in message
    assert "class 0" not in message


def test_the_warning_counts_what_it_does_not_name(caplog: pytest.LogCaptureFixture) -> None:
    sample_few_shot(make_dataset([0, 1, 0, 1]), shots=2, seed=1)
    assert not caplog.records  # every class has enough
    sample_few_shot(make_dataset([0, 0, *range(1, 13)]), shots=2, seed=1)
    assert "class 10 (1) and 2 more" in caplog.text
    assert "class 11" not in caplog.text


@pytest.mark.parametrize(("shots", "allowed"), [(5, "at most 4"), (0, "'all'"), (-1, "'all'"), (True, "'all'")])
def test_shots_that_are_not_there_or_no_number(shots: int, allowed: str) -> None:
    with pytest.raises(UserError, match=rf"shots={shots}.*{allowed}"):
        sample_few_shot(make_dataset([0, 0, 0, 0, 1]), shots=shots, seed=1)


FIRST_16_SHOT_SEED_1 = {
    "Caltech101": ["Faces/image_0201", "Faces/image_0225", "Faces/image_0160"],
    "OxfordPets": ["Abyssinian_141", "Abyssinian_153", "Abyssinian_136"],
    "EuroSAT": ["AnnualCrop/AnnualCrop_2365", "AnnualCrop/AnnualCrop_93", "AnnualCrop/AnnualCrop_2552"],
    "DescribableTextures": ["banded/banded_0117", "banded/banded_0142", "banded/banded_0147"],
    "StanfordCars": ["cars_train/00467", "cars_train/03804", "cars_train/03590"],
    "OxfordFlowers": ["image_00144", "image_00068", "image_00070"],
    "UCF101": [f"Apply_Eye_Makeup/v_ApplyEyeMakeup_{clip}" for clip in ("g14_c04", "g18_c05", "g18_c03")],
}


SIZES = {  # classes; train, val, test; base and novel classes; base and novel test images
    "Caltech101": (100, (4128, 1649, 2465), (50, 50), (1549, 916)),
    "OxfordPets": (37, (2944, 736, 3669), (19, 18), (1881, 1788)),
    "StanfordCars": (196, (6509, 1635, 8041), (98, 98), (4002, 4039)),
    "OxfordFlowers": (102, (4093, 1633, 2463), (51, 51), (1053, 1410)),
    "DescribableTextures": (47, (2820, 1128, 1692), (24, 23), (864, 828)),
    "EuroSAT": (10, (13500, 5400, 8100), (5, 5), (4200, 3900)),
    "UCF101": (101, (7639, 1898, 3783), (51, 50), (1934, 1849)),
}


def read_split(folder: Path, name: str) -> Dataset:
    path = folder / f"split_zhou_{name}.json"
    content = split_file.read(path)
    parts = [tuple(Item(path, label) for path, label, _ in getattr(content, p)) for p in ("train", "val", "test")]
    return Dataset(name, split_file.check(path, content), *parts, no_image)


@pytest.mark.parametrize("name", FIRST_16_SHOT_SEED_1)
def test_splits_give_the_published_selection(splits_folder: Path, name: str) -> None:
    """The first images of 16 shots and seed 1; for every number of shots and seed, so many of every class."""
    dataset = read_split(splits_folder, name)
    train, _ = sample_few_shot(dataset, shots=16, seed=1)
    assert [item.image.removesuffix(".jpg") for item in train[:3]] == FIRST_16_SHOT_SEED_1[name]
    samples = set()
    for shots, seed in itertools.product((1, 2, 4, 8, 16), (1, 2, 3)):
        train, val = sample_few_shot(dataset, shots=shots, seed=seed)
        assert set(Counter(item.label for item in train).values()) == {shots}
        assert set(Counter(item.label for item in val).values()) == {min(shots, 4)}
        assert len({item.label for item in train}) == len({item.label for item in val}) == SIZES[name][0]
        samples.add(tuple(item.image for item in train))
    assert len(samples) == 15


@pytest.mark.parametrize("name", SIZES)
def test_splits_have_the_published_sizes(splits_folder: Path, name: str) -> None:
    n_classes, parts, n_halves, tests = SIZES[name]
    dataset = read_split(splits_folder, name)
    assert len(dataset.classes) == n_classes
    assert tuple(len(part) for part in (dataset.train, dataset.val, dataset.test)) == parts
    assert tuple(map(len, halves(dataset))) == n_halves
    episode = BaseToNovel().episode(dataset, sample_few_shot(dataset, shots=16, seed=1))
    assert (len(episode.tests["base"]), len(episode.tests["novel"])) == tests
    assert len(episode.train) == 16 * n_halves[0]


BASE_NEW = json.loads((DATA / "fewshot_base_new.json").read_text())["input"]
INPUT_PARTS = [
    tuple(Item(str(i), label) for i, (_, label, _) in enumerate(BASE_NEW[p])) for p in ("train", "val", "test")
]
INPUT = Dataset("made", tuple(map(str, range(7))), *INPUT_PARTS, no_image)


@pytest.mark.parametrize("name", ["clip_lora", "tip_adapter"])
def test_other_projects_samples(name: str) -> None:
    records = json.loads((DATA / f"fewshot_{name}.json").read_text())["records"]
    assert len(records) == 9
    for record in records:
        train, val = SAMPLERS[name](INPUT, shots=record["shots"], seed=record["seed"])
        assert [int(item.image) for item in train] == record["train"]
        assert [int(item.image) for item in val] == record["val"]


def test_clip_lora_splits_one_draw_where_there_are_no_validation_images() -> None:
    dataset = make_dataset([0] * 30 + [1] * 30)
    train, val = sample_clip_lora(dataset, shots=2, seed=1)
    rng = random.Random(1)
    drawn = [rng.sample(dataset.train[:30], 4), rng.sample(dataset.train[30:], 4)]
    assert train == drawn[0][:2] + drawn[1][:2]
    assert val == drawn[0][2:] + drawn[1][2:]


@pytest.mark.parametrize("val", [[0] * 30 + [1] * 3, []], ids=["with validation images", "without"])
def test_lp_plus_plus_draws_as_many_validation_as_training_images(val: list[int]) -> None:
    dataset, rng = make_dataset([0] * 30 + [1] * 30, val), random.Random(1)
    train, chosen = SAMPLERS["lp_plus_plus"](dataset, shots=5, seed=1)
    if val:
        assert train == rng.sample(dataset.train[:30], 5) + rng.sample(dataset.train[30:], 5)
        assert chosen == rng.sample(dataset.val[:30], 5) + rng.choices(dataset.val[30:], k=5)
    else:
        drawn = [rng.sample(dataset.train[:30], 10), rng.sample(dataset.train[30:], 10)]
        assert train == drawn[0][:5] + drawn[1][:5]
        assert chosen == drawn[0][5:] + drawn[1][5:]


def as_published(labels: list[int], total: int, *, every_class: bool) -> list[int]:
    """How many images of each class SS-Text's code takes, in its words."""
    shares = np.bincount(labels) / len(labels)
    counts = [round(total * share) for share in shares]
    counts = [max(1, count) if every_class else count for count in counts]
    while sum(counts) > total:
        counts[int(np.argmax(counts))] -= 1
    return counts


@pytest.mark.parametrize("every_class", [False, True])
@pytest.mark.parametrize("total", [4, 7, 10, 33, 50])
@pytest.mark.parametrize("sizes", [(30, 15, 4, 1), (13, 13, 12, 12), (1, 2, 2, 45)])
def test_imbalanced_samples_are_as_frequent_as_the_classes(sizes: tuple, total: int, every_class: bool) -> None:
    labels = [label for label, size in enumerate(sizes) for _ in range(size)]
    dataset = make_dataset(labels, [label for label in range(4) for _ in range(3)])
    train, val = ImbalancedSampler(total, every_class)(dataset, shots=99, seed=1)
    counts = as_published(labels, total, every_class=every_class)
    assert [Counter(item.label for item in train)[label] for label in range(4)] == counts
    assert len({item.image for item in train}) == len(train)
    assert [Counter(item.label for item in val)[label] for label in range(4)] == [min(n, 3) for n in counts]
    assert ImbalancedSampler(total, every_class)(dataset, shots=1, seed=1) == (train, val)
    assert total in (4, 50) or ImbalancedSampler(total, every_class)(dataset, shots=1, seed=2) != (train, val)


def test_imbalanced_samples_of_too_many_or_too_few_images_are_refused() -> None:
    dataset = make_dataset([0, 0, 0, 1])
    for total, every_class, allowed in ((5, False, "1 to 4"), (1, True, "2 to 4")):
        with pytest.raises(UserError, match=f"sampler.total={total}: allowed are {allowed}"):
            ImbalancedSampler(total, every_class)(dataset, shots=1, seed=1)


def write_list(path: Path, lines: list[dict]) -> ListSampler:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return ListSampler(path)


def test_a_list_gives_its_images_in_its_order(tmp_path: Path) -> None:
    dataset = make_dataset([0, 0, 1, 1], [0, 1])
    train, val = sample_few_shot(dataset, shots=1, seed=3)
    sampler = write_list(tmp_path / "list.jsonl", make_lines(train[::-1], val, dataset.classes))
    assert sampler(dataset, shots=1, seed=8) == (train[::-1], val)


def test_a_list_from_another_machine(tmp_path: Path) -> None:
    """As 2SFS writes them: `impath`, folders in front, training images only."""
    lines = [{"impath": "/home/me/data/train3", "label": 1}, {"impath": "D:\\data\\train0", "label": 0, "domain": -1}]
    train, val = write_list(tmp_path / "list.jsonl", lines)(make_dataset([0, 0, 1, 1], [0, 1]), shots=1, seed=1)
    assert ([item.image for item in train], val) == (["train3", "train0"], [])


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ({"path": "test0", "label": 0}, "line 1: test0 is no training or validation image"),
        ({"path": "train0", "label": 1}, "line 1: label 1, but made has train0 as 0"),
        ({"path": "train0"}, "line 1 is no object with path, label"),
        ({"path": "train0", "label": "0"}, "line 1 is no object"),
        ({"path": "train0", "label": 0, "split": "test"}, "line 1 is no object"),
        (["train0", 0], "line 1 is no object"),
        ({"path": "train0", "label": 0, "split": "val"}, "has no training images"),
    ],
)
def test_a_list_that_does_not_fit(tmp_path: Path, line: dict, why: str) -> None:
    with pytest.raises(UserError, match=why):
        write_list(tmp_path / "list.jsonl", [line])(make_dataset([0, 0, 1, 1], [0, 1]), shots=1, seed=1)


@pytest.mark.parametrize("shots", ["all", 2])
@pytest.mark.parametrize("content", ["", "\n\n", '{"path": "train0", "label": 0, "split": "val"}\n'])
def test_a_list_without_training_images(tmp_path: Path, content: str, shots: Shots) -> None:
    (tmp_path / "list.jsonl").write_text(content)
    with pytest.raises(UserError, match="has no training images") as caught:
        ListSampler(tmp_path / "list.jsonl")(make_dataset([0, 0, 1, 1], [0, 1]), shots=shots, seed=1)
    assert "shots=0" not in str(caught.value)


def test_a_list_as_other_systems_write_it(tmp_path: Path) -> None:
    """With a mark of its encoding, and other line ends; U+2028 ends no line of JSON."""
    content = '\ufeff{"path": "\u2028/train0", "label": 0}\r\n\r\n{"path": "train2", "label": 1}\r\n'
    (tmp_path / "list.jsonl").write_bytes(content.encode())
    train, _ = ListSampler(tmp_path / "list.jsonl")(make_dataset([0, 0, 1, 1], [0, 1]), shots="all", seed=1)
    assert [item.image for item in train] == ["train0", "train2"]
    (tmp_path / "list.jsonl").write_text(content[1:], encoding="utf-16")
    with pytest.raises(UserError, match="is not in UTF-8"):
        ListSampler(tmp_path / "list.jsonl")(make_dataset([0, 0, 1, 1], [0, 1]), shots="all", seed=1)
