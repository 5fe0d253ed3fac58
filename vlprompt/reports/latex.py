"""Tables for papers: a file that `\\input` takes as it is, with the names that papers print."""

import re
from collections.abc import Callable, Sequence
from functools import partial

from vlprompt.config.about import about, display_name
from vlprompt.reports.escapes import UNICODE, latex, latex_comment
from vlprompt.reports.grid import BEST, FAILED, NOT_APPLICABLE, SECOND, Grid

MARKED = {BEST: r"\textbf{{{}}}", SECOND: r"\underline{{{}}}"}
NUMBER = r"[-+−]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?"
CELL = re.compile(
    rf"({NUMBER})(?: ± ({NUMBER}))?(?: \[({NUMBER}), ({NUMBER})\])?(?: \(({NUMBER})\))?(?: to ({NUMBER}))?"
)
AROUND = [("", ""), (r" $\pm$ ", ""), (" [", ""), (", ", "]"), (" (", ")"), (" to ", "")]
"""What stands before and after each number of a cell."""
WITHOUT = (NOT_APPLICABLE, FAILED)
PAGE = 70  # characters of a line in LaTeX's article
LONG = 40  # characters, from which on a text wraps
TALL = 45  # rows, from which on a table goes over several pages
DEFINITION = rf"\providecommand{{{UNICODE}}}[2]{{\ifdefined\Umathchar#1\else[#2]\fi}}"
CAPITALS = (
    *("method", "dataset", "backbone", "weights", "precision", "protocol", "variant", "shots", "learner", "source"),
    *("selection", "inference", "cost"),
    *("base", "novel", "all", "test", "failed", "missing", "parameters", "settings", "printed", "split", "seed"),
    *("images", "first", "second", "difference", "median_difference", "low", "high", "only_first", "only_second"),
    *("verdict", "published", "ours", "off by", "allowed", "why", "metric", "recipe"),
    *("wins", "losses", "mean of H", "mean rank", "train s", "peak MB", "stored kB", "model MB", "can be merged"),
)
"""Headings that begin with a capital letter; others are names, or have units."""
ORDER = ("protocol", "source", "dataset", "backbone", "weights", "method", "variant", "shots", "precision", "split")
"""Of what all rows share; titles come first, settings and seeds last."""
LEARNERS, GROUPS = ("method", "learner", "first", "second"), ("dataset", "backbone", "protocol")


def document(grids: Sequence[Grid], notes: Sequence[str]) -> str:
    """Tables one after another, of several each with its title; everything else are comments.

    Numbers have their decimal points below one another; `marks` are bold and underlined.
    """
    tables = [table(grid) for grid in grids]
    used = {"array": "arraybackslash", "longtable": "begin{longtable}"}
    packages = ["booktabs", *(name for name, word in used.items() if any(word in text for text in tables))]
    head = [f"% Needs \\usepackage{{{','.join(packages)}}}."] if grids else []
    if any(UNICODE in text for text in (*tables, *(caption(grid.title) for grid in grids))):
        head += [
            "% XeLaTeX and LuaLaTeX print these characters if the font has them, pdfLaTeX their numbers:",
            DEFINITION,
        ]
    parts = []
    for grid, text in zip(grids, tables, strict=True):
        title = caption(grid.title)
        shown = [rf"\noindent {title}\par\nopagebreak\smallskip", r"\noindent"] if len(grids) > 1 and title else []
        wide = ["% Wider than a page of article: take table*, \\footnotesize or \\resizebox."] * is_wide(grid)
        parts.append("\n".join([*[f"% Caption: {title}"] * bool(title), *wide, *shown, text]))
    comments = [f"% {latex_comment(note)}" for note in notes]
    return "\n".join([*head, "\n\n\\medskip\n\n".join(parts), *comments]) + "\n"


def table(grid: Grid) -> str:
    """A tabular with booktabs' rules; a longtable where it has more rows than a page."""
    columns = [[printed(str(name), text) for text in map(str, grid.rows[name])] for name in grid.rows]
    marks = {(row, list(grid.rows).index(name)): mark for (row, name), mark in grid.marks.items()}
    forms, cells = [], []
    for i, column in enumerate(columns):
        if list(grid.rows.iloc[:, i]) == list(grid.blocks):  # named once
            column = [text if row in (0, *grid.starts) else "" for row, text in enumerate(column)]
        of_column = {row: MARKED[mark] for (row, j), mark in marks.items() if j == i}
        form, drawn = drawn_column(column, of_column)
        forms.append(form)
        cells.append(drawn)
    tall = len(grid.rows) > TALL
    kind, position = ("longtable", "[l]") if tall else ("tabular", "")
    lines = [rf"\begin{{{kind}}}{position}{{@{{}}{''.join(forms)}@{{}}}}", r"\toprule"]
    lines += [" & ".join(map(heading, map(str, grid.rows), columns)) + r" \\", r"\midrule", *[r"\endhead"] * tall]
    for row, texts in enumerate(zip(*cells, strict=True)):
        lines += [r"\midrule"] * (row in grid.starts) + [" & ".join(texts) + r" \\"]
    return "\n".join([*lines, r"\bottomrule", rf"\end{{{kind}}}"])


def drawn_column(texts: Sequence[str], marks: dict[int, str]) -> tuple[str, list[str]]:
    """A column's alignment and its cells: numbers with blanks that align them, texts to the left."""
    if not numeric(texts):
        wraps = max(map(len, texts), default=0) > LONG
        form = r">{\raggedright\arraybackslash}p{0.4\linewidth}" if wraps else "l"
        return form, [marks.get(row, "{}").format(latex(text)) for row, text in enumerate(texts)]
    matches = map(CELL.fullmatch, texts)
    cells = [match.groups("") if match else ("",) * len(AROUND) for match in matches]
    slots = [[number for number in slot if number] for slot in zip(*cells, strict=True)]
    used = [n for n, numbers in enumerate(slots) if numbers]
    rows = []
    for row, cell in enumerate(cells):
        if texts[row] in WITHOUT:
            rows.append(rf"\multicolumn{{1}}{{c}}{{{texts[row]}}}")
            continue
        parts = []
        for n in used if any(cell) else []:
            before, after = AROUND[n]
            mark = marks.get(row, "{}") if n == 0 else "{}"
            part = before + aligned(cell[n], slots[n], mark, first=n == 0) + after
            parts.append(part if cell[n] else rf"\phantom{{{part}}}")
        rows.append("".join(parts))
    return "r", rows


def aligned(number: str, numbers: Sequence[str], mark: str, *, first: bool) -> str:
    """A number with blanks for what the widest of its slot has more; the widest where there is none.

    The first of a cell needs none before it: its column is aligned to the right.
    """
    whole, decimals = split(number)
    widest, longest = (max(parts, key=len) for parts in zip(*map(split, numbers), strict=True))
    if not number:
        return tex(widest + longest)
    if any("e" in other for other in numbers):  # powers of ten have no common point
        return mark.format(tex(number))
    left = "" if first else re.sub(r"\d", "0", widest[: max(len(widest) - len(whole), 0)])
    right = re.sub(r"\d", "0", longest[len(decimals) :])
    before, after = (rf"\phantom{{{tex(blank)}}}" if blank else "" for blank in (left, right))
    return before + mark.format(tex(number)) + after


def split(number: str) -> tuple[str, str]:
    """Before the decimal point, and from it on."""
    whole, point, decimals = number.partition(".")
    return whole, point + decimals


def tex(number: str) -> str:
    """A number with signs as in mathematics: 1.2e-05 is 1.2 times ten to the power of -5."""
    mantissa, power, exponent = number.partition("e")
    signs = re.sub(r"[-−]", "$-$", mantissa).replace("+", "$+$")
    return signs + (rf"$\cdot10^{{{int(exponent)}}}$" if power else "")


def heading(name: str, column: Sequence[str]) -> str:
    """To the left of texts, to the right of numbers, centred above numbers with deviations or intervals."""
    text = name[0].upper() + name[1:].replace("_", " ") if name in CAPITALS else printed("", name)
    text = f"% of {display_name(name.removeprefix('% of '))}" if name.startswith("% of ") else text
    centred = any(" ± " in cell or cell.endswith((")", "]")) for cell in column) and numeric(column)
    return rf"\multicolumn{{1}}{{c}}{{{latex(text)}}}" if centred else latex(text)


def numeric(texts: Sequence[str]) -> bool:
    numbers = [text for text in texts if text not in ("", *WITHOUT)]
    return bool(numbers) and all(map(CELL.fullmatch, numbers))


def printed(column: str, text: str) -> str:
    """A name as papers print it, by the column in which it stands; "" for headings."""
    if column in LEARNERS and not CELL.fullmatch(text):
        return display_name(text)
    if column in GROUPS:
        return group_name(column, text)
    if column:
        return text
    dataset, parenthesis, part = text.partition(" (")
    return group_name("dataset", dataset) + parenthesis + part


def group_name(group: str, name: str) -> str:
    if average := re.fullmatch(r"average_(\d+)(_targets)?(_other)?", name):
        return f"Average ({average[1]}{' targets' if average[2] else ''}{', others' if average[3] else ''})"
    return about(group, name).name


def caption(title: str) -> str:
    """What all rows share, in words: "Base to novel, ImageNet, CLIP ViT-B/16, 16 shots, bf16; accuracy (%)"."""
    words: dict[str, Callable[[str], str]] = {
        **{group: partial(group_name, group) for group in GROUPS},
        "source": lambda text: f"trained on {group_name('dataset', text)}",
        "method": display_name,
        "first:": lambda text: f"first: {display_name(text)}",
        "second:": lambda text: f"second: {display_name(text)}",
        "shots": lambda text: f"{text} shot{'s' * (text != '1')}",
        "precision": str,
    }
    head, semicolon, unit = title.partition("; ")
    parts = [(part, *part.partition(" ")[::2]) for part in re.split(r", (?![^\[]*\])", head) if part]
    last = {name: i for i, name in enumerate(ORDER)}
    parts.sort(key=lambda part: last.get(part[1], len(ORDER) if "." in part[1] or part[1] == "seed" else -1))
    told = [words[key](value) if key in words and value else part for part, key, value in parts]
    return latex(", ".join(told) + semicolon + unit)


def is_wide(grid: Grid) -> bool:
    """Whether a table is wider than a page, roughly."""
    widths = [max(len(str(name)), *map(len, map(str, grid.rows[name])), 0) for name in grid.rows]
    return sum(min(width, LONG) + 2 for width in widths) > PAGE
