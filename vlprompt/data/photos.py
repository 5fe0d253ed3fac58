"""Pictures as a user has them in Python: paths, PIL images, arrays, tensors; and as batches of pixels."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vlprompt.data.sources.files import Files, to_rgb
from vlprompt.data.transforms import eval_transform, normalise
from vlprompt.errors import UserError
from vlprompt.textfiles import absolute
from vlprompt.towers import Preprocess

Photo: TypeAlias = str | Path | Image.Image | np.ndarray | Tensor
"""The path of a picture, a PIL image, an array uint8 [H, W, 3] or [H, W], or a tensor uint8 [3, H, W]."""
Damaged = Callable[[int, UserError], object]
BATCH = 100
ALLOWED = "a path, a PIL image, an array uint8 [H, W, 3] or [H, W], or a tensor uint8 [3, H, W]"


@dataclass(frozen=True)
class Preparation:
    """PIL image -> what the frozen model reads, [3, H, W]: one centre crop, normalised."""

    settings: Preprocess

    def __call__(self, image: Photo) -> Float[Tensor, "3 H W"]:
        return normalise(crop(image, self.settings)[None], self.settings)[0]


def crop(photo: Photo, pre: Preprocess, *, as_shown: bool = True) -> UInt8[Tensor, "3 H W"]:
    """The centre crop of a picture as bytes. Raises: UserError for what is none, or is damaged."""
    image: Tensor = eval_transform(pre)(open_photo(photo, as_shown=as_shown))
    return image


def open_photo(photo: Photo, *, as_shown: bool = True) -> Image.Image:
    """A picture as RGB. `as_shown`: a file is turned as its EXIF data says, and on white where it is transparent.

    Raises: UserError for what is none, or is damaged.
    """
    if isinstance(photo, str | Path):
        path = absolute(photo)
        return Files(path.parent, as_shown=as_shown)(path.name)
    if isinstance(photo, Image.Image):
        return to_rgb(photo, on_white=as_shown)
    shape, kind = tuple(getattr(photo, "shape", ())), str(getattr(photo, "dtype", "")).removeprefix("torch.")
    if kind == "uint8" and isinstance(photo, Tensor) and len(shape) == 3 and shape[0] == 3:
        return Image.fromarray(photo.permute(1, 2, 0).cpu().numpy())
    if kind == "uint8" and isinstance(photo, np.ndarray) and (len(shape) == 2 or (len(shape) == 3 and shape[2] == 3)):
        return Image.fromarray(photo).convert("RGB")
    described = f"{type(photo).__name__} {kind} {list(shape)}" if kind else type(photo).__name__
    raise UserError(f"{described} is no picture: allowed is {ALLOWED} (floats: as the model's preprocess gives them)")


def prepared(photos: object, pre: Preprocess) -> Float[Tensor, "N 3 H W"] | None:
    """A batch of floats as the model's `preprocess` gives them, from a tensor or a list of them; None: it is none.

    Raises: UserError where its shape is another.
    """
    floats = isinstance(photos, Tensor) and photos.is_floating_point()
    if not floats and isinstance(photos, list | tuple) and photos:
        floats = all(isinstance(photo, Tensor) and photo.is_floating_point() for photo in photos)
    if not floats:
        return None
    tensors = list(photos)  # type: ignore[call-overload]
    wrong = [tensor for tensor in tensors if tuple(tensor.shape) != (3, pre.size, pre.size)]
    if wrong or not tensors:
        shape = list(wrong[0].shape) if wrong else [0]
        raise UserError(f"pictures as floats are {shape}, allowed is [N, 3, {pre.size}, {pre.size}]: use `preprocess`")
    return torch.stack([tensor.float() for tensor in tensors])


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
        _Crops(photos, pre, as_shown), batch_size=BATCH, num_workers=workers, collate_fn=_stacked, shuffle=False
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
