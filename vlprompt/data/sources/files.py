"""Images stored as files."""

import contextlib
import io
import struct
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from vlprompt.errors import UserError
from vlprompt.textfiles import ordinary

# What Pillow raises for damaged files depends on the format. UnidentifiedImageError is an OSError.
DAMAGED = (
    *(OSError, SyntaxError, ValueError, EOFError, RuntimeError, struct.error),
    Image.DecompressionBombError,
)
COMMON = ("JPEG", "PNG", "BMP", "GIF", "PPM")  # tried first
BY_OTHERS = ("EPS", "WMF")
DEEPEST = 65535  # of 16 bits


@dataclass(frozen=True)
class Files:
    """Opens the images below the folder `root` as RGB, deep grey values scaled to 8 bits.

    `as_shown`: turned as their EXIF data says, and on white where they are transparent, as the people saw them who
    labelled them. Without, pixels are taken as they are stored, as by the original implementations.
    """

    root: Path
    as_shown: bool = False

    def __call__(self, image: str) -> Image.Image:
        """Raises: UserError, naming the file, where it is missing or damaged."""
        return self.decode(self.read(image), image)

    def locate(self, image: str) -> Path:
        """The file of an image."""
        return self.root / image

    def has(self, image: str) -> bool:
        """Whether the file of an image is there."""
        return self.locate(image).is_file()

    def read(self, image: str) -> bytes:
        """The file as it is stored. Raises: UserError where it cannot be read."""
        path = self.locate(image)
        try:
            return ordinary(path).read_bytes()
        except FileNotFoundError as error:
            raise UserError(f"image {path} is missing: put it back, or unpack the data set again.") from error
        except OSError as error:
            raise damaged(path, error) from error

    def decode(self, content: bytes, image: str) -> Image.Image:
        """The picture in a file's bytes. Raises: UserError that names the file where it is damaged."""
        try:
            with Image.open(io.BytesIO(content), formats=formats()) as opened:
                pixels = to_rgb(opened, on_white=self.as_shown)
                return turn(pixels, orientation_of(opened)) if self.as_shown else pixels
        except DAMAGED as error:
            raise damaged(self.locate(image), error) from error


@cache
def formats() -> list[str]:
    """What Pillow reads without the help of other programs: an EPS file is one for Ghostscript to execute."""
    Image.init()
    others = [name for name in Image.ID if name not in (*COMMON, *BY_OTHERS)]
    return [*COMMON, *others]


def damaged(path: Path, error: Exception) -> UserError:
    known = getattr(error, "strerror", None) or error  # without the number of the error, and the path once more
    why = "no known format" if isinstance(error, UnidentifiedImageError) else known
    return UserError(f"image {path} cannot be read ({why}): replace the file.")


def to_rgb(image: Image.Image, *, on_white: bool = False) -> Image.Image:
    """Eight bits a channel, from any mode that Pillow reads. Transparent pixels are white, or lose their alpha."""
    if image.mode.startswith(("I", "F")):
        image = to_8_bits(image)  # Pillow's own conversion clips some of these modes at 255
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if on_white:
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def to_8_bits(image: Image.Image) -> Image.Image:
    """16-bit grey at a fixed scale. Values beyond, and floats, have none: their least becomes 0, their greatest 255.

    Raises: ValueError where a pixel is no number.
    """
    values = np.asarray(image, dtype=np.float64)
    if not np.isfinite(values).all():
        raise ValueError("it has pixels that are NaN or infinite")
    low, high = 0.0, float(DEEPEST)
    if image.mode == "F" or values.min() < low or values.max() > high:
        low, high = values.min(), values.max()
    return Image.fromarray(np.round((values - low) * (255 / max(high - low, 1e-12))).astype(np.uint8))


def orientation_of(image: Image.Image) -> int:
    """The EXIF orientation, 1 (upright) where there is none or it cannot be read."""
    with contextlib.suppress(*DAMAGED):  # a camera's broken notes do not make a broken picture
        orientation = image.getexif().get(ExifTags.Base.Orientation)
        return orientation if isinstance(orientation, int) else 1
    return 1


def turn(image: Image.Image, orientation: int) -> Image.Image:
    image.getexif()[ExifTags.Base.Orientation] = orientation
    return ImageOps.exif_transpose(image)
