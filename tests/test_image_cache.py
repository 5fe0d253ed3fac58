"""The cache of decoded images and test crops: the same pixels, whatever happens to its files."""

import logging
import multiprocessing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from vlprompt.data import disk
from vlprompt.data.cache import images as image_cache
from vlprompt.data.cache.budget import LEDGER, LOCK
from vlprompt.data.cache.checked import note_damage
from vlprompt.data.cache.images import ImageCache
from vlprompt.data.dataset import Item, Split
from vlprompt.data.sources.files import Files
from vlprompt.data.views import Batches, Views
from vlprompt.towers import Preprocess

N = 4
PLAIN: list[tuple[int | None, int]] = [(None, i) for i in range(N)]
RANDOM: list[tuple[int | None, int]] = [(view, i) for view in (0, 1) for i in range(N)]


@pytest.fixture
def split(tmp_path: Path) -> Split:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (N, 40, 50, 3), dtype=np.uint8)
    for i, pixels in enumerate(noise):
        Image.fromarray(pixels).save(pictures / f"{i}.jpg")
    items = tuple(Item(f"{i}.jpg", i) for i in range(N))
    return Split(items, tuple("abcd"), Files(pictures))


@pytest.fixture
def cache(tmp_path: Path) -> ImageCache:
    disk.complain.cache_clear()
    note_damage.cache_clear()
    return ImageCache(tmp_path / "cache", 10**9)


def pixels(split, cache, order=PLAIN, pre=Preprocess(size=16), workers=0):  # noqa: B008
    batches = Batches(Views(split, pre, seed=1, cache=cache), order, batch_size=3, workers=workers)
    return torch.cat([batch for batch, _ in batches])


def files(cache: ImageCache) -> list[Path]:
    return sorted(path for path in cache.folder.rglob("*") if path.is_file() and path.name not in (LEDGER, LOCK))


def count_decodings(monkeypatch):
    seen = []
    decode = Files.decode
    monkeypatch.setattr(Files, "decode", lambda self, *args: (seen.append(args[1]), decode(self, *args))[1])
    return seen


@pytest.mark.parametrize("order", [PLAIN, RANDOM])
def test_the_same_pixels_without_decoding(split, cache, order, monkeypatch):
    plain = pixels(split, None, order)
    assert torch.equal(pixels(split, cache, order), plain)
    decoded = count_decodings(monkeypatch)
    assert torch.equal(pixels(split, cache, order), plain)
    assert not decoded
    pixels(split, None, order)
    assert len(decoded) == len(order)


def test_a_batch_is_what_the_published_transform_makes_of_each_image(split):
    pre = Preprocess(size=16)
    published = transforms.Compose([
        transforms.Resize(16, interpolation=InterpolationMode.BICUBIC),
        transforms.CenterCrop(16),
        transforms.ToTensor(),
        transforms.Normalize(pre.mean, pre.std),
    ])  # fmt: skip
    expected = torch.stack([published(split.open_image(item.image)) for item in split.items])
    assert torch.equal(pixels(split, None), expected)


def test_another_image_or_transform_is_another_entry(split, cache):
    pixels(split, cache)
    assert len(files(cache)) == N
    pixels(split, cache, pre=Preprocess(size=8))
    assert len(files(cache)) == 2 * N
    root = split.open_image.root
    (root / "0.jpg").write_bytes((root / "1.jpg").read_bytes())
    first, second = pixels(split, cache)[:2]
    assert torch.equal(first, second)
    pixels(replace(split, open_image=Files(root, as_shown=True)), cache)
    assert len(files(cache)) == 3 * N - 1  # two of the images are the same now


@pytest.mark.parametrize("damage", [b"", b"short", b"\xff" * 5000])
def test_damaged_entries_are_made_anew(split, cache, damage):
    plain = pixels(split, cache)
    for path in files(cache):
        path.write_bytes(damage)
    assert torch.equal(pixels(split, cache), plain)
    assert all(path.stat().st_size == image_cache.HEADER + 3 * 16 * 16 for path in files(cache))


def test_a_full_cache_keeps_what_it_has_and_says_so_once(split, cache, caplog):
    small = ImageCache(cache.folder, 2 * 3 * 16 * 16 + 100)
    with caplog.at_level(logging.WARNING):
        assert torch.equal(pixels(split, small), pixels(split, None))
    assert len(files(cache)) == 2
    assert [record.getMessage() for record in caplog.records] == [
        f"the image cache in {cache.folder} is full: raise data.cache_gb, or delete the folder"
    ]


def test_a_cache_that_cannot_be_written_does_no_harm(split, cache, caplog):
    cache.folder.write_text("in the way")
    assert torch.equal(pixels(split, cache), pixels(split, None))
    assert sum("cannot be written" in record.getMessage() for record in caplog.records) == 1


def fill(split, cache):
    for _ in range(5):
        pixels(split, cache, RANDOM)


def test_parallel_runs_share_it(split, cache):
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=fill, args=(split, cache)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert len(files(cache)) == N
    assert torch.equal(pixels(split, cache, RANDOM), pixels(split, None, RANDOM))


def test_worker_processes_fill_it_too(split, cache):
    assert torch.equal(pixels(split, cache, workers=1), pixels(split, None))
    assert len(files(cache)) == N
