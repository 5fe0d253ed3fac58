"""Fetching what a data set lacks: from the first mirror that gives it, verified, put where it belongs."""

import hashlib
import sys
from collections.abc import Collection, Iterable
from contextlib import suppress
from functools import cache
from pathlib import Path

from rich.filesize import decimal

from vlprompt.data.disk import locked
from vlprompt.data.download.archives import extract
from vlprompt.data.download.catalogue import OR, About, Mirror
from vlprompt.data.download.check import verify
from vlprompt.data.download.members import BadArchive
from vlprompt.data.download.reporting import SILENT, Reporter
from vlprompt.data.download.resumable import download
from vlprompt.errors import UserError

FETCHED = ".download"  # a folder for archives below the data set's
REPACKED = 2  # times the size of another archive of the same images, at most
UNPACKED = 1.1  # an archive of images is about as large as what is in it


def ensure(name: str, about: About, base: Path, *, download: bool, reporter: Reporter = SILENT) -> None:
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
    get(name, about, base, reporter=reporter)


@cache
def ask(question: str) -> bool:
    """Whether the user says yes, on a terminal; no elsewhere. A sweep asks once."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return False
    return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")


def get(
    name: str, about: About, base: Path, *, only: Collection[str] | None = None, reporter: Reporter = SILENT
) -> None:
    """Fetch the parts that are missing below `base` (of these, `only`). Parallel runs fetch once.

    Raises: UserError where no mirror gives a part, or it can only be fetched by hand.
    """
    base.mkdir(parents=True, exist_ok=True)
    lock = base.parent / f".{base.name}.lock"
    with locked(lock, lambda holder: reporter.say(f"{name}: {holder} is fetching it: waiting for it")):
        for part in about.parts:
            if part in about.missing(base) and (only is None or part in only):  # an archive may hold several
                get_part(name, about, base, part, reporter)
        with suppress(OSError):  # there is none, or something is in it
            (base / FETCHED).rmdir()


def get_part(name: str, about: About, base: Path, part: str, reporter: Reporter) -> None:
    reasons: list[str] = []
    for mirror in about.parts[part]:
        if reasons:
            reporter.say(f"{reasons[-1]}; trying the next mirror")
        try:
            fetch(mirror, about, base, part, reporter)
            return
        except UserError as error:
            reasons.append(str(error).rstrip("."))
    if not reasons:
        raise UserError(f"{name}: {listed(base, [part])} cannot be fetched: {about.manual or f'see {about.home}'}.")
    raise UserError(
        f"no mirror gave {listed(base, [part])} of {name} ({'; '.join(reasons)}): try again later, or fetch it from "
        f"{about.home} and put it there."
    )


def fetch(mirror: Mirror, about: About, base: Path, part: str, reporter: Reporter) -> None:
    """Download a part from one mirror, unpack it where it is in an archive, and verify it; what is wrong is removed.

    Raises: UserError.
    """
    path, most = base / part.split(OR)[0], most_of(mirror, about.parts[part])
    if mirror.members is None:
        download(mirror.url, path, checksum=mirror.checksum, size=mirror.size, most=most, reporter=reporter)
    else:
        fetch_archive(mirror, mirror.members, base, most, reporter)
    if part in about.missing(base):
        raise UserError(f"{mirror.url} does not hold {part}")
    if path.is_file():
        try:
            verify(path, about)
        except UserError:
            path.unlink()
            raise


def most_of(mirror: Mirror, mirrors: Iterable[Mirror]) -> int | None:
    """Bytes that are taken where a mirror's own size is not known, but that of another one which offers the same; None:
    what is known of the mirror itself decides."""
    if mirror.size is not None:
        return None
    alike = [other.size for other in mirrors if other.size and (other.members is None) == (mirror.members is None)]
    return max(alike) * REPACKED if alike else None


def fetch_archive(mirror: Mirror, members: dict[str, str], base: Path, most: int | None, reporter: Reporter) -> None:
    digest = hashlib.sha256(mirror.url.encode()).hexdigest()[:12]  # other mirrors have other files of that name
    archive = base / FETCHED / f"{digest}-{mirror.url.rpartition('/')[2].rpartition(':')[2]}"
    download(mirror.url, archive, checksum=mirror.checksum, size=mirror.size, most=most,
             also_needed=int(UNPACKED * (mirror.size or 0)), reporter=reporter)  # fmt: skip
    try:
        extract(archive, base, members=members, reporter=reporter)
    except BadArchive:  # else the next run would read it again, and fail again; after a full disk it stays
        archive.unlink()
        raise
    archive.unlink()


def listed(base: Path, parts: Iterable[str]) -> str:
    return " and no ".join(f"{base / part.split(OR)[0]}" for part in parts)


def size_of(about: About, parts: Iterable[str]) -> str:
    size = about.download_size([part for part in parts if about.parts[part]])
    return "size not published" if size is None else f"about {decimal(size)}"
