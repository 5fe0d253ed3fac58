"""What the page says of each run: its settings in words, its curve, its classes, its mistakes."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vlprompt.config.about import display_name
from vlprompt.config.changes import value_text, words
from vlprompt.errors import UserError
from vlprompt.reports.filters import value_of
from vlprompt.reports.report.again import command
from vlprompt.reports.report.images import ImagesOf, KnownImages, Thumbnails
from vlprompt.reports.summary import UNTRAINED
from vlprompt.reports.variants import SECTIONS, leaves
from vlprompt.results.metrics import per_class_accuracy
from vlprompt.results.predictions import PREDICTIONS, Predictions, load_predictions
from vlprompt.results.record import SELECTIONS, Record

MOST_READ = 400  # runs whose predictions are read
MOST_CLASSES, MOST_CONFUSIONS = 40, 8
WRONG, RIGHT = 4, 2  # images of a test that are shown
TESTS_WITH_IMAGES = 2
WIDTH, HEIGHT = 320, 90  # of a curve, in pixels


@dataclass(frozen=True)
class Picture:
    css: str
    right: bool
    label: str
    predicted: str
    confidence: float


@dataclass(frozen=True)
class Test:
    name: str
    classes: list[tuple[str, int, float]]  # class, images, accuracy (%): the lowest first
    n_classes: int
    confusions: list[tuple[str, str, int, int]]  # class, taken for, so many of so many images
    pictures: list[Picture]


@dataclass(frozen=True)
class Run:
    id: str
    record: Record
    sentence: str
    settings: list[str]
    command: str
    curves: list[tuple[str, str, float, float]]  # name, points of a line, first and last value
    tests: list[Test]
    notes: list[str]
    facts: list[tuple[str, str]]


@dataclass
class Group:
    """The runs of one row of the tables: a learner in a cell, over its seeds."""

    id: str
    title: str
    runs: list[Run] = field(default_factory=list)
    scores: str = ""
    command: str = ""


def read_predictions(
    runs: Mapping[Path, Record], notes: list[str], most: int = MOST_READ
) -> dict[Path, dict[str, Any]]:
    """The predictions of at most so many runs, the first seed of each row before the second of any."""
    finished = {folder: record for folder, record in runs.items() if record.status == "finished"}
    there = [folder for folder in finished if (folder / PREDICTIONS).is_file()]
    turns: Counter[tuple[Any, ...]] = Counter()
    turn: dict[Path, int] = {}
    for folder in there:
        record = finished[folder]
        row = record.protocol, record.dataset, record.backbone, record.weights, record.learner, record.shots
        turns[row] += 1
        turn[folder] = turns[row]
    chosen = sorted(there, key=lambda folder: turn[folder])[:most]
    if len(there) > most:
        notes.append(
            f"Predictions of {most:,} of {len(there):,} runs are read, first seeds first: the others have no classes, "
            "confusions and images here. Fewer runs (--where) have all."
        )
    loaded = {}
    for folder in chosen:
        try:
            loaded[folder] = load_predictions(folder / PREDICTIONS)
        except UserError as error:
            notes.append(f"Without predictions: {error}")
    return loaded


def describe(
    number: int,
    record: Record,
    predictions: Mapping[str, Predictions],
    images_of: ImagesOf,
    thumbnails: Thumbnails,
) -> Run:
    tests = []
    for i, (test, of_test) in enumerate(predictions.items()):
        images = images_of(record, test)
        tests.append(_test(test, of_test, images, thumbnails if i < TESTS_WITH_IMAGES else None))
    parts = [f"{key}={value_text(value)}" for part in SECTIONS for key, value in leaves(record.config.get(part), part)]
    notes = [f"{record.status.replace('_', ' ')}: {record.reason or 'no reason kept'}"] * (record.status != "finished")
    if record.status == "finished" and not tests:
        notes.append("No predictions here, so no classes, confusions and images.")
    elif tests and not any(test.pictures for test in tests):
        notes.append("No pictures: the images of this data set are not on this disk, or are others.")
    again = command([record])
    return Run(f"run-{number}", record, sentence(record), parts, again, curves(record), tests, notes, facts(record))


def facts(record: Record) -> list[tuple[str, str]]:
    """What tells a run from any other, and what it cost."""
    recipe = ", ".join(record.recipe)
    costs = ", ".join(
        f"{key} {value:{',d' if type(value) is int else ',.4g'}}"
        for key, value in record.cost.items()
        if type(value) in (int, float)
    )
    hashes = {f"split of {name}": value for name, value in record.target_hashes.items()}
    of = {"made": record.created, "configuration": record.config_hash, "split": record.split_hash, **hashes}
    of |= {"commit": record.git, "recipes": recipe, "costs": costs}
    of |= {"read from": ", ".join(f"{test}: {log.get('log', log)}" for test, log in record.imported.items())}
    of |= {"versions": ", ".join(f"{name} {version}" for name, version in record.versions.items())}
    return [(name, str(value)) for name, value in of.items() if value]


def sentence(record: Record) -> str:
    """The settings that readers ask for first."""

    def setting(key: str, form: str) -> list[str]:
        value = value_of(record, f"fit.{key}")
        return [form.format(value)] if isinstance(value, int | float | str) and value != "" else []

    shots = "all images" if record.shots == "all" else f"{record.shots} labelled images a class"
    if isinstance(record.shots, str) and record.shots != "all":
        shots = f"{record.shots.partition('-')[0]} labelled images in all, as frequent as their classes"
    text = f"{display_name(record.method)} on {record.dataset}, {record.protocol}, {record.backbone}"
    text += f" ({', '.join(filter(None, (record.weights, record.precision, record.device)))})"
    if record.shots == UNTRAINED:
        return f"{text}; nothing is trained."
    details = [*setting("optimizer", "{}"), *setting("lr", "learning rate {}"), *setting("epochs", "{} epochs")]
    details += [*setting("steps", "{} steps"), *setting("batch_size", "batches of {}")]
    text = f"{text}; {shots}, seed {record.seed}{': ' if details else ''}{', '.join(details)}."
    text += f" Selection: {SELECTIONS[record.selection]}." if record.selection != "fixed" else ""
    return text + (f" Not the default: {words(record.changes, whole=True)}." if record.changes else "")


def curves(record: Record) -> list[tuple[str, str, float, float]]:
    """Loss and training accuracy by epoch, each as the points of a line in a box of WIDTH x HEIGHT."""
    drawn = []
    for name in ("loss", "accuracy"):
        values = [(i, row.get(name)) for i, row in enumerate(record.curve)]
        finite = [(i, float(v)) for i, v in values if isinstance(v, int | float) and math.isfinite(v)]
        if len(finite) > 1:
            low, high = (of(v for _, v in finite) for of in (min, max))
            x, y = WIDTH / max(len(values) - 1, 1), HEIGHT / ((high - low) or 1)
            thinned = finite[:: max(1, len(finite) // 120)]
            points = " ".join(f"{x * i:.0f},{HEIGHT - y * (v - low):.0f}" for i, v in thinned)
            drawn.append((name, points, finite[0][1], finite[-1][1]))
    return drawn


def class_names(predictions: Predictions, images: KnownImages | None) -> dict[int, str]:
    """By label: as the data set has them, else the folder that all images of a class share, else "class 7"."""
    names: dict[int, str] = {}
    for label in np.unique(predictions.labels).tolist():
        of_class = predictions.images[predictions.labels == label].tolist()
        if images and of_class[0] in images.classes:
            names[label] = images.classes[of_class[0]]
            continue
        folders = {Path(image).parent.name for image in of_class}
        names[label] = folders.pop() if len(folders) == 1 and "" not in folders else f"class {label}"
    repeated = Counter(names.values())
    return {label: name if repeated[name] == 1 else f"{name} ({label})" for label, name in names.items()}


def _test(name: str, predictions: Predictions, images: KnownImages | None, thumbnails: Thumbnails | None) -> Test:
    names = class_names(predictions, images)
    table = per_class_accuracy(predictions).sort_values("accuracy", kind="stable")
    classes = [
        (names[int(label)], int(row["images"]), 100 * row["accuracy"])
        for label, row in table.head(MOST_CLASSES).iterrows()
    ]
    wrong = predictions.predicted != predictions.labels
    pairs = Counter(zip(predictions.labels[wrong].tolist(), predictions.predicted[wrong].tolist(), strict=True))
    of_class = Counter(predictions.labels.tolist())
    confusions = [
        (names[true], names.get(taken, f"class {taken}"), n, of_class[true])
        for (true, taken), n in sorted(pairs.items(), key=lambda pair: (-pair[1], pair[0]))[:MOST_CONFUSIONS]
    ]
    pictures = _pictures(predictions, wrong, names, images, thumbnails) if images and thumbnails else []
    return Test(name, classes, len(table), confusions, pictures)


def _pictures(
    predictions: Predictions, wrong: Any, names: Mapping[int, str], images: KnownImages, thumbnails: Thumbnails
) -> list[Picture]:
    """The surest mistakes, at most one a class, and some that are right."""
    order = np.argsort(-predictions.confidence, kind="stable")
    surest = list({int(predictions.labels[i]): int(i) for i in reversed(order[wrong[order]])}.values())[::-1]
    right = np.flatnonzero(~wrong)
    chosen = [*surest[:WRONG], *right[:: max(1, len(right) // RIGHT)][:RIGHT].tolist()]
    pictures = []
    for i in chosen:
        if css := thumbnails.add(images, str(predictions.images[i])):
            true, taken = int(predictions.labels[i]), int(predictions.predicted[i])
            taken_for = names.get(taken, f"class {taken}")
            pictures.append(Picture(css, true == taken, names[true], taken_for, float(predictions.confidence[i])))
    return pictures
