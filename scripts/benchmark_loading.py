"""How fast images are read: a plain loader, vlprompt's first epoch, and vlprompt from its cache.

    python scripts/benchmark_loading.py --output results/benchmarks/loading.md

One process, one thread; the three are timed in turn, round after round, on JPEG files of 1/f noise (about as large as
photographs) that are made anew. Images per second of CPU time: medians over the rounds. Both paths are held against
the plain loader, pixel by pixel.
"""

import argparse
import platform
import tempfile
import time
from collections.abc import Callable, Iterable
from itertools import count
from pathlib import Path
from statistics import median

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import transforms

from vlprompt.data.cache.images import ImageCache
from vlprompt.data.dataset import Item, Split
from vlprompt.data.sources.files import Files
from vlprompt.data.views import Batches, Views
from vlprompt.towers import Preprocess

BICUBIC = transforms.InterpolationMode.BICUBIC
QUALITY = 90
BATCH = 100


def noise(width: int, height: int, generator: np.random.Generator) -> np.ndarray:
    """Three channels of 1/f noise as bytes."""
    spectrum = np.fft.fft2(generator.normal(size=(height, width, 3)), axes=(0, 1))
    frequency = np.hypot(np.fft.fftfreq(height)[:, None, None], np.fft.fftfreq(width)[None, :, None])
    values = np.fft.ifft2(spectrum / np.maximum(frequency, 1 / width), axes=(0, 1)).real
    low, high = values.min(), values.max()
    return ((values - low) / (high - low) * 255).astype(np.uint8)


def make_images(folder: Path, size: tuple[int, int], n_images: int) -> Split:
    generator = np.random.default_rng(0)
    picture = noise(*size, generator)
    for i in range(n_images):
        Image.fromarray(np.roll(picture, 37 * i, axis=1)).save(folder / f"{i}.jpg", quality=QUALITY)
    return Split(tuple(Item(f"{i}.jpg", 0) for i in range(n_images)), ("noise",), Files(folder))


class Plain(torch.utils.data.Dataset[Tensor]):
    """What everybody writes: Pillow, torchvision's transforms, one float tensor an image."""

    def __init__(self, split: Split, pre: Preprocess, *, train: bool) -> None:
        crop: list[Callable[..., object]] = [transforms.Resize(pre.size, BICUBIC), transforms.CenterCrop(pre.size)]
        if train:
            crop = [transforms.RandomResizedCrop(pre.size, (0.08, 1.0), interpolation=BICUBIC)]
            crop.append(transforms.RandomHorizontalFlip())
        self.transform = transforms.Compose([*crop, transforms.ToTensor(), transforms.Normalize(pre.mean, pre.std)])
        self.split = split

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> Tensor:
        files = self.split.open_image
        assert isinstance(files, Files)
        with Image.open(files.root / self.split.items[index].image) as image:
            return self.transform(image.convert("RGB"))


def seconds(batches: Iterable[object]) -> float:
    start = time.process_time()
    for _ in batches:
        pass
    return time.process_time() - start


def measure(folder: Path, size: tuple[int, int], *, n_images: int, rounds: int, train: bool) -> dict[str, float]:
    """Images per second of CPU time: plain, first epoch, cached."""
    images = folder / f"{size[0]}x{size[1]}"
    images.mkdir(exist_ok=True)
    split, pre = make_images(images, size, n_images), Preprocess()
    fresh = (ImageCache(folder / f"cache{i}", 10**12) for i in count())
    order = [(0 if train else None, i) for i in range(n_images)]

    def ours(cache: ImageCache) -> Iterable[tuple[Tensor, Tensor]]:
        return (batch for batch in Batches(Views(split, pre, cache=cache), order, batch_size=BATCH))

    plain = DataLoader(Plain(split, pre, train=train), batch_size=BATCH)
    warm = ImageCache(folder / f"warm {size} {train}", 10**12)
    first = torch.cat([pixels for pixels, _ in ours(warm)])
    again = torch.cat([pixels for pixels, _ in ours(warm)])
    assert torch.equal(first, again)
    assert train or torch.equal(first, torch.cat(list(plain)))  # random crops differ by their random numbers
    kinds: dict[str, Callable[[], Iterable[object]]] = {
        "plain": lambda: plain,
        "first epoch": lambda: ours(next(fresh)),
        "cached": lambda: ours(warm),
    }
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(rounds):
        for kind, batches in kinds.items():
            times[kind].append(seconds(batches()))
    ratios = [a / b for a, b in zip(times["plain"], times["cached"], strict=True)]
    return {kind: n_images / median(of) for kind, of in times.items()} | {"cached / plain": median(ratios)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for size in ((300, 200), (500, 375), (1024, 768)):
            for train in (False, True):
                speeds = measure(Path(folder), size, n_images=options.images, rounds=options.rounds, train=train)
                shown = {kind: f"{value:,.0f}" for kind, value in speeds.items()}
                shown["cached / plain"] = f"{speeds['cached / plain']:.1f}"
                rows.append({"image": f"{size[0]} x {size[1]}", "path": "train" if train else "test", **shown})
    table = pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True, colalign=["left"] * 2 + ["right"] * 4)
    about = (
        "Images per second of CPU time, one process and thread, 224-pixel crops; "
        f"medians of {options.rounds} rounds over {options.images} images. "
        f"{platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}. "
        "Made by `python scripts/benchmark_loading.py`."
    )
    text = f"{about}\n\n{table}\n"
    print(text)
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(text)


if __name__ == "__main__":
    main()
