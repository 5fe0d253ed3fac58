"""Archives: what is unpacked, what is refused, and that no archive and no kill leaves anything where it should not."""

import bz2
import gzip
import io
import lzma
import os
import re
import shutil
import signal
import stat
import struct
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from vlprompt.data.download import archives
from vlprompt.data.download.archives import extract
from vlprompt.data.download.members import BadArchive
from vlprompt.errors import UserError

TREE = {"top/a/1.txt": b"one", "top/a/2.txt": b"two" * 5000, "top/b/3.txt": b"", "read me.txt": b"r"}


def make_zip(content: Mapping[str, bytes]) -> bytes:
    stored = io.BytesIO()
    with zipfile.ZipFile(stored, "w", zipfile.ZIP_DEFLATED) as made:
        for name, data in content.items():
            made.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)
    return stored.getvalue()


def make_tar(*entries: tuple[tarfile.TarInfo, bytes]) -> bytes:
    stored = io.BytesIO()
    with tarfile.open(fileobj=stored, mode="w") as made:
        for info, data in entries:
            made.addfile(info, io.BytesIO(data))
    return stored.getvalue()


def entry(name: str, data: bytes = b"", **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, data


def tar_of(content: Mapping[str, bytes]) -> bytes:
    return make_tar(*(entry(name, data) for name, data in content.items()))


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def unpack(tmp_path: Path, content: bytes, into: str = "into", **how: Any) -> dict[str, bytes]:
    """What is below the folder after an archive (whose name has no suffix: the content tells) was unpacked there."""
    (tmp_path / "archive").write_bytes(content)
    extract(tmp_path / "archive", tmp_path / into, **how)
    return files(tmp_path / into)


FORMATS = {
    "zip": make_zip,
    "tar": tar_of,
    "tar.gz": lambda content: gzip.compress(tar_of(content)),
    "tar.bz2": lambda content: bz2.compress(tar_of(content)),
    "tar.xz": lambda content: lzma.compress(tar_of(content)),
}


@pytest.mark.parametrize("kind", FORMATS)
def test_each_format(tmp_path: Path, kind: str) -> None:
    assert unpack(tmp_path, FORMATS[kind](TREE), "new/into") == TREE
    assert names(tmp_path / "new") == {"into"}


def test_other_things_stay_and_folders_are_replaced(tmp_path: Path) -> None:
    into = tmp_path / "into"
    (into / "top" / "old").mkdir(parents=True)
    (into / "other").mkdir()
    (into / "other" / "stays").write_text("s")
    (into / "read me.txt").write_text("older")
    assert unpack(tmp_path, make_zip(TREE)) == {**TREE, "other/stays": b"s"}
    assert not (into / "top" / "old").exists()


def test_a_link_to_another_disk_is_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "into").symlink_to("elsewhere")
    unpack(tmp_path, make_zip(TREE))
    assert (tmp_path / "into").is_symlink()
    assert files(tmp_path / "elsewhere") == TREE


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ({"top/a": "."}, {"1.txt", "2.txt"}),
        ({"top/a": "images"}, {"images/1.txt", "images/2.txt"}),
        ({"./top/": "x/y", "top/b": "z"}, {"x/y/a/1.txt", "x/y/a/2.txt", "z/3.txt"}),
        ({"top/a/1.txt": "."}, {"1.txt"}),
        ({"top/a/1.txt": "first.txt", "read me.txt": "docs/README"}, {"first.txt", "docs/README"}),
        ({"": "all"}, {f"all/{name}" for name in TREE}),
    ],
)
def test_members(tmp_path: Path, members: dict[str, str], expected: set[str]) -> None:
    assert unpack(tmp_path, tar_of(TREE), members=members).keys() == expected


def test_a_deep_target_replaces_itself_only(tmp_path: Path) -> None:
    into = tmp_path / "into"
    for name in ("images/old/file", "images/a/gone"):
        (into / name).parent.mkdir(parents=True)
        (into / name).write_text("x")
    expected = {"images/old/file", "images/a/1.txt", "images/a/2.txt"}
    assert unpack(tmp_path, tar_of(TREE), members={"top/a": "images/a"}).keys() == expected


@pytest.mark.parametrize(
    ("members", "why"),
    [
        ({"top/absent": "."}, "read me.txt, top, but not 'top/absent'"),
        ({"top": ".", "to": "x"}, "but not 'to'"),
        ({"absent.zip!a": "a"}, "but not 'absent.zip'"),
        ({"top": "../x"}, "leads out of the folder"),
        ({"top": "/x"}, "is absolute"),
        ({"../top": "x"}, "leads out of the folder"),
    ],
)
def test_members_that_are_absent_or_outside(tmp_path: Path, members: dict[str, str], why: str) -> None:
    with pytest.raises(BadArchive, match=re.escape(why)):
        unpack(tmp_path, tar_of(TREE), members=members)
    assert names(tmp_path) == {"archive"}


def test_nested(tmp_path: Path) -> None:
    inner = {"101_ObjectCategories/bass/1.jpg": b"b", "101_ObjectCategories/._bass": b"mac", "more": b"m"}
    deepest = make_zip({"deep/file": b"d"})
    content = {
        "caltech-101/101_ObjectCategories.tar.gz": gzip.compress(tar_of(inner)),
        "caltech-101/Annotations.tar": tar_of({"inner.zip": deepest}),
        "caltech-101/show.m": b"m",
        "__MACOSX/caltech-101/._show.m": b"mac",
    }
    members = {
        "caltech-101/101_ObjectCategories.tar.gz!101_ObjectCategories": "101_ObjectCategories",
        "caltech-101/Annotations.tar!inner.zip!deep": "deep",
        "caltech-101/show.m": ".",
    }
    assert unpack(tmp_path, make_zip(content), members=members) == {
        "101_ObjectCategories/bass/1.jpg": b"b",
        "deep/file": b"d",
        "show.m": b"m",
    }
    assert names(tmp_path) == {"archive", "into"}
    content = {"a.tar": tar_of({"x": b"", "../evil": b"e"}), "b": b"b"}
    with pytest.raises(UserError, match=r"/archive!a\.tar' is refused: its member '\.\./evil' leads out"):
        unpack(tmp_path, make_zip(content), "other", members={"b": "b", "a.tar!x": "x"})
    assert names(tmp_path) == {"archive", "into"}


def zip_link(target: bytes, kind: int = stat.S_IFLNK) -> bytes:
    stored = io.BytesIO()
    with zipfile.ZipFile(stored, "w") as made:
        info = zipfile.ZipInfo("d/odd")
        info.external_attr = (kind | 0o777) << 16
        made.writestr(info, target)
        made.writestr("d/file", "f")
    return stored.getvalue()


def tar_link(target: str, kind: bytes = tarfile.SYMTYPE) -> bytes:
    return make_tar(entry("d/file", b"f"), entry("d/odd", type=kind, linkname=target))


def encrypted() -> bytes:
    content = bytearray(make_zip({"odd": b"o"}))
    content[content.index(b"PK\3\4") + 6] |= 1
    content[content.index(b"PK\1\2") + 8] |= 1
    return bytes(content)


REFUSED = {
    "absolute": (tar_of({"good": b"g", "/odd": b"o"}), "'/odd' is absolute"),
    "absolute zip": (make_zip({"/odd": b"o"}), "'/odd' is absolute"),
    "drive": (make_zip({"C:/odd": b"o"}), "'C:/odd' has a drive letter"),
    "drive within": (tar_of({"a/c:odd": b"o"}), "'a/c:odd' has a drive letter"),
    "parent": (tar_of({"good": b"g", "a/../../odd": b"o"}), r"'a/\.\./\.\./odd' leads out"),
    "parent zip": (make_zip({"good": b"g", "../odd": b"o"}), r"'\.\./odd' leads out"),
    "backslash": (make_zip({"..\\odd": b"o"}), "has a backslash"),
    "backslash tar": (tar_of({"a\\odd": b"o"}), "has a backslash"),
    "zero byte": (make_zip({"oddx": b"o"}).replace(b"oddx", b"odd\0"), "has a zero byte"),
    "link out": (tar_link("../../odd"), r"'d/odd' is a link to '\.\./odd', which leads out"),
    "link absolute": (tar_link("/etc/passwd"), "'d/odd' is a link to '/etc/passwd', which is absolute"),
    "hard link out": (tar_link("../odd", tarfile.LNKTYPE), "'d/odd' is a link to"),
    "hard link absolute": (tar_link("/etc/passwd", tarfile.LNKTYPE), "'d/odd' is a link to"),
    "link zip": (zip_link(b"../../odd"), "'d/odd' is a link to"),
    "link long": (zip_link(b"x" * 5000), "'d/odd' is a link to an overlong name"),
    "link to a folder": (tar_link("../d"), "'d/odd' is a link to 'd', which is no file"),
    "link to nothing": (tar_link("absent"), "'d/odd' is a link to 'd/absent', which is no file"),
    "link to itself": (tar_link("odd"), "'d/odd' is a link to 'd/odd', which is no file"),
    "fifo": (tar_link("", tarfile.FIFOTYPE), "'d/odd' is a device, a pipe"),
    "device": (tar_link("", tarfile.CHRTYPE), "'d/odd' is a device, a pipe"),
    "block device": (tar_link("", tarfile.BLKTYPE), "'d/odd' is a device, a pipe"),
    "fifo zip": (zip_link(b"", stat.S_IFIFO), "'d/odd' is a device or a pipe"),
    "encrypted": (encrypted(), "'odd' is encrypted"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    content, message = REFUSED[case]
    monkeypatch.setattr(archives, "_write", lambda *_: pytest.fail("something was written"))
    with pytest.raises(BadArchive, match=message) as raised:
        unpack(tmp_path, content)
    assert str(tmp_path / "archive") in str(raised.value)
    assert names(tmp_path) == {"archive"}


@pytest.mark.parametrize("content", [tar_link("file"), tar_link("d/file", tarfile.LNKTYPE), zip_link(b"./../d/file")])
def test_links_to_files_become_files(tmp_path: Path, content: bytes) -> None:
    assert unpack(tmp_path, content) == {"d/file": b"f", "d/odd": b"f"}
    assert not any(path.is_symlink() for path in (tmp_path / "into").rglob("*"))


def test_links_to_links_and_to_what_stays_out(tmp_path: Path) -> None:
    links = [entry("a/l", type=tarfile.SYMTYPE, linkname="m"), entry("a/m", type=tarfile.SYMTYPE, linkname="../b/f")]
    archive = make_tar(*links, entry("b/f", b"f"))
    assert unpack(tmp_path, archive) == {"a/l": b"f", "a/m": b"f", "b/f": b"f"}
    with pytest.raises(UserError, match="'a/l' is a link to 'b/f', which is no file that is unpacked"):
        unpack(tmp_path, archive, "into2", members={"a": "a"})


def test_no_hard_links_on_the_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(PermissionError(1, "not permitted")))
    assert unpack(tmp_path, tar_link("file")) == {"d/file": b"f", "d/odd": b"f"}


def test_permissions_are_not_taken_over(tmp_path: Path) -> None:
    folder, file = entry("d", type=tarfile.DIRTYPE, mode=0o7000), entry("d/f", b"f", mode=0o6777, uid=1)
    unpack(tmp_path, make_tar(folder, file))
    (tmp_path / "plain").touch()
    modes = [path.stat().st_mode & 0o7777 for path in (tmp_path / "into/d/f", tmp_path / "plain")]
    assert modes[0] == modes[1]
    assert (tmp_path / "into/d").stat().st_mode & 0o7700 == 0o700


def test_names_that_differ_in_case_only(tmp_path: Path) -> None:
    (tmp_path / "x").touch()
    insensitive = (tmp_path / "X").exists()
    assert len(unpack(tmp_path, make_zip({"a/F": b"1", "a/f": b"2"}))) == (1 if insensitive else 2)


def test_rubbish_is_left_out(tmp_path: Path) -> None:
    assert unpack(tmp_path, tar_of({"a/f": b"f", "a/._f": b"x", "._a/g": b"x", "__MACOSX/a/f": b"x"})) == {"a/f": b"f"}


def test_absurd_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = tar_of(TREE)
    with pytest.raises(UserError, match=r"'top/a/2\.txt' would make it more than 10\.0 kB"):
        unpack(tmp_path, archive, limit=10_000)
    unpack(tmp_path, archive, limit=20_000)
    header = tarfile.TarInfo("huge")
    header.size = 1 << 50
    with pytest.raises(UserError, match=r"'huge' would make it more than 2\.1 GB"):
        unpack(tmp_path, gzip.compress(header.tobuf() + bytes(10_000)), "other")
    monkeypatch.setattr(archives, "ALWAYS_ALLOWED", 1000)
    with pytest.raises(UserError, match="'zeros' would make it more than"):
        unpack(tmp_path, make_zip({"zeros": bytes(1 << 20)}), "other")
    monkeypatch.setattr(archives, "MOST_MEMBERS", 2)
    with pytest.raises(UserError, match=r"'top/b/3\.txt' comes after 2 others"):
        unpack(tmp_path, tar_of(TREE), "other", limit=10**6)
    assert names(tmp_path) == {"archive", "into"}


def test_more_than_was_declared(tmp_path: Path) -> None:
    """A zip whose stream is longer than both of its headers say."""
    content = bytearray(make_zip({"f": bytes(100_000)}))
    for mark, offset in ((b"PK\3\4", 22), (b"PK\1\2", 24)):
        start = content.index(mark) + offset
        assert struct.unpack_from("<I", content, start) == (100_000,)
        struct.pack_into("<I", content, start, 10)
    check_refused(tmp_path, bytes(content))


def test_too_large_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=15_003))
    with pytest.raises(UserError, match=r"needs 15\.0 kB"):
        unpack(tmp_path, tar_of(TREE))
    assert names(tmp_path) == {"archive"}


def check_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(BadArchive, match="damaged"):
        unpack(tmp_path, content)
    assert names(tmp_path) == {"archive"}


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 0.999])
def test_truncated(tmp_path: Path, kind: str, share: float) -> None:
    whole = FORMATS[kind]({f"{n}": os.urandom(1024) for n in range(20)})
    if kind == "tar" and share == 0.999:
        pytest.skip("only padding is cut off")
    check_refused(tmp_path, whole[: int(len(whole) * share)])


def test_a_tar_cut_between_two_members(tmp_path: Path) -> None:
    whole = tar_of({"a": bytes(512), "b": bytes(512)})
    for length in (1024, 1024 + 100):
        check_refused(tmp_path, whole[:length])
    broken = bytearray(whole)
    broken[1024 + 148] ^= 1  # the second header's checksum
    check_refused(tmp_path, bytes(broken))


@pytest.mark.parametrize("kind", ["zip", "tar.gz", "tar.bz2", "tar.xz"])
def test_one_wrong_byte(tmp_path: Path, kind: str) -> None:
    broken = bytearray(FORMATS[kind]({"a": os.urandom(10_000)}))
    broken[5000] ^= 0x55
    check_refused(tmp_path, bytes(broken))


ENDLESS, _ = entry("long", type=tarfile.GNUTYPE_LONGNAME)
ENDLESS.size = 1 << 40  # tarfile would read it into memory


@pytest.mark.parametrize("content", [b"", b"<html>login</html>", b"PK", b"x" * 2000, ENDLESS.tobuf() + bytes(10_000)])
def test_no_archive(tmp_path: Path, content: bytes) -> None:
    check_refused(tmp_path, content)


def test_missing_or_empty(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        extract(tmp_path / "absent", tmp_path / "into")
    with pytest.raises(UserError, match="holds nothing"):
        unpack(tmp_path, make_zip({}))


KILLED = """
import os, signal, sys
from pathlib import Path
from typing import Any
from vlprompt.data.download import archives

archive, into, moment = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
def kill(*args): os.kill(os.getpid(), signal.SIGKILL)
def nth(function, n):
    calls = []
    return lambda *args: kill() if len(calls) == n else (calls.append(1), function(*args))[1]
if moment == "unpacking": archives._write = nth(archives._write, 2)
if moment == "moving": archives._publish = kill
if moment == "renames": Path.replace = nth(Path.replace, 0)
if moment == "between": Path.replace = nth(Path.replace, 1)
archives.extract(archive, into)
"""


@pytest.mark.parametrize("moment", ["unpacking", "moving", "renames", "between"])
@pytest.mark.parametrize("older", [True, False])
def test_killed(tmp_path: Path, moment: str, older: bool) -> None:
    archive, into = tmp_path / "archive", tmp_path / "into"
    archive.write_bytes(tar_of(TREE))
    if older:
        (into / "top").mkdir(parents=True)
        (into / "top" / "old").write_text("o")
    command = [sys.executable, "-c", KILLED, str(archive), str(into), moment]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    # each thing is whole, old or absent
    top = {name: data for name, data in TREE.items() if name.startswith("top/")}
    left = files(into) if into.exists() else {}
    assert {name: data for name, data in left.items() if name.startswith("top/")} in ({}, top, {"top/old": b"o"})
    assert left.get("read me.txt", b"r") == b"r"
    assert (tmp_path / ".into.unpacking").exists()
    extract(archive, into)
    assert files(into) == TREE
    assert names(tmp_path) == {"archive", "into"}


def test_what_was_there_comes_back_where_the_move_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "into" / "top").mkdir(parents=True)
    (tmp_path / "into" / "top" / "old").write_text("o")

    def fail(*_: object) -> None:
        raise PermissionError(1, "not permitted")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(UserError, match="cannot write"):
        assert unpack(tmp_path, make_zip({"top/new": b"n"})) == {"top/old": b"o"}


PARTS = st.sampled_from(["..", ".", "", "a", "b", "c:", "__MACOSX", "._a", "\\", "..\\x", "\u00e9", "a" * 300])
NAMES = st.one_of(st.lists(PARTS, min_size=1, max_size=5).map("/".join), st.text(max_size=12))
KINDS = st.sampled_from([tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
QUICK = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def check_confined(content: bytes, members: dict[str, str] | None = None) -> None:
    """Unpacks; only a UserError may come, and nothing may change but the target folder."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "x" / "y"
        root.mkdir(parents=True)
        (root / "archive").write_bytes(content)
        (root / "a").write_text("a neighbour")
        before = {path: path.stat().st_mtime_ns for path in Path(folder).rglob("*") if path != root}
        try:
            extract(root / "archive", root / "into", members=members)
        except UserError:
            assert not (root / "into").exists()
        after = {path for path in Path(folder).rglob("*") if (root / "into") not in (path, *path.parents)}
        assert after - before.keys() - {root} == set()
        assert {path: path.stat().st_mtime_ns for path in before} == before
        assert not any(path.is_symlink() for path in root.rglob("*"))


def encodable(name: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


@QUICK
@given(st.lists(st.tuples(NAMES, KINDS, NAMES), min_size=1, max_size=6))
@example([("l", tarfile.SYMTYPE, ".."), ("l/evil", tarfile.REGTYPE, "")])
@example([("l", tarfile.SYMTYPE, "."), ("l/m", tarfile.SYMTYPE, "../.."), ("m/evil", tarfile.REGTYPE, "")])
@example([("a", tarfile.REGTYPE, ""), ("a/b", tarfile.REGTYPE, "")])
@example([("a\0b", tarfile.REGTYPE, "")])
def test_any_tar_stays_in_the_folder(members: list[tuple[str, bytes, str]]) -> None:
    entries = [
        entry(name, b"data" if kind == tarfile.REGTYPE else b"", type=kind, linkname=target)
        for name, kind, target in members
        if encodable(name + target)
    ]
    check_confined(make_tar(*entries))


@QUICK
@given(st.lists(st.tuples(NAMES, st.sampled_from([0, stat.S_IFLNK, stat.S_IFIFO]), NAMES), min_size=1, max_size=6))
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_any_zip_stays_in_the_folder(members: list[tuple[str, int, str]]) -> None:
    stored = io.BytesIO()
    with zipfile.ZipFile(stored, "w") as made:
        for name, kind, data in members:
            if encodable(name + data):
                info = zipfile.ZipInfo()
                info.filename = info.orig_filename = name  # the constructor would cut it at a zero byte
                info.external_attr = kind << 16
                made.writestr(info, data)
    check_confined(stored.getvalue())


@QUICK
@given(st.dictionaries(NAMES, NAMES, max_size=3))
def test_any_mapping_stays_in_the_folder(members: dict[str, str]) -> None:
    if all(map(encodable, [*members, *members.values()])):
        check_confined(tar_of({"a/b": b"b", "a/c": b"c", "b": b"b"}), members)


@QUICK
@given(st.sampled_from(sorted(FORMATS)), st.lists(st.tuples(st.integers(0, 10**4), st.integers(1, 255)), max_size=5))
def test_any_damage_is_told(kind: str, flips: list[tuple[int, int]]) -> None:
    content = bytearray(FORMATS[kind]({"a/b": b"b" * 700, "a/c": b"c" * 20}))
    for offset, mask in flips:
        content[offset % len(content)] ^= mask
    check_confined(bytes(content))
