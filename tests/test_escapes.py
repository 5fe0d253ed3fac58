"""Whatever stands in a record, no report lets it be more than text."""

import csv as reader
import io
import re
import unicodedata
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import running
from hypothesis import given, settings
from hypothesis import strategies as st
from made_records import few_shot, record, save

from vlprompt import cli
from vlprompt.reports import escapes
from vlprompt.reports.averages import across_datasets, numbers
from vlprompt.reports.layouts import grids, notes_of
from vlprompt.reports.render import FORMATS, Grid, render, render_grids
from vlprompt.reports.summary import summarise
from vlprompt.results.record import Record

HOSTILE = [
    "\\input{/etc/passwd}", "a\n\\input{x}", "50% \\write18{rm}", "$\\frac$", "a^^5cinput", "_x_", "~^", "[5pt] *", "{",
    "}",     "=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", " =1", "'=1", '"=1"', "\uff1d1", "a,b\nc", "-", "--",
    "<script>alert(1)</script>", "<!--", "a|b", "a\\|b", "`x`", "[x](javascript:1)", "![x](http://a.b)", "**x**",
    "~~x~~",     "www.a.b", "https://a.b", "# x", "- x", "1. x", "===", "&lt;", "\x1b[31mred", "\x07", "\u202eabc",
    "\u2028x", "\x85x",     "\x01", "\x00", "", " ", "coop",
]  # fmt: skip
texts = st.one_of(
    st.sampled_from(HOSTILE), st.text(max_size=20), st.text("\\%$&#_{}~^|<>`*[]()!=+-@\n\r\t ,'\"x1", max_size=12)
)
LATEX_WORDS = r"\\(?:textbackslash|textasciitilde|textasciicircum|textless|textgreater|textbar)\{\}|\\[&%$#_{}]"
LATEX_WORDS += r"|\$\\(?:pm|times|to|leq|geq|approx|infty|[a-z]+)\$|\$[-+]\$|\{[\[*]?\}"
LATEX_WORDS += r"|\\vlpunicode\{[^ -~]+\}\{[U+0-9A-F ]+\}"


def is_printable(text: str) -> bool:
    return not [
        c for c in text if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp", "Cf") and c not in "\u200c\u200d"
    ]


def is_plain_latex(text: str) -> bool:
    return is_printable(text) and not re.search(r"[\\%$&#_{}~^]", re.sub(LATEX_WORDS, "", text))


def unescaped(line: str) -> str:
    """A line of Markdown without what is escaped."""
    return re.sub(r"\\[\\|`*_\[\]~$#+=.)-]|&(?:amp|lt|gt|#58|#46);", "", line)


@settings(deadline=None)
@given(texts)
def test_terminal(text: str) -> None:
    assert is_printable(escapes.terminal(text))
    plain = re.sub(r"[^ -\[\]-~]", "", text)  # what is printable and no backslash stays
    assert plain in (escapes.terminal(text), "") or not is_printable(text) or "\\" in text or not text.isascii()


@settings(deadline=None)
@given(texts)
def test_latex(text: str) -> None:
    shown = escapes.latex(text)
    assert is_plain_latex(shown)
    assert not shown.lstrip().startswith(("[", "*"))  # they would belong to the row's end
    assert "\n" not in escapes.latex_comment(text)
    assert not re.search(r"\\(?!textbackslash\{\})", escapes.latex_comment(text))


@settings(deadline=None)
@given(texts)
def test_markdown(text: str) -> None:
    shown = escapes.markdown(text)
    assert is_printable(shown)
    rest = unescaped(shown)
    assert not set("<>|`*[]~$") & set(rest)
    assert not re.search(r"&(?!$)", rest.replace("&", "", 0)) or "&" not in rest
    assert not re.search(r"(?i)\b(?:https?|ftp|mailto):|\bwww\.", shown)
    assert not re.match(r"#{1,6}(\s|$)|[-+](\s|$)|\d{1,9}[.)](\s|$)|[-=]+\s*$", shown)


@settings(deadline=None)
@given(texts)
def test_spreadsheet(text: str) -> None:
    (row,) = reader.reader(io.StringIO(escapes.csv(pd.DataFrame({"x": [text], "n": [-1.5]})).split("\n", 1)[1]))
    assert not row[0].lstrip().startswith(escapes.FORMULA)
    assert row[1] == "-1.5"


def test_numbers_of_a_spreadsheet_stay() -> None:
    table = pd.DataFrame({"a": [-1, 2], "=b": [None, -0.5], "c": ["x", None]})
    assert escapes.csv(table).splitlines() == ["a,'=b,c", "-1,,x", "2,-0.5,"]


@settings(deadline=None)
@given(texts)
def test_figure(text: str) -> None:
    cbook = pytest.importorskip("matplotlib.text")
    label = cbook.Text(0, 0, "")
    shown, is_mathematics = label._preprocess_math(escapes.figure(text))
    assert is_mathematics is False
    assert shown.strip() == escapes.terminal(text).strip()
    assert not escapes.figure(text).startswith("_")


def outputs(records: list[Record], format: str) -> list[str]:
    """A table of runs and one as papers print them, the reasons of failed runs among its notes."""
    results, notes = across_datasets(records)
    runs = render(summarise(records), format)
    if format == "csv":
        return [runs, escapes.csv(numbers(results))]
    return [runs, render_grids(grids(results), [*notes_of(results, records), *notes], format)]


def check(text: str, format: str) -> None:
    if format == "csv":
        rows = list(reader.reader(io.StringIO(text)))
        assert len({len(row) for row in rows}) == 1
        words = [cell for row in rows for cell in row if not re.fullmatch(r"-?[\d.]+(e-?\d+)?", cell)]
        assert not [cell for cell in words if cell.lstrip().startswith(escapes.FORMULA)]
        return
    lines = text.splitlines()
    assert all(map(is_printable, text.split("\n")))
    if format == "latex":
        commands = (r"\begin{tabular}", r"\end{tabular}", r"\toprule", r"\midrule", r"\bottomrule", "% ")
        commands += (r"\begin{longtable}", r"\end{longtable}", r"\endhead", r"\providecommand", r"\medskip")
        for line in (line for line in lines if not line.startswith(commands)):
            bare = line.removeprefix(r"\noindent").removesuffix(r"\par\nopagebreak\smallskip").removesuffix(r" \\")
            bare = re.sub(r"\$\\cdot10\^\{-?\d+\}\$", "", re.sub(LATEX_WORDS, "", bare))
            cells = re.sub(r"\\(?:textbf|underline|phantom|multicolumn\{1\}\{c\})\{([^{}]*)\}", r"\1", bare)
            cells = re.sub(r"\\phantom\{([^{}]*)\}", r"\1", cells)  # around another one
            assert all(map(is_plain_latex, re.split(r"(?<!\\)&", cells))), line
    if format == "markdown":
        rest = [unescaped(re.sub(r"\*\*|</?u>", "", line)) for line in lines]
        assert not [line for line in rest if set("<>`") & set(line)]
        blocks = "\n".join(line if line.startswith("|") else "" for line in rest).split("\n\n")
        assert all(len({line.count("|") for line in block.split("\n") if line}) <= 1 for block in blocks)


@pytest.mark.parametrize("format", FORMATS)
def test_each_hostile_text_as_each_name(format: str) -> None:
    made = [few_shot(text or "m", "dtd", variant=f"{i}", changes={text: text}) for i, text in enumerate(HOSTILE[::2])]
    made += [few_shot("coop", "dtd", scores={text: {"accuracy": 0.5}}, variant=text) for text in HOSTILE[1::4]]
    for text in outputs(made, format):
        check(text, format)
    if format != "csv":
        heads = Grid("\n".join(HOSTILE), pd.DataFrame([HOSTILE], columns=HOSTILE))
        check(render_grids([heads, Grid("", pd.DataFrame({"x": HOSTILE, "y": HOSTILE}))], HOSTILE, format), format)


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(st.lists(texts, min_size=8, max_size=8))
def test_no_report_lets_a_record_out(words: list[str]) -> None:
    dataset, method, variant, reason, test, backbone, key, value = words
    made = [
        few_shot(method or "m", dataset, variant=variant, backbone=backbone, scores={test or "t": {"accuracy": 0.5}}),
        few_shot(
            method or "m", dataset, variant="0123abcd", changes={key: value, "fit.lr": [value]}, backbone=backbone
        ),
        record("coop", dataset, base=None, reason=reason, backbone=backbone, protocol=dataset or "p"),
    ]
    for format in FORMATS:
        for text in outputs(made, format):
            check(text, format)


def test_commands_with_hostile_records(tmp_path: Path) -> None:
    """`predictions.npz` is missing, names are markup, and nothing is a traceback."""
    pytest.importorskip("matplotlib")
    named: dict[str, Any] = {"variant": "x\x1b[31m$\\frac$ _", "backbone": "b\n\\input{x}"}
    made = [few_shot("coop", data, seed=1, **named) for data in ("=dtd", "<b>")]
    made += [few_shot("_lora", data, seed=1, backbone=named["backbone"]) for data in ("=dtd", "<b>")]
    for i, one in enumerate(made):  # such names are no folder's
        save(tmp_path / str(i), [one.model_copy(update={"variant": f"v{i}", "dataset": "d", "backbone": "b"})])
        (path,) = (tmp_path / str(i)).rglob("result.json")
        path.write_text(one.model_dump_json())
    for command in ("table", "table --layout auto", "table --format latex", "table --format csv", "compare --results"):
        answer = running.ask(cli.main, [*command.split(), str(tmp_path)])
        assert answer.code == 0, answer.err
        assert "\x1b" not in answer.out + answer.err
        assert not [line for line in answer.out.splitlines() if line.startswith("\\input")]
    for figure in ("critical-difference", "few-shot"):
        target = tmp_path / f"{figure}.svg"
        answer = running.ask(cli.main, ["plot", figure, "--output", str(target), str(tmp_path)])
        assert answer.code == 0, answer.err
        assert target.stat().st_size
