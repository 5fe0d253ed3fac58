"""docs/methods.md describes every method, and says what the configuration and the learners say."""

import re
import sys
from pathlib import Path

import pytest
from test_learners import METHODS, SMALL, Case, build
from test_parameter_counts import CLASSES, COUNTS

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
    linked = re.findall(r"\[(\w+)\]\(#(\w+)\)", PAGE)
    assert sorted(linked) == [(name, name) for name in METHODS]


def test_the_generated_parts_are_what_the_script_writes(script):
    assert script.fill(PAGE) == PAGE, "run scripts/describe_methods.py"
    emptied = script.PART.sub(r"\1\3", PAGE)
    assert len(emptied) < len(PAGE) / 2
    assert script.fill(emptied) == PAGE


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
    """A count as written, of the classes of tests/test_parameter_counts.py."""
    number = int(text.removesuffix(" C").replace(",", ""))
    return number * len(CLASSES) if text.endswith(" C") else number
