"""Whether a data set is what it should be: its counts, its files, and, if wanted, each image."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vlprompt.data.dataset import Dataset
from vlprompt.data.download.catalogue import OR, About, content_hash
from vlprompt.data.sources.files import Files
from vlprompt.errors import UserError
from vlprompt.training.progress import Track

N_NAMED = 5  # files of a kind that are named before the rest is counted


def check(dataset: Dataset, about: About | None, base: Path, *, decode: bool, track: Track) -> Iterator[str]:
    """What is wrong with a data set, a sentence each; nothing where all is well."""
    if about is not None:
        yield from check_counts(dataset, about)
        yield from check_hashes(about, base)
    files = dataset.open_image
    images = [item.image for part in (dataset.train, dataset.val, dataset.test) for item in part]
    gone, damaged = [], []
    for image in images:
        if isinstance(files, Files) and not files.locate(image).is_file():
            gone.append(image)
        elif decode and (reason := reason_to_refuse(files, image)):
            damaged.append(reason)
        track.advance()
    if gone:
        yield f"{len(gone)} of {len(images)} listed images are missing: {first(gone)}"
    if damaged:
        yield f"{len(damaged)} images cannot be read: {first(damaged)}"


def check_counts(dataset: Dataset, about: About) -> Iterator[str]:
    found = {"classes": len(dataset.classes)} | {p: len(getattr(dataset, p)) for p in ("train", "val", "test")}
    for kind, expected in about.counts.model_dump().items():
        if found[kind] != expected:
            yield f"{found[kind]} {kind}, published are {expected}"


def check_hashes(about: About, base: Path) -> Iterator[str]:
    for name, expected in about.hashes.items():
        places = next((part.split(OR) for part in about.parts if part.split(OR)[0] == name), [name])
        path = next((base / place for place in places if (base / place).is_file()), None)
        if path is not None and content_hash(path) != expected:
            yield f"{path} is not the published one: delete it and get it again"


def reason_to_refuse(files: Any, image: str) -> str | None:
    try:
        files(image)
    except UserError as error:
        return str(error)
    return None


def first(names: list[str]) -> str:
    rest = f" and {len(names) - N_NAMED} more" if len(names) > N_NAMED else ""
    return ", ".join(names[:N_NAMED]) + rest
