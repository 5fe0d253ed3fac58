"""A file server on this machine that can be as bad as the net is, and remembers what it was asked for."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

PIECE = 1 << 14  # bytes written at once


@dataclass
class Served:
    """One file and how it is served."""

    content: bytes = b""
    status: int = 200
    etag: str | None = None
    modified: str | None = None  # Last-Modified
    type: str = "application/octet-stream"
    ranges: bool = True  # answers Range
    checks_if_range: bool = True  # False: gives the rest of whatever there is now
    length: bool = True  # sends Content-Length
    drop_after: int | None = None  # bytes of one answer after which the connection is cut,
    drops: int = 10**6  # this many times
    pause: float = 0.0  # seconds after each piece
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Asked:
    method: str
    path: str  # with the query
    headers: dict[str, str]  # names in lower case

    @property
    def range(self) -> str | None:
        return self.headers.get("range")


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, Served] = {}  # by path, without the query
        self.asked: list[Asked] = []

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}{path}"

    def put(self, path: str, content: bytes = b"", **how: object) -> str:
        self.files[path] = Served(content, **how)  # type: ignore[arg-type]
        return self.url(path)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.server.asked.append(Asked(self.command, self.path, {k.lower(): v for k, v in self.headers.items()}))
        served = self.server.files.get(self.path.partition("?")[0], Served(b"not here", status=404, type="text/html"))
        start = self._start(served)
        self.send_response(206 if start else served.status)
        body = served.content[start:]
        if start:
            total = len(served.content)
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        if served.length:
            self.send_header("Content-Length", str(len(body)))
        else:
            self.close_connection = True
            self.send_header("Connection", "close")
        named = {"Content-Type": served.type, "ETag": served.etag, "Last-Modified": served.modified, **served.headers}
        for name, value in named.items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self._send(served, body)

    def _start(self, served: Served) -> int:
        """Where the answer begins: not 0 where a range was asked for and is given."""
        asked, guard = self.headers.get("Range"), self.headers.get("If-Range")
        if not asked or not served.ranges or served.status != 200:
            return 0
        if guard is not None and served.checks_if_range and guard not in (served.etag, served.modified):
            return 0
        return int(asked.removeprefix("bytes=").rstrip("-"))

    def _send(self, served: Served, body: bytes) -> None:
        end = len(body)
        if served.drop_after is not None and served.drop_after < end and served.drops > 0:
            served.drops -= 1
            end = served.drop_after
            self.close_connection = True
        try:
            for start in range(0, end, PIECE):
                self.wfile.write(body[start : min(start + PIECE, end)])
                time.sleep(served.pause)
        except OSError:  # the client went away
            self.close_connection = True


@contextmanager
def serving() -> Iterator[Server]:
    server = Server()
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
