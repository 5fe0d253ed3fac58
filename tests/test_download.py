"""Downloads over a bad net: every way to lose one, and that what came before is neither lost nor glued wrongly."""

import contextlib
import errno
import gzip
import hashlib
import io
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from huggingface_hub import constants
from rich.console import Console
from serving import Server, serving

from vlprompt.data.download import mirrors
from vlprompt.data.download import resumable as module
from vlprompt.data.download.resumable import PartialFile, download
from vlprompt.errors import UserError
from vlprompt.training import progress
from vlprompt.training.progress import Reporter

MB = 1 << 20
DATA = bytes(range(256)) * (MB // 256)
SHA = f"sha256:{hashlib.sha256(DATA).hexdigest()}"
REST = f"bytes={MB // 2}-"  # the range that is asked for after half of it came


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as running:
        yield running


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BACK_OFF", 0.01)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "root" / "file.bin"


def names(path: Path) -> set[str]:
    return {file.name for file in path.parent.iterdir()}


def interrupted(server: Server, path: Path, url: str, *, at: int = MB // 2, **how: Any) -> None:
    """Leaves the first half of DATA in a .part, as a kill does."""
    server.put(url, DATA, **{"etag": '"1"', "drop_after": at, **how})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "TRIES", 0)
        with pytest.raises(UserError, match="the connection was lost"):
            download(server.url(url), path)
    assert not path.exists()
    assert PartialFile(path).file.read_bytes() == DATA[:at]
    server.asked.clear()


@pytest.mark.parametrize(
    "checksum", [None, SHA, SHA.upper().replace("SHA256", "sha256"), f"md5:{hashlib.md5(DATA).hexdigest()}"]
)
@pytest.mark.parametrize("length", [True, False])
def test_get(server: Server, path: Path, checksum: str | None, length: bool) -> None:
    url = server.put("/f", DATA, length=length)
    for _ in range(2):
        assert download(url, path, checksum=checksum) == path
    assert path.read_bytes() == DATA
    assert names(path) == {"file.bin"}
    assert len(server.asked) == 1


def test_a_file_that_is_there_is_checked(server: Server, path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"something else")
    with pytest.raises(UserError, match=r"file\.bin' is not the published file.* expected is "):
        download(server.url("/f"), path, checksum=SHA)
    assert path.read_bytes() == b"something else"
    assert download(server.url("/f"), path) == path
    assert server.asked == []


@pytest.mark.parametrize("checksum", [None, SHA])
@pytest.mark.parametrize("validator", [{"etag": '"1"'}, {"etag": None, "modified": "Tue, 01 Jan 2019 00:00:00 GMT"}])
def test_resume_asks_for_the_rest_only(
    server: Server, path: Path, checksum: str | None, validator: dict[str, str]
) -> None:
    interrupted(server, path, "/f", **validator)
    download(server.put("/f", DATA, **validator), path, checksum=checksum)
    assert path.read_bytes() == DATA
    assert [asked.range for asked in server.asked] == [REST]
    assert server.asked[0].headers["if-range"] in validator.values()
    assert names(path) == {"file.bin"}


CHILD = """
import sys
from pathlib import Path
from vlprompt.data.download.resumable import download
from vlprompt.training.progress import Reporter
download(sys.argv[1], Path(sys.argv[2]), reporter=Reporter())
"""


def start(url: str, path: Path, **environment: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", CHILD, url, str(path)]
    plain = {name: value for name, value in os.environ.items() if "proxy" not in name.lower() and name[:3] != "HF_"}
    return subprocess.Popen(
        command, env={**plain, **environment}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def wait_for(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_kill_and_resume(server: Server, path: Path) -> None:
    url = server.put("/f", DATA, etag='"1"', pause=0.05)  # a third of a MB a second
    process = start(url, path)
    wait_for(lambda: PartialFile(path).size >= module.CHUNK)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    have = PartialFile(path).size
    assert 0 < have < MB
    assert not path.exists()
    server.put("/f", DATA, etag='"1"')
    server.asked.clear()
    download(url, path, checksum=SHA)
    assert path.read_bytes() == DATA
    assert [asked.range for asked in server.asked] == [f"bytes={have}-"]


def test_lost_connections_are_resumed(server: Server, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = server.put("/f", DATA, etag='"1"', drop_after=100_000)  # more often than TRIES, but each time there is more
    download(url, path, reporter=Reporter())
    assert path.read_bytes() == DATA
    assert len(server.asked) == 11
    assert "file.bin: the connection was lost at 100.0 kB" in capsys.readouterr().out


def test_a_server_that_gets_no_further_is_given_up(server: Server, path: Path) -> None:
    url = server.put("/f", DATA, ranges=False, drop_after=100_000)
    with pytest.raises(UserError, match="/f: the connection was lost"):
        download(url, path)
    assert len(server.asked) == 1 + module.TRIES


def test_no_server(server: Server, path: Path) -> None:
    server.shutdown()
    server.server_close()
    with pytest.raises(UserError, match="/f: no connection"):
        download(server.url("/f"), path)


def test_silence(server: Server, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirrors, "TIMEOUT", (1, 0.2))
    monkeypatch.setattr(module, "TRIES", 1)
    with pytest.raises(UserError, match="/f: no answer in time"):
        download(server.put("/f", DATA, pause=1.0), path)


@pytest.mark.parametrize(("status", "requests"), [(404, 1), (403, 1), (500, 4), (503, 4), (429, 4)])
def test_answers_worth_another_try(server: Server, path: Path, status: int, requests: int) -> None:
    with pytest.raises(UserError, match=rf"file\.bin .*/bad: HTTP {status}"):
        download(server.put("/bad", b"", status=status), path)
    assert len(server.asked) == requests


@pytest.mark.parametrize("wrong", [DATA[:1000] + b"!" + DATA[1001:], DATA[:-1]], ids=["a byte", "too short"])
def test_a_wrong_file(server: Server, path: Path, wrong: bytes) -> None:
    with pytest.raises(UserError, match=rf"{hashlib.sha256(wrong).hexdigest()}, expected is {SHA[7:]}"):
        download(server.put("/f", wrong), path, checksum=SHA)
    assert names(path) == set()
    assert download(server.put("/f", DATA), path, checksum=SHA).read_bytes() == DATA
    assert [asked.range for asked in server.asked] == [None, None]


@pytest.mark.parametrize("checksum", [None, SHA])
def test_a_server_without_ranges(server: Server, path: Path, checksum: str | None) -> None:
    interrupted(server, path, "/f")
    download(server.put("/f", DATA, etag='"1"', ranges=False), path, checksum=checksum)
    assert path.read_bytes() == DATA
    assert len(server.asked) == 1


@pytest.mark.parametrize("checks", [True, False])
def test_a_changed_file_is_not_glued(server: Server, path: Path, checks: bool) -> None:
    interrupted(server, path, "/f")
    new = DATA[::-1]
    download(server.put("/f", new, etag='"2"', checks_if_range=checks), path)
    assert path.read_bytes() == new
    assert [asked.range for asked in server.asked] == ([REST] if checks else [REST, None])


@pytest.mark.parametrize("etag", [None, 'W/"1"'])
@pytest.mark.parametrize("checksum", [None, SHA])
def test_only_a_checksum_vouches_for_the_first_half(
    server: Server, path: Path, etag: str | None, checksum: str | None
) -> None:
    interrupted(server, path, "/f", etag=etag)
    download(server.put("/f", DATA, etag=etag), path, checksum=checksum)
    assert path.read_bytes() == DATA
    assert [asked.range for asked in server.asked] == [REST if checksum else None]


@pytest.mark.parametrize("checksum", [None, SHA])
@pytest.mark.parametrize("whole", [True, False])
def test_what_came_from_another_address_is_not_taken(
    server: Server, path: Path, checksum: str | None, whole: bool
) -> None:
    interrupted(server, path, "/f")
    if whole:
        PartialFile(path).file.write_bytes(DATA[::-1])
    download(server.put("/g", DATA, etag='"1"'), path, checksum=checksum)
    assert path.read_bytes() == DATA
    assert [asked.range for asked in server.asked] == [None]


@pytest.mark.parametrize(
    ("half", "note", "ranges"),
    [
        (DATA[1 : MB // 2 + 1], None, [REST, None]),  # a disk's fault
        (DATA, None, []),  # killed just before the rename
        (None, '{"url": "ht', None),
    ],
)
def test_a_first_half_that_is_not_as_it_was(
    server: Server, path: Path, half: bytes | None, note: str | None, ranges: list[str | None] | None
) -> None:
    interrupted(server, path, "/f")
    if half is not None:
        PartialFile(path).file.write_bytes(half)
    if note is not None:
        PartialFile(path).note.write_text(note)
    assert download(server.put("/f", DATA, etag='"1"'), path, checksum=SHA).read_bytes() == DATA
    assert ranges is None or [asked.range for asked in server.asked] == ranges


def test_a_longer_part_than_the_file(server: Server, path: Path) -> None:
    interrupted(server, path, "/f")
    with pytest.raises(UserError, match="HTTP 416"):
        download(server.put("/f", b"short", etag='"1"', status=416), path)
    assert [asked.range for asked in server.asked] == [REST, None]
    assert download(server.put("/f", b"short"), path).read_bytes() == b"short"


def test_compressed_files_stay_as_they_are(server: Server, path: Path) -> None:
    url = server.put("/f.tgz", DATA, headers={"Content-Encoding": "x-gzip"})  # some servers say so of every .tgz
    assert download(url, path).read_bytes() == DATA


PAGE = b"\n<!DOCTYPE html><html><head><title>Sign in &amp; pay</title></head></html>"


@pytest.mark.parametrize("kind", ["text/html; charset=utf-8", "application/octet-stream"])
def test_web_pages_are_refused(server: Server, path: Path, kind: str) -> None:
    with pytest.raises(UserError, match=r"a web page \('Sign in & pay'\) came instead of the file"):
        download(server.put("/f", PAGE, type=kind), path)
    assert names(path) == set()
    assert download(server.url("/f"), path.with_suffix(".html")).read_bytes() == PAGE


def test_a_portal_does_not_cost_what_came_before(server: Server, path: Path) -> None:
    interrupted(server, path, "/f")
    with pytest.raises(UserError, match="a web page"):
        download(server.put("/f", PAGE, type="text/html"), path)
    assert PartialFile(path).file.read_bytes() == DATA[: MB // 2]


def test_an_empty_answer(server: Server, path: Path) -> None:
    with pytest.raises(UserError, match="the answer is empty"):
        download(server.put("/f", b""), path)


@pytest.mark.parametrize("length", [True, False])
@pytest.mark.parametrize("size", [1000, MB // 2, int(MB / 1.26)])
@pytest.mark.parametrize("checksum", [None, SHA])
def test_more_than_expected_is_not_taken(
    server: Server, path: Path, length: bool, size: int, checksum: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even for a while, whatever the server says of its length; nothing stays, and it is not asked again."""
    written: list[int] = []
    monkeypatch.setattr(module, "CHUNK", 1 << 14)
    real = PartialFile.remove
    monkeypatch.setattr(PartialFile, "remove", lambda part: (written.append(part.size), real(part))[1])
    with pytest.raises(UserError, match="at most") as raised:
        download(server.put("/f", DATA, length=length), path, size=size, checksum=checksum)
    assert ("offers" if length else "comes") in str(raised.value)
    assert max(written) <= module.TOLERANCE * size
    assert names(path) == set()
    assert len(server.asked) == 1


@pytest.mark.parametrize("size", [MB, MB - 1, int(MB / 1.24), 2 * MB])
def test_a_known_size_is_about_right(server: Server, path: Path, size: int) -> None:
    assert download(server.put("/f", DATA), path, size=size).read_bytes() == DATA


def test_without_a_size_there_is_a_limit_too(server: Server, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST", MB - 1)
    for length in (True, False):
        with pytest.raises(UserError, match="its size is not known"):
            download(server.put("/f", DATA, length=length), path)
    monkeypatch.setattr(module, "MOST", MB)
    assert download(server.url("/f"), path).read_bytes() == DATA


@pytest.mark.parametrize("length", [True, False])
def test_a_resumed_file_has_the_same_limit(server: Server, path: Path, length: bool) -> None:
    interrupted(server, path, "/f")
    server.put("/f", DATA + DATA, etag='"1"', length=length)
    with pytest.raises(UserError, match="at most"):
        download(server.url("/f"), path, size=MB)
    assert names(path) == set()


def test_a_part_that_is_too_long_is_not_kept(server: Server, path: Path) -> None:
    interrupted(server, path, "/f")
    with pytest.raises(UserError, match="at most"):
        download(server.put("/f", DATA, etag='"1"'), path, size=1000)
    assert names(path) == set()


@pytest.mark.parametrize("length", ["9" * 5000, "-1", "1e9", "\u0661", "9" * 30])
def test_absurd_lengths(server: Server, path: Path, length: str) -> None:
    url = server.put("/f", DATA, length=False, headers={"Content-Length": length} if length.isascii() else {})
    with contextlib.suppress(UserError):
        assert download(url, path).read_bytes() == DATA


def test_what_is_inflated_is_not_what_is_written(server: Server, path: Path) -> None:
    """No decoding of what a server says is compressed, so no file that grows."""
    packed = gzip.compress(bytes(50 * MB))
    url = server.put("/f", packed, headers={"Content-Encoding": "gzip"})
    assert download(url, path, size=len(packed)).read_bytes() == packed


@pytest.mark.parametrize(
    "to", ["file:///etc/hostname", "ftp://127.0.0.1/x", "gopher://127.0.0.1/", "http://[", "data:,x"]
)
def test_redirects_lead_to_the_web_only(server: Server, path: Path, to: str) -> None:
    url = server.put("/f", b"", status=302, headers={"Location": to})
    with pytest.raises(UserError, match="leads to an address"):
        download(url, path)
    assert names(path) == set()
    assert len(server.asked) == 1


def test_no_way_back_from_https(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mirror asked for with encryption does not hand over to one without."""
    hops = [requests.Response() for _ in range(3)]
    for hop, url in zip(hops, ("https://a/f", "http://b/f", "https://c/f"), strict=True):
        hop.url, hop.status_code, hop.raw = url, 200, io.BytesIO(DATA)
    hops[-1].history = hops[:-1]
    monkeypatch.setattr(mirrors.requests, "get", lambda *_, **__: hops[-1])
    with pytest.raises(UserError, match="without encryption"):
        download("https://a/f", path)


@pytest.mark.parametrize("note", ['{"url": 1}', "[]", "5", '{"url": "URL", "validator": " x", "total": 9}', "[" * 10**5,
                                  '{"url": "URL", "validator": ["x"], "total": "9"}'])  # fmt: skip
def test_a_damaged_note_costs_what_came_before_and_no_more(server: Server, path: Path, note: str) -> None:
    interrupted(server, path, "/f")
    PartialFile(path).note.write_text(note.replace("URL", server.url("/f")))
    assert download(server.put("/f", DATA, etag='"1"'), path).read_bytes() == DATA


def test_a_page_made_to_be_slow_is_not_searched_for_long(server: Server, path: Path) -> None:
    page = b"<html><title>" + b" " * 250_000
    start = time.monotonic()
    with pytest.raises(UserError, match="a web page"):
        download(server.put("/f", page, type="text/html"), path)
    mirrors.confirmation(b"<form" * 50_000)
    assert time.monotonic() - start < 10


def test_google_drive(server: Server, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirrors, "DRIVE", server.put("/download", DATA))
    assert download("gdrive:1hya-_Q", path, checksum=SHA).read_bytes() == DATA
    assert [asked.path for asked in server.asked] == ["/download?id=1hya-_Q&export=download&confirm=t"]


def test_google_drive_asks(server: Server, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    form = f"""<html><title>Google Drive - Virus scan warning</title>
    <form id="download-form" action="{server.put("/confirmed", DATA)}" method="get">
    <input type="submit" id="uc-download-link" value="Download anyway"/>
    <input type="hidden" name="id" value="1a"><input type="hidden" name="uuid" value="0-1&amp;2"></form></html>"""
    monkeypatch.setattr(mirrors, "DRIVE", server.put("/download", form.encode(), type="text/html"))
    assert download("gdrive:1a", path).read_bytes() == DATA
    assert [asked.path for asked in server.asked][1:] == ["/confirmed?id=1a&uuid=0-1%262"]
    path.unlink()
    server.put("/confirmed", form.encode(), type="text/html")
    with pytest.raises(UserError, match=r"a web page \('Google Drive - Virus scan warning'\)"):
        download("gdrive:1a", path)
    assert len(server.asked) == 4


def test_not_enough_space(server: Server, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(path.parents[1])
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=MB))
    url = server.put("/f", DATA + b"1")
    with pytest.raises(UserError, match=r"^file\.bin needs 1\.0 MB"):
        download(url, path)
    with pytest.raises(UserError, match=r"needs 3\.1 MB"):
        download(url, path, also_needed=2 * MB)
    with pytest.raises(UserError, match=r"needs 5\.0 MB"):
        download(server.put("/g", DATA, length=False), path, size=5_000_000)
    assert names(path) == set()
    interrupted(server, path, "/f", at=MB // 2)
    server.put("/f", DATA, etag='"1"')
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=MB // 2))  # for the rest it is enough
    assert download(server.url("/f"), path).read_bytes() == DATA


@pytest.mark.parametrize("kind", ["mounted", "limited"])
def test_full_disk_and_resume(server: Server, path: Path, kind: str) -> None:
    """On a small file system where one may be mounted, and with a file that stops taking bytes."""
    path.parent.mkdir()
    if kind == "mounted":
        mount = ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(path.parent)]
        if sys.platform != "linux" or subprocess.run(mount, check=False, capture_output=True).returncode:
            pytest.skip("nothing may be mounted here")
    url = server.put("/f", DATA, etag='"1"', length=kind == "limited")
    with pytest.MonkeyPatch.context() as patch:
        if kind == "limited":
            patch.setattr(Path, "open", limited(Path.open))
        try:
            with pytest.raises(UserError, match=r"no space left on the disk .*file\.bin'.*resumes"):
                download(url, path)
            have = PartialFile(path).file.read_bytes()
        finally:
            if kind == "mounted":
                subprocess.run(["umount", str(path.parent)], check=True)
    assert len(have) >= 1 << 18
    assert have == DATA[: len(have)]
    assert download(url, path).read_bytes() == DATA
    if kind == "limited":
        assert server.asked[-1].range == f"bytes={len(have)}-"


def limited(open_file: Callable[..., Any]) -> Callable[..., Any]:
    class Full(io.FileIO):
        def write(self, data: Any) -> int:
            if self.tell() > 500_000:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().write(data)

    return lambda path, mode="r", **how: (
        io.BufferedWriter(Full(path, mode)) if mode == "ab" else open_file(path, mode, **how)
    )


def test_a_folder_that_cannot_be_written(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write '.*' \(.*\)"):
        download(server.put("/f", DATA), tmp_path / "file" / "f")


HUB_FILE = "/datasets/owner/repo.x/resolve/abc123/folder/a%20file.bin"
HUB_URL = "hf://datasets/owner/repo.x@abc123/folder/a file.bin"


def test_the_hub(server: Server, path: Path) -> None:
    """Another endpoint, a redirect to another host as large files have it, the token for the hub alone."""
    with serving() as storage:
        stored = storage.put("/blob", DATA, etag='"1"').replace("127.0.0.1", "localhost")
        server.put(HUB_FILE, b"", status=302, headers={"Location": stored})
        hub = {"HF_ENDPOINT": server.url(""), "HF_HOME": str(path.parents[1] / "hf")}
        process = start(HUB_URL, path, HF_TOKEN="hf_secret", **hub)
        said = process.communicate(timeout=60)[0]
        assert process.returncode == 0, said
        assert path.read_bytes() == DATA
        assert [asked.path for asked in server.asked] == [HUB_FILE]
        assert server.asked[0].headers["authorization"] == "Bearer hf_secret"
        assert "authorization" not in storage.asked[0].headers
    assert not [file for file in (path.parents[1] / "hf").rglob("*") if file.is_file()]  # no second copy


def test_the_hub_resumes(server: Server, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirrors, "resolve", lambda url: server.url("/f"))
    monkeypatch.setattr(module, "resolve", lambda url: server.url("/f"))
    interrupted(server, path, "/f")
    PartialFile(path).note.write_text(PartialFile(path).note.read_text().replace(server.url("/f"), HUB_URL))
    server.put("/f", DATA, etag='"1"')
    assert download(HUB_URL, path).read_bytes() == DATA
    assert [asked.range for asked in server.asked] == [REST]


def test_a_gated_repository(server: Server, path: Path) -> None:
    server.put("/owner/repo/resolve/main/f", b"", status=401)
    hub = {"HF_ENDPOINT": server.url(""), "HF_HOME": str(path.parents[1] / "hf")}
    said = start("hf://models/owner/repo@main/f", path, **hub).communicate(timeout=60)[0]
    assert "HTTP 401" in said
    assert "HF_TOKEN" in said


@pytest.mark.parametrize("value", ["1", "on"])
def test_offline(server: Server, path: Path, value: str) -> None:
    url = server.put("/f", DATA)
    said = start(url, path, HF_HUB_OFFLINE=value).communicate(timeout=60)[0].strip().splitlines()[-1]
    for words in ("HF_HUB_OFFLINE is set", str(path), url):
        assert words in said
    assert server.asked == []


def test_offline_with_the_file_there(server: Server, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    path.parent.mkdir()
    path.write_bytes(DATA)
    assert download(server.url("/f"), path, checksum=SHA) == path


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "ftp://x/y", "hf://datasets/only", "hf://spaces/a/b@c/d", "x.zip"]
)
def test_other_addresses(path: Path, url: str) -> None:
    with pytest.raises(UserError, match=f"cannot fetch '{re.escape(url)}': allowed are https"):
        download(url, path)


def test_plain_lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    clock = itertools.count(0.0)
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with Reporter().track("f.zip", 100_000_000, done=50_000_000, in_bytes=True) as track:
        for _ in range(100):
            track.advance(500_000)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "f.zip: 60.0 MB/100.0 MB 500.0 kB/s 80 s left"
    assert len(lines) == 5
    with Reporter().track("f.zip", None, in_bytes=True) as track:
        for _ in range(150):
            track.advance(500_000)
    assert capsys.readouterr().out.splitlines() == ["f.zip: 30.0 MB 500.0 kB/s", "f.zip: 60.0 MB 500.0 kB/s"]
    with Reporter().track("training", 20) as steps:
        for _ in range(20):
            steps.advance(note="loss 1.0")
    assert capsys.readouterr().out.splitlines()[0] == "training: 3/20 loss 1.0 17 s left"


def test_a_bar_on_a_terminal(server: Server, path: Path) -> None:
    reporter = Reporter()
    reporter.console = Console(file=io.StringIO(), force_terminal=True, width=120)
    download(server.put("/f", DATA), path, reporter=reporter)
    shown = reporter.console.file.getvalue()  # type: ignore[attr-defined]
    assert "1.0/1.0 MB" in shown
    assert "MB/s" in shown
