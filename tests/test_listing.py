"""`vlprompt list`: names and papers, by family, at any width, with files of the user's own."""

import io
import json
from pathlib import Path

import pandas as pd
import pytest
from running import ask, check_mistake, succeed

from vlprompt import cli
from vlprompt.commands import listing
from vlprompt.commands.listing import KINDS
from vlprompt.config.about import FAMILIES
from vlprompt.reports import terminal


@pytest.fixture
def at_width(monkeypatch: pytest.MonkeyPatch):
    """The lines of a list on a terminal of this width."""

    def shown(rows: list[dict[str, str]], width: int) -> list[str]:
        monkeypatch.setattr(terminal, "terminal_width", lambda: width)
        return "\n".join(listing.lines_of(rows)).splitlines()

    return shown


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    for path, text in {
        "method/mine.yaml": 'about: {name: "My | <b>\\e[31m", family: "new_family"}',
        f"method/{'long' * 30}.yaml": "method: {}",
        "recipe/mine/few_shot.yaml": "# @package _global_\n# From et al., 2020. More of it.\nfit: {}",
        "protocol/mine.yaml": "_target_: a.b",
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text, encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("kind", KINDS)
def test_all_fits_and_no_word_is_broken(kind: str, at_width) -> None:
    rows = listing.rows_of(kind, ())
    words = {
        word.strip("()")
        for row in rows
        for key in ("name", "title", "paper", "about")
        for word in row.get(key, "").split()
    }
    for width in (60, 80, 120, 200):
        lines = at_width(rows, width)
        assert max(map(len, lines)) <= width
        assert words <= {word.strip("()") for line in lines for word in line.split()}
    families = [row["family"] for row in rows]
    assert [line for line in at_width(rows, 200) if line in families] == list(dict.fromkeys(families))


def test_methods_are_in_the_order_of_their_families() -> None:
    families = dict.fromkeys(row["family"] for row in listing.rows_of("methods", ()))
    assert tuple(families) == FAMILIES


@pytest.mark.slow
def test_files_of_a_stranger(theirs: Path, at_width) -> None:
    for given in (["--config-dir", str(theirs)], [f"hydra.searchpath=[{theirs}]"]):
        said = succeed(cli.main, ["list", "methods", *given]).out
        assert "\x1b" not in said
        assert "new_family\n  mine" in said
        assert said.rstrip().splitlines()[-2] == "others"
    rows = listing.rows_of("methods", (theirs,))
    assert max(len(line) for line in at_width(rows, 60) if "long" not in line) <= 60
    recipes = [row for row in listing.rows_of("recipes", (theirs,)) if row["name"] == "mine/few_shot"]
    assert recipes == [{"name": "mine/few_shot", "family": "My | <b>\x1b[31m", "about": "From et al., 2020"}]
    assert "mine" in {row["name"] for row in listing.rows_of("protocols", (theirs,))}


def test_formats_have_all_fields(theirs: Path) -> None:
    said = {f: succeed(cli.main, ["list", "methods", "-cd", str(theirs), "--format", f]).out for f in listing.FORMATS}
    rows = json.loads(said["json"])
    coop = {"name": "coop", "title": "CoOp", "family": "text prompts", "paper": "Zhou et al., IJCV 2022"}
    assert coop | {"source": "https://arxiv.org/abs/2109.01134"} in rows
    table = pd.read_csv(io.StringIO(said["csv"]), keep_default_na=False)
    assert table["name"].tolist() == [row["name"] for row in rows]
    assert len(said["markdown"].splitlines()) == len(rows) + 2
    assert "<b>" not in said["markdown"]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["method"], ["method", "methods", "recipes"]),
        (["methods", "fit.lr=1"], ["fit.lr=1"]),
        (["methods", "--config-dir", "nowhere"], ["nowhere"]),
        (["methods", "hydra.searchpath=[nowhere]"], ["nowhere"]),
    ],
)
def test_mistakes(arguments: list[str], named: list[str], tmp_path: Path) -> None:
    check_mistake(ask(cli.main, ["list", *arguments]), named, tmp_path)
