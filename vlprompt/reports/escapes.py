"""Texts from records made harmless: one function for each form that a report has.

A name, a reason or a setting may be anybody's. In no form may it be more than the text that it is: no escape sequence,
no formula, no markup, no command, no line of its own.
"""

import re
import unicodedata
from collections.abc import Callable

import pandas as pd

from vlprompt.errors import printable

LINE_BREAKS = dict.fromkeys(map(ord, "\n\r\t\v\f"), " ")
FORMULA = ("=", "+", "-", "@", "\N{FULLWIDTH EQUALS SIGN}", "\N{FULLWIDTH PLUS SIGN}", "\N{FULLWIDTH HYPHEN-MINUS}",
           "\N{FULLWIDTH COMMERCIAL AT}")  # fmt: skip
GREEK = {"α": "alpha", "β": "beta", "γ": "gamma", "δ": "delta", "ε": "epsilon", "η": "eta", "θ": "theta",
         "κ": "kappa", "λ": "lambda", "μ": "mu", "π": "pi", "ρ": "rho", "σ": "sigma", "τ": "tau", "φ": "phi",
         "ω": "omega"}  # fmt: skip
LATEX = str.maketrans({
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "|": r"\textbar{}", "±": r"$\pm$", "−": "$-$", "×": r"$\times$", "→": r"$\to$",
    "≤": r"$\leq$", "≥": r"$\geq$", "≈": r"$\approx$", "∞": r"$\infty$",
    **{character: f"\\{character}" for character in "&%$#_{}"},
    **{letter: f"$\\{name}$" for letter, name in GREEK.items()},
})  # fmt: skip
UNICODE = r"\vlpunicode"  # a macro with characters that pdfLaTeX does not take, and their numbers
FOREIGN = re.compile(r"[^ -~\u00a0-\u017f–—‘’“”„…€™•†‡]+|[«»ÐÞðþĄąĐđĘęĦħĮįĸĿŀŉŊŋŦŧŲųſ\u00ad]+")
MARKDOWN = str.maketrans({
    "&": "&amp;", "<": "&lt;", ">": "&gt;", **{character: f"\\{character}" for character in "\\|`*[]~$"},
})  # fmt: skip
BLOCK = re.compile(r"#{1,6}(?=\s|$)|[-+](?=\s|$)|[-=]+\s*$|\d{1,9}(?=[.)](\s|$))")
"""What begins a heading, a list or a rule where it begins a line of Markdown."""


def terminal(text: object) -> str:
    """One line of printable characters."""
    return printable(str(text).translate(LINE_BREAKS))


def markdown(text: object) -> str:
    """One line without HTML, links, code, emphasis, mathematics and rules; none that ends a cell or begins a block."""
    line = terminal(text).strip().translate(MARKDOWN)
    line = re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", line)  # between letters it is no emphasis
    line = re.sub(r"(?i)\b(https?|ftp|mailto|xmpp):", r"\1&#58;", line)  # addresses that become links by themselves
    line = re.sub(r"(?i)\b(www)\.", r"\1&#46;", line)
    if start := BLOCK.match(line):
        position = start.end() if line[0].isdigit() else 0
        line = f"{line[:position]}\\{line[position:]}"
    return line


def latex(text: object) -> str:
    """One line in which no character is a command, a comment or mathematics."""
    line = unicodedata.normalize("NFC", terminal(text)).translate(LATEX)
    line = FOREIGN.sub(lambda part: f"{UNICODE}{{{part[0]}}}{{{' '.join(f'U+{ord(c):04X}' for c in part[0])}}}", line)
    line = re.sub("(?<=-)(?=-)", "{}", line)  # two hyphens are no dash
    return re.sub(r"^(\s*)([\[*])", r"\1{\2}", line)  # after the end of a row these are its arguments


def latex_comment(text: object) -> str:
    """One line after a percent sign: no line of its own, and no command even where the sign is lost."""
    return terminal(text).replace("\\", r"\textbackslash{}")


def spreadsheet(value: object) -> object:
    """A cell of a CSV file: a text that a spreadsheet would compute begins with an apostrophe; numbers stay."""
    if not isinstance(value, str):
        return value
    line = terminal(value)
    return f"'{line}" if line.lstrip(" \N{NO-BREAK SPACE}'\"").startswith(FORMULA) else line


def figure(text: object) -> str:
    """One line for matplotlib: dollars are no mathematics, and no label is a hidden one."""
    line = terminal(text).replace("$", r"\$")
    return f" {line}" if line.startswith("_") else line


def csv(table: pd.DataFrame) -> str:
    """A table as CSV, each of its texts as `spreadsheet` has it."""
    shown = table.copy()
    for i in range(table.shape[1]):
        if not pd.api.types.is_numeric_dtype(table.dtypes.iloc[i]):
            cells = [spreadsheet(value) for value in table.iloc[:, i]]
            shown.isetitem(i, pd.Series(cells, index=table.index, dtype=object))
    return shown.set_axis([spreadsheet(str(name)) for name in table], axis=1).to_csv(index=False)


ESCAPES: dict[str, Callable[[object], str]] = {"terminal": terminal, "markdown": markdown, "latex": latex}
