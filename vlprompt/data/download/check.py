"""Whether a data set is what is published: its texts, its counts, and, if wanted, each image."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from vlprompt.data.dataset import PARTS, Dataset, OpenImage
from vlprompt.data.download.catalogue import OR, About
from vlprompt.data.download.reporting import SILENT, Track
from vlprompt.data.presence import count_gaps, is_there, summary
from vlprompt.data.sources import split_file
from vlprompt.errors import UserError, first_names

N_NAMED = 5  # files of a kind that are named before the rest is counted


def content_hash(path: Path) -> str:
    """sha256 of what a file says: of JSON without its layout, else of its lines without white space at their ends.

    Raises: UserError where the file cannot be read as such.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix == ".json":
            text = json.dumps(json.loads(text), sort_keys=True)
        else:
            text = "\n".join(line.strip() for line in text.splitlines() if line.strip())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {error}.") from None
    return hashlib.sha256(text.encode()).hexdigest()


def verify(path: Path, about: About) -> None:
    """Compare a text with the hash of its published content, a split file without one with the published counts.

    Raises: UserError that says how it differs.
    """
    expected = about.hashes.get(path.name)
    if expected is not None and (actual := content_hash(path)) != expected:
        raise UserError(f"{path.name} is not the published one: its content has sha256 {actual}, not {expected}")
    if expected is None and path.suffix == ".json":
        content = split_file.read(path)
        counts = {"classes": len(split_file.check(path, content))}
        counts |= {part: len(getattr(content, part)) for part in PARTS}
        if counts != (published := about.counts.model_dump()):
            raise UserError(f"{path.name} is not the published one: it has {counts}, published are {published}")


def check(dataset: Dataset, about: About | None, base: Path, *, decode: bool, track: Track = SILENT) -> Iterator[str]:
    """What is wrong with a data set, a sentence each; nothing where all is well."""
    if about is not None:
        yield from check_counts(dataset, about)
        yield from check_hashes(about, base)
    files = dataset.open_image
    items = [item for part in PARTS for item in getattr(dataset, part)]
    missing, damaged = [], []
    for item in items:
        if not is_there(dataset, item):
            missing.append(item)
        elif decode and (reason := reason_to_refuse(files, item.image)):
            damaged.append(reason)
        track.advance()
    labels = {item.label for item in items}
    if empty := [name for label, name in enumerate(dataset.classes) if label not in labels]:
        yield f"no images of {len(empty):,} of {len(dataset.classes):,} classes: {first_names(empty, N_NAMED)}"
    if missing:
        images = list(dict.fromkeys(item.image for item in missing))
        yield f"{summary(count_gaps(dataset, missing), dataset)}; for example {first_names(images, N_NAMED)}"
    if damaged:
        yield f"{len(damaged)} images cannot be read: {first_names(damaged, N_NAMED)}"


def check_counts(dataset: Dataset, about: About) -> Iterator[str]:
    counts = {"classes": len(dataset.classes)} | {part: len(getattr(dataset, part)) for part in PARTS}
    for kind, published in about.counts.model_dump().items():
        if counts[kind] != published:
            yield f"{counts[kind]} {kind}, published are {published}"


def check_hashes(about: About, base: Path) -> Iterator[str]:
    for name, expected in about.hashes.items():
        alternatives = next((part.split(OR) for part in about.parts if part.split(OR)[0] == name), [name])
        path = next((base / file for file in alternatives if (base / file).is_file()), None)
        if path is not None and content_hash(path) != expected:
            yield f"{path} is not the published one: delete it and get it again"


def reason_to_refuse(open_image: OpenImage, image: str) -> str | None:
    try:
        open_image(image)
    except UserError as error:
        return str(error)
    return None
