"""Images stored as files."""

import struct
from pathlib import Path

from PIL import Image

from vlprompt.errors import UserError

# What Pillow raises for damaged files depends on the format. UnidentifiedImageError is an OSError.
DAMAGED = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)


def open_file(root: Path, image: str) -> Image.Image:
    """The image at `root/image` as RGB. Raises UserError, naming the file, where it is missing or damaged."""
    path = root / image
    try:
        with Image.open(path) as opened:
            return opened.convert("RGB")
    except FileNotFoundError as error:
        raise UserError(f"image {path} is missing: put it back, or unpack the data set again.") from error
    except DAMAGED as error:
        raise UserError(f"image {path} cannot be read ({error}): replace the file.") from error
