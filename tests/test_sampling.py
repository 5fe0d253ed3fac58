"""The few-shot sampler against the published selections."""

import json
import logging
import random
from pathlib import Path

import pytest
from PIL import Image

from vlprompt.data.dataset import Dataset, Item
from vlprompt.data.sampling import draw, sample_few_shot
from vlprompt.data.sources import split_file
from vlprompt.errors import UserError

DATA = Path(__file__).parent / "fixtures" / "data"
DIRECT = json.loads((DATA / "fewshot_direct.json").read_text())


def no_image(image: str) -> Image.Image:
    raise AssertionError(f"sampling opened {image}")


def make_dataset(train: list[int], val: list[int] | None = None) -> Dataset:
    """A data set with these labels; images are named by part and place."""
    parts = {
        part: tuple(Item(f"{part}{place}", label) for place, label in enumerate(labels))
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
    items = [Item(str(place), label) for place, (label) in enumerate(DIRECT["input_labels"])]
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
    sample_few_shot(make_dataset([0, 0, *range(1, 13)]), shots=2, seed=1)
    assert "class 10 (1) and 2 more" in caplog.text
    assert "class 11" not in caplog.text


def test_no_warning_where_every_class_has_enough(caplog: pytest.LogCaptureFixture) -> None:
    sample_few_shot(make_dataset([0, 1, 0, 1]), shots=2, seed=1)
    assert not caplog.records


def test_more_shots_than_the_largest_class_has() -> None:
    with pytest.raises(UserError, match=r"shots=5, but the largest class of made has 4 training images.*at most 4"):
        sample_few_shot(make_dataset([0, 0, 0, 0, 1]), shots=5, seed=1)


@pytest.mark.parametrize("shots", [0, -1, True])
def test_shots_that_are_no_number_of_images(shots: int) -> None:
    with pytest.raises(UserError, match="positive whole number or 'all'"):
        sample_few_shot(make_dataset([0, 1]), shots=shots, seed=1)


FIRST_16_SHOT_SEED_1 = {
    "Caltech101": ["Faces/image_0201", "Faces/image_0225", "Faces/image_0160"],
    "OxfordPets": ["Abyssinian_141", "Abyssinian_153", "Abyssinian_136"],
    "EuroSAT": ["AnnualCrop/AnnualCrop_2365", "AnnualCrop/AnnualCrop_93", "AnnualCrop/AnnualCrop_2552"],
    "DescribableTextures": ["banded/banded_0117", "banded/banded_0142", "banded/banded_0147"],
    "StanfordCars": ["cars_train/00467", "cars_train/03804", "cars_train/03590"],
    "OxfordFlowers": ["image_00144", "image_00068", "image_00070"],
    "UCF101": [f"Apply_Eye_Makeup/v_ApplyEyeMakeup_{clip}" for clip in ("g14_c04", "g18_c05", "g18_c03")],
}


@pytest.mark.parametrize("name", FIRST_16_SHOT_SEED_1)
def test_splits_give_the_published_selection(splits_folder: Path, name: str) -> None:
    """The first images of 16 shots and seed 1, and 16 and 4 images of every class."""
    path = splits_folder / f"split_zhou_{name}.json"
    content = split_file.read(path)
    parts = {part: tuple(Item(path, label) for path, label, _ in getattr(content, part)) for part in ("train", "val")}
    dataset = Dataset(name=name, classes=split_file.check(path, content), test=(), open_image=no_image, **parts)
    train, val = sample_few_shot(dataset, shots=16, seed=1)
    assert [item.image.removesuffix(".jpg") for item in train[:3]] == FIRST_16_SHOT_SEED_1[name]
    assert (len(train), len(val)) == (16 * len(dataset.classes), 4 * len(dataset.classes))
