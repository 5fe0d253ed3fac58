"""LaTeX of tables: what a paper takes as it is, with names that papers print."""

import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pytest
from made_records import few_shot, record, save, transfer
from running import ROOT, ask, succeed

from vlprompt import cli
from vlprompt.reports.escapes import latex
from vlprompt.reports.grid import BEST, SECOND, Grid
from vlprompt.reports.latex import caption, document, printed
from vlprompt.reports.marks import best_and_second
from vlprompt.results.metrics import find_metric

needs_latex = pytest.mark.skipif(not shutil.which("pdflatex"), reason="needs pdflatex (texlive-latex-recommended)")
NAMES = ["a_b", "50%", "x&y", "#1", "$x$", "{", "}", "~", "^", "\\input{x}", "[5pt]", "*", "--", "é", "e\u0301", "ł",
         "«þ»", "α≥β", "中文 名", "Ж", "🙂", "a|b<c>", '"q"', "`", "?`", "\u200d", "x" * 60]  # fmt: skip


def rows(text: str) -> list[list[str]]:
    """The cells of all rows but the headings."""
    lines = [line.removesuffix(r" \\") for line in text.splitlines() if line.endswith(r" \\")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)&", line)] for line in lines[1:]]


def widths(cells: Sequence[str]) -> list[tuple[str, ...]]:
    """What stands around the first decimal point: digits as 0, blanks as what they are as wide as."""
    bare = [re.sub(r"\\(?:phantom|textbf|underline)\{((?:[^{}]|\{\})*)\}", r"\1", cell) for cell in cells]
    return [tuple(re.sub(r"\d", "0", cell).split(".")[1:]) for cell in bare]


def compiled(folder: Path, text: str, *, packages: Sequence[str] = ()) -> str:
    """What pdflatex says of a document that inputs this text; it must not stop."""
    named = re.findall(r"usepackage\{(.*?)\}", text)
    (folder / "table.tex").write_text(text, encoding="utf-8")
    used = ",".join(dict.fromkeys([*packages, *",".join(named).split(",")]).keys()).strip(",")
    page = "\n".join([r"\documentclass{article}", rf"\usepackage{{{used}}}", r"\begin{document}", r"\input{table}",
                      r"\end{document}"])  # fmt: skip
    (folder / "page.tex").write_text(page, encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "page.tex"]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, errors="replace", timeout=100, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:]
    assert (folder / "page.pdf").stat().st_size > 1000
    return done.stdout


def test_decimal_points_are_below_one_another() -> None:
    column = ["83.90 ± 3.70", "9.5 ± 10.25", "", "100.00", "-1.25 ± 0.5"]
    text = document([Grid("", pd.DataFrame({"x": column, "n": list("12345")}))], [])
    cells = [row[0] for row in rows(text)]
    assert cells[2] == ""
    assert len(set(widths([cell for cell in cells if cell]))) == 1
    assert cells[0] == r"83.90 $\pm$ \phantom{0}3.70"
    assert cells[4].startswith("$-$1.25 ")
    assert r"\begin{tabular}{@{}rr@{}}" in text


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ("2.6e-15", r"2.6$\cdot10^{-15}$"),
        ("70.00 (+1.50)", "70.00 ($+$1.50)"),
        ("71.00 ± 1.00 [68.52, 73.48]", r"71.00 $\pm$ 1.00 [68.52, 73.48]"),
        ("1,024", "1,024"),
        ("1 to 3", "1 to 3"),
        ("method.ctx_init=a photo", r"method.ctx\_init=a photo"),
    ],
)
def test_one_cell(cell: str, expected: str) -> None:
    assert rows(document([Grid("", pd.DataFrame({"x": [cell]}))], [])) == [[expected]]


def test_names_are_those_of_papers() -> None:
    shown = [("method", "coop", "CoOp"), ("learner", "vpt_deep@fit.lr=0.1", "VPT-Deep (fit.lr=0.1)"),
             ("dataset", "eurosat", "EuroSAT"), ("backbone", "vit_b16", "CLIP ViT-B/16"), ("method", "mine", "mine"),
             ("dataset", "average_10_targets", "Average (10 targets)"), ("", "dtd (few)", "DTD (few)"),
             ("variant", "coop", "coop"), ("first", "65.50", "65.50"), ("", "coop", "coop")]  # fmt: skip
    for column, name, expected in shown:
        assert printed(column, name) == expected
    title = "protocol base_to_novel, dataset eurosat, backbone vit_b16, weights a_b, shots 1; accuracy (%)"
    assert caption(title) == r"Base to novel, EuroSAT, CLIP ViT-B/16, weights a\_b, 1 shot; accuracy (\%)"
    listed = "dataset eurosat, variant protocol.kinds=[fog, snow], protocol.severities=[1, 5], shots 1"
    assert caption(listed) == "EuroSAT, variant protocol.kinds=[fog, snow], 1 shot, protocol.severities=[1, 5]"


def test_comments_titles_and_packages() -> None:
    one = Grid("protocol few_shot", pd.DataFrame({"method": ["coop"], "x": ["1"]}))
    alone, both = document([one], ["a note\n\\input{x}"]), document([one, one], [])
    body = [line for line in alone.splitlines() if not line.startswith("% ")]
    assert (body[0][:15], body[-1]) == (r"\begin{tabular}", r"\end{tabular}")
    assert "% Caption: Few-shot" in alone
    assert r"\noindent Few-shot\par" in both
    assert alone.startswith("% Needs \\usepackage{booktabs}.")
    tall = Grid("", pd.DataFrame({"x": ["y" * 50] * 60}), blocks=["a"] * 30 + ["b"] * 30)
    assert r"\usepackage{booktabs,array,longtable}" in document([tall], [])
    assert document([], ["x"]) == "\n% x\n" or document([], ["x"]) == "% x\n"


def test_a_block_is_named_once() -> None:
    table = pd.DataFrame({"dataset": ["dtd", "dtd", "eurosat"], "method": ["coop", "lora", "coop"], "H": list("123")})
    text = document([Grid("", table, blocks=table["dataset"].tolist())], [])
    assert [row[0] for row in rows(text)] == ["DTD", "", "EuroSAT"]
    assert text.count(r"\midrule") == 2


@pytest.mark.parametrize(
    ("metric", "values", "best", "second"),
    [
        ("accuracy", [50, 70, 70.001, 60], {1, 2}, {3}),
        ("ece", [5, 7, 6, 5], {0, 3}, {2}),
        ("nll", [0.5, 0.7, 0.5, 0.6], {0, 2}, {3}),
        ("accuracy", [50, 50, 50, 50], set(), set()),
        ("accuracy", [50, None, None, None], set(), set()),
        ("accuracy", [None, 50, 60, None], {2}, {1}),
    ],
)
def test_the_best_and_the_second(metric: str, values: list[float], best: set[int], second: set[int]) -> None:
    table = pd.DataFrame({"x": [*values, 1.0, 2.0]}, index=range(7, 13))
    marks = best_and_second(table, [*"aaaabb"], find_metric(metric))
    assert {row for (row, _), mark in marks.items() if mark == BEST and row < 4} == best
    assert {row for (row, _), mark in marks.items() if mark == SECOND and row < 4} == second
    assert {(4, "x"), (5, "x")} <= {*marks}


def test_marks_are_where_they_are_asked_for(tmp_path: Path) -> None:
    records = [record("coop", base=0.8), record("coop", base=0.8, seed=2), record("lora", base=0.9)]
    save(tmp_path, [*records, record("zero_shot", base=0.5, shots=0, seed=0)])
    told = {}
    for layout in ("runs", "base_to_novel"):
        for option in ("", "--mark-best", "--no-mark-best"):
            command = ["table", str(tmp_path), "--layout", layout, "--published", "none", "--format", "latex"]
            told[layout, option] = succeed(cli.main, [*command, *filter(None, [option])]).out
    for (_, option), text in told.items():
        assert (r"\textbf{90.00}" in text, r"\underline{80.00}" in text) == 2 * (option == "--mark-best",)
        assert r"\textbf{2}" not in text, "the number of runs is no result"
    markdown = succeed(cli.main, ["table", str(tmp_path), "--published", "none", "--format", "markdown", "--mark-best"])
    assert "**90.00**" in markdown.out


def test_foreign_letters_have_their_numbers_for_pdflatex() -> None:
    assert latex("é e\u0301 ł") == "é é ł"
    assert latex("x中文") == r"x\vlpunicode{中文}{U+4E2D U+6587}"
    text = document([Grid("", pd.DataFrame({"x": ["中"]}))], [])
    assert text.count(r"\providecommand{\vlpunicode}") == 1
    assert "vlpunicode" not in document([Grid("", pd.DataFrame({"x": ["é"]}))], [])


@needs_latex
def test_any_name_and_number_compiles(tmp_path: Path) -> None:
    table = pd.DataFrame({"method": NAMES, "dataset": NAMES, "H": ["1.5 ± 0.1", "-2e-05", *["3"] * (len(NAMES) - 2)]})
    marks = {(0, "H"): BEST, (1, "H"): SECOND}
    hostile = Grid(", ".join(NAMES), table.assign(**dict.fromkeys(NAMES[:9], "1")), marks, blocks=NAMES)
    tall = Grid("protocol few_shot", pd.concat([table] * 3, ignore_index=True))
    compiled(tmp_path, document([hostile, tall, Grid("", table[:0]), Grid("", table[:1])], NAMES))


@needs_latex
def test_a_table_stands_in_a_float_and_in_a_box(tmp_path: Path) -> None:
    made = [few_shot(m, d, v) for m, d, v in (("coop", "dtd", 0.5), ("lora", "dtd", 0.6), ("coop", "eurosat", 0.7))]
    save(tmp_path / "runs", [*made, record("maple"), transfer("maple", dtd=0.4, eurosat=0.5)])
    command = ["table", str(tmp_path / "runs"), "--layout", "few_shot", "--format", "latex", "--published", "none"]
    text = succeed(cli.main, command).out
    body = "\n".join([r"\begin{table}\centering\caption{x}\input{inner}\end{table}",
                      r"\noindent\resizebox{\textwidth}{!}{\input{inner}}"])  # fmt: skip
    (tmp_path / "inner.tex").write_text(text, encoding="utf-8")
    assert "Overfull" not in compiled(tmp_path, body, packages=["booktabs", "graphicx"])


@needs_latex
@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        "--layout base_to_novel --mark-best", "--layout few_shot", "--layout cross_dataset", "--layout auto",
        "--layout domain_generalization --interval t", "--layout runs --mark-best --costs", "--metric ece --mark-best",
        "--layout base_to_novel --published rows --papers maple --mark-best", "--interval normal",
        "compare coop lora --where protocol=base_to_novel", "curve method.dimension",
    ],
)  # fmt: skip
def test_every_table_of_the_demo_compiles(arguments: str, tmp_path: Path) -> None:
    first, *others = arguments.split()
    command = [first, *others] if first in ("compare", "curve") else ["table", first, *others]
    folders = ["--results"] if first == "compare" else []
    answer = ask(cli.main, [*command, *folders, str(ROOT / "results" / "demo"), "--format", "latex"])
    assert answer.code == 0, answer.err
    compiled(tmp_path, answer.out)
