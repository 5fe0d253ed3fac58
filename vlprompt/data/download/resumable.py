"""Files from the net: from several mirrors, resumed after a kill, checked before they appear under their name."""

import hashlib
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import requests
from rich.filesize import decimal

from vlprompt.data.disk import check_space, locked, writing
from vlprompt.data.download.mirrors import Dropped, Unavailable, ask, confirmation, is_offline, is_page, resolve, title
from vlprompt.data.download.part import Origin, Part
from vlprompt.errors import UserError
from vlprompt.training.progress import Reporter

CHUNK = 1 << 18  # bytes
TRIES = 4  # of one mirror, where no more comes than before
BACK_OFF = 1.0  # seconds before the second try, doubled for each one after
HEX_DIGITS = {"sha256": 64, "md5": 32}


@dataclass(frozen=True)
class Remote:
    """One file and the mirrors that offer it, the best one first.

    `urls`: https://..., http://..., gdrive:ID, hf://datasets/OWNER/REPO@REVISION/PATH or hf://models/... `checksum`:
    "sha256:HEX" or "md5:HEX". `size`: bytes, an estimate for where a server tells none.
    """

    urls: tuple[str, ...]
    checksum: str | None = None
    size: int | None = None

    def __post_init__(self) -> None:
        for url in self.urls:
            resolve(url)
        known = "|".join(f"{name}:[0-9a-fA-F]{{{digits}}}" for name, digits in HEX_DIGITS.items())
        if self.checksum is not None and not re.fullmatch(known, self.checksum):
            raise UserError(f"checksum '{self.checksum}': allowed are sha256:HEX and md5:HEX.")


def download(remote: Remote, path: Path, *, reporter: Reporter | None = None, also_needed: int = 0) -> Path:
    """Have a file at `path`, from the first mirror that gives it whole. One that is there already is only checked.

    What came before a kill or a lost connection lies in PATH.part and is gone on with. `also_needed`: bytes that have
    to be free beside the file's own. Parallel runs fetch it once.

    Raises: UserError where no mirror gives it, the disk is too small, or HF_HUB_OFFLINE is set.
    """
    if path.exists():
        if wrong := mismatch(path, remote.checksum):
            raise UserError(f"'{path}' is not the published file: {wrong}. Delete it, and fetch it again.")
        return path
    reporter = reporter or Reporter()
    waiting = f"{path.name}: waiting for another process that fetches it"
    with writing(f"'{path}'", "and run this again: it goes on where it stopped"):
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path.with_name(f".{path.name}.lock"), lambda: reporter.say(waiting)):
            if not path.exists():
                _Download(remote, path, reporter, also_needed).from_any()
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
    got = digest.hexdigest()
    return "" if got == expected.lower() else f"its {name} is {got}, expected is {expected}"


class _Download:
    """One file that is not there yet."""

    def __init__(self, remote: Remote, path: Path, reporter: Reporter, also_needed: int) -> None:
        self.remote, self.path, self.also_needed = remote, path, also_needed
        self.part, self.reporter = Part(path), reporter

    def say(self, line: str) -> None:
        self.reporter.say(f"{self.path.name}: {line}")

    def from_any(self) -> None:
        """Raises: UserError with each mirror's reason where none gives the file."""
        addresses = [resolve(url) for url in self.remote.urls]
        if is_offline():
            raise UserError(
                f"HF_HUB_OFFLINE is set, so nothing is fetched: put {self.path.name} at '{self.path}' by hand "
                f"(from {' or '.join(addresses) or 'its authors'})."
            )
        reasons = []
        for url, address in zip(self.remote.urls, addresses, strict=True):
            try:
                return self.from_one(url)
            except Unavailable as error:
                reasons.append(f"\n  {address}: {error}")
                self.say(f"not from {address}: {error}")
        listed = "".join(reasons) or " no address is known."
        raise UserError(
            f"{self.path.name} could not be fetched:{listed}\nTry again later, or get it by hand and put it at "
            f"'{self.path}'."
        )

    def from_one(self, url: str) -> None:
        resumed = self.part.size > 0
        self.receive_all(url)
        with self.reporter.track(f"checking {self.path.name}", self.part.size, in_bytes=True) as track:
            wrong = mismatch(self.part.file, self.remote.checksum, track.advance)
        if not wrong:
            return self.part.publish()
        self.part.remove()
        if not resumed:
            raise Unavailable(f"not the published file, {wrong}")
        self.say("what had come before does not fit, so it is fetched from the start")
        return self.from_one(url)

    def receive_all(self, url: str) -> None:
        """Ask until all is there, again after a lost connection."""
        tries, most = 1, self.part.size
        while True:
            try:
                return self.receive(url, resolve(url))
            except Dropped as error:
                tries, most = (1 if self.part.size > most else tries + 1), max(most, self.part.size)
                if tries > TRIES:
                    raise
                wait = BACK_OFF * 2 ** max(tries - 2, 0)
                self.say(f"{error} at {decimal(self.part.size)}, next try in {wait:g} s")
                time.sleep(wait)

    def receive(self, url: str, address: str) -> None:
        """One request for what is missing: it ends in a whole .part, or raises."""
        trusted = self.remote.checksum is not None
        if self.part.is_whole(url, trusted=trusted):
            return None
        headers = self.part.range_from(url, trusted=trusted)
        with ask(url, address, headers) as response:
            origin = Origin.of(url, response)
            goes_on = bool(headers) and self.part.goes_on_with(response, origin)
            if not goes_on and response.status_code != requests.codes.ok:
                if not headers:
                    raise Unavailable(f"HTTP {response.status_code}, though the whole file was asked for")
                self.part.remove()  # it is of another file than this one
                return self.receive(url, address)
            chunks = response.raw.stream(CHUNK, decode_content=False)
            first = next(chunks, b"")
            if is_page(response, first) and self.path.suffix not in (".html", ".htm"):
                confirmed = confirmation(first) if url.startswith("gdrive:") else None
                if confirmed is None or address != resolve(url):  # asked for once
                    raise Unavailable(f"a web page{title(first)} came instead of the file")
                return self.receive(url, confirmed)
            return self.write(chain([first], chunks), origin, goes_on=goes_on)

    def write(self, chunks: Iterable[bytes], origin: Origin, *, goes_on: bool) -> None:
        part, total = self.part, origin.total or self.remote.size
        have, freed = (part.size, 0) if goes_on else (0, part.size)
        what = f"{self.path.name}{', with what is unpacked from it,' if self.also_needed else ''}"
        check_space(self.path.parent, max((total or 0) - have, 0) + self.also_needed - freed, what)
        if not goes_on:
            part.begin(origin)
        size, start = decimal(total) if total else "unknown size", f", on from {decimal(have)}" if have else ""
        self.say(f"{size} from {resolve(origin.url)}{start}")
        with (
            self.reporter.track(self.path.name, total, done=have, in_bytes=True) as track,
            part.file.open("ab") as file,
        ):
            for chunk in chunks:
                file.write(chunk)
                track.advance(len(chunk))
        if not part.size:
            raise Unavailable("the answer is empty")
        if origin.total not in (None, part.size):
            raise Dropped("the connection was lost")
