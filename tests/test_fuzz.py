"""Files that a data set is made of, with anything in them: read, or refused in a sentence."""

import json
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_data import make_split, picture

from vlprompt.config.compose import read_run
from vlprompt.data.lists import read_list
from vlprompt.data.sources import split_file
from vlprompt.data.sources.files import Files
from vlprompt.data.sources.layouts import read_table
from vlprompt.errors import UserError, printable

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


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(prefix=st.sampled_from(["", "", "", "+", "++", "~"]), key=st.sampled_from(KEYS), value=GIVEN)
def test_overrides(prefix: str, key: str, value: str) -> None:
    refused_or_read(read_run, ["dataset=digits", "protocol=few_shot", f"{prefix}{key}={value}"])


@given(st.text())
def test_no_text_steers_a_terminal(text: str) -> None:
    shown = printable(text)
    assert not any((ord(c) < 32 and c not in "\n\t") or 127 <= ord(c) < 160 or c in "\u202e\u2066\u2028" for c in shown)
    assert text != text.encode("ascii", "replace").decode() or not text.isprintable() or shown == text
