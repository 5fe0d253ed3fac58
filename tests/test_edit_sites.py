"""The drawings docs/edit_sites_block.svg and docs/edit_sites.svg show what the methods do."""

from collections import defaultdict
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from PIL import ImageFont
from test_learners import METHODS, SMALL, Case, build, logits

from vlprompt.config.about import about
from vlprompt.towers import NO_EDITS, ImageTower, Prompts, TextTower
from vlprompt.towers.edits import SITES

DOCS = Path(__file__).parents[1] / "docs"
SVG = DOCS / "edit_sites_block.svg"


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


@pytest.fixture(scope="module")
def script() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(DOCS.parent / "scripts"))
        import draw_edit_sites
    return draw_edit_sites


def test_the_picture_is_what_the_script_draws(script):
    assert (DOCS / "edit_sites.svg").read_text(encoding="utf-8") == script.draw(), "run scripts/draw_edit_sites.py"


def test_the_picture_names_every_method_once_at_its_site(script):
    members = script.methods()
    names = sorted(name for those in members.values() for name in those)
    assert names == sorted(about("method", method).name for method in METHODS)
    texts = [e.text for e in ElementTree.fromstring(script.draw()).iter() if e.get("class") == "names"]
    assert sorted(texts) == sorted(set(names) - set(members[script.NONE]))
    examples = {"text": "CoOp", "image": "VPT-Deep", "both": "MaPLe", "blocks": "BitFit", "features": "TaskRes"}
    assert all(name in members[site] for site, name in (examples | {script.NONE: "CLIP"}).items())


@pytest.mark.parametrize(
    ("cells", "site"),
    [
        ({"tokens": "I", "layers": "0"}, "image"),
        ({"tokens": "T", "layers": "8"}, "text"),
        ({"context": "T", "layers": "text input"}, "text"),
        ({"context": "T", "tokens": "I", "layers": "all"}, "both"),
        ({"prefix": "I", "layers": "all"}, "blocks"),
        ({"layers": "the weights"}, "blocks"),
        ({"layers": "on the features"}, "features"),
        ({"layers": "none"}, "nothing"),
    ],
)
def test_sites_of_the_picture(script, cells, site):
    assert script.site_of(cells) == site


def test_the_texts_of_the_picture_fit_in_the_widest_font(script):
    matplotlib = pytest.importorskip("matplotlib")

    def width(text: str, size: float, bold: str = "") -> float:
        path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"DejaVuSans{bold}.ttf"
        return ImageFont.truetype(str(path), size).getlength(text)

    for name, site in script.SITES.items():
        assert 34 + width(site.title, 14.5, "-Bold") <= site.width
        assert all(8 + width(line, 13) <= site.width for line in site.words)
        assert all(8 + width(method, 14.5) <= site.width / site.columns for method in script.methods()[name])
