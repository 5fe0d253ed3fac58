"""Protocols: episodes against the published selections, and what may not be imported."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from vlprompt.data.dataset import Dataset, Item, Split
from vlprompt.data.sampling import Shots, sample_few_shot
from vlprompt.errors import UserError
from vlprompt.protocols.base import FEW_SHOT_VAL, Episode, Protocol, check_images
from vlprompt.protocols.base_to_novel import BaseToNovel, halves, harmonic_mean
from vlprompt.protocols.cross_dataset import CrossDataset
from vlprompt.protocols.domain_generalization import DomainGeneralization
from vlprompt.protocols.few_shot import FewShot
from vlprompt.protocols.noisy_labels import NoisyLabels
from vlprompt.protocols.train_val import TrainVal
from vlprompt.protocols.transfer import Transfer

DATA = Path(__file__).parent / "fixtures" / "data"
PUBLISHED = json.loads((DATA / "fewshot_base_new.json").read_text())
RECORDS = {(r["seed"], r["shots"], r["subsample"]): r for r in PUBLISHED["records"]}
PARTS = ("train", "val", "test")


def no_image(image: str) -> Image.Image:
    raise AssertionError(f"a protocol opened {image}")


def make_dataset() -> Dataset:
    parts = {part: tuple(Item(path, label) for path, label, _ in PUBLISHED["input"][part]) for part in PARTS}
    names = {label: name for _, label, name in PUBLISHED["input"]["train"]}
    classes = tuple(names[label] for label in range(len(names)))
    return Dataset(name="published", classes=classes, open_image=no_image, **parts)


def episode_of(
    protocol: Protocol, dataset: Dataset, shots: Shots, seed: int = 1, targets: Mapping[str, Dataset] = {}
) -> Episode:
    return protocol.episode(dataset, sample_few_shot(dataset, shots=shots, seed=seed), targets=targets)


def run(dataset: Dataset, shots: int, seed: int) -> Episode:
    return episode_of(BaseToNovel(), dataset, "all" if shots == -1 else shots, seed)


def indices(split: Split | None, part: str) -> list[list[int]]:
    """[index in the published input list, label], as the fixture has them."""
    assert split is not None
    index = {path: i for i, (path, _, _) in enumerate(PUBLISHED["input"][part])}
    return [[index[item.image], item.label] for item in split.items]


@pytest.mark.parametrize(("seed", "shots"), sorted({key[:2] for key in RECORDS}))
def test_base_to_novel_equals_the_published_selection(seed: int, shots: int) -> None:
    episode = run(make_dataset(), shots, seed)
    base, novel, everything = (RECORDS[seed, shots, subset] for subset in ("base", "new", "all"))
    assert indices(episode.train, "train") == base["train"]
    assert indices(episode.val, "val") == base["val"]
    assert list(episode.tests) == ["base", "novel", "all"]
    for split, record in zip(episode.tests.values(), (base, novel, everything), strict=True):
        assert indices(split, "test") == record["test"]
        assert list(split.classes) == record["classnames"]
    assert list(episode.train.classes) == base["classnames"]


def test_no_validation_images_means_no_validation_split() -> None:
    without = replace(make_dataset(), val=())
    assert run(without, 1, 1).val is None
    assert episode_of(FewShot(), without, 1).val is None


@pytest.mark.parametrize(("seed", "shots"), sorted({key[:2] for key in RECORDS}))
def test_few_shot_equals_the_published_selection(seed: int, shots: int) -> None:
    dataset, record = make_dataset(), RECORDS[seed, shots, "all"]
    episode = episode_of(FewShot(), dataset, "all" if shots == -1 else shots, seed)
    assert indices(episode.train, "train") == record["train"]
    assert indices(episode.val, "val") == record["val"]
    assert list(episode.tests) == ["test"]
    assert indices(episode.tests["test"], "test") == record["test"]
    for split in (episode.train, episode.val, episode.tests["test"]):
        assert split is not None
        assert list(split.classes) == record["classnames"]


def test_few_shot_uses_the_images_of_base_to_novel() -> None:
    dataset = make_dataset()
    episode = episode_of(FewShot(), dataset, 1)
    assert run(dataset, 1, 1).train == episode.train.select(halves(dataset)[0])
    assert FewShot().summary({"test": 0.25}) == {"test": 0.25}


def test_one_class_cannot_be_halved() -> None:
    items = (Item("a", 0),)
    with pytest.raises(UserError, match="has 1 class with training images"):
        run(Dataset("tiny", ("a",), items, items, items, no_image), 1, 1)


def test_summary_names_the_headline_numbers_in_order() -> None:
    summary = BaseToNovel().summary({"all": 0.4, "novel": 0.5, "base": 0.75})
    assert list(summary.items()) == [("base", 0.75), ("novel", 0.5), ("H", pytest.approx(0.6)), ("all", 0.4)]
    assert BaseToNovel.summary({"novel": 0.5}) == {"novel": 0.5}  # as in imported logs


@pytest.mark.parametrize(
    ("a", "b", "mean"), [(0.8269, 0.6322, 0.7166), (0.5, 0.5, 0.5), (1.0, 0.0, 0.0), (0.0, 0.0, 0.0)]
)
def test_harmonic_mean(a: float, b: float, mean: float) -> None:
    assert harmonic_mean(a, b) == pytest.approx(mean, abs=5e-5)


def make_world(name: str, classes: str = "ab", rows: tuple[int, ...] | None = None) -> Dataset:
    """Eight images for each part, named by data set and part; a class for each letter."""
    parts = (tuple(Item(f"{name}/{part}/{i}", i % len(classes)) for i in range(8)) for part in PARTS)
    return Dataset(name, tuple(classes), *parts, no_image, rows, f"origin of {name}")


def images(split: Split | None) -> set[str]:
    assert split is not None
    return {item.image for item in split.items}


TARGETS = {name: make_world(name) for name in ("one", "two")}


@pytest.mark.parametrize(
    "protocol",
    [
        BaseToNovel(part="val"),
        FewShot(part="val"),
        TrainVal(part="val"),
        CrossDataset(targets=["one"], part="val"),
        DomainGeneralization(targets=["one"], part="val"),
    ],
)
def test_settings_can_be_chosen_on_validation_images(protocol: Protocol) -> None:
    world = make_world("world")
    episode = episode_of(protocol, world, 1)
    seen = {item.image for test in episode.tests.values() for item in test.items}
    assert seen == {item.image for item in world.val}
    assert not images(episode.train) & seen
    assert protocol.targets == ()  # they need not be there


@pytest.mark.parametrize("kind", [CrossDataset, DomainGeneralization])
def test_transfer_trains_as_few_shot_and_tests_the_source_first(kind: type[Transfer]) -> None:
    source, protocol = make_world("source"), kind(targets=["two", "source", "one"])
    episode = episode_of(protocol, source, 2, 3, TARGETS)
    few_shot = episode_of(FewShot(), source, 2, 3)
    assert (episode.train, episode.val) == (few_shot.train, few_shot.val)
    assert list(episode.tests) == ["source", "two", "one"]
    assert episode.tests["source"] == few_shot.tests["test"]
    for name, target in TARGETS.items():
        split = episode.tests[name]
        assert (images(split), split.classes, split.origin) == (images(target.split("test")), ("a", "b"), target.origin)
        assert split.rows == ((0, 1) if kind is DomainGeneralization else None)
        assert split.transfer
    assert not episode.tests["source"].transfer


def test_any_sample_will_do() -> None:
    world = make_world("world")
    for protocol in (FewShot(), BaseToNovel(), TrainVal(), CrossDataset(targets=["one"])):
        episode = protocol.episode(world, ([world.train[2]], []), targets=TARGETS)
        assert (images(episode.train), episode.val) == ({"world/train/2"}, None)


def test_headline_of_a_transfer() -> None:
    protocol = CrossDataset(targets=["one", "two"])
    summary = protocol.summary({"source": 0.9, "one": 0.25, "two": 0.75})
    assert list(summary.items()) == [("source", 0.9), ("one", 0.25), ("two", 0.75), ("average", 0.5)]
    assert protocol.summary({"source": 0.9}) == {"source": 0.9}
    with pytest.raises(UserError, match=r"protocol\.targets is empty"):
        CrossDataset(targets=[])


def test_variants_have_the_classes_of_the_source_or_known_ones_of_them() -> None:
    source, protocol = make_world("source", "abc"), DomainGeneralization(targets=["part"])

    def rows(variant: Dataset) -> tuple[int, ...] | None:
        return episode_of(protocol, source, 1, targets={"part": variant}).tests["part"].rows

    assert rows(make_world("part", "abc")) == (0, 1, 2)
    assert rows(make_world("part", "ca", rows=(2, 0))) == (2, 0)
    wrong = [("ab", None), ("abd", None), ("ca", (0, 2)), ("ab", (0, 3)), ("c", (-1,)), ("ab", (0,)), ("abcd", None)]
    for classes, told in wrong:
        with pytest.raises(UserError, match="part is no variant of source"):
            rows(make_world("part", classes, told))


def test_train_val_trains_on_both_for_the_test() -> None:
    world = make_world("world")
    chosen = episode_of(TrainVal(part="val"), world, "all")
    final = episode_of(TrainVal(), world, "all")
    train, val, test = (images(world.split(part)) for part in ("train", "val", "test"))
    assert (images(chosen.train), images(chosen.val), images(chosen.tests["val"])) == (train, val, val)
    assert (images(final.train), final.val, images(final.tests["test"])) == (train | val, None, test)
    as_imagenet = replace(world, val=world.test)
    with pytest.raises(UserError, match="validation images of world are test images"):
        episode_of(TrainVal(), as_imagenet, 1)


@pytest.mark.parametrize(
    ("protocol", "shots", "test", "per_class"),
    [
        (BaseToNovel(part=FEW_SHOT_VAL), 2, "base", 2),
        (FewShot(part=FEW_SHOT_VAL), 6, FEW_SHOT_VAL, 4),
        (TrainVal(part=FEW_SHOT_VAL), 6, FEW_SHOT_VAL, 4),
        (CrossDataset(targets=["one"], part=FEW_SHOT_VAL), 6, "world", 4),
        (DomainGeneralization(targets=["one"], part=FEW_SHOT_VAL), 6, "world", 4),
    ],
)
def test_settings_can_be_chosen_on_the_few_shot_validation_sample(
    protocol: Protocol, shots: int, test: str, per_class: int
) -> None:
    """Of the classes that are trained on; the data set's test images, and the targets, may be missing."""
    parts = [tuple(Item(f"{part}/{i}", i % 4) for i in range(24)) for part in "xy"]
    world = Dataset("world", ("a", "b", "c", "d"), *parts, (), no_image)
    episode = episode_of(protocol, world, shots)
    assert dict(episode.tests) == {test: episode.val}
    assert protocol.targets == ()
    assert episode.val is not None
    assert not images(episode.train) & images(episode.val)
    assert Counter(i.label for i in episode.val.items) == dict.fromkeys(range(len(episode.train.classes)), per_class)
    without = Dataset("world", world.classes, world.train, (), (), no_image)
    with pytest.raises(UserError, match="world has no validation images to choose settings on"):
        episode_of(protocol, without, 1)


def made(**labels: list[int]) -> Dataset:
    """Four classes, with images of these labels in each part."""
    parts = {part: tuple(Item(f"{part}{i}", label) for i, label in enumerate(labels.get(part, ()))) for part in PARTS}
    return Dataset("made", ("ant", "bee", "cat", "dog"), open_image=no_image, **parts)


ALL = [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("protocol", "test", "lacking"),
    [
        (BaseToNovel(), [0, 1], ["novel", "cat", "dog"]),
        (BaseToNovel(), [2, 3], ["base", "ant", "bee"]),
        (FewShot(), [], ["test"]),
        (TrainVal(), [], ["test"]),
        (CrossDataset(targets=["other"]), [], ["made"]),
        (BaseToNovel(), [1, 2], []),  # of each half some
        (FewShot(), [3], []),
    ],
)
def test_a_test_without_images_is_refused(protocol: Protocol, test: list[int], lacking: list[str]) -> None:
    dataset = made(train=ALL, test=test)
    episode = episode_of(protocol, dataset, "all", targets={"other": made(train=ALL, test=ALL)})
    for trained in (True, False):
        if not lacking:
            check_images(dataset, episode, trained=trained)
            continue
        with pytest.raises(UserError, match="has no images for the test") as caught:
            check_images(dataset, episode, trained=trained)
        assert all(f"'{name}'" in str(caught.value) for name in lacking)


def test_a_target_without_images_is_refused() -> None:
    dataset, target = made(train=ALL, test=ALL), made(train=ALL)
    for protocol in (CrossDataset(targets=["other"]), DomainGeneralization(targets=["other"])):
        episode = episode_of(protocol, dataset, "all", targets={"other": target})
        with pytest.raises(UserError, match="has no images for the test 'other'"):
            check_images(dataset, episode, trained=True)


@pytest.mark.parametrize("protocol", [BaseToNovel(), FewShot(), TrainVal()])
@pytest.mark.parametrize("chosen", [[], [1], [2, 3]])
def test_classes_without_training_images_are_refused(protocol: Protocol, chosen: list[int]) -> None:
    dataset = made(train=ALL, test=ALL)
    episode = protocol.episode(dataset, ([item for item in dataset.train if item.label in chosen], []))
    classes = {"ant", "bee"} if isinstance(protocol, BaseToNovel) else set(dataset.classes)
    with pytest.raises(UserError, match="the training images chosen from made lack") as caught:
        check_images(dataset, episode, trained=True)
    lacking = classes - {dataset.classes[label] for label in chosen}
    assert all((f"'{name}'" in str(caught.value)) == (name in lacking) for name in dataset.classes)
    check_images(dataset, episode, trained=False)


@pytest.mark.parametrize(("noise", "shots", "wrong"), [(0.5, 2, 4), (0.25, 2, 2), (0.125, 4, 2), (0.9, 2, 7)])
def test_wrong_labels_are_the_training_s_alone(noise: float, shots: int, wrong: int) -> None:
    world = make_world("world", "abcd")  # two images of a class in each part
    world = replace(world, train=tuple(Item(f"{i}/{j}", i) for i in range(4) for j in range(4)))
    noisy, clean = (episode_of(protocol, world, shots) for protocol in (NoisyLabels(noise=noise), FewShot()))
    assert [item.image for item in noisy.train.items] == [item.image for item in clean.train.items]
    changed = {a.image for a, b in zip(noisy.train.items, clean.train.items, strict=True) if a.label != b.label}
    assert len(changed) == wrong
    assert changed == images(noisy.tests["mislabelled"])
    assert {*noisy.tests["mislabelled"].items} <= {*clean.train.items}  # with their true labels
    assert (noisy.val, noisy.tests["test"]) == (clean.val, clean.tests["test"])
    assert noisy == episode_of(NoisyLabels(noise=noise), world, shots)
    assert noisy.train != episode_of(NoisyLabels(noise=noise), world, shots, seed=2).train


def test_wrong_labels_without_a_look_at_the_test() -> None:
    world = make_world("world", "ab")
    for part, expected in (("val", world.val), (FEW_SHOT_VAL, None)):
        episode = episode_of(NoisyLabels(part=part), world, 2)
        assert list(episode.tests) == [part]
        assert episode.tests[part].items == (expected or episode.val.items)


def test_headline_of_wrong_labels() -> None:
    summary = NoisyLabels.summary({"test": 0.75, "mislabelled": 0.5})
    assert list(summary.items()) == [("test", 0.75), ("mislabelled", 0.5), ("robust", pytest.approx(0.6))]
    assert NoisyLabels.summary({"val": 0.75}) == {"val": 0.75}


@pytest.mark.parametrize("noise", [0, 1, -0.5, 1.5, float("nan")])
def test_noise_is_a_share(noise: float) -> None:
    with pytest.raises(UserError, match=r"protocol\.noise"):
        NoisyLabels(noise=noise)


def test_noise_that_changes_no_label_is_refused() -> None:
    with pytest.raises(UserError, match=r"protocol\.noise=0\.1"):
        episode_of(NoisyLabels(noise=0.1), make_world("world"), 1)
    with pytest.raises(UserError, match="one class"):
        episode_of(NoisyLabels(), make_world("world", "a"), 1)
