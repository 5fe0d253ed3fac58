"""A file from the net: resumed after a kill or a lost connection, checked before it appears under its name."""

import hashlib
import json
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path

import requests
from pydantic import TypeAdapter
from rich.filesize import decimal

from vlprompt.data.disk import check_space, sync, writing
from vlprompt.data.download.mirrors import Dropped, Unavailable, ask, confirmation, is_offline, is_page, resolve, title
from vlprompt.data.download.reporting import SILENT, Reporter
from vlprompt.errors import UserError

CHUNK = 1 << 18  # bytes
TRIES = 4  # where no more comes than before
BACK_OFF = 1.0  # seconds before the second try, doubled for each one after
TOLERANCE = 1.25  # times the size that is known, which is about so many bytes
MOST = 20_000_000_000  # bytes of a file whose size is not known
LONGEST_NUMBER = 18  # digits of a length in an answer


def download(
    url: str,
    path: Path,
    *,
    checksum: str | None = None,
    size: int | None = None,
    most: int | None = None,
    also_needed: int = 0,
    reporter: Reporter = SILENT,
) -> Path:
    """Have a file at `path`. One that is there already is only checked.

    `url`: https://..., http://..., gdrive:ID, hf://datasets/OWNER/REPO@REVISION/PATH or hf://models/... `checksum`:
    "sha256:HEX" or "md5:HEX". `size`: about so many bytes, an estimate for where a server tells none. `most`: bytes
    that are taken; None: a quarter more than `size`, or 20 GB where that is None. `also_needed`: bytes that have to be
    free in addition to the file's. What comes before a kill or a lost connection stays in PATH.part, and the
    next call resumes it. One process at a time: whoever calls this holds a lock.

    Raises: UserError where the url does not give the file or gives more than `most`, the disk is too small, or
    HF_HUB_OFFLINE is set.
    """
    address = resolve(url)
    if most is None:
        most = MOST if size is None else int(TOLERANCE * size)
    if path.exists():
        if wrong := mismatch(path, checksum):
            raise UserError(f"'{path}' is not the published file: {wrong}. Delete it, and fetch it again.")
        return path
    if is_offline():
        raise UserError(
            f"HF_HUB_OFFLINE is set, so nothing is fetched: put {path.name} at '{path}' by hand (from {address})."
        )
    with writing(f"'{path}'", "and run this again: it resumes where it stopped"):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            _Download(url, PartialFile(path), checksum, size, most, also_needed, reporter).run()
        except Unavailable as error:
            raise UserError(f"{path.name} could not be fetched from {address}: {error}") from error
    return path


def mismatch(path: Path, checksum: str | None, advance: Callable[[int], object] = lambda n: None) -> str:
    """What is wrong with a file's checksum; empty where nothing is, or none is known. `advance` hears of bytes read."""
    if checksum is None:
        return ""
    name, _, expected = checksum.partition(":")
    digest = hashlib.new(name, usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            advance(len(chunk))
    actual = digest.hexdigest()
    return "" if actual == expected.lower() else f"its {name} is {actual}, expected is {expected}"


@dataclass(frozen=True)
class Origin:
    """The file on a server that a partial one was taken from."""

    url: str
    validator: str | None  # strong ETag, or Last-Modified: it changes where the file does
    total: int | None  # bytes

    @classmethod
    def of(cls, url: str, response: requests.Response) -> "Origin":
        etag, dated = response.headers.get("ETag"), response.headers.get("Last-Modified")
        whole = response.headers.get("Content-Range", "").rpartition("/")[2]
        length = whole if response.status_code == requests.codes.partial else response.headers.get("Content-Length", "")
        strong = etag if etag and not etag.startswith("W/") else None  # weak ones do not vouch for bytes
        known = length.isdecimal() and len(length) <= LONGEST_NUMBER
        return cls(url, strong or dated, int(length) if known else None)


class PartialFile:
    """What came so far of the file `path`: PATH.part, and next to it a note of its origin."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file, self.note = path.with_name(f"{path.name}.part"), path.with_name(f"{path.name}.part.json")

    @property
    def size(self) -> int:
        return self.file.stat().st_size if self.file.exists() else 0

    @property
    def origin(self) -> Origin | None:
        try:
            text = self.note.read_text(encoding="utf-8")
            origin = TypeAdapter(Origin).validate_json(text, strict=True)
        except (OSError, ValueError, RecursionError):  # none, or half written by a killed process
            return None
        sendable = origin.validator is None or re.fullmatch(r"[!-~][ -~]*", origin.validator)
        return origin if sendable else None

    def is_whole(self, url: str) -> bool:
        """Whether nothing is missing: left by a kill before the file got its name."""
        return self.size > 0 and (origin := self.origin) is not None and (origin.url, origin.total) == (url, self.size)

    def range_from(self, url: str, *, has_checksum: bool) -> dict[str, str]:
        """Headers that ask for the rest; none where neither a validator nor a checksum would tell that it fits."""
        origin, rest = self.origin, {"Range": f"bytes={self.size}-"}
        if not self.size or origin is None or origin.url != url:
            return {}
        if origin.validator:
            return {**rest, "If-Range": origin.validator}
        return rest if has_checksum else {}

    def is_continued_by(self, response: requests.Response, new: Origin) -> bool:
        """Whether an answer is the rest of this: some servers do not heed If-Range."""
        start = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
        return response.status_code == requests.codes.partial and start == str(self.size) and self.origin == new

    def begin(self, origin: Origin) -> None:
        self.file.write_bytes(b"")  # before the note: a kill between them must not give old bytes a new origin
        self.note.write_text(json.dumps(asdict(origin)), encoding="utf-8")

    def remove(self) -> None:
        self.file.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)

    def publish(self) -> None:
        """Give the whole file its name."""
        sync(self.file)
        self.file.replace(self.path)
        sync(self.path.parent)
        self.note.unlink(missing_ok=True)


@dataclass(frozen=True)
class _Download:
    """One file that is not there yet. Its methods raise Unavailable."""

    url: str
    part: PartialFile
    checksum: str | None
    size: int | None
    most: int
    also_needed: int
    reporter: Reporter

    @property
    def name(self) -> str:
        return self.part.path.name

    def say(self, line: str) -> None:
        self.reporter.say(f"{self.name}: {line}")

    def run(self) -> None:
        resumed = self.part.size > 0
        self.receive_all()
        with self.reporter.track(f"checking {self.name}", self.part.size, in_bytes=True) as track:
            wrong = mismatch(self.part.file, self.checksum, track.advance)
        if not wrong:
            return self.part.publish()
        self.part.remove()
        if not resumed:
            raise Unavailable(f"not the published file, {wrong}")
        self.say("what had come before does not fit, so it is fetched from the start")
        return self.run()

    def receive_all(self) -> None:
        """Ask until all is there, again after a lost connection."""
        tries, most = 1, self.part.size
        while True:
            try:
                return self.receive(resolve(self.url))
            except Dropped as error:
                tries, most = (1 if self.part.size > most else tries + 1), max(most, self.part.size)
                if tries > TRIES:
                    raise
                wait = BACK_OFF * 2 ** max(tries - 2, 0)
                self.say(f"{error} at {decimal(self.part.size)}, next try in {wait:g} s")
                time.sleep(wait)

    def receive(self, address: str) -> None:
        """One request for what is missing: it ends in a whole .part, or raises."""
        if self.part.is_whole(self.url):
            return None
        headers = self.part.range_from(self.url, has_checksum=self.checksum is not None)
        with ask(self.url, address, headers) as response:
            origin = Origin.of(self.url, response)
            resumes = bool(headers) and self.part.is_continued_by(response, origin)
            if not resumes and response.status_code != requests.codes.ok:
                if not headers:
                    raise Unavailable(f"HTTP {response.status_code}, though the whole file was asked for")
                self.part.remove()  # it is of another file than this one
                return self.receive(address)
            chunks = response.raw.stream(CHUNK, decode_content=False)
            first = next(chunks, b"")
            if is_page(response, first) and self.part.path.suffix not in (".html", ".htm"):
                confirmed = confirmation(first) if self.url.startswith("gdrive:") else None
                scheme = address.partition(":")[0]
                if confirmed is None or not confirmed.startswith(f"{scheme}:") or address != resolve(self.url):  # once
                    raise Unavailable(f"a web page{title(first)} came instead of the file")
                return self.receive(confirmed)
            return self.write(chain([first], chunks), origin, resumes=resumes)

    def write(self, chunks: Iterable[bytes], origin: Origin, *, resumes: bool) -> None:
        part, total = self.part, origin.total or self.size
        present, freed = (part.size, 0) if resumes else (0, part.size)
        if max(origin.total or 0, present) > self.most:
            raise self.too_much(f"the server offers {decimal(max(origin.total or 0, present))}")
        what = f"{self.name}{', with what is unpacked from it,' if self.also_needed else ''}"
        check_space(part.path.parent, max((total or 0) - present, 0) + self.also_needed - freed, what)
        if not resumes:
            part.begin(origin)
        start = f", resumed at {decimal(present)}" if present else ""
        self.say(f"{decimal(total) if total else 'unknown size'} from {resolve(self.url)}{start}")
        with (
            self.reporter.track(self.name, total, done=present, in_bytes=True) as track,
            part.file.open("ab") as file,
        ):
            for chunk in chunks:
                present += len(chunk)
                if present > self.most:
                    break
                file.write(chunk)
                track.advance(len(chunk))
        if present > self.most:
            raise self.too_much("more than expected comes")
        if not part.size:
            raise Unavailable("the answer is empty")
        if origin.total not in (None, part.size):
            raise Dropped("the connection was lost")

    def too_much(self, what: str) -> Unavailable:
        """What came so far is no part of the file that is wanted."""
        self.part.remove()
        expected = "its size is not known" if self.size is None else f"it has about {decimal(self.size)}"
        return Unavailable(f"{what}, at most {decimal(self.most)} are taken ({expected})")
