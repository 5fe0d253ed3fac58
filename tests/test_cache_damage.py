"""Whatever happens to a file of a cache, what is read is right, and the limit holds for all processes together."""

import json
import logging
import multiprocessing
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from vlprompt.data import disk
from vlprompt.data.cache import budget
from vlprompt.data.cache.budget import LEDGER, Budget
from vlprompt.data.cache.checked import MOST_NOTES, Damaged, note_damage, sealed, unsealed
from vlprompt.data.cache.feature_files import ABOUT, FeatureFiles
from vlprompt.data.cache.images import HEADER, ImageCache
from vlprompt.data.disk import complain, remove_drafts, whole_file

TOWER, OTHER = "0123456789abcdef", "fedcba9876543210"
ROWS = {key * 32: torch.linspace(-1, i + 1, 24) for i, key in enumerate("abc")}
PIXELS = np.random.default_rng(0).integers(0, 255, (5, 4, 3), np.uint8)
QUICK = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
PLACES = st.floats(0, 1, exclude_max=True)  # of a byte within a file


@pytest.fixture(autouse=True)
def fresh() -> None:
    complain.cache_clear()
    note_damage.cache_clear()


def bank(root: Path, tower: str = TOWER, limit: int = 10**9) -> FeatureFiles:
    return FeatureFiles(root / tower, limit, {"model": "m", "precision": "fp32"})


def only(root: Path, pattern: str = "*/*/*.safetensors") -> Path:
    (path,) = root.glob(pattern)
    return path


def check_rows(files: FeatureFiles, view: str = "crop") -> int:
    """How many rows are read, all of them right; afterwards what is missing can be stored, and is there."""
    rows = files.read(view, ROWS)
    assert all(torch.equal(row, ROWS[key]) for key, row in rows.items())
    assert files.write(view, {key: row for key, row in ROWS.items() if key not in rows})
    again = files.read(view, ROWS)
    assert again.keys() == ROWS.keys()
    assert all(torch.equal(row, ROWS[key]) for key, row in again.items())
    return len(rows)


def flip(path: Path, place: float, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 1 << bit
    path.write_bytes(content)


# Features


@QUICK
@given(PLACES, st.integers(0, 7), st.sampled_from(["*/crop/*", f"*/{ABOUT}", LEDGER]))
def test_any_bit_of_a_bank(tmp_path_factory: pytest.TempPathFactory, place: float, bit: int, which: str) -> None:
    root = tmp_path_factory.mktemp("bank")
    bank(root).write("crop", ROWS)
    flip(only(root, which), place, bit)
    check_rows(bank(root))
    assert bank(root).write("seed1-view0000", ROWS)
    assert unsealed(root / TOWER / ABOUT) == {"model": "m", "precision": "fp32"}
    shutil.rmtree(root)


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "zeros in the tensor": lambda content: content[:-200] + bytes(200),
    "all zeros": lambda content: bytes(len(content)),
    "cut": lambda content: content[:-1],
    "longer": lambda content: content + b"\0",
    "empty": lambda content: b"",
    "text": lambda content: b"<html>" * 100,
    "keys swapped": lambda content: (
        content.replace(b"a" * 32, b"x" * 32).replace(b"b" * 32, b"a" * 32).replace(b"x" * 32, b"b" * 32)
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_file_of_features_is_named_once_and_made_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    bank(tmp_path).write("crop", ROWS)
    path = only(tmp_path)
    path.write_bytes(DAMAGE[kind](path.read_bytes()))
    with caplog.at_level(logging.WARNING):
        assert check_rows(bank(tmp_path)) == 0
        assert check_rows(bank(tmp_path)) == len(ROWS)
    assert [str(path) in record.getMessage() for record in caplog.records] == [True]


@pytest.mark.parametrize(("tower", "view"), [(TOWER, "seed1-view0000"), (OTHER, "crop")])
def test_a_file_of_another_view_or_tower_is_not_taken(tmp_path: Path, tower: str, view: str) -> None:
    bank(tmp_path, tower).write(view, {key: -row for key, row in ROWS.items()})
    bank(tmp_path).write("crop", ROWS)
    theirs, ours = only(tmp_path, f"{tower}/{view}/*.safetensors"), only(tmp_path, f"{TOWER}/crop/*.safetensors")
    shutil.copy(theirs, ours)
    assert check_rows(bank(tmp_path)) == 0


def test_a_file_without_a_checksum_is_made_again(tmp_path: Path) -> None:
    bank(tmp_path).write("crop", ROWS)
    path = only(tmp_path)
    save_file({name: -tensor for name, tensor in load_file(path).items()}, path, {"keys": json.dumps(list(ROWS))})
    assert check_rows(bank(tmp_path)) == 0


def test_the_features_of_a_file_are_verified_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vlprompt.data.cache import feature_files

    bank(tmp_path).write("crop", ROWS)
    verified: list[object] = []
    real = feature_files._checksum_of
    monkeypatch.setattr(feature_files, "_checksum_of", lambda features: (verified.append(1), real(features))[1])
    for _ in range(3):
        assert bank(tmp_path).read("crop", ROWS).keys() == ROWS.keys()
    assert len(verified) == 1
    path = only(tmp_path)
    os.utime(path, ns=(1, 1))  # another file may be there now
    assert bank(tmp_path).read("crop", ["a" * 32]).keys() == {"a" * 32}
    assert len(verified) == 2


def test_rows_do_not_change_with_the_file(tmp_path: Path) -> None:
    bank(tmp_path).write("crop", ROWS)
    rows = bank(tmp_path).read("crop", ROWS)
    path = only(tmp_path)
    path.write_bytes(bytes(path.stat().st_size))
    assert all(torch.equal(row, ROWS[key]) for key, row in rows.items())


def test_a_whole_damaged_bank_is_not_told_file_by_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    views = [f"seed1-view{i:04d}" for i in range(20)]
    for view in views:
        bank(tmp_path).write(view, ROWS)
    for path in tmp_path.glob("*/*/*.safetensors"):
        path.write_bytes(b"damaged")
    with caplog.at_level(logging.WARNING):
        assert [check_rows(bank(tmp_path), view) for view in views] == [0] * 20
    assert len(caplog.records) == MOST_NOTES + 1


# Images


def entry(root: Path) -> Path:
    (path,) = (path for path in root.glob("??/*") if path.is_file())
    return path


def obtain(root: Path, content: bytes = b"a file", pixels: np.ndarray = PIXELS) -> tuple[np.ndarray, bool]:
    """The pixels, and whether they were made."""
    made = []
    read = ImageCache(root, 10**9).obtain(content, "decoded", lambda: (made.append(1), pixels)[1])
    return read, bool(made)


@QUICK
@given(PLACES, st.integers(0, 7), st.sampled_from(["??/*", LEDGER]))
def test_any_bit_of_an_image(tmp_path_factory: pytest.TempPathFactory, place: float, bit: int, which: str) -> None:
    root = tmp_path_factory.mktemp("images")
    obtain(root)
    flip(only(root, which), place, bit)
    read, made = obtain(root)
    assert np.array_equal(read, PIXELS)
    assert made == (which != LEDGER)
    assert not obtain(root)[1]
    shutil.rmtree(root)


def inverted(content: bytes) -> bytes:
    return content[:12] + bytes(255 - value for value in content[12:])


def with_other_sizes(content: bytes) -> bytes:
    sizes = np.frombuffer(content[:12], np.uint32) * np.array([2, 1, 1], np.uint32) // np.array([1, 2, 1], np.uint32)
    return sizes.astype(np.uint32).tobytes() + content[12:]


IMAGE_DAMAGE = {
    "inverted": inverted,
    "other sizes": with_other_sizes,
    "huge sizes": lambda content: b"\xff" * 12 + content[12:],
    "no sizes": lambda content: bytes(12) + content[12:],
    "cut": lambda content: content[:-1],
    "a header": lambda content: content[:HEADER],
    "empty": lambda content: b"",
    "half zeros": lambda content: content[: len(content) // 2] + bytes(len(content) // 2),
}


@pytest.mark.parametrize("kind", IMAGE_DAMAGE)
def test_a_damaged_image_is_named_once_and_made_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    obtain(tmp_path)
    path = entry(tmp_path)
    path.write_bytes(IMAGE_DAMAGE[kind](path.read_bytes()))
    with caplog.at_level(logging.WARNING):
        read, made = obtain(tmp_path)
    assert made
    assert np.array_equal(read, PIXELS)
    assert [str(path) in record.getMessage() for record in caplog.records] == [True]
    assert not obtain(tmp_path)[1]


def test_an_entry_of_another_image_is_not_taken(tmp_path: Path) -> None:
    obtain(tmp_path)
    path = entry(tmp_path)
    other = tmp_path / "other"
    obtain(other, b"another", 255 - PIXELS)
    shutil.copy(entry(other), path)
    shutil.rmtree(other)
    assert np.array_equal(obtain(tmp_path)[0], PIXELS)


def test_an_entry_without_a_checksum_is_made_again_without_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A whole cache of an earlier version would have a line for each image."""
    obtain(tmp_path)
    path = entry(tmp_path)
    path.write_bytes(path.read_bytes()[:12] + (255 - PIXELS).tobytes())
    with caplog.at_level(logging.WARNING):
        assert np.array_equal(obtain(tmp_path)[0], PIXELS)
    assert not caplog.records


# Descriptions


@given(
    st.recursive(
        st.none() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
def test_sealed_content_comes_back(tmp_path: Path, content: object) -> None:
    path = tmp_path / "x.json"
    path.write_text(sealed(content), encoding="utf-8", errors="surrogatepass")
    try:
        assert unsealed(path) == content
    except Damaged:  # half a character cannot be written
        assert any("\ud800" <= letter <= "\udfff" for letter in path.read_text("utf-8", "surrogatepass"))


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"null", b"\xff\xfe", b"[" * 10**5, b'{"crc32": 1, "content": {}}', b"7" * 5000]
)
def test_what_is_not_sealed_is_damaged(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(Damaged):
        unsealed(path)


# Limits


def size_below(folder: Path) -> int:
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name not in (LEDGER, budget.LOCK)]
    return sum(budget.size_of(path) for path in paths)


def fill(root: Path, limit: int, number: int) -> None:
    for i in range(30):
        bank(root / "bank", limit=limit).write(f"seed{number}-view{i:04d}", ROWS)
        ImageCache(root / "images", limit // 5).obtain(f"{number} {i}".encode(), "decoded", lambda: PIXELS)


def start_four(work: Callable[..., None], *arguments: object) -> Iterator[None]:
    """Four processes at once; comes back while they work."""
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=work, args=(*arguments, number)) for number in range(4)]
    for process in processes:
        process.start()
    while any(process.is_alive() for process in processes):
        yield
        time.sleep(0.003)
    assert [process.exitcode for process in processes] == [0] * 4


def test_four_processes_share_one_limit(tmp_path: Path) -> None:
    limit, seen = 20_000, 0  # less than a quarter of what they would write
    for _ in start_four(fill, tmp_path, limit):
        seen += 1
        assert size_below(tmp_path / "bank") <= limit
        assert size_below(tmp_path / "images") <= limit / 5
    assert seen > 1
    assert 0.9 * limit < size_below(tmp_path / "bank") <= limit
    assert 0.9 * limit / 5 < size_below(tmp_path / "images") <= limit / 5


@pytest.mark.skipif(os.name == "nt", reason="permissions are others there")
def test_what_one_user_stores_others_may_read(tmp_path: Path) -> None:
    """As far as the user's umask says so."""
    (tmp_path / "plain").touch()
    bank(tmp_path / "bank").write("crop", ROWS)
    obtain(tmp_path / "images")
    modes = {path.stat().st_mode for path in tmp_path.rglob("*") if path.is_file()}
    assert modes == {(tmp_path / "plain").stat().st_mode}


def test_the_limit_counts_files_not_tensors(tmp_path: Path) -> None:
    views = ["crop", "seed1-view0000"]
    assert all(bank(tmp_path / "free").write(view, ROWS) for view in views)
    size = size_below(tmp_path / "free")
    assert size > 2 * sum(row.nbytes for row in ROWS.values())
    assert [bank(tmp_path / "small", limit=size - 1).write(view, ROWS) for view in views] == [True, False]
    assert [bank(tmp_path / "enough", limit=size).write(view, ROWS) for view in views] == [True, True]


def sealed_ledger(*numbers: str) -> bytes:
    return " ".join([*numbers, budget._check(*numbers)]).encode()


@pytest.mark.parametrize(
    "ledger", [None, b"", b"0 99999999999.0 00000000", sealed_ledger("0", "99999999999.0"), b"\xff", b"-5", b"1 2 3 4"]
)
def test_a_ledger_that_is_lost_or_damaged_is_counted_again(tmp_path: Path, ledger: bytes | None) -> None:
    (tmp_path / "a").write_bytes(bytes(900))
    with Budget(tmp_path, 1000).room_for(tmp_path / "b", 50) as fits:
        assert fits
        (tmp_path / "b").write_bytes(bytes(50))
    if ledger is None:
        (tmp_path / LEDGER).unlink()
    else:
        (tmp_path / LEDGER).write_bytes(ledger)
    with Budget(tmp_path, 1000).room_for(tmp_path / "c", 51) as fits:
        assert not fits
    with Budget(tmp_path, 1000).room_for(tmp_path / "b", 100) as fits:  # it replaces the one that is there
        assert fits


def test_a_stopped_process_does_not_stop_the_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "LONGEST_WAIT", 0.2)
    with FileLock(tmp_path / budget.LOCK), caplog.at_level(logging.WARNING):  # another object, as another process
        start = time.monotonic()
        assert [bank(tmp_path).write(f"seed1-view{i:04d}", ROWS) for i in range(20)] == [False] * 20
        assert time.monotonic() - start < 2
    assert ["held" in record.getMessage() for record in caplog.records] == [True]
    assert bank(tmp_path).write("crop", ROWS)


def test_what_others_delete_makes_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    room = Budget(tmp_path, 100)
    with room.room_for(tmp_path / "a", 90):
        (tmp_path / "a").write_bytes(bytes(90))
    (tmp_path / "a").unlink()
    monkeypatch.setattr(budget, "PATIENCE", -1.0)
    with room.room_for(tmp_path / "b", 90) as fits:
        assert fits


def test_the_next_run_counts_what_came_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    room = Budget(tmp_path, 100)
    with room.room_for(tmp_path / "a", 1):
        (tmp_path / "a").write_bytes(bytes(1))
    (tmp_path / "copied").write_bytes(bytes(90))
    monkeypatch.setattr(budget, "STARTED", time.time())
    with room.room_for(tmp_path / "b", 20) as fits:
        assert not fits


# Drafts


def dead_process() -> int:
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_drafts_of_killed_processes_are_deleted_by_the_next_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = disk._host(), "0" * 8
    gone, alive, away = (f".x.vlprompt-{host}-{process}" for host, process in
                         ((ours, dead_process()), (ours, os.getppid()), (theirs, dead_process())))  # fmt: skip
    stay = {gone: False, alive: True, away: True, ".x.1": True}
    folders = tmp_path / TOWER / "crop", tmp_path / "plain"
    for folder in folders:
        folder.mkdir(parents=True)
        for name in stay:
            (folder / name).write_bytes(b"half")
    monkeypatch.setattr(budget, "STARTED", time.time())  # of another run
    bank(tmp_path).write("crop", ROWS)
    with whole_file(tmp_path / "plain" / "x") as draft:
        draft.write_bytes(b"whole")
    for folder in folders:
        assert {name: (folder / name).exists() for name in stay} == stay
    os.utime(folders[1] / away, times=(1, 1))
    remove_drafts(folders[1].iterdir())
    assert not (folders[1] / away).exists()


def test_a_process_that_may_not_be_asked_is_running(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "kill", refuse)
    assert disk._is_alive(1)


# Folders that cannot be written


def test_caches_on_a_read_only_disk_are_read_and_noted_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    bank(tmp_path).write("crop", ROWS)
    obtain(tmp_path / "images")

    def refuse(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    for name in ("mkdir", "write_text", "write_bytes", "unlink", "replace"):
        monkeypatch.setattr(Path, name, refuse)
    monkeypatch.setattr(os, "open", refuse)  # what locks do
    with caplog.at_level(logging.WARNING):
        assert bank(tmp_path).read("crop", ROWS).keys() == ROWS.keys()
        assert not obtain(tmp_path / "images")[1]
        for i in range(3):
            assert not bank(tmp_path).write(f"seed1-view{i:04d}", ROWS)
            assert obtain(tmp_path / "images", f"new {i}".encode())[1]
    assert len(caplog.records) == 2
