"""Files that a data set is made of, with anything in them: read, or refused in a sentence."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_data import make_split, picture

from vlprompt.config.compose import read_run
from vlprompt.data.lists import read_list
from vlprompt.data.sources import split_file
from vlprompt.data.sources.files import Files
from vlprompt.data.sources.tables import plain, read_names, read_table
from vlprompt.errors import UserError, printable
from vlprompt.learners.hard_prompts import read_descriptions
from vlprompt.textfiles import read_json, read_text

QUICK = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["train", "val", "test"]), inner),
    max_leaves=8,
)


def refused_or_read(read: Any, *arguments: Any) -> Any:
    """What it gives, None where it is refused; any other error ends the test."""
    try:
        return read(*arguments)
    except UserError:
        return None


@QUICK
@given(content=VALUES, path=st.text(min_size=1, max_size=20), label=st.integers(-3, 3))
def test_split_files(tmp_path: Path, content: Any, path: str, label: int) -> None:
    file = tmp_path / "split.json"
    for made in (content, {**make_split("dtd"), "val": [[path, label, "banded"]]}):
        file.write_text(json.dumps(made))
        split = refused_or_read(split_file.read, file)
        if split is not None and refused_or_read(split_file.check, file, split) is not None:
            images = [Path("/data", image) for image, _, _ in split.val]
            assert all(".." not in image.parts and image.is_relative_to("/data") for image in images)


@QUICK
@given(rows=st.text(max_size=80), head=st.sampled_from(["", "path,label\n", "path,label,split\n"]))
def test_tables(tmp_path: Path, rows: str, head: str) -> None:
    (tmp_path / "in.jpg").write_bytes(picture(1))
    table = tmp_path / "table.csv"
    table.write_bytes((head + rows).encode("utf-8", "surrogatepass"))
    for row in refused_or_read(read_table, tmp_path, table) or []:
        assert (tmp_path / row.image).resolve().is_relative_to(tmp_path)


WORDS = st.text(st.characters(exclude_categories=("Cs", "Cc", "Zl", "Zp")), min_size=1, max_size=12).filter(plain)
SPREADSHEETS = {
    "delimiter": st.sampled_from(",;\t"),
    "quoting": st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL, csv.QUOTE_NONNUMERIC]),
    "lineterminator": st.sampled_from(["\n", "\r\n", "\r"]),
}


def write_table(path: Path, rows: list[list[str]], mark: str, told: bool, **how: Any) -> None:
    """As a spreadsheet writes it: with a mark of its encoding or not, and with Excel's first line or not."""
    out = io.StringIO(newline="")
    csv.writer(out, **how).writerows(rows)
    first = f"sep={how['delimiter']}{how['lineterminator']}" if told else ""
    path.write_bytes((mark + first + out.getvalue()).encode())


@QUICK
@given(
    names=st.lists(WORDS, min_size=3, max_size=3),
    header=st.sampled_from([[], [["folder", "name"]], [["", ""]]]),
    mark=st.sampled_from(["", "\ufeff"]),
    told=st.booleans(),
    how=st.fixed_dictionaries(SPREADSHEETS),
)
def test_names_from_any_spreadsheet(
    tmp_path: Path, names: list[str], header: list[list[str]], mark: str, told: bool, how: Any
) -> None:
    keys = ("n1", "n2", "n3")
    rows = [[key, name] for key, name in zip(keys, names, strict=True)]
    write_table(tmp_path / "names.csv", header + rows[::-1], mark, told, **how)
    assert read_names(tmp_path / "names.csv", keys) == dict(zip(keys, map(plain, names), strict=True))
    write_table(tmp_path / "alone.csv", [[name] for name in names], mark, told, **{**how, "quoting": csv.QUOTE_ALL})
    alone = refused_or_read(read_names, tmp_path / "alone.csv", keys)
    assert alone is None or list(alone.values()) == [plain(name) for name in names]
    assert alone is not None or set(map(plain, names)) & set(keys) or any(name.startswith("n") for name in names)


@QUICK
@given(
    labels=st.lists(WORDS, min_size=1, max_size=4),
    extra=st.booleans(),
    mark=st.sampled_from(["", "\ufeff"]),
    told=st.booleans(),
    how=st.fixed_dictionaries(SPREADSHEETS),
)
def test_labels_from_any_spreadsheet(
    tmp_path: Path, labels: list[str], extra: bool, mark: str, told: bool, how: Any
) -> None:
    for i in range(len(labels)):
        (tmp_path / f"{i}.png").touch()
    rows = [[str(i), f"{i}.png", label] for i, label in enumerate(labels)]
    table = tmp_path / "table.csv"
    write_table(table, [["Number", "Path", "Label"], *rows], mark, told, **how)
    assert [(row.image, row.key) for row in read_table(tmp_path, table)] == [
        (f"{i}.png", plain(label)) for i, label in enumerate(labels)
    ]
    write_table(table, [["path", "label"], *(row[1:] for row in rows[:-1]), [*rows[-1][1:], "more"]], mark, told, **how)
    with pytest.raises(UserError, match=rf"table\.csv, line {len(labels) + 1 + told} has 3 cells, the header 2"):
        read_table(tmp_path, table)


@QUICK
@given(content=st.binary(max_size=60), keys=st.lists(WORDS, min_size=2, max_size=3, unique_by=plain))
def test_names_from_anything(tmp_path: Path, content: bytes, keys: list[str]) -> None:
    (tmp_path / "names").write_bytes(content)
    names = refused_or_read(read_names, tmp_path / "names", [plain(key) for key in keys])
    assert names is None or all(names.values())


@QUICK
@given(content=VALUES, text=st.text(max_size=30), encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "latin-1"]))
def test_text_files(tmp_path: Path, content: Any, text: str, encoding: str) -> None:
    file = tmp_path / "file"
    file.write_text(json.dumps(content), encoding=encoding)
    if encoding.startswith("utf-8"):
        assert repr(read_json(file)) == repr(content)
    file.write_bytes(text.encode(encoding, "replace"))
    read = refused_or_read(read_text, file)
    if encoding.startswith("utf-8") and "\0" not in text:
        assert read == text.encode("utf-8", "replace").decode().removeprefix("\ufeff")
    if encoding == "utf-16":
        assert read is None
    refused_or_read(read_json, file)


@QUICK
@given(inner=VALUES, key=st.text(max_size=5), depth=st.integers(0, 3))
def test_a_name_given_twice_is_refused(tmp_path: Path, inner: Any, key: str, depth: int) -> None:
    pair = f"{json.dumps(key)}: {json.dumps(inner)}"
    (tmp_path / "file").write_text("[" * depth + f"{{{pair}, {pair}}}" + "]" * depth)
    with pytest.raises(UserError, match="twice"):
        read_json(tmp_path / "file", "this file")


@QUICK
@given(content=VALUES | st.dictionaries(st.text(max_size=6), st.lists(st.text(max_size=6), max_size=2)))
def test_descriptions(tmp_path: Path, content: Any) -> None:
    (tmp_path / "file").write_text(json.dumps(content))
    described = refused_or_read(read_descriptions, tmp_path / "file")
    assert described is None or len(described) == len(content)


@QUICK
@given(content=st.binary(max_size=100))
def test_lists(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "list.jsonl"
    file.write_bytes(content)
    refused_or_read(lambda: list(read_list(file)))


@QUICK
@given(offset=st.integers(0, 600), value=st.integers(0, 255), end=st.integers(1, 700))
def test_images(tmp_path: Path, offset: int, value: int, end: int) -> None:
    content = bytearray(picture(3))
    content[offset % len(content)] = value
    (tmp_path / "image.jpg").write_bytes(content[:end])
    image = refused_or_read(Files(tmp_path), "image.jpg")
    assert image is None or image.mode == "RGB"


KEYS = ["seed", "shots", "fit", "fit.lr", "fit.schedule", "method", "method._target_", "dataset", "dataset.name",
        "protocol.targets", "name", "recipe", "demo", "bank", "search", "augment.scale", "targets", "nothing", "a.b",
        "hydra.mode", ""]  # fmt: skip
LEAVES = st.sampled_from(
    ["1", "1.5", "-1", "x", "''", "null", "true", "1,2", "${seed}", "${no}", "a=b", "..", "\u044f", "("]
)
GIVEN = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=2).map(lambda values: f"[{','.join(values)}]")
        | st.tuples(st.sampled_from("ab1"), inner).map(lambda pair: f"{{{pair[0]}:{pair[1]}}}")
    ),
    max_leaves=3,
)


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(prefix=st.sampled_from(["", "", "", "+", "++", "~"]), key=st.sampled_from(KEYS), value=GIVEN)
def test_overrides(prefix: str, key: str, value: str) -> None:
    refused_or_read(read_run, ["dataset=digits", "protocol=few_shot", f"{prefix}{key}={value}"])


@given(st.text())
def test_no_text_steers_a_terminal(text: str) -> None:
    shown = printable(text)
    assert not any((ord(c) < 32 and c not in "\n\t") or 127 <= ord(c) < 160 or c in "\u202e\u2066\u2028" for c in shown)
    assert text != text.encode("ascii", "replace").decode() or not text.isprintable() or shown == text
