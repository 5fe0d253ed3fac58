"""Draws one patterned, coloured shape in a scene: outlines as polygons, patterns as fields, everything seeded."""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from vlprompt.demo.looks import Look
from vlprompt.demo.outlines import OUTLINES, Array, arc

SIZE = 96  # pixels of a side of what is drawn
OVERSAMPLING = 2  # outlines are drawn larger by this factor, then averaged

PATTERNS = ("plain", "striped", "dotted", "checkered", "zigzag")
COLOURS = {  # hue, saturation, value
    "red": (0.0, 0.85, 0.85),
    "orange": (0.075, 0.9, 0.97),
    "yellow": (0.155, 0.85, 0.97),
    "green": (0.34, 0.8, 0.65),
    "blue": (0.61, 0.85, 0.85),
    "purple": (0.765, 0.7, 0.65),
    "pink": (0.92, 0.5, 0.97),
    "brown": (0.065, 0.68, 0.48),
}


def rgb(hue: float, saturation: float, value: float) -> Array:
    """RGB in [0, 1]; hue in turns."""
    k = (np.array([5.0, 3.0, 1.0]) + 6 * hue) % 6
    return (value - value * saturation * np.clip(np.minimum(k, 4 - k), 0, 1)).astype(np.float32)


def _grid() -> tuple[Array, Array]:
    y, x = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32)
    return (x + 0.5) / SIZE, (y + 0.5) / SIZE


X, Y = _grid()


def _clouds(rng: np.random.Generator, cells: int) -> Array:
    """Smooth noise in about [-1, 1], [SIZE, SIZE]."""
    coarse = Image.fromarray(rng.normal(0, 0.6, (cells, cells)).astype(np.float32))
    return np.asarray(coarse.resize((SIZE, SIZE), Image.Resampling.BICUBIC))


def _background(rng: np.random.Generator, look: Look, kind: str) -> Array:
    value = rng.uniform(*look.ground_value)
    first = rgb(rng.random(), rng.uniform(0, look.ground_saturation), value)
    other_value = np.clip(value + rng.choice([-1, 1]) * rng.uniform(0.1, 0.3), 0.0, 1)
    other = rgb(rng.random(), rng.uniform(0, look.ground_saturation), other_value)
    angle = rng.uniform(0, 2 * np.pi)
    along = X * math.cos(angle) + Y * math.sin(angle)
    if kind == "gradient":
        mix = np.clip(along - along.min(), 0.0, 1)
    elif kind == "clouds":
        mix = np.clip(0.5 + 0.8 * _clouds(rng, int(rng.integers(3, 9))), 0.0, 1)
    elif kind == "grain":
        mix = np.clip(0.5 + 0.35 * _clouds(rng, 48), 0.0, 1)
    elif kind == "boards":
        mix = (np.sin(along * rng.uniform(20, 60)) > 0) * np.float32(rng.uniform(0.2, 0.7))
    elif kind == "halves":
        mix = (along > rng.uniform(0.3, 0.9) * along.max()).astype(np.float32)
    else:
        mix = np.zeros_like(X)
    return (first + (other - first) * mix[..., None]).astype(np.float32)


def _mask(outer: Array, holes: list[Array]) -> Array:
    side = SIZE * OVERSAMPLING
    big = Image.new("L", (side, side))
    pen = ImageDraw.Draw(big)
    pen.polygon((outer * side).ravel().tolist(), fill=255)
    for hole in holes:
        pen.polygon((hole * side).ravel().tolist(), fill=0)
    return (np.asarray(big.reduce(OVERSAMPLING), np.float32) / 255)[..., None]


class Layer:
    """A transparent sheet to draw on, in coordinates from 0 to 1, then laid over a picture."""

    def __init__(self) -> None:
        self.side = SIZE * OVERSAMPLING
        self.sheet = Image.new("RGBA", (self.side, self.side))
        self.pen = ImageDraw.Draw(self.sheet)
        self.used = False

    def line(self, points: Array, colour: Array, width: float) -> None:
        self.used = True
        thick = max(1, round(width * self.side))
        self.pen.line((points * self.side).ravel().tolist(), fill=_ink(colour), width=thick, joint="curve")

    def disc(self, x: float, y: float, radius: float, colour: Array) -> None:
        self.used = True
        box = [
            (x - radius) * self.side,
            (y - radius) * self.side,
            (x + radius) * self.side,
            (y + radius) * self.side,
        ]
        self.pen.ellipse(box, fill=_ink(colour))

    def over(self, picture: Array) -> Array:
        if not self.used:
            return picture
        small = np.asarray(self.sheet.reduce(OVERSAMPLING), np.float32) / 255
        return picture + small[..., 3:] * (small[..., :3] - picture)


def _ink(colour: Array) -> tuple[int, int, int, int]:
    r, g, b = (int(c * 255) for c in np.clip(colour, 0, 1))
    return r, g, b, 255


def _pattern(rng: np.random.Generator, name: str, u: Array, v: Array, look: Look) -> Array:
    """Where the main colour lies, in [0, 1]; u and v are in radii."""
    if name == "plain":
        return np.ones_like(u)
    angle, n, phase = rng.uniform(0, np.pi), rng.uniform(*look.density) * 2 * np.pi, rng.random(2).tolist()
    a = n * (u * math.cos(angle) + v * math.sin(angle)) + 2 * np.pi * phase[0]
    b = n * (v * math.cos(angle) - u * math.sin(angle)) + 2 * np.pi * phase[1]
    if name == "striped":
        field = np.sin(1.35 * a)
    elif name == "dotted":
        field = 0.8 - np.cos(1.5 * a) - np.cos(1.5 * b)
    elif name == "checkered":
        field = 1.6 * np.sin(0.85 * a) * np.sin(0.85 * b)
    else:
        field = np.sin(1.3 * a + 2.2 * np.arcsin(np.sin(1.3 * b)))
    return np.clip(0.5 + 3.0 * field, 0.0, 1)


@dataclass(frozen=True)
class Scene:
    """What a picture shows apart from its class: for captions that say more than the name."""

    x: float  # centre, in [0, 1]
    y: float
    radius: float
    ground: float  # brightness of the background, in [0, 1]
    clutter: int
    contour: str


def draw(rng: np.random.Generator, pattern: str, colour: str, shape: str, look: Look) -> tuple[Image.Image, Scene]:
    """A picture of SIZE x SIZE pixels, RGB, and what it shows."""
    ground = _background(rng, look, str(rng.choice(look.backgrounds)))
    radius = rng.uniform(*look.radius)
    centre = rng.uniform(min(radius, 0.45), 1 - min(radius, 0.45), 2)
    turn = np.deg2rad(rng.uniform(-look.rotation, look.rotation))
    axes = np.exp(rng.normal(0, look.stretch, 2))
    shear = np.array([[axes[0], rng.normal(0, look.stretch)], [0, axes[1]]])
    matrix = radius * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) @ shear
    wobble = rng.uniform(*look.wobble)
    outer, *holes = (_roughen(rng, p, wobble) @ matrix.T + centre for p in OUTLINES[shape])

    hue, saturation, value = COLOURS[colour]
    saturation, value = np.clip(np.array([saturation, value]) * np.exp(rng.normal(0, look.shade, 2)), 0.0, 1)
    main = rgb((hue + rng.normal(0, look.hue)) % 1, saturation, value)
    second, contour = str(rng.choice(look.second)), str(rng.choice(look.contours))
    inner = {
        "light": np.float32(0.95),
        "dark": np.float32(0.1),
        "ground": ground,
        "tint": 0.5 * main + 0.5,
        "deep": 0.35 * main,
    }[second]
    inverse, x, y = np.linalg.inv(matrix).tolist(), float(centre[0]), float(centre[1])
    u, v = (a * (X - x) + b * (Y - y) for a, b in inverse)
    amount = _pattern(rng, pattern, u, v, look)[..., None]

    n_clutter = int(rng.integers(look.clutter[0], look.clutter[1] + 1))
    mask = _mask(outer, holes)
    picture = _scatter(rng, n_clutter).over(ground)
    picture = picture + mask * (main * amount + inner * (1 - amount) - picture)
    front = Layer()
    if contour != "none":
        line = {"dark": np.full(3, 0.08), "light": np.full(3, 0.97), "own": 0.6 * main}[contour]
        width = rng.uniform(0.012, 0.03)
        for points in (outer, *holes):
            front.line(np.concatenate([points, points[:2]]), line, width)
    _bars(rng, front, int(rng.integers(look.bars[0], look.bars[1] + 1)))
    picture = front.over(picture)
    image = _finish(rng, picture, mask, look)
    return image, Scene(x, y, radius, float(ground.mean()), n_clutter, contour)


def _roughen(rng: np.random.Generator, points: Array, wobble: float) -> Array:
    """The closed outline with points put between its corners, shaken where `wobble` is above 0."""
    if wobble <= 0:
        return points
    if len(points) < 24:
        parts = np.linspace(0, 1, 6, endpoint=False)[:, None, None]
        points = (points + parts * (np.roll(points, -1, 0) - points)).transpose(1, 0, 2).reshape(-1, 2)
    return points + rng.normal(0, wobble, points.shape)


def _scatter(rng: np.random.Generator, count: int) -> Layer:
    """Small discs and strokes of any colour."""
    layer = Layer()
    for _ in range(count):
        x, y, radius = rng.random(), rng.random(), rng.uniform(0.015, 0.05)
        colour = rgb(rng.random(), rng.uniform(0, 0.6), rng.random())
        if rng.random() < 0.5:
            layer.disc(x, y, radius, colour)
        else:
            half = 3 * radius * arc(rng.uniform(0, np.pi), 0.0, 1)
            layer.line(np.concatenate([half, -half]) + np.array([x, y]), colour, 0.6 * radius)
    return layer


def _bars(rng: np.random.Generator, layer: Layer, count: int) -> None:
    """Straight bars across the whole picture, in front of everything."""
    for _ in range(count):
        half = 2 * arc(rng.uniform(0, np.pi), 0.0, 1)
        colour = rgb(rng.random(), rng.uniform(0, 0.4), rng.random())
        layer.line(np.concatenate([half, -half]) + rng.uniform(0.2, 0.8, 2), colour, rng.uniform(0.016, 0.05))


def _finish(rng: np.random.Generator, picture: Array, mask: Array, look: Look) -> Image.Image:
    """Light, colour cast, blur and noise of the whole picture."""
    angle, strength = rng.uniform(0, 2 * np.pi), 2 * rng.uniform(*look.light)
    light = 1 + strength * math.cos(angle) * (X - 0.5) + strength * math.sin(angle) * (Y - 0.5)
    picture = picture * light[..., None] * np.exp(rng.normal(0, look.cast, 3)).astype(np.float32)
    picture = picture * np.array(look.tint, np.float32)
    if look.finish == "pencil":
        picture = _pencil(rng, picture, mask)
    picture = picture + rng.uniform(*look.noise) * rng.standard_normal(picture.shape, np.float32)
    image = Image.fromarray((np.clip(picture, 0, 1) * 255).astype(np.uint8))
    blur = rng.uniform(*look.blur)
    if look.finish == "blocks":
        side = int(rng.integers(17, 23))
        small = image.resize((side, side), Image.Resampling.BOX).quantize(14).convert("RGB")
        return small.resize((SIZE, SIZE), Image.Resampling.NEAREST)
    return image.filter(ImageFilter.GaussianBlur(blur)) if blur > 0.2 else image


def _pencil(rng: np.random.Generator, picture: Array, mask: Array) -> Array:
    """Hatching that is denser where the picture is dark or coloured, on rough paper."""
    angle = rng.uniform(0.3, 1.2)
    shaken = 0.012 * _clouds(rng, 12)
    hatch = np.sin((X * math.cos(angle) + Y * math.sin(angle) + shaken) * rng.uniform(130, 190))
    paper = 0.94 + 0.03 * _clouds(rng, 48)[..., None]
    ink = np.clip(0.62 + 0.5 * hatch, 0.12, 1)[..., None] * (0.15 + 0.85 * mask)
    return paper + ink * (np.minimum(picture, 1) - paper)
