"""What a figure shows of text, and where: by matplotlib's own extents."""

from typing import Any
from unittest import mock

import numpy as np


def texts_of(figure: Any) -> list[tuple[str, Any]]:
    """Each text that is drawn, with its box in pixels: tick labels, titles, legends, names."""
    from matplotlib.text import Text

    figure.draw_without_rendering()
    drawn: list[Text] = []
    original = Text.draw

    def draw(text: Text, renderer: Any) -> None:
        if text.get_visible() and text.get_text().strip():
            drawn.append(text)
        original(text, renderer)

    with mock.patch.object(Text, "draw", draw):
        figure.draw_without_rendering()
    renderer = figure._get_renderer()
    return [(text.get_text(), text.get_window_extent(renderer)) for text in dict.fromkeys(drawn)]


def faults(figure: Any, allowed: float = 0.5) -> list[str]:
    """Texts that overlap or leave the canvas by more than so many pixels."""
    texts = texts_of(figure)
    assert texts
    boxes = np.array([box.extents for _, box in texts])
    width, height = figure.bbox.width, figure.bbox.height
    wrong = [
        f"{text!r} leaves the canvas: {np.round(box)}"
        for (text, _), box in zip(texts, boxes, strict=True)
        if min(box[0], box[1], width - box[2], height - box[3]) < -allowed
    ]
    low = np.maximum(boxes[:, None, :2], boxes[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    overlaps = np.triu(((high - low) > allowed).all(axis=2), k=1)
    return wrong + [f"{texts[i][0]!r} overlaps {texts[j][0]!r}" for i, j in np.argwhere(overlaps)]
