"""Runs with predictions, made by hand, and pages of them as a parser reads them."""

from collections.abc import Iterable, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np

from vlprompt.results.predictions import PREDICTIONS, Predictions, save_predictions
from vlprompt.results.record import FILE, Record

VOID = {"meta", "input", "br", "polyline"}


def predictions(classes: Sequence[str], seed: int, *, n: int = 12, right: float = 0.7) -> Predictions:
    """`n` images of each class in a folder of its name, so many of them right."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(classes)), n)
    wrong = rng.random(len(labels)) > right
    predicted = np.where(wrong, (labels + 1) % len(classes), labels)
    images = np.array([f"{classes[label]}/{i:03d}.jpg" for i, label in enumerate(labels)], dtype=np.str_)
    confidence = rng.uniform(0.3, 0.99, len(labels)).astype(np.float32)
    top5 = np.stack([predicted, (predicted + 1) % len(classes)], axis=1).astype(np.int32)
    zeros = np.zeros(len(labels), dtype=np.float32)
    return Predictions(images, labels, top5, confidence, zeros - 1, zeros)


def run(
    method: str, seed: int = 1, shots: Any = 16, *, dataset: str = "dtd", right: float = 0.7, **fields: Any
) -> Record:
    """A finished few-shot run with costs and a curve."""
    curve = [{"epoch": i, "loss": 2 / (i + 1), "accuracy": 1 - 1 / (i + 2), "lr": 0.01} for i in range(5)]
    cost = {"trained_parameters": 100 * len(method), "train_seconds": 3.5, "flops_per_image": 10**7}
    known = {"protocol": "few_shot", "backbone": "vit_b16", "weights": "openai", "precision": "fp32", "cost": cost}
    known |= {"status": "finished", "scores": {"test": {"accuracy": right}}, "curve": curve if shots else []}
    return Record(method=method, dataset=dataset, seed=seed, shots=shots, **{**known, **fields})


def save(root: Path, records: Iterable[Record], classes: Sequence[str] = ("cat", "dog", "owl")) -> dict[Path, Record]:
    """Each run in a folder with its record and, where it has scores, predictions on its tests."""
    runs = {}
    for i, record in enumerate(records):
        folder = root / f"run{i:04d}"
        folder.mkdir(parents=True)
        if record.scores:
            tests = {
                test: predictions(classes, record.seed, right=record.scores[test]["accuracy"]) for test in record.scores
            }
            save_predictions(folder / PREDICTIONS, tests)
        (folder / FILE).write_text(record.text(), encoding="utf-8")
        runs[folder] = record
    return runs


class Page(HTMLParser):
    """Elements by name, with their attributes and texts; scripts by type; raises where elements are not nested."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []  # the innermost element and its text
        self.feed(text.replace("<wbr>", "").replace("\u00a0", " "))  # where lines may break, and may not
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> ends nothing"
        assert self.open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self.open[-1] if self.open else "", data.strip()))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def text(self, *tags: str) -> list[str]:
        return [text for tag, text in self.texts if tag in tags]
