"""Pictures as a user has them in Python: paths, PIL images, arrays, tensors; and as batches of pixels."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vlprompt.data.sources.files import DAMAGED, Files, orientation_of, to_rgb, turn
from vlprompt.data.transforms import eval_transform, normalise
from vlprompt.data.views import start_method
from vlprompt.errors import UserError
from vlprompt.textfiles import absolute
from vlprompt.towers import Preprocess

Photo: TypeAlias = str | Path | Image.Image | np.ndarray | Tensor
"""The path of a picture, a PIL image, an array uint8 [H, W, 3 or 4] or [H, W], or a tensor uint8 [3, H, W]."""
Damaged = Callable[[int, UserError], object]
BATCH = 100
CHANNELS = (1, 3, 4)
ALLOWED = (
    "a path, a PIL image, an array uint8 [H, W, 3] or [H, W], a tensor uint8 [3, H, W], or floats as the model's "
    "`preprocess` gives them (all of a list, or none)"
)


@dataclass(frozen=True)
class PhotoTransform:
    """PIL image -> what the frozen model reads, [3, H, W]: one centre crop, normalised."""

    settings: Preprocess
    as_shown: bool = True

    def __call__(self, image: Photo) -> Float[Tensor, "3 H W"]:
        return normalise(crop(image, self.settings, as_shown=self.as_shown)[None], self.settings)[0]


def crop(photo: Photo, pre: Preprocess, *, as_shown: bool = True) -> UInt8[Tensor, "3 H W"]:
    """The centre crop of a picture as bytes. Raises: UserError for what is none, or is damaged."""
    image: Tensor = eval_transform(pre)(open_photo(photo, as_shown=as_shown))
    return image


def open_photo(photo: Photo, *, as_shown: bool = True) -> Image.Image:
    """A picture as RGB. `as_shown`: it is turned as its EXIF data says, and on white where it is transparent.

    Raises: UserError for what is none, or is damaged.
    """
    if isinstance(photo, str | Path):
        path = absolute(photo)
        if not path.is_file():
            what = f"'{photo}' is a folder, not a picture" if path.is_dir() else f"there is no picture '{photo}'"
            raise UserError(f"{what}: give paths of files")
        return Files(path.parent, as_shown=as_shown)(path.name)
    picture = photo if isinstance(photo, Image.Image) else from_pixels(photo)
    if not all(picture.size):
        raise UserError(f"{type(picture).__name__} {list(picture.size)} is no picture: it has no pixels")
    try:
        pixels = to_rgb(picture, on_white=as_shown)
    except DAMAGED as error:  # PIL reads the file of an image when its pixels are asked for
        raise UserError(f"{type(picture).__name__} {list(picture.size)} cannot be read: {error}") from error
    return turn(pixels, orientation_of(picture)) if as_shown else pixels


def from_pixels(pixels: Any) -> Image.Image:
    """The picture in an array or a tensor of bytes. Raises: UserError for what is none."""
    kind = str(getattr(pixels, "dtype", "")).removeprefix("torch.")
    array = pixels.detach().cpu().numpy() if isinstance(pixels, Tensor) else pixels
    if isinstance(pixels, Tensor) and pixels.ndim == 3:
        array = array.transpose(1, 2, 0)
    if kind == "uint8" and array.size and (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in CHANNELS)):
        return Image.fromarray(np.ascontiguousarray(array[:, :, 0] if array.shape[2:] == (1,) else array))
    described = f"{type(pixels).__name__} {kind} {list(pixels.shape)}" if kind else type(pixels).__name__
    raise UserError(f"{described} is no picture: allowed is {ALLOWED}")


def listed(photos: object) -> tuple[list[Photo], bool]:
    """Pictures as a list, and whether a single one was given. What is no picture is told when it is opened."""
    if isinstance(photos, np.ndarray | Tensor):
        one = photos.ndim in (0, 2, 3)
        return ([photos] if one else list(photos)), one
    several = isinstance(photos, Iterable) and not isinstance(photos, str | Path | bytes | Image.Image | Mapping | Set)
    return (list(photos), False) if several else ([photos], True)  # type: ignore[call-overload, list-item]


def is_float(photo: object) -> bool:
    """Whether it can be what `preprocess` gives."""
    return (
        photo.is_floating_point() if isinstance(photo, Tensor) else getattr(photo, "dtype", np.dtype(int)).kind == "f"
    )


def prepared(photos: Sequence[object], pre: Preprocess) -> Float[Tensor, "N 3 H W"] | None:
    """A batch of floats as the model's `preprocess` gives them; None: these are other pictures.

    Raises: UserError where a shape is another, or a value is not finite.
    """
    if not all(map(is_float, photos)):
        return None
    tensors = [torch.as_tensor(photo).detach().float() for photo in photos]
    if wrong := [list(tensor.shape) for tensor in tensors if tuple(tensor.shape) != (3, pre.size, pre.size)]:
        need = f"[3, {pre.size}, {pre.size}]"
        raise UserError(f"a picture of floats is {wrong[0]}, allowed is {need}, as the model's `preprocess` gives it")
    if not (batch := torch.stack(tensors)).isfinite().all():
        raise UserError("a picture of floats has values that are NaN or infinite")
    return batch


def read_photos(
    photos: Sequence[Photo],
    pre: Preprocess,
    *,
    as_shown: bool = True,
    workers: int = 0,
    damaged: Damaged | None = None,
) -> Iterator[tuple[list[int], UInt8[Tensor, "B 3 H W"]]]:
    """Batches of centre crops as bytes, with the indices of the pictures in them.

    `damaged` hears of each picture that cannot be read, which is left out; None: it is raised.

    Raises: UserError.
    """
    loader = DataLoader(
        _Crops(photos, pre, as_shown),
        batch_size=BATCH,
        num_workers=workers,
        multiprocessing_context=start_method() if workers else None,
        collate_fn=_stacked,
        generator=torch.Generator(),  # a loader draws a number from it: the caller's stay as they are
    )
    for n, (read, crops, errors) in enumerate(loader):
        for i, error in errors:
            if damaged is None:
                raise UserError(error)
            damaged(n * BATCH + i, UserError(error))
        if read:
            yield [n * BATCH + i for i in read], crops


def _stacked(batch: Sequence[Tensor | str]) -> tuple[list[int], Tensor, list[tuple[int, str]]]:
    """Crops as one tensor, which is sooner sent from a worker than many, with their positions; and the messages."""
    crops = {i: one for i, one in enumerate(batch) if isinstance(one, Tensor)}
    errors = [(i, one) for i, one in enumerate(batch) if not isinstance(one, Tensor)]
    return list(crops), torch.stack(list(crops.values())) if crops else torch.empty(0), errors


@dataclass(frozen=True)
class _Crops(Dataset[Tensor | str]):
    """Crops, or the message where a picture cannot be read: a worker's exceptions arrive with a traceback in them."""

    photos: Sequence[Photo]
    pre: Preprocess
    as_shown: bool

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, index: int) -> Tensor | str:
        try:
            return crop(self.photos[index], self.pre, as_shown=self.as_shown)
        except UserError as error:
            return str(error)
