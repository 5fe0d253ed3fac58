"""Outlines of the shapes, as polygons."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]


def arc(start: float, stop: float, n: int, radius: float = 1.0, x: float = 0.0, y: float = 0.0) -> Array:
    angle = np.linspace(start, stop, n)
    return np.stack([x + radius * np.cos(angle), y + radius * np.sin(angle)], 1)


def _polar(radius: Array) -> Array:
    angle = np.linspace(0, 2 * np.pi, len(radius), endpoint=False) - np.pi / 2
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1)


def _heart() -> Array:
    right = arc(-2.55, 0.62, 18, 0.56, 0.5, -0.42)
    return np.concatenate([[(0.0, -0.5)], right, [(0.0, 1.08)], right[::-1] * [-1, 1]])


def _mirror(half: list[tuple[float, float]]) -> Array:
    return np.array(half + [(-x, y) for x, y in reversed(half)])


OUTLINES: dict[str, tuple[Array, ...]] = {  # the outer outline in [-1, 1], y down; then holes
    "circle": (arc(0.0, 2 * np.pi, 49)[:-1] * 0.92,),
    "square": (np.array([(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)]),),
    "triangle": (np.array([(0.0, -1.05), (1.05, 0.8), (-1.05, 0.8)]),),
    "star": (_polar(np.array([1.15, 0.48] * 5)),),
    "heart": (_heart(),),
    "cross": (_mirror([(0.34, -1.0), (0.34, -0.34), (1.0, -0.34), (1.0, 0.34), (0.34, 0.34), (0.34, 1.0)]),),
    "ring": (arc(0.0, 2 * np.pi, 49)[:-1] * 1.02, arc(0.0, 2 * np.pi, 33)[:-1] * 0.45),
    "moon": (np.concatenate([arc(0.95, 2 * np.pi - 0.95, 36, 1.08, 0.15), arc(5.04, 1.25, 28, 0.93, 0.47)]),),
    "arrow": (_mirror([(0.0, -1.1), (0.95, -0.05), (0.38, -0.05), (0.38, 1.05)]),),
    "flower": (_polar(0.78 + 0.32 * np.cos(5 * np.linspace(0, 2 * np.pi, 60, endpoint=False))),),
}
SHAPES = tuple(OUTLINES)
