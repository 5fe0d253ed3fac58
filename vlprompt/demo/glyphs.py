"""Digits and letters to pre-train on: fonts, and digits written with a shaky pen."""

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from vlprompt.demo.drawing import SIZE, rgb
from vlprompt.demo.outlines import Array

DIGITS = "0123456789"
LETTERS = "abcdefghijklmnopqrstuvwxyz"

Points = list[tuple[float, float]]
# Ways to write a digit: strokes through points, x right and y down in [0, 1]. A point given twice is a corner.
_BOWL = [(0.12, 0.15), (0.5, 0.0), (0.85, 0.2), (0.45, 0.47), (0.45, 0.47), (0.9, 0.72), (0.5, 1.0), (0.08, 0.87)]
_EIGHT = [(0.8, 0.12), (0.45, 0.0), (0.15, 0.2), (0.5, 0.48), (0.88, 0.75), (0.5, 1.0), (0.12, 0.77), (0.5, 0.48)]
WRITTEN: dict[str, list[list[Points]]] = {
    "0": [
        [[(0.5, 0.0), (0.1, 0.3), (0.1, 0.7), (0.5, 1.0), (0.9, 0.7), (0.9, 0.3), (0.5, 0.0), (0.4, 0.03)]],
        [[(0.6, 0.03), (0.2, 0.15), (0.08, 0.6), (0.4, 1.0), (0.85, 0.75), (0.9, 0.3), (0.55, 0.02), (0.3, 0.1)]],
    ],
    "1": [
        [[(0.5, 0.0), (0.5, 1.0)]],
        [[(0.25, 0.3), (0.55, 0.0), (0.55, 0.0), (0.55, 1.0)]],
        [[(0.15, 0.35), (0.55, 0.0), (0.55, 0.0), (0.52, 0.98)], [(0.15, 1.0), (0.9, 1.0)]],
        [[(0.45, 0.0), (0.45, 0.98)], [(0.2, 1.0), (0.8, 1.0)]],
    ],
    "2": [
        [[(0.1, 0.25), (0.45, 0.0), (0.85, 0.25), (0.5, 0.65), (0.08, 1.0), (0.08, 1.0), (0.92, 0.97)]],
        [[(0.12, 0.2), (0.5, 0.0), (0.8, 0.3), (0.3, 0.92), (0.1, 0.85), (0.3, 0.78), (0.95, 0.97)]],
    ],
    "3": [
        [_BOWL],
        [[(0.1, 0.02), (0.85, 0.02), (0.85, 0.02), (0.42, 0.4), (0.42, 0.4), (0.9, 0.7), (0.5, 1.0), (0.08, 0.88)]],
        [[(0.15, 0.1), (0.6, 0.0), (0.8, 0.22), (0.5, 0.45), (0.85, 0.6), (0.75, 0.93), (0.1, 0.97)]],
    ],
    "4": [
        [[(0.25, 0.0), (0.08, 0.58), (0.08, 0.58), (0.92, 0.58)], [(0.68, 0.25), (0.62, 1.0)]],
        [[(0.68, 1.0), (0.68, 0.0), (0.68, 0.0), (0.05, 0.68), (0.05, 0.68), (0.95, 0.68)]],
        [[(0.55, 0.0), (0.1, 0.6), (0.1, 0.6), (0.95, 0.62)], [(0.62, 0.35), (0.55, 1.0)]],
        [[(0.15, 0.0), (0.12, 0.45), (0.8, 0.45), (0.8, 0.45)], [(0.8, 0.0), (0.78, 1.0)]],
    ],
    "5": [
        [
            [
                (0.88, 0.0),
                (0.22, 0.02),
                (0.22, 0.02),
                (0.16, 0.45),
                (0.16, 0.45),
                (0.7, 0.4),
                (0.85, 0.8),
                (0.08, 0.93),
            ]
        ],
        [
            [(0.25, 0.05), (0.2, 0.45), (0.2, 0.45), (0.65, 0.4), (0.88, 0.7), (0.5, 1.0), (0.1, 0.93)],
            [(0.22, 0.03), (0.9, 0.0)],
        ],
    ],
    "6": [
        [[(0.72, 0.0), (0.3, 0.28), (0.1, 0.7), (0.45, 1.0), (0.88, 0.75), (0.55, 0.5), (0.15, 0.72)]],
        [[(0.5, 0.0), (0.18, 0.4), (0.15, 0.85), (0.5, 1.0), (0.8, 0.82), (0.55, 0.6), (0.2, 0.8)]],
    ],
    "7": [
        [[(0.08, 0.04), (0.9, 0.02), (0.9, 0.02), (0.4, 1.0)]],
        [[(0.08, 0.06), (0.88, 0.02), (0.88, 0.02), (0.35, 1.0)], [(0.25, 0.5), (0.85, 0.48)]],
        [
            [(0.1, 0.2), (0.12, 0.04), (0.12, 0.04), (0.88, 0.04), (0.6, 0.45), (0.5, 1.0)],
            [(0.3, 0.52), (0.9, 0.48)],
        ],
    ],
    "8": [
        [[*_EIGHT, (0.85, 0.2), (0.7, 0.05)]],
        [
            [(0.5, 0.0), (0.2, 0.22), (0.5, 0.46), (0.8, 0.22), (0.5, 0.0)],
            [(0.5, 0.46), (0.1, 0.75), (0.5, 1.0), (0.9, 0.75), (0.5, 0.46)],
        ],
    ],
    "9": [
        [[(0.82, 0.2), (0.45, 0.0), (0.12, 0.27), (0.45, 0.52), (0.82, 0.22), (0.82, 0.22), (0.75, 1.0)]],
        [
            [
                (0.85, 0.22),
                (0.5, 0.0),
                (0.15, 0.25),
                (0.45, 0.48),
                (0.85, 0.25),
                (0.8, 0.75),
                (0.5, 1.0),
                (0.12, 0.93),
            ]
        ],
    ],
}


def _smooth(points: Array, steps: int = 8) -> Array:
    """A Catmull-Rom curve through the points."""
    p = np.concatenate([points[:1], points, points[-1:]])
    t = np.linspace(0, 1, steps, endpoint=False)[:, None]
    a, b, c, d = (p[k : len(p) - 3 + k, None] for k in range(4))
    curve = b + 0.5 * t * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a)))
    return np.concatenate([curve.reshape(-1, 2), points[-1:]])


def written(rng: np.random.Generator, digit: str, side: int = 96) -> Image.Image:
    """A digit in one of its written forms, white on black, L."""
    ways = WRITTEN[digit]
    slant, turn, pen_width = rng.normal(0.1, 0.2), rng.normal(0, 0.1), rng.uniform(0.06, 0.16) * side
    wide = rng.uniform(0.45, 0.85) * (0.6 if digit == "1" else 1.0)
    matrix = np.array([[wide, -slant * 0.8], [turn * wide, 0.8]]).T
    shake = rng.uniform(0.015, 0.06)
    image = Image.new("L", (side, side))
    pen = ImageDraw.Draw(image)
    for stroke in ways[int(rng.integers(len(ways)))]:
        points = np.array(stroke) + rng.normal(0, shake, (len(stroke), 2))
        points[1:][(np.diff(stroke, axis=0) == 0).all(1)] = points[:-1][(np.diff(stroke, axis=0) == 0).all(1)]
        line = ((_smooth(points) - 0.5) @ matrix + 0.5) * side
        pen.line(line.ravel().tolist(), fill=255, width=max(1, round(pen_width)), joint="curve")
        for x, y in (line[0], line[-1]):
            pen.ellipse([x - pen_width / 2, y - pen_width / 2, x + pen_width / 2, y + pen_width / 2], fill=255)
    return image


def printed(rng: np.random.Generator, character: str, font: str, side: int = 96) -> Image.Image | None:
    """A character in a font, white on black, L; None where the font lacks it. An empty font is Pillow's own."""
    size = 80
    face = ImageFont.truetype(font, size) if font else ImageFont.load_default(size)
    big = Image.new("L", (2 * size, 2 * size))
    ImageDraw.Draw(big).text((size, size), character, fill=255, font=face, anchor="mm")
    big = big.rotate(rng.normal(0, 6), Image.Resampling.BILINEAR).transform(
        big.size,
        Image.Transform.AFFINE,
        (1, (s := rng.normal(0, 0.12)), -s * size, 0, 1, 0),
        Image.Resampling.BILINEAR,
    )
    box = big.getbbox()
    if box is None:
        return None
    cut = big.crop(box)
    scale = rng.uniform(0.65, 0.9) * side / max(cut.size)
    stretch = np.exp(rng.normal(0, 0.12))
    new = [min(side, max(3, round(s * scale * f))) for s, f in zip(cut.size, (stretch, 1 / stretch), strict=True)]
    image = Image.new("L", (side, side))
    image.paste(cut.resize((new[0], new[1])), ((side - new[0]) // 2, (side - new[1]) // 2))
    return image


def draw_glyph(rng: np.random.Generator, character: str, font: str | None) -> Image.Image:
    """A digit or letter as an RGB picture, by hand if no font is given. Half are as coarse as scans of 8 x 8."""
    ink = written(rng, character) if font is None else printed(rng, character, font)
    ink = written(rng, "0") if ink is None else ink
    coarse = rng.random() < 0.5
    if coarse:  # like scikit-learn's digits: tight box, 8 x 8 means, stretched again
        left, top, right, bottom = ink.getbbox() or (0, 0, SIZE, SIZE)
        pad = int(rng.integers(0, 5))
        half = max((right - left) / 2, rng.uniform(0.4, 0.75) * (bottom - top)) + pad
        centre = (left + right) / 2 + rng.normal(0, 3)
        ink = ink.crop((round(centre - half), top - pad, round(centre + half), bottom + pad))
        cells = 8 if rng.random() < 0.75 else int(rng.integers(7, 14))
        ink = ink.resize((cells, cells), Image.Resampling.BOX)
        ink = ink.resize((SIZE, SIZE), Image.Resampling.BICUBIC if rng.random() < 0.8 else Image.Resampling.NEAREST)
        grey = np.clip(np.asarray(ink, np.float32) / 255 * rng.uniform(0.9, 1.5), 0, 1)
    else:
        shift = rng.normal(0, 0.06 * SIZE, 2)
        zoom = rng.uniform(0.9, 1.5)
        moved = (zoom, 0, SIZE * (1 - zoom) / 2 - shift[0], 0, zoom, SIZE * (1 - zoom) / 2 - shift[1])
        ink = ink.transform((SIZE, SIZE), Image.Transform.AFFINE, moved, Image.Resampling.BILINEAR)
        grey = np.asarray(ink.filter(ImageFilter.GaussianBlur(rng.uniform(0, 1.2))), np.float32) / 255
    plain = rng.random() < (0.7 if coarse else 0.25)
    dark, bright = (np.zeros(3), np.ones(3)) if plain else (
        rgb(rng.random(), rng.uniform(0, 0.5), rng.uniform(0, 0.35)),
        rgb(rng.random(), rng.uniform(0, 0.4), rng.uniform(0.7, 1)),
    )  # fmt: skip
    if rng.random() < (0.15 if coarse else 0.5):
        dark, bright = bright, dark
    picture = dark + (bright - dark) * grey[..., None]
    picture = picture + rng.normal(0, rng.uniform(0, 0.03 if coarse else 0.08), picture.shape)
    return Image.fromarray((np.clip(picture, 0, 1) * 255).astype(np.uint8))
