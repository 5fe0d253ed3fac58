"""From images on disk, or drawn, to batches: the published transforms, and views that depend on nothing else."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.transforms import InterpolationMode
from torchvision.transforms import v2 as transforms

from vlprompt.data.dataset import Split
from vlprompt.data.image_cache import ImageCache, Pixels
from vlprompt.data.sources.files import Files
from vlprompt.errors import UserError
from vlprompt.towers import Preprocess


def seed_of(*parts: object) -> int:
    """A 63-bit seed from values, the same on every machine; changing one part changes all."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def eval_transform(pre: Preprocess) -> transforms.Compose:
    """One centre crop, as bytes: shorter side to `size` (or squashed, where the model was trained so), antialiased."""
    mode = InterpolationMode(pre.interpolation)
    size = [pre.size, pre.size] if pre.resize == "squash" else pre.size
    resize = transforms.Resize(size, interpolation=mode, antialias=True)
    return transforms.Compose([resize, transforms.CenterCrop(pre.size), transforms.PILToTensor()])


@dataclass(frozen=True)
class Augment:
    """Random views: share of the area that a crop keeps (at a shape of 3/4 to 4/3), and probability of a flip.

    The defaults are those of CoOp and all that follow it; Tip-Adapter keeps at least half of the area.
    """

    scale: tuple[float, float] = (0.08, 1.0)
    flip: float = 0.5


PUBLISHED = Augment()


def train_transform(pre: Preprocess, augment: Augment = PUBLISHED) -> transforms.Compose:
    """A random view, as bytes."""
    mode = InterpolationMode(pre.interpolation)
    crop = transforms.RandomResizedCrop(pre.size, scale=augment.scale, interpolation=mode, antialias=True)
    return transforms.Compose([crop, transforms.RandomHorizontalFlip(augment.flip), transforms.PILToTensor()])


def normalise(pixels: UInt8[Tensor, "B 3 H W"], pre: Preprocess) -> Float[Tensor, "B 3 H W"]:
    """Bytes to what the model was trained on. A batch at a time: the same numbers as image by image, much sooner."""
    mean, std = (torch.tensor(values, device=pixels.device)[:, None, None] for values in (pre.mean, pre.std))
    return pixels.to(torch.float32).div_(255).sub_(mean).div_(std)


class Views(Dataset[tuple[Tensor, int]]):
    """The images of a split as bytes, indexed by (view, index).

    View None is the centre crop. Any other is a function of (seed, view, image) alone, whatever the order, the batch
    size or the number of workers. With a `cache`, files are decoded once, and cropped for the test once.
    """

    def __init__(
        self,
        split: Split,
        pre: Preprocess,
        *,
        seed: int = 0,
        augment: Augment = PUBLISHED,
        cache: ImageCache | None = None,
    ) -> None:
        self.split, self.pre, self.seed, self.cache = split, pre, seed, cache
        self.plain, self.random = eval_transform(pre), train_transform(pre, augment)

    def __getitem__(self, key: tuple[int | None, int]) -> tuple[UInt8[Tensor, "3 H W"], int]:
        view, index = key
        item = self.split.items[index]
        if view is None:
            return torch.from_numpy(self._obtain(item.image, f"crop {self.pre}", self._crop)), item.label
        image = Image.fromarray(self._obtain(item.image, "decoded", np.array))
        with torch.random.fork_rng(devices=[]):
            # torch.manual_seed would note a stack trace for the GPU at each call
            torch.default_generator.manual_seed(seed_of("view", self.seed, view, item.image))
            return self.random(image), item.label

    def _crop(self, image: Image.Image) -> Pixels:
        return self.plain(image).numpy()

    def _obtain(self, name: str, done: str, make: Callable[[Image.Image], Pixels]) -> Pixels:
        """What `make` makes of an image, from the cache where the image is a file and it is there."""
        files = self.split.open_image
        if self.cache is None or not isinstance(files, Files):
            return make(files(name))
        content = files.read(name)
        return self.cache.obtain(content, f"{files.as_shown} {done}", lambda: make(files.decode(content, name)))


class Shuffled(Sampler[tuple[int | None, int]]):
    """(view, index) pairs of one epoch: the first `n_kept` images of a random order of the epoch's own."""

    def __init__(self, n_images: int, n_kept: int, *, seed: int) -> None:
        self.n_images, self.n_kept, self.seed, self.epoch = n_images, n_kept, seed, 0

    def __len__(self) -> int:
        return self.n_kept

    def __iter__(self) -> Iterator[tuple[int | None, int]]:
        return iter([(self.epoch, index) for index in self.indices()])

    def indices(self) -> list[int]:
        generator = torch.Generator().manual_seed(seed_of("order", self.seed, self.epoch))
        return torch.randperm(self.n_images, generator=generator).tolist()[: self.n_kept]


class Loader(DataLoader[Any]):
    """A DataLoader whose workers report a user's mistake as such: torch puts a traceback into its message."""

    def __iter__(self) -> Any:
        try:
            yield from super().__iter__()
        except UserError as error:
            raise UserError(str(error).rpartition(f"{UserError.__name__}: ")[2].strip()) from None


class Batches:
    """(pixels [B, 3, H, W] on the device, normalised; labels [B]); the workers persist from one epoch to the next."""

    def __init__(
        self,
        views: Views,
        order: Iterable[tuple[int | None, int]],
        *,
        batch_size: int,
        workers: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        self.pre, self.device = views.pre, torch.device(device)
        self.loader = Loader(
            views,
            batch_size=batch_size,
            sampler=order,
            num_workers=workers,
            generator=torch.Generator(),  # else reading would take from the random numbers of the training
            persistent_workers=workers > 0,
            pin_memory=self.device.type == "cuda",
        )

    def __iter__(self) -> Iterator[tuple[Float[Tensor, "B 3 H W"], Int[Tensor, " B"]]]:
        for pixels, labels in self.loader:  # as bytes they are a quarter as large for processes and buses
            moved = pixels.to(self.device, non_blocking=True)
            yield normalise(moved, self.pre), labels.to(self.device, non_blocking=True)
