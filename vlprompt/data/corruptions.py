"""ImageNet-C's corruptions of images, each a function of the image, a random generator and its published parameters.

Source: Hendrycks & Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations" (ICLR
2019), section 3 and appendix B; the numbers are those of the authors' code, for images of 224 x 224 pixels. What
differs is in docs/differences.md.
"""

import hashlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps
from scipy import ndimage
from scipy.signal import fftconvolve

from vlprompt.data.dataset import OpenImage

Array = npt.NDArray[np.floating[Any]]  # [H, W, 3], or a layer [H, W], in [0, 1]
Rng = np.random.Generator
RESIZED, SIZE = 256, 224  # pixels of the shorter side, then of a side of the centre crop
GREY = np.array([0.299, 0.587, 0.114], np.float32)
ELASTIC = 244  # in the authors' code, whose images have 224 pixels


@dataclass(frozen=True)
class Corrupted:
    """Opens images resized and cropped as ImageNet-C's, then corrupted: a function of their name, kind and severity."""

    open_image: OpenImage
    kind: str
    severity: int  # 1 to 5

    def __call__(self, image: str) -> Image.Image:
        """RGB, 224 x 224."""
        digest = hashlib.sha256("\x1f".join([image, self.kind, str(self.severity)]).encode()).digest()
        rng = np.random.default_rng(int.from_bytes(digest[:8], "big"))
        return corrupt(centre_crop(self.open_image(image)), self.kind, self.severity, rng)


def centre_crop(image: Image.Image) -> Image.Image:
    """224 x 224 of an image whose shorter side becomes 256, to the pixel as by torchvision's transforms."""
    width, height = (side * RESIZED // min(image.size) for side in image.size)
    left, top = round((width - SIZE) / 2), round((height - SIZE) / 2)
    resized = image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
    return resized.crop((left, top, left + SIZE, top + SIZE))


def corrupt(image: Image.Image, kind: str, severity: int, rng: Rng) -> Image.Image:
    """An image of any size, of the same size in RGB. Distances are in pixels, whatever the size."""
    x = np.asarray(image.convert("RGB"), np.float32) / 255
    y = KINDS[kind](x, rng, *PARAMETERS[kind][severity - 1])
    return as_image(np.clip(y, 0, 1))


def gaussian_noise(x: Array, rng: Rng, deviation: float) -> Array:
    return x + rng.normal(0, deviation, x.shape)


def shot_noise(x: Array, rng: Rng, photons: float) -> Array:
    return rng.poisson(x * photons) / photons


def impulse_noise(x: Array, rng: Rng, amount: float) -> Array:
    drawn = rng.random(x.shape)
    return np.where(drawn < amount, drawn < amount / 2, x)


def speckle_noise(x: Array, rng: Rng, deviation: float) -> Array:
    return x + x * rng.normal(0, deviation, x.shape)


def gaussian_blur(x: Array, rng: Rng, sigma: float) -> Array:
    return ndimage.gaussian_filter(x, (sigma, sigma, 0), mode="nearest")


def glass_blur(x: Array, rng: Rng, sigma: float, reach: int, rounds: int) -> Array:
    """Pixels become near ones, from the last to the first: an order in which some travel far.

    The authors' code means to swap the two, but the first is overwritten before it is read.
    """
    height, width = x.shape[:2]
    source = list(range(height * width))
    rows, columns = np.arange(height - reach, reach, -1), np.arange(width - reach, reach, -1)
    pixels = (rows[:, None] * width + columns).ravel()
    for _ in range(rounds):
        dx, dy = rng.integers(-reach, reach, (2, len(pixels)))
        for pixel, near in zip(pixels.tolist(), (pixels + dy * width + dx).tolist(), strict=True):
            source[pixel] = source[near]
    blurred = gaussian_blur(x, rng, sigma)
    return gaussian_blur(blurred.reshape(-1, 3)[source].reshape(x.shape), rng, sigma)


def defocus_blur(x: Array, rng: Rng, radius: int, sigma: float) -> Array:
    reach = max(radius, 8)
    side = np.arange(-reach, reach + 1)
    disk = (side[:, None] ** 2 + side**2 <= radius**2).astype(np.float32)
    disk = ndimage.gaussian_filter(disk / disk.sum(), sigma, mode="mirror", radius=1 if radius <= 8 else 2)
    padded = np.pad(x, ((reach, reach), (reach, reach), (0, 0)), "reflect")
    return fftconvolve(padded, disk[..., None], mode="valid", axes=(0, 1))


def motion_blur(x: Array, rng: Rng, radius: int, sigma: float) -> Array:
    return streaks(x, radius, sigma, rng.uniform(-45, 45))


def zoom_blur(x: Array, rng: Rng, stop: float, step: float) -> Array:
    zooms = np.arange(1, stop, step)
    return (x + sum(zoomed(x, zoom) for zoom in zooms)) / (len(zooms) + 1)


def snow(x: Array, rng: Rng, mean: float, deviation: float, zoom: float, least: float, radius: int, sigma: float,
         weight: float) -> Array:  # fmt: skip
    flakes = zoomed(rng.normal(mean, deviation, x.shape[:2]), zoom)
    flakes = streaks(np.where(flakes < least, 0, flakes.clip(0, 1)), radius, sigma, rng.uniform(-135, -45))
    whitened = np.maximum(x, (x @ GREY * 1.5 + 0.5)[..., None])
    return weight * x + (1 - weight) * whitened + (flakes + np.rot90(flakes, 2))[..., None]


def frost(x: Array, rng: Rng, image_weight: float, frost_weight: float) -> Array:
    """Drawn crystals instead of six photographs: ridges of a fractal with the photographs' tint, mean and contrast."""
    ridges = -np.abs(plasma(x.shape[:2], rng, 1.15) - 0.5)
    ridges = (ridges - ridges.mean()) / ridges.std()
    tint = rng.uniform(0.38, 0.78) + np.array([-0.08, 0.02, 0.06])
    return image_weight * x + frost_weight * (tint + rng.uniform(0.08, 0.17) * ridges[..., None]).clip(0, 1)


def fog(x: Array, rng: Rng, amount: float, decay: float) -> Array:
    return (x + amount * plasma(x.shape[:2], rng, decay)[..., None]) * x.max() / (x.max() + amount)


def brightness(x: Array, rng: Rng, more: float) -> Array:
    """More of the value V of HSV; colours of equal hue and saturation are multiples of V."""
    value = x.max(-1, keepdims=True)
    unit = np.divide(x, value, out=np.ones_like(x), where=value > 0)
    return unit * np.minimum(value + more, 1)


def contrast(x: Array, rng: Rng, share: float) -> Array:
    mean = x.mean((0, 1))
    return (x - mean) * share + mean


def saturate(x: Array, rng: Rng, factor: float, more: float) -> Array:
    """A colour is V - S * (its distance from V at full saturation); grey has the hue of red."""
    value, lowest = x.max(-1, keepdims=True), x.min(-1, keepdims=True)
    saturation = np.divide(value - lowest, value, out=np.zeros_like(value), where=value > 0)
    full = np.divide(value - x, saturation, out=value * np.array([0, 1, 1], np.float32), where=saturation > 0)
    return value - (saturation * factor + more).clip(0, 1) * full


def elastic_transform(x: Array, rng: Rng, shift: float, sigma: float, corner: float) -> Array:
    """Three points of the image are moved, then each pixel by smooth noise."""
    height, width = x.shape[:2]
    middle, third = np.array([height, width]) // 2, min(height, width) // 3
    points = middle + third * np.array([[1, 1], [1, -1], [-1, -1]])
    moved = points + rng.uniform(-corner * ELASTIC, corner * ELASTIC, points.shape)
    affine = np.linalg.solve(np.c_[moved, np.ones(3)], points)  # from (x, y, 1) of the result to (x, y) of the image
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    at_x, at_y = np.moveaxis(np.stack([columns, rows, np.ones_like(rows)], -1) @ affine, -1, 0)
    x = sampled(x, at_y, at_x, "mirror")
    down, across = (gaussian_matrix(side, sigma * ELASTIC) for side in (height, width))
    dx, dy = (shift * ELASTIC * down @ noise @ across.T for noise in rng.uniform(-1, 1, (2, height, width)))
    return sampled(x, rows + dy, columns + dx, "reflect")


def pixelate(x: Array, rng: Rng, share: float) -> Array:
    image = as_image(x)
    small = image.resize((int(image.width * share), int(image.height * share)), Image.Resampling.BOX)
    return np.asarray(small.resize(image.size, Image.Resampling.BOX)) / np.float32(255)


def jpeg_compression(x: Array, rng: Rng, quality: int) -> Array:
    file = io.BytesIO()
    as_image(x).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file)) / np.float32(255)


def spatter(x: Array, rng: Rng, mean: float, deviation: float, sigma: float, least: float, amount: float, mud: int
            ) -> Array:  # fmt: skip
    """Drops of water, lit from one side, or of mud."""
    liquid = ndimage.gaussian_filter(rng.normal(mean, deviation, x.shape[:2]), sigma, mode="nearest")
    drops = liquid > least
    if mud:
        cover = ndimage.gaussian_filter(drops.astype(np.float32), amount, mode="nearest")
        cover = np.where(cover < 0.8, 0, cover)[..., None]
        return x * (1 - cover) + cover * np.array([63, 42, 20]) / 255
    edges = drops & ~ndimage.binary_erosion(drops, border_value=1)
    distance = ndimage.uniform_filter(np.minimum(ndimage.distance_transform_edt(~edges), 20), 3, mode="mirror")
    distance = np.asarray(ImageOps.equalize(Image.fromarray(distance.astype(np.uint8))), np.float32)
    light = ndimage.correlate(distance, np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]]), mode="mirror").clip(0, 255)
    water = np.where(drops, liquid, 0) * ndimage.uniform_filter(light, 3, mode="mirror")
    return x + amount * (water / max(water.max(), 1e-12))[..., None] * np.array([175, 238, 238]) / 255


def as_image(x: Array) -> Image.Image:
    return Image.fromarray(np.rint(x * 255).astype(np.uint8))


def streaks(x: Array, radius: int, sigma: float, angle: float) -> Array:
    """ImageMagick's motion blur: half a Gaussian along a line. Pixels beyond the image are those of its edge."""
    steps = np.arange(2 * radius + 1)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    directions = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
    offsets = (np.ceil(steps * direction - 0.5).astype(int) for direction in directions)
    reach, (height, width) = len(steps), x.shape[:2]
    padded = np.pad(x, [(reach, reach)] * 2 + [(0, 0)] * (x.ndim - 2), "edge")
    moved = (padded[reach + dy : reach + dy + height, reach + dx : reach + dx + width]
             for dx, dy in zip(*offsets, strict=True))  # fmt: skip
    return sum(weight * part for weight, part in zip((weights / weights.sum()).tolist(), moved, strict=True))


def zoomed(x: Array, zoom: float) -> Array:
    """The middle of an image, enlarged to its size."""
    for axis, side in enumerate(x.shape[:2]):
        crop = int(np.ceil(side / zoom))
        size = round(crop * zoom)
        at = np.linspace(0, crop - 1, size)[(size - side) // 2 :][:side]
        low = np.minimum(at.astype(int), max(crop - 2, 0))
        share = (at - low).astype(np.float32).reshape([-1 if i == axis else 1 for i in range(x.ndim)])
        first = (side - crop) // 2 + low
        x = x.take(first, axis) * (1 - share) + x.take(np.minimum(first + 1, side - 1), axis) * share
    return x


def sampled(x: Array, rows: Array, columns: Array, mode: str) -> Array:
    """Pixels at these coordinates, between four of the image."""
    return np.stack([ndimage.map_coordinates(x[..., i], (rows, columns), order=1, mode=mode) for i in range(3)], -1)


@cache
def gaussian_matrix(side: int, sigma: float) -> Array:
    """A Gaussian filter as a matrix: that of the elastic transform is wider than the image."""
    return ndimage.gaussian_filter1d(np.eye(side), sigma, axis=0, mode="reflect", truncate=3)


def plasma(shape: Sequence[int], rng: Rng, decay: float) -> Array:
    """A fractal in [0, 1] by the diamond-square algorithm: noise falls by the square of `decay` from scale to scale."""
    grid, noise = np.zeros((1, 1)), 1.0
    while len(grid) < max(shape):
        n = len(grid)
        fine = np.empty((2 * n, 2 * n))
        draws = noise * rng.uniform(-1, 1, (3, n, n))
        right, below = np.roll(grid, -1, 1), np.roll(grid, -1, 0)
        centre = (grid + right + below + np.roll(right, -1, 0)) / 4 + draws[0]
        fine[::2, ::2], fine[1::2, 1::2] = grid, centre
        fine[::2, 1::2] = (grid + right + centre + np.roll(centre, 1, 0)) / 4 + draws[1]
        fine[1::2, ::2] = (grid + below + centre + np.roll(centre, 1, 1)) / 4 + draws[2]
        grid, noise = fine, noise / decay**2
    grid = (grid - grid.min()) / max(np.ptp(grid), 1e-12)
    return grid[: shape[0], : shape[1]]


BENCHMARK: dict[Callable[..., Array], list[tuple[float, ...]]] = {
    gaussian_noise: [(0.08,), (0.12,), (0.18,), (0.26,), (0.38,)],
    shot_noise: [(60,), (25,), (12,), (5,), (3,)],
    impulse_noise: [(0.03,), (0.06,), (0.09,), (0.17,), (0.27,)],
    defocus_blur: [(3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)],
    glass_blur: [(0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)],
    motion_blur: [(10, 3), (15, 5), (15, 8), (15, 12), (20, 15)],
    zoom_blur: [(1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)],
    snow: [(0.1, 0.3, 3, 0.5, 10, 4, 0.8), (0.2, 0.3, 2, 0.5, 12, 4, 0.7), (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
           (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65), (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55)],
    frost: [(1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)],
    fog: [(1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)],
    brightness: [(0.1,), (0.2,), (0.3,), (0.4,), (0.5,)],
    contrast: [(0.4,), (0.3,), (0.2,), (0.1,), (0.05,)],
    elastic_transform: [(2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02)],
    pixelate: [(0.6,), (0.5,), (0.4,), (0.3,), (0.25,)],
    jpeg_compression: [(25,), (18,), (15,), (10,), (7,)],
}  # fmt: skip
"""The fifteen of the benchmark, with their parameters at severities 1 to 5."""
EXTRA: dict[Callable[..., Array], list[tuple[float, ...]]] = {
    speckle_noise: [(0.15,), (0.2,), (0.35,), (0.45,), (0.6,)],
    gaussian_blur: [(1,), (2,), (3,), (4,), (6,)],
    spatter: [(0.65, 0.3, 4, 0.69, 0.6, 0), (0.65, 0.3, 3, 0.68, 0.6, 0), (0.65, 0.3, 2, 0.68, 0.5, 0),
              (0.65, 0.3, 1, 0.65, 1.5, 1), (0.67, 0.4, 1, 0.65, 1.5, 1)],
    saturate: [(0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2)],
}  # fmt: skip
"""Four more of the authors', meant for choosing settings."""
KINDS = {kind.__name__: kind for kind in (*BENCHMARK, *EXTRA)}
PARAMETERS = {kind.__name__: values for kind, values in {**BENCHMARK, **EXTRA}.items()}
BENCHMARK_KINDS = tuple(kind.__name__ for kind in BENCHMARK)
EXTRA_KINDS = tuple(kind.__name__ for kind in EXTRA)
