"""Images of a split as batches of pixels."""

import multiprocessing
import signal
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from vlprompt.data.cache.images import ImageCache, Pixels
from vlprompt.data.dataset import Split
from vlprompt.data.sources.files import Files
from vlprompt.data.transforms import PUBLISHED, Augment, eval_transform, normalise, seed_of, train_transform
from vlprompt.errors import UserError
from vlprompt.towers import Preprocess

LAST_SECONDS = 12  # of a worker after SIGTERM: a step of the training has less to come to its end


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
        """What `make` makes of an image, or a stored copy where the image is a file and there is one."""
        files = self.split.open_image
        if self.cache is None or not isinstance(files, Files):
            return make(files(name))
        content = files.read(name)
        return self.cache.obtain(content, f"{files.as_shown} {done}", lambda: make(files.decode(content, name)))


class Shuffled(Sampler[tuple[int | None, int]]):
    """(view, index) pairs of one epoch: the first `n_used` images of a random order that is the epoch's own.

    The view is the epoch's own, too, or one of `n_views` in turn. `pooled`: the order is one of all views of all
    images. `n_done` of the pairs are left out, of an epoch that is resumed.
    """

    def __init__(
        self, n_images: int, n_used: int, *, seed: int, n_views: int | None = None, pooled: bool = False
    ) -> None:
        self.n_images, self.n_used, self.seed, self.n_views = n_images, n_used, seed, n_views
        self.pooled = pooled
        self.epoch, self.n_done = 0, 0

    def __len__(self) -> int:
        return self.n_used

    def __iter__(self) -> Iterator[tuple[int | None, int]]:
        left = self.indices()[self.n_done :]
        if self.pooled:
            return iter([divmod(index, self.n_images) for index in left])
        view = self.epoch % self.n_views if self.n_views else self.epoch
        return iter([(view, index) for index in left])

    def indices(self) -> list[int]:
        """Of the epoch's images; of pooled views those of the first view come first."""
        n = self.n_images * (self.n_views or 1) if self.pooled else self.n_images
        generator = torch.Generator().manual_seed(seed_of("order", self.seed, self.epoch))
        return torch.randperm(n, generator=generator).tolist()[: self.n_used]


def leave_stopping(worker: int) -> None:
    """In a process that reads: a signal to a whole job is the training's to answer, which ends its workers itself.

    They end soon after it all the same: a program that fails sends it to those that it left.
    """
    for name in ("SIGINT", "SIGUSR1", "SIGUSR2"):
        if hasattr(signal, name):  # Windows lacks some
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if hasattr(signal, "alarm"):
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # which ends a process
        signal.signal(signal.SIGTERM, lambda *_: signal.alarm(LAST_SECONDS))


def start_method() -> str:
    """How reading processes start: as Python does by default, not as joblib has it in the processes of a sweep."""
    chosen, known = multiprocessing.get_start_method(allow_none=True), multiprocessing.get_all_start_methods()
    return chosen if chosen in known else known[0]


class _Workers(DataLoader[Any]):
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
        self.loader = _Workers(
            views,
            batch_size=batch_size,
            sampler=order,
            num_workers=workers,
            generator=torch.Generator(),  # else reading would take from the random numbers of the training
            persistent_workers=workers > 0,
            multiprocessing_context=start_method() if workers else None,
            pin_memory=self.device.type == "cuda",
            worker_init_fn=leave_stopping,
        )

    def __iter__(self) -> Iterator[tuple[Float[Tensor, "B 3 H W"], Int[Tensor, " B"]]]:
        for pixels, labels in self.loader:  # as bytes they are a quarter as large for processes and buses
            moved = pixels.to(self.device, non_blocking=True)
            yield normalise(moved, self.pre), labels.to(self.device, non_blocking=True)
