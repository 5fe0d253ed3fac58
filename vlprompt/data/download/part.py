"""What is fetched so far of a file, and what it is a part of."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import requests


@dataclass(frozen=True)
class Origin:
    """The file on a server that a part was taken from."""

    url: str
    validator: str | None  # strong ETag, or Last-Modified: it changes where the file does
    total: int | None  # bytes

    @classmethod
    def of(cls, url: str, response: requests.Response) -> "Origin":
        etag, dated = response.headers.get("ETag"), response.headers.get("Last-Modified")
        whole = response.headers.get("Content-Range", "").rpartition("/")[2]
        length = whole if response.status_code == requests.codes.partial else response.headers.get("Content-Length", "")
        strong = etag if etag and not etag.startswith("W/") else None  # weak ones do not vouch for bytes
        return cls(url, strong or dated, int(length) if length.isdecimal() else None)


@dataclass(frozen=True)
class Part:
    """PATH.part, and its origin beside it."""

    path: Path

    @property
    def file(self) -> Path:
        return self.path.with_name(f"{self.path.name}.part")

    @property
    def note(self) -> Path:
        return self.path.with_name(f"{self.path.name}.part.json")

    @property
    def size(self) -> int:
        return self.file.stat().st_size if self.file.exists() else 0

    @property
    def origin(self) -> Origin | None:
        try:
            return Origin(**json.loads(self.note.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):  # none, or half written by a killed process
            return None

    def is_whole(self, url: str, *, trusted: bool) -> bool:
        """Whether nothing is missing: left by a kill before the file got its name."""
        origin = self.origin
        return self.size > 0 and origin is not None and origin.total == self.size and (trusted or origin.url == url)

    def range_from(self, url: str, *, trusted: bool) -> dict[str, str]:
        """Headers that ask for the rest; none where it cannot be known to fit.

        `trusted`: a checksum will tell in the end, so that another mirror may go on with it.
        """
        origin, rest = self.origin, {"Range": f"bytes={self.size}-"}
        if not self.size or origin is None:
            return {}
        if origin.url == url and origin.validator:
            return {**rest, "If-Range": origin.validator}
        return rest if trusted else {}

    def goes_on_with(self, response: requests.Response, new: Origin) -> bool:
        """Whether an answer is the rest of this part: some servers do not heed If-Range."""
        start = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
        if response.status_code != requests.codes.partial or start != str(self.size):
            return False
        old = self.origin
        return old is not None and (old == new if old.url == new.url else old.total in (None, new.total))

    def begin(self, origin: Origin) -> None:
        self.file.write_bytes(b"")  # before the note: a kill between them must not give old bytes a new origin
        self.note.write_text(json.dumps(asdict(origin)), encoding="utf-8")

    def remove(self) -> None:
        self.file.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)

    def publish(self) -> None:
        """Give the whole file its name."""
        with self.file.open("rb") as file:
            os.fsync(file.fileno())
        self.file.replace(self.path)
        self.note.unlink(missing_ok=True)
