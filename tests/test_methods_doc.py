"""docs/methods.md describes every method, and says what the configuration and the learners say."""

import re
import sys
from operator import itemgetter
from pathlib import Path

import pytest
from test_learners import METHODS, SMALL, Case, build
from test_parameter_counts import CLASSES, COUNTS

from vlprompt.config.about import about, by_family

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
ENTRIES = dict(re.findall(r"^### `(\w+)`\n(.*?)(?=^##|\Z)", PAGE, re.DOTALL | re.MULTILINE))


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        import describe_methods
    finally:
        sys.path.pop(0)
    return describe_methods


def test_every_method_has_an_entry():
    assert sorted(ENTRIES) == METHODS
    linked = re.findall(r"\[([^]]+)\]\(#(\w+)\)", PAGE)
    assert sorted(linked, key=itemgetter(1)) == [(about("method", name).name, name) for name in METHODS]


def test_entries_are_in_the_section_of_their_family():
    sections = dict(re.findall(r"^## ([^\n]*)\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE))
    written = {
        family.lower(): set(re.findall(r"^### `(\w+)`", text, re.MULTILINE)) for family, text in sections.items()
    }
    assert {family: those for family, those in written.items() if those} == {
        family: {*members} for family, members in by_family("method").items()
    }


def test_the_generated_parts_are_what_the_script_writes(script):
    for path in script.PAGES:
        text = path.read_text(encoding="utf-8")
        assert script.fill(text, path) == text, "run scripts/describe_methods.py"
    emptied = script.BLOCK.sub(r"\1\2", script.PART.sub(r"\1\3", PAGE))
    assert len(emptied) < len(PAGE) / 2
    assert script.fill(emptied) == PAGE


def test_the_block_of_a_front_page(script):
    text = script.fill("<!-- methods -->\n<!-- end -->\n", ROOT / "README.md")
    assert re.findall(r"\(docs/methods.md#(\w+)\)", text) == [n for m in by_family("method").values() for n in m]
    row = text.splitlines()[4]
    assert row.count(" | ") == 2
    lengths = [cell.count("<br>") for cell in row.split(" | ")]
    assert max(lengths) - min(lengths) < len(METHODS) / script.N_COLUMNS / 2


def test_every_recipe_is_in_some_entry(script):
    assert script.users("tip_adapter") == ["tip_adapter"]
    assert script.users("vpt") == ["vpt_deep", "vpt_shallow"]
    for top in ("recipe", "demo"):
        folders = [path.parent.name for path in (script.CONF / top).rglob("*.yaml")]
        assert all(map(script.users, folders))
        assert sum(len(script.users(one)) for one in folders) == sum(len(script.recipes(top, m)) for m in METHODS)


@pytest.mark.parametrize("method", METHODS)
def test_what_edit_sites_says_of_a_method_is_so(method, script):
    header, *rows = script.costs(method)
    said = dict(zip(header, rows[0], strict=True))
    learner = build(Case(method, SMALL.get(method, {})))
    assert said["class-bound"] == ("yes" if learner.class_bound else "no")
    assert said["mergeable"].startswith("yes") == learner.mergeable
    counted = {count for asked, count in COUNTS.items() if asked.split()[0] == f"method={method}"}
    told = [part for row in rows for part in row[header.index("parameters")].split("; ")]
    assert {value(part) for part in told if not part.startswith("and") and not part.endswith(" N")} <= counted


def value(text: str) -> int:
    """A count as written, or a sum of such, of the classes of tests/test_parameter_counts.py."""
    if " + " in text:
        return sum(map(value, text.split(" + ")))
    number = int(text.removesuffix(" C").replace(",", ""))
    return number * len(CLASSES) if text.endswith(" C") else number
