"""Corrupted images against numbers of the authors' code; the protocol that tests on them; its headline and tables."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from made_records import record
from PIL import Image
from test_protocols import episode_of, make_world
from torchvision import transforms

from vlprompt.data.cache.image_keys import image_key
from vlprompt.data.corruptions import (
    BENCHMARK_KINDS,
    EXTRA_KINDS,
    PARAMETERS,
    RESIZED,
    SIZE,
    Corrupted,
    as_image,
    centre_crop,
    corrupt,
)
from vlprompt.data.dataset import Dataset
from vlprompt.data.sources.banked import Banked
from vlprompt.data.sources.files import Files
from vlprompt.errors import UserError
from vlprompt.evaluate import image_names
from vlprompt.protocols.base import FEW_SHOT_VAL
from vlprompt.protocols.corruptions import Corruptions
from vlprompt.reports.averages import across_datasets
from vlprompt.reports.render import render
from vlprompt.reports.summary import summarise
from vlprompt.results.record import Record

ALL = (*BENCHMARK_KINDS, *EXTRA_KINDS)
ORIGINAL = json.loads((Path(__file__).parent / "fixtures" / "corruptions.json").read_text())
"""Every 64th pixel, by kind and severity, that the authors' code makes of `picture` where it draws the same numbers."""


def picture(height: int = 224, width: int = 224) -> Image.Image:
    r, c = np.mgrid[:height, :width]
    red, green = 128 + 90 * np.sin(r / 9) * np.cos(c / 13), 40 + (r * c) % 180
    return Image.fromarray(np.stack([red, green, np.where((r // 20 + c // 28) % 2, 230, 12)], -1).astype(np.uint8))


def made(image: Image.Image, kind: str, severity: int, seed: int = 0) -> np.ndarray:
    return np.asarray(corrupt(image, kind, severity, np.random.default_rng(seed)), float)


@pytest.mark.parametrize("kind", ORIGINAL)
def test_pixels_are_those_of_the_authors_code(kind: str) -> None:
    """They round down at each step where numbers become bytes, here they round to the nearest."""
    for severity, values in enumerate(ORIGINAL[kind], 1):
        if values is not None:
            ours = made(picture(), kind, severity, seed=severity)[16::64, 16::64].ravel()
            assert np.abs(ours - values).max() <= (2 if kind == "glass_blur" else 1)


def test_parameters_are_those_of_the_authors_code() -> None:
    """Of the kinds whose pixels the test above does not compare."""
    assert [c for (c,) in PARAMETERS["impulse_noise"]] == [0.03, 0.06, 0.09, 0.17, 0.27]
    assert [c for (c,) in PARAMETERS["jpeg_compression"]] == [25, 18, 15, 10, 7]
    assert PARAMETERS["motion_blur"] == [(10, 3), (15, 5), (15, 8), (15, 12), (20, 15)]
    assert PARAMETERS["frost"] == [(1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)]
    assert PARAMETERS["snow"][0] == (0.1, 0.3, 3, 0.5, 10, 4, 0.8)
    assert PARAMETERS["snow"][4] == (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55)
    assert {len(values) for values in PARAMETERS.values()} == {5}
    assert (len(BENCHMARK_KINDS), len(EXTRA_KINDS)) == (15, 4)


@pytest.mark.parametrize("kind", ALL)
def test_a_corruption_keeps_the_size_and_grows_with_its_severity(kind: str) -> None:
    """But two, as published: at the last severities one deforms less, and the other adds what the first remove."""
    image, grey = picture(48, 61), picture(64, 40).convert("L")
    clean = np.asarray(image, float)
    weak, strong = (made(image, kind, severity) for severity in (1, 5))
    assert weak.shape == strong.shape == clean.shape
    assert (weak != clean).any()
    if kind not in ("elastic_transform", "saturate"):
        assert np.abs(strong - clean).mean() > np.abs(weak - clean).mean()
    assert (made(grey, kind, 5) != np.asarray(grey.convert("RGB"))).any()
    again, other = made(image, kind, 3), made(image, kind, 3, seed=1)
    assert (again == made(image, kind, 3)).all()
    drawn = ("noise", "glass", "motion", "snow", "frost", "fog", "elastic", "spatter")
    assert (again != other).any() == any(name in kind for name in drawn)


def test_motion_blur_smears_along_a_line() -> None:
    dot = np.zeros((64, 64, 3), np.uint8)
    dot[32, 32] = 255
    smeared = made(Image.fromarray(dot), "motion_blur", 1)[..., 0]
    rows, columns = np.nonzero(smeared > 2)
    assert len(rows) > 5
    assert np.ptp(columns) >= np.ptp(rows)  # its angle is at most 45 degrees
    assert smeared.sum() == pytest.approx(255, rel=0.05)


def test_corrupted_images_are_those_of_imagenet_c_s_size_and_depend_on_the_name() -> None:
    def opened(name: str) -> Image.Image:
        return picture(100, 150)

    published = transforms.Compose([transforms.Resize(RESIZED), transforms.CenterCrop(SIZE)])
    for height, width in [(128, 200), (200, 128), (375, 500), (251, 335), (301, 250), (30, 30)]:
        assert centre_crop(picture(height, width)).tobytes() == published(picture(height, width)).tobytes()
    noisy = Corrupted(opened, "gaussian_noise", 2)
    first, again, other = (np.asarray(noisy(name)) for name in ("a", "a", "b"))
    assert (first == again).all()
    assert (first != other).any()
    assert as_image(np.asarray(opened("a"), np.float32) / 255).tobytes() == opened("a").tobytes()


def of_files(folder: Path) -> Dataset:
    picture(40, 40).save(folder / "a.png")
    picture(44, 40).save(folder / "b.png")
    world = make_world("world")
    items = tuple(replace(item, image=name) for item, name in zip(world.test, ("a.png", "b.png"), strict=False))
    return replace(world, train=items, val=items, test=items, open_image=Files(folder))


def drawn(name: str) -> Image.Image:
    return picture(30, 30)


def test_caches_never_take_one_corrupted_image_for_another(tmp_path: Path) -> None:
    for dataset in (of_files(tmp_path), replace(make_world("world"), open_image=partial(drawn))):
        kinds = ["fog", "contrast"]
        tests = episode_of(Corruptions(kinds=kinds, severities=[1, 2]), dataset, 1).tests
        keys = [image_key(split, split.items[0].image) for split in tests.values()]
        assert len({*keys}) == len(keys) == 5
        name = dataset.test[0].image  # a bank that was unpacked has the keys of clean images alone
        banked = replace(dataset, open_image=Banked("world", {name: keys[0]}))
        unpacked = episode_of(Corruptions(kinds=kinds, severities=[1, 2]), banked, 1).tests
        assert [image_key(split, name) for split in unpacked.values()] == keys
        names = [name for split in tests.values() for name in image_names(split)]
        assert len({*names}) == len(names)  # so that no test takes another's features
        again = episode_of(Corruptions(kinds=kinds, severities=[1, 2]), dataset, 1).tests
        assert keys == [image_key(split, split.items[0].image) for split in again.values()]


def test_trains_as_few_shot_and_tests_clean_first() -> None:
    world = make_world("world")
    episode = episode_of(Corruptions(), world, 2)
    assert list(episode.tests)[:3] == ["clean", "gaussian_noise_1", "gaussian_noise_2"]
    assert len(episode.tests) == 76
    assert episode.tests["clean"] == world.split("test")
    assert episode.train.origin == world.origin
    for name, split in episode.tests.items():
        assert (split.items, split.classes) == (world.test, episode.train.classes), name


def test_other_parts_leave_the_benchmark_s_kinds_alone() -> None:
    world = make_world("world")
    protocol = Corruptions(part="val", kinds=["fog", "saturate"], severities=[5])
    tests = episode_of(protocol, world, 1).tests
    assert list(tests) == ["clean", "saturate_5"]
    assert all(split.items == world.val for split in tests.values())
    few = episode_of(Corruptions(part=FEW_SHOT_VAL), world, 2)
    assert dict(few.tests) == {"clean": few.val}


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"kinds": ["fog", "rain"]}, "rain"),
        ({"kinds": []}, "protocol.kinds"),
        ({"kinds": ["fog", "fog"]}, "protocol.kinds"),
        ({"severities": [0]}, "protocol.severities"),
        ({"severities": [3, 6]}, "6"),
        ({"severities": []}, "protocol.severities"),
        ({"severities": [2, 2]}, "protocol.severities"),
    ],
)
def test_what_is_no_kind_or_severity_is_refused(settings: dict, told: str) -> None:
    with pytest.raises(UserError, match=told):
        Corruptions(**settings)


def test_the_headline_is_the_mean_over_kinds_of_means_over_severities() -> None:
    summary = Corruptions.summary({"clean": 0.9, "fog_1": 0.8, "fog_5": 0.4, "jpeg_compression_3": 0.5})
    assert list(summary) == ["clean", "fog", "jpeg_compression", "corrupted"]
    assert list(summary.values()) == pytest.approx([0.9, 0.6, 0.5, 0.55])
    assert Corruptions.summary({"clean": 0.9}) == {"clean": 0.9}


def of(method: str, accuracies: dict[str, float], **settings: object) -> Record:
    scores = {name: {"accuracy": value} for name, value in accuracies.items()}
    config = {"protocol": {"part": "test"}}
    return record(method, **{"protocol": "corruptions", "scores": scores, "config": config, **settings})


def test_mean_corruption_error_by_hand() -> None:
    """mean(sum of errors / zero-shot's): fog (0.2 + 0.6) / (0.4 + 0.6) = 0.8, snow (0.3 + 0.5) / (0.5 + 0.5) = 0.8."""
    tests = ("clean", "fog_1", "fog_5", "snow_1", "snow_5")
    zero_shot = of("zero_shot", dict(zip(tests, (0.7, 0.6, 0.4, 0.5, 0.5), strict=True)), shots=0, seed=0)
    coop = of("coop", dict(zip(tests, (0.9, 0.8, 0.4, 0.7, 0.5), strict=True)))
    table = summarise([zero_shot, coop]).set_index("method")
    assert table["mCE"].to_dict() == pytest.approx({"zero_shot": 100.0, "coop": 80.0})
    assert table.loc["coop", "corrupted"] == pytest.approx(60.0)
    assert not {"fog_1", "fog_5"} & {*table}
    assert not {"fog_1", "fog_5"} & {*across_datasets([zero_shot, coop])[0]["part"]}
    assert "mCE" not in summarise([coop])
    assert "mCE" not in summarise([zero_shot, coop], metric="ece")


def test_mean_corruption_error_is_relative_to_zero_shot_on_as_many_images() -> None:
    """`debug=fast` leaves images out: zero-shot's run with all of them is no reference then, nor the other way."""
    few = {"config": {"protocol": {"part": "test"}, "debug": {"images": 2}}, "changes": {"debug.images": 2}}
    runs = [of("zero_shot", {"clean": 0.9, "fog_3": value}, shots=0, seed=0, **more)
            for value, more in ((0.6, {}), (0.2, {"variant": "12345678", **few}))]  # fmt: skip
    learners = [of("coop", {"clean": 0.9, "fog_3": 0.8}), of("maple", {"clean": 0.9, "fog_3": 0.8}, **few)]
    table = summarise([*runs, *learners]).set_index("method")
    assert table["mCE"].drop("zero_shot").to_dict() == pytest.approx({"coop": 50.0, "maple": 25.0})


def test_mean_corruption_error_of_several_seeds_is_that_of_the_mean_errors() -> None:
    """Of seed 1 fog 0.2 / 0.4 and snow 0.5 / 0.5, of seed 2 0.4 / 0.4 and 0.3 / 0.5: (0.3 / 0.4 + 0.4 / 0.5) / 2."""
    zero_shot = of("zero_shot", {"clean": 0.9, "fog_1": 0.6, "snow_1": 0.5}, shots=0, seed=0)
    seeds = [of("coop", {"clean": 0.9, "fog_1": fog, "snow_1": snow}, seed=seed)
             for seed, fog, snow in ((1, 0.8, 0.5), (2, 0.6, 0.7))]  # fmt: skip
    table = summarise([zero_shot, *seeds])
    assert table.set_index("method").loc["coop", "mCE"] == pytest.approx(77.5)
    for form in ("markdown", "csv", "latex", "terminal"):
        text = render(table, form)
        assert "mCE" in text
        assert "77.5" in text


@pytest.mark.parametrize(
    "other",
    [
        {"accuracies": {"clean": 0.7, "fog_1": 0.6}},  # other corruptions
        {"dataset": "other"},
        {"backbone": "other"},
        {"changes": {"test_time.name": "tda"}, "variant": "12345678"},
        {"split_hash": "0" * 64},
    ],
)
def test_no_mean_corruption_error_without_zero_shot_on_the_same_images(other: dict) -> None:
    accuracies = {"clean": 0.7, "fog_1": 0.6, "fog_5": 0.4}
    zero_shot = of("zero_shot", **{"accuracies": accuracies, "shots": 0, "seed": 0, **other})
    table = summarise([zero_shot, of("coop", accuracies)]).set_index("method")
    assert "mCE" not in table or np.isnan(table.loc["coop", "mCE"])
