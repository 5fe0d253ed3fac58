"""Small pictures of test images, each once in the page however many runs show it."""

import base64
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from PIL import Image

from vlprompt.errors import UserError
from vlprompt.results.record import Record

SIDE, QUALITY = 72, 70  # pixels; of a JPEG
MOST_IMAGES = 1000  # 2 kB each


@dataclass(frozen=True)
class KnownImages:
    """What is known of the images of a test: the classes by image, and how an image is opened."""

    classes: Mapping[str, str]
    open_image: Callable[[str], Image.Image]
    origin: str


ImagesOf = Callable[[Record, str], KnownImages | None]
"""The images of a run's test; None where they are not on this disk, or are not those that were tested."""


@dataclass
class Thumbnails:
    """The pictures of a page, by the CSS class that shows them."""

    most: int = MOST_IMAGES
    sources: dict[str, str] = field(default_factory=dict)
    _names: dict[tuple[str, str], str] = field(default_factory=dict)

    def add(self, images: KnownImages, name: str) -> str:
        """The CSS class of an image; empty where it cannot be opened, or there are too many."""
        key = images.origin, name
        if key not in self._names:
            if len(self.sources) >= self.most:
                return ""
            self._names[key] = self._draw(images, name)
        return self._names[key]

    def _draw(self, images: KnownImages, name: str) -> str:
        try:
            source = thumbnail(images.open_image(name))
        except (OSError, UserError, ValueError, IndexError, KeyError, Image.DecompressionBombError):
            return ""  # missing or damaged, or no image of this data set
        css = f"p{len(self.sources)}"
        self.sources[css] = source
        return css


def thumbnail(image: Image.Image) -> str:
    """A square JPEG as a data: address."""
    image.draft("RGB", (4 * SIDE, 4 * SIDE))  # a JPEG is decoded smaller
    side = min(image.size)
    left, top = ((length - side) // 2 for length in image.size)
    small = image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX, (left, top, left + side, top + side))
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()
