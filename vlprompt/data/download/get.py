"""Fetching what a data set lacks: from the first mirror that gives it, verified, put where it belongs."""

import hashlib
import sys
from functools import cache
from pathlib import Path

from filelock import FileLock
from rich.filesize import decimal

from vlprompt.data.download.archives import extract, unpacked_size
from vlprompt.data.download.catalogue import OR, About, Mirror, content_hash
from vlprompt.data.download.resumable import Remote, download
from vlprompt.data.sources import split_file
from vlprompt.errors import UserError
from vlprompt.training.progress import Reporter

FETCHED = ".download"  # a folder for archives below the data set's
UNPACKED = 1.1  # an archive of images is about as large as what is in it


def ensure(name: str, about: About, base: Path, *, download: bool) -> None:
    """Fetch what is missing below `base`: if `download` says so, or the user does, asked once on a terminal.

    Raises: UserError that says which command gets it.
    """
    missing = about.missing(base)
    if not missing:
        return
    lacks = f"{name} is not complete: there is no {listed(base, missing)}"
    if not any(about.parts[part] for part in missing):
        raise UserError(f"{lacks}. {about.manual or f'It is published at {about.home}'}.")
    if not (download or ask(f"{lacks}.\nDownload it ({size_of(about, missing)})?")):
        raise UserError(
            f"{lacks}. Get it with: vlprompt data get {name} ({size_of(about, missing)}, {about.home} and mirrors), "
            "add data.download=true, or point data.root to the folder that holds it."
        )
    get(name, about, base)


@cache
def ask(question: str) -> bool:
    """Whether the user says yes, on a terminal; no elsewhere. A sweep asks once."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return False
    return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")


def get(name: str, about: About, base: Path, *, only: frozenset[str] | None = None) -> None:
    """Fetch the parts that are missing below `base` (of these, `only`). Parallel runs fetch once.

    Raises: UserError where no mirror gives a part, or it can only be fetched by hand.
    """
    reporter = Reporter()
    base.mkdir(parents=True, exist_ok=True)
    with FileLock(base.parent / f".{base.name}.lock"):
        for part in about.parts:
            if part in about.missing(base) and (only is None or part in only):  # an archive may hold several
                get_part(name, about, base, part, reporter)
        remove_empty(base / FETCHED)


def get_part(name: str, about: About, base: Path, part: str, reporter: Reporter) -> None:
    reasons = []
    for mirror in about.parts[part]:
        try:
            fetch(mirror, base, part.split(OR)[0], reporter)
            if part in about.missing(base):
                raise UserError(f"{mirror.url} does not hold {part}")
            verify(about, base, part)
            return
        except UserError as error:
            reporter.say(f"{part}: {error}")
            reasons.append(str(error))
    if not reasons:
        raise UserError(f"{name}: {listed(base, [part])} cannot be fetched: {about.manual or f'see {about.home}'}.")
    raise UserError(
        f"no mirror gave {listed(base, [part])} of {name} (reasons above): try again later, or fetch it from "
        f"{about.home} and put it there."
    )


def fetch(mirror: Mirror, base: Path, part: str, reporter: Reporter) -> None:
    """Download from one mirror, and unpack an archive."""
    remote = Remote((mirror.url,), mirror.checksum, mirror.size)
    if mirror.members is None:
        download(remote, base / part, reporter=reporter)
        return
    digest = hashlib.sha256(mirror.url.encode()).hexdigest()[:12]  # other mirrors have other files of that name
    archive = base / FETCHED / f"{digest}-{mirror.url.rpartition('/')[2].rpartition(':')[2]}"
    archive.parent.mkdir(exist_ok=True)
    download(remote, archive, reporter=reporter, also_needed=int(UNPACKED * (mirror.size or 0)))
    try:
        extract(archive, base, members=mirror.members, reporter=reporter)
    except UserError:
        if is_unusable(archive):  # else the next run would find it and fail again; after a full disk it is kept
            archive.unlink()
        raise
    archive.unlink()


def is_unusable(archive: Path) -> bool:
    """Whether the reason not to unpack an archive lies in the archive."""
    try:
        unpacked_size(archive)
    except UserError:
        return True
    return False


def verify(about: About, base: Path, part: str) -> None:
    """Hold a text against the hash of its published content, a split file without one against the counts.

    What is wrong is removed.
    """
    path = base / part.split(OR)[0]
    if not path.is_file():
        return
    expected = about.hashes.get(path.name)
    try:
        if expected is not None and (found := content_hash(path)) != expected:
            raise UserError(f"{path.name} is not the published one: its content has sha256 {found}, not {expected}")
        if expected is None and path.suffix == ".json":
            check_split(path, about)
    except UserError:
        path.unlink()
        raise


def check_split(path: Path, about: About) -> None:
    """Raises: UserError where a split file is damaged or has other counts than the published one."""
    content = split_file.read(path)
    found = {"classes": len(split_file.check(path, content))}
    found |= {part: len(getattr(content, part)) for part in ("train", "val", "test")}
    if found != (published := about.counts.model_dump()):
        raise UserError(f"{path.name} is not the published one: it has {found}, published are {published}")


def remove_empty(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def listed(base: Path, parts: list[str]) -> str:
    return " and no ".join(f"{base / part.split(OR)[0]}" for part in parts)


def size_of(about: About, parts: list[str]) -> str:
    size = about.download_size([part for part in parts if about.parts[part]])
    return "size not published" if size is None else f"about {decimal(size)}"
