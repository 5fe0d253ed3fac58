"""Write the generated parts of the pages: the methods by family, and what configuration and learners say of each one.

python scripts/describe_methods.py                 # docs/methods.md, and every page with a block of the methods

A part stands between `<!-- generated: METHOD -->` and `<!-- end -->`, the methods by family between `<!-- methods -->`
and `<!-- end -->`; the words around them are written by hand. Names, families and papers are those of `about` in each
method's YAML, costs those of the table in docs/edit_sites.md, differences those of docs/differences.md.
"""

import inspect
import json
import pydoc
import re
import sys
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache
from itertools import combinations, pairwise, takewhile
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from omegaconf import OmegaConf

from vlprompt.config.about import about, by_family
from vlprompt.config.paths import config_dir

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGE = DOCS / "methods.md"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
CONF = config_dir()
METHODS = tuple(sorted(path.stem for path in (CONF / "method").glob("*.yaml")))
PROTOCOLS, DATASETS, BACKBONES = (
    tuple(sorted(path.stem for path in (CONF / group).glob("*.yaml"))) for group in ("protocol", "dataset", "backbone")
)
PART = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
BLOCK = re.compile(r"(<!-- methods -->\n).*?(<!-- end -->)", re.DOTALL)
N_COLUMNS = 3


@dataclass(frozen=True)
class Recipe:
    """A file of conf/recipe or conf/demo: where it applies, and what it changes."""

    demo: bool
    protocol: str  # or none: in any
    name: str  # recipe=..., backbone=..., dataset=..., or nothing more than the protocol
    changes: str
    comment: str

    @property
    def asked(self) -> str:
        """The settings of the command line with which it applies."""
        return " ".join(filter(None, (self.protocol and f"protocol={self.protocol}", self.name)))


def main() -> None:
    if lacking := set(METHODS) - set(described(PAGE.read_text(encoding="utf-8"))):
        sys.exit(f"docs/methods.md has no entry for {', '.join(sorted(lacking))}: write one, with an empty part")
    for path in PAGES:
        text = path.read_text(encoding="utf-8")
        if (new := fill(text, path)) != text:
            path.write_text(new, encoding="utf-8")


def described(text: str) -> list[str]:
    """The methods that have a generated part, in the order of the page."""
    return [name for _, name, _ in PART.findall(text)]


def fill(text: str, path: Path = PAGE) -> str:
    """A page with its generated parts as they should be."""
    text = BLOCK.sub(lambda part: f"{part[1]}\n{families(path)}\n\n{part[2]}", text)
    return PART.sub(lambda part: f"{part[1]}\n{describe(part[2])}\n\n{part[3]}", text)


def families(page: Path) -> str:
    """The methods by family in columns of like length, each with a link to its entry, and its paper."""
    entries = "" if page == PAGE else "docs/methods.md" if page.parent == ROOT else "methods.md"
    lists = [
        [f"**{family}**", *(f"[{one.name}]({entries}#{name}) {paper(one)}" for name, one in members.items())]
        for family, members in by_family("method").items()
    ]
    splits = (pairwise((0, *cut, len(lists))) for cut in combinations(range(1, len(lists)), N_COLUMNS - 1))
    ways = (["<br><br>".join(map("<br>".join, lists[start:end])) for start, end in split] for split in splits)
    columns = min(ways, key=lambda columns: max(column.count("<br>") for column in columns))
    return "\n".join(grid([""] * N_COLUMNS, [columns]))


def paper(one: Any) -> str:
    """Its authors, venue and year, with a link."""
    return f"([{one.paper.replace(' et al.', '')}]({one.source}))"


def describe(method: str) -> str:
    path = CONF / "method" / f"{method}.yaml"
    config = {name: value for name, value in read(path).items() if name != "about"}
    arguments: dict[str, Any] = dict(config.pop("method"))
    name = arguments.pop("_target_")
    target: Any = pydoc.locate(name)
    parameters = [p for p in inspect.signature(target).parameters.values() if p.kind is p.KEYWORD_ONLY]
    arguments = {p.name: arguments.get(p.name, p.default) for p in parameters}
    fit, _ = config.pop("fit"), config.pop("search", None)
    header, *rows = costs(method)
    named = about("method", method)
    lines = [f"**{named.name}**: [{named.paper}]({named.source})", "", *grid(header, rows), ""]
    lines.append(f"- **Class** `{name}`. {paragraph(target, 'Source')}")
    lines.append(f"- **Arguments** {code(arguments) if arguments else 'none'}{choices(parameters)}")
    lines.append(f"- **Fit** {code(fit) if fit else 'nothing is trained'}{steps(fit)}")
    lines += [f"- **Also set** {code(flat(config))}"] if config else []
    lines += [f"- **From** {comment(path)}"] if comment(path) else []
    lines += shown_on_demo(recipes("demo", method)) + differences(method, target)
    bound = rows[0][header.index("class-bound")] == "yes"
    return "\n".join(lines + published(recipes("recipe", method), bound=bound))


def costs(method: str) -> list[list[str]]:
    """The header of the table in docs/edit_sites.md, and this method's rows."""
    header, *rows = table("edit_sites.md", "| `method=`")
    return [header, *(row for row in rows if fnmatch(method, quoted(row[0])[0]))]


def shown_on_demo(recipes: list[Recipe]) -> list[str]:
    told = [f"`{recipe.asked}`: {recipe.changes}" for recipe in merged(recipes)]
    return [f"- **Demo** {'; '.join(told)}"] if told else []


def published(recipes: list[Recipe], *, bound: bool) -> list[str]:
    """What the papers' recipes change, and where there are none."""
    refused = " but `base_to_novel` and `cross_dataset`, whose novel classes it cannot know" if bound else ""
    if not recipes:
        return [f"- **Recipes** none: the settings above in every protocol{refused}."]
    rows = [[f"`{recipe.asked}`", recipe.changes, recipe.comment] for recipe in merged(recipes)]
    told = f"- **Recipes** as below; where there is none, the settings above, in every protocol{refused}."
    return [told, "", *grid(["recipe for", "changes", "from"], rows)]


def merged(recipes: list[Recipe]) -> list[Recipe]:
    """Recipes that say the same in several protocols as one."""
    protocols: dict[tuple[bool, str, str, str], list[str]] = {}
    for recipe in recipes:
        said = (recipe.demo, recipe.name, recipe.changes, "" if recipe.demo else recipe.comment)
        protocols.setdefault(said, []).append(recipe.protocol)
    return [Recipe(said[0], ",".join(names), *said[1:]) for said, names in protocols.items()]


def recipes(top: str, method: str) -> list[Recipe]:
    """The files of conf/recipe or conf/demo that may apply to this method, those for single data sets last."""
    paths = [path for path in sorted((CONF / top).glob("*/*.yaml")) if method in users(path.parent.name)]
    by_name = sorted(map(recipe_of, paths), key=lambda recipe: "backbone=" not in recipe.name)
    return sorted(by_name, key=lambda recipe: "dataset=" in recipe.name)


def recipe_of(path: Path) -> Recipe:
    """A file by what its name is made of: PROTOCOL, PROTOCOL_DATASET, BACKBONE, or a name of its own."""
    top, method, name = path.parts[-3], path.parts[-2], path.stem
    names = {protocol: (protocol, "") for protocol in PROTOCOLS}
    names |= {f"{p}_{dataset}": (p, f"dataset={dataset}") for p in PROTOCOLS for dataset in DATASETS}
    names |= {backbone: ("", f"backbone={backbone}") for backbone in BACKBONES}
    protocol, asked = names.get(name, ("", f"{top}={method}/{name}"))
    return Recipe(top == "demo", protocol, asked, code(flat(read(path))), comment(path))


def users(folder: str) -> list[str]:
    """The methods that a folder of recipes is for: the one it is named after, else all of that family."""
    return [m for m in METHODS if m == folder] or [m for m in METHODS if m.startswith(f"{folder}_")]


def differences(method: str, target: Any) -> list[str]:
    """This method's rows of docs/differences.md, else what its class says."""
    told = []
    for names, original, here, why in table("differences.md", "| method")[1:]:
        if any(fnmatch(method, name) for name in quoted(names)):
            case = re.sub(r"^(`[\w*]+`[, ]*)+", "", names)
            told.append(f"  - {case + ': ' if case else ''}{original + ' → ' if original else ''}{here} ({why})")
    if told:
        return ["- **Differs** (the original → here)", *told]
    words = paragraph(target, "Differs").removeprefix("Differs: ")
    return [f"- **Differs** {words}"] if words else []


def paragraph(target: Any, word: str) -> str:
    """What a class's docstring says from a word on, up to the next such word or a blank line."""
    text = " ".join((inspect.getdoc(target) or "").replace("\n\n", " ¶ ").split())
    match = re.search(rf"{word}: .*?(?= ¶| Differs:|$)", text)
    return match[0] if match else ""


def choices(parameters: list[inspect.Parameter]) -> str:
    """What arguments with a few allowed words may be."""
    words = {p.name: get_args(p.annotation) for p in parameters if get_origin(p.annotation) is Literal}
    return "".join(f"; `{name}`: {', '.join(allowed)}" for name, allowed in words.items())


def steps(fit: dict[str, Any] | None) -> str:
    return "; there are no steps of an optimiser" if fit and fit.get("epochs") == 0 else ""


@cache
def table(page: str, start: str) -> list[list[str]]:
    """The cells of a page's table whose first line begins so, header first."""
    _, _, rest = (DOCS / page).read_text(encoding="utf-8").partition(f"\n{start}")
    lines = (start + rest).split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in lines if "---" not in line]


@cache
def read(path: Path) -> dict[str, Any]:
    """A file of conf with those it builds on, interpolations as they are written."""
    node: Any = OmegaConf.load(path)
    bases = [base for base in node.pop("defaults", []) if base != "_self_"]
    files = [CONF / f"{base[1:]}.yaml" if base.startswith("/") else path.with_name(f"{base}.yaml") for base in bases]
    merged: Any = OmegaConf.to_container(OmegaConf.merge(*map(read, files), node), resolve=False)
    return merged


def comment(path: Path) -> str:
    """The comment at the top of a file, on one line."""
    lines = path.read_text(encoding="utf-8").splitlines()[1:]
    return " ".join(line.removeprefix("#").strip() for line in takewhile(lambda line: line.startswith("#"), lines))


def flat(config: dict[str, Any]) -> dict[str, Any]:
    """Settings by their full names, two levels deep."""
    trees = {group: values for group, values in config.items() if isinstance(values, dict)}
    named = {f"{group}.{name}": value for group, values in trees.items() for name, value in values.items()}
    return {group: value for group, value in config.items() if group not in trees} | named


def code(values: dict[str, Any]) -> str:
    return "`" + " ".join(f"{name}={show(value)}" for name, value in values.items()) + "`"


def show(value: Any) -> str:
    """A value as in YAML."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {show(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(show, value)) + "]"
    if isinstance(value, str) and re.fullmatch(r"[\w./-]+|\$\{.*\}", value):
        return value
    return re.sub(r"e-0(\d)$", r"e-\1", json.dumps(value))


def quoted(text: str) -> list[str]:
    return re.findall(r"`(.*?)`", text)


def grid(header: list[str], rows: list[list[str]]) -> list[str]:
    """A table in Markdown."""
    lines = (f"| {' | '.join(cells)} |".replace("|  |", "| |") for cells in (header, *rows))
    return [next(lines), "|---" * len(header) + "|", *lines]


if __name__ == "__main__":
    main()
