"""Draw docs/edit_sites.svg, the picture of the README: two frozen towers, and the parts that each method trains.

python scripts/draw_edit_sites.py

Which method is at which site is read from the table in docs/edit_sites_block.svg, which the tests compare with the
code; how a method is called, from the `about` of its YAML. Text has room for the widest of the usual fonts.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from math import ceil
from pathlib import Path
from xml.etree import ElementTree

from vlprompt.config.about import FAMILIES, About, about

DOCS = Path(__file__).parents[1] / "docs"
TABLE, PICTURE = DOCS / "edit_sites_block.svg", DOCS / "edit_sites.svg"
WIDTH, EDGE, GAP = 880, 14, 8
LINE = 20  # from one name to the next
NONE = "nothing"
BLOCKS = ("block 1", "block 2", "…", "block 12")


@dataclass(frozen=True)
class Site:
    """A place where methods train something: its card below the towers, `columns` of names wide."""

    number: str
    title: str
    words: tuple[str, str]
    x: int
    width: int
    columns: int = 1


SITES = {
    "text": Site("1", "Text prompts", ("learned words before", "the class name"), 14, 156),
    "image": Site("2", "Visual prompts", ("learned tokens next to the", "patches (Deep: in all blocks)"), 178, 214, 2),
    "both": Site(
        "3", "Multi-modal prompts", ("learned tokens in both towers;", "dashed: MaPLe's coupling"), 178, 214, 2
    ),
    "blocks": Site("4", "Inside the blocks", ("keys and values, adapters,", "low-rank updates, weights"), 400, 292, 2),
    "features": Site("5", "On the features", ("a shift, a cache,", "a head"), 700, 166),
}
LIGHT = {"page": "#fff", "ink": "#1c2430", "soft": "#4a5464", "ice": "#e9ecf1", "rim": "#8b95a5", "cold": "#3d7ea6",
         "card": "#f6f7f9"}  # fmt: skip
DARK = {"page": "#0d1117", "ink": "#e6edf3", "soft": "#a9b4c0", "ice": "#252c35", "rim": "#77818d", "cold": "#8fc7e8",
        "card": "#161c24"}  # fmt: skip
STYLE = """
  text { font-family: Helvetica, Arial, "Liberation Sans", sans-serif; font-size: 14.5px; fill: var(--ink) }
  .title { font-size: 20px; font-weight: bold }
  .head { font-weight: bold }
  .mid, .number { text-anchor: middle }
  .small { font-size: 13px; fill: var(--soft) }
  .number { font-size: 12.5px; font-weight: bold; fill: #111 }
  .ice { fill: var(--ice); stroke: var(--rim) }
  .card { fill: var(--card) }
  .flow { stroke: var(--rim); stroke-width: 1.6; fill: none }
  .flake { stroke: var(--cold); stroke-width: 1.6; stroke-linecap: round; fill: none }
  .s1 { fill: #e69f00 } .s2 { fill: #56b4e9 } .s3 { fill: #cc79a7 } .s4 { fill: #2bb88d } .s5 { fill: #f0e442 }
  .link { stroke: #cc79a7; stroke-width: 2; stroke-dasharray: 4 3; fill: none }
"""  # after Okabe and Ito: colours that the colour-blind tell, and the numbers say the same


def methods() -> dict[str, list[str]]:
    """Display names by site, in the order of their families and of the table."""
    texts = [e for e in ElementTree.parse(TABLE).iter() if e.tag.endswith("}text")]
    top = next(e.get("y") for e in texts if e.text == "layers")
    columns = {e.get("x"): e.text or "" for e in texts if e.get("y") == top}
    members: dict[str, list[About]] = {site: [] for site in (*SITES, NONE)}
    for row in (e for e in texts if e.get("class") == "code"):
        cells = {columns[e.get("x")]: e.text or "" for e in texts if e.get("y") == row.get("y") and e is not row}
        members[site_of(cells)].append(about("method", row.text or ""))
    return {
        site: [one.name for one in sorted(those, key=lambda one: FAMILIES.index(one.family or FAMILIES[0]))]
        for site, those in members.items()
    }


def site_of(cells: dict[str, str]) -> str:
    """Of a method, by what stands in its row of the table: "T" or "I T" at each site, and the layers."""
    image, text = "I" in cells.get("tokens", ""), "T" in cells.get("tokens", "") + cells.get("context", "")
    if image or text:
        return "both" if image and text else "image" if image else "text"
    if cells["layers"] == "on the features":
        return "features"
    return NONE if cells["layers"] == "none" else "blocks"


def write(x: float, y: float, words: str, kind: str = "names") -> str:
    return f'<text class="{kind}" x="{x:g}" y="{y:g}">{escape(words)}</text>'


def box(x: float, y: float, width: float, height: float, kind: str, radius: int = 4) -> str:
    return f'<rect class="{kind}" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{radius}"/>'


def chip(x: float, y: float, number: str, width: float = 20) -> str:
    """A part that is trained: its number on its colour."""
    return box(x, y, width, 18, f"s{number}") + write(x + width / 2, y + 13.5, number, "number")


def arrow(*points: tuple[float, float]) -> str:
    path = " ".join(f"{'L' if i else 'M'}{x:g} {y:g}" for i, (x, y) in enumerate(points))
    return f'<path class="flow" d="{path}" marker-end="url(#to)"/>'


def tower(y: float, name: str, inner: float, title: float) -> Iterable[str]:
    """A frozen tower at height `y`: its blocks `inner` below, its `title`, and its feature."""
    yield box(196, y, 410, 94, "ice", 8)
    yield f'<use href="#flake" x="214" y="{y + title - 5:g}"/>'
    yield write(230, y + title, f"{name} tower, frozen", "head")
    chips, label = (28, 17) if inner > title else (4, 41)  # those of both towers face each other
    for i, block in enumerate(BLOCKS):
        x = 206 + 99 * i
        yield box(x, y + inner, 93, 50, "ice") + write(x + 46.5, y + inner + label, block, "small mid")
        yield chip(x + 20, y + inner + chips, "3") + chip(x + 53, y + inner + chips, "4")
    yield arrow((606, y + 47), (634, y + 47))
    yield from (box(636, y + 12 + 14 * i, 14, 14, "ice", 1) for i in range(5))
    yield arrow((650, y + 47), (680, y + 47)) + box(682, y + 29, 36, 36, "s5") + write(700, y + 51.5, "5", "number")


def towers() -> Iterable[str]:
    yield box(24, 77, 60, 60, "ice", 2)
    yield '<path class="flow" d="M44 77 V137 M64 77 V137 M24 97 H84 M24 117 H84"/>'
    yield write(54, 156, "image", "small mid") + arrow((86, 107), (104, 107))
    yield from (box(108 + 22 * i, 85, 18, 18, "ice", 2) for i in range(3))
    yield chip(108, 110, "2", 18) + chip(130, 110, "2", 18) + arrow((176, 107), (194, 107))
    yield from tower(60, "Image", 36, 23)
    yield from (chip(24 + 23 * i, 228, "1") for i in range(4))
    yield box(118, 228, 56, 18, "ice", 2) + write(146, 241.5, "name", "small mid") + arrow((176, 237), (194, 237))
    yield write(24, 266, "“a photo of a [name]”", "small")
    yield from tower(190, "Text", 8, 80)
    yield from (f'<path class="link" d="M{236 + 99 * i} 143 V201"/>' for i in range(len(BLOCKS)))
    yield arrow((718, 107), (760, 107), (760, 150)) + arrow((718, 237), (760, 237), (760, 194))
    yield '<circle class="ice" cx="760" cy="172" r="20"/>' + write(760, 176.5, "cos", "small mid")
    yield arrow((780, 172), (800, 172))
    for i, (name, width) in enumerate((("cat", 52), ("dog", 15), ("car", 6))):
        yield box(804, 146 + 24 * i, width, 7, "ice", 1) + write(804, 142 + 24 * i, name, "small")


def card(site: Site, names: Sequence[str], y: float, height: float) -> Iterable[str]:
    yield box(site.x, y, site.width, height, "card", 6) + box(site.x, y, site.width, 4, f"s{site.number}", 2)
    yield chip(site.x + 8, y + 12, site.number) + write(site.x + 34, y + 26, site.title, "head")
    for i, line in enumerate(site.words):
        yield write(site.x + 8, y + 46 + 16 * i, line, "small")
    rows = ceil(len(names) / site.columns)
    for i, name in enumerate(names):
        x = site.x + 8 + (site.width - 8) // site.columns * (i // rows)
        yield write(x, y + 85 + LINE * (i % rows), name)


def height_of(site: Site, names: Sequence[str]) -> float:
    return 76 + LINE * ceil(len(names) / site.columns)


def draw() -> str:
    members = methods()
    tall = {name: height_of(site, members[name]) for name, site in SITES.items()}
    height = max(tall["image"] + GAP + tall["both"], *(tall[name] for name in ("text", "blocks", "features")))
    y, parts = 302.0, list(towers())
    for name, site in SITES.items():
        top = y + tall["image"] + GAP if name == "both" else y
        bottom = y + tall["image"] if name == "image" else y + height
        parts += card(site, members[name], top, bottom - top)
    whole, nothing = int(y + height + 36), ", ".join(members[NONE])
    said = "; ".join(f"{site.title}: {', '.join(members[name])}" for name, site in SITES.items())
    light, dark = ("; ".join(f"--{name}: {colour}" for name, colour in look.items()) for look in (LIGHT, DARK))
    lines = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {whole}" width="{WIDTH}" height="{whole}" '
        'role="img" aria-labelledby="title said">',
        '<title id="title">The two towers of a CLIP, and the parts that each method trains</title>',
        f'<desc id="said">{escape(said)}; nothing: {escape(nothing)}</desc>',
        f"<style>\n  svg {{ {light} }}\n  @media (prefers-color-scheme: dark) {{ svg {{ {dark} }} }}{STYLE}</style>",
        '<defs><marker id="to" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
        'markerUnits="userSpaceOnUse" orient="auto"><path d="M0 0 L8 4 L0 8 z" style="fill: var(--rim)"/></marker>',
        '<g id="arm"><path class="flake" d="M0 0 V-9 M0 -5 L-3 -8 M0 -5 L3 -8"/></g><g id="flake">',
        *(f'<use href="#arm" transform="rotate({60 * i})"/>' for i in range(6)),
        f'</g></defs><rect width="{WIDTH}" height="{whole}" rx="8" style="fill: var(--page)"/>',
        write(EDGE, 36, "Each method trains only its coloured part; all else stays frozen.", "title"),
        *parts,
        write(EDGE, whole - 14, f"Zero-shot, nothing trained: {nothing}", "small"),
        "</svg>\n",
    )
    return "\n".join(lines)


if __name__ == "__main__":
    PICTURE.write_text(draw(), encoding="utf-8")
