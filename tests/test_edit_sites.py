"""The drawing docs/edit_sites.svg shows what the methods do."""

from collections import defaultdict
from pathlib import Path
from xml.etree import ElementTree

import pytest
from test_learners import METHODS, SMALL, Case, build, logits

from vlprompt.towers import NO_EDITS, ImageTower, Prompts, TextTower
from vlprompt.towers.edits import SITES

SVG = Path(__file__).parents[1] / "docs" / "edit_sites.svg"


def drawn() -> dict[str, dict[str, str]]:
    """By method: the towers ("I T") at each site of the table in the drawing."""
    texts = [e for e in ElementTree.parse(SVG).iter() if e.tag.endswith("}text")]
    top = next(e.get("y") for e in texts if e.text == "layers")
    columns = {e.get("x"): e.text for e in texts if e.get("y") == top and e.get("class") == "site"}
    assert set(columns.values()) == {"context", *SITES}
    rows = {e.get("y"): e.text for e in texts if e.get("class") == "code"}
    towers: dict[str, dict[str, str]] = {name: {} for name in rows.values()}
    for e in texts:
        if e.get("class") == "cell":
            towers[rows[e.get("y")]][columns[e.get("x")]] = e.text
    return towers


DRAWN = drawn()


def test_all_methods_are_drawn():
    assert sorted(DRAWN) == METHODS


@pytest.mark.parametrize("method", METHODS)
def test_sites_of_a_method_are_as_drawn(method, monkeypatch):
    seen = defaultdict(set)
    for kind, way, letter in (
        (ImageTower, "__call__", "I"), (ImageTower, "tokens", "I"), (TextTower, "__call__", "T")
    ):  # fmt: skip
        call = getattr(kind, way)

        def spy(self, inputs, edits=NO_EDITS, call=call, letter=letter):
            for edit in edits.values():
                for site in SITES:
                    if getattr(edit, site) is not None:
                        seen[site].add(letter)
            return call(self, inputs, edits)

        monkeypatch.setattr(kind, way, spy)

    def with_context(self, *args, call=Prompts.with_context):
        seen["context"].add("T")
        return call(self, *args)

    monkeypatch.setattr(Prompts, "with_context", with_context)
    logits(build(Case(method, SMALL.get(method, {}))))
    assert {site: " ".join(sorted(towers)) for site, towers in seen.items()} == DRAWN[method]
