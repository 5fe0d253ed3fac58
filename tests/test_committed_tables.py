"""Tables in README, docs and results/tables are what the committed records give: scripts/refresh_tables.py."""

import shutil
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
SLOW = ("docs/demo_results.md", "docs/real_images.md")
PAGES = ("README.md", *(pytest.param(page, marks=pytest.mark.slow) for page in SLOW))


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    monkeypatch.chdir(ROOT)
    import refresh_tables

    return refresh_tables


def check(script: Any, page: Path, folder: Path) -> None:
    copy = folder / page.name
    shutil.copy(page, copy)
    assert script.TABLE.search(copy.read_text())
    assert bool(script.refresh(copy)) == (page.stem == "dylora_ranks")  # which needs the trained learners
    assert copy.read_text() == page.read_text()
    assert "s left" not in copy.read_text()  # what progress says


@pytest.mark.parametrize("page", PAGES)
def test_tables_are_those_of_the_records(script: Any, tmp_path: Path, page: str) -> None:
    check(script, ROOT / page, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("page", sorted((ROOT / "results" / "tables").glob("*.md")), ids=lambda path: path.stem)
def test_every_table(script: Any, tmp_path: Path, page: Path) -> None:
    check(script, page, tmp_path)


def test_a_table_is_filled_and_a_mistake_leaves_it(script: Any, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "before\n<!-- vlprompt table results/demo --where method=zero_shot protocol=few_shot --format markdown -->\n"
        "old\n"
        "<!-- end -->\nbetween\n<!-- vlprompt table nowhere -->\nkept\n<!-- end -->\nafter\n"
    )
    assert script.refresh(page) == ["table nowhere"]
    text = page.read_text()
    assert "| zero_shot" in text
    assert "old" not in text
    assert text.startswith("before\n<!-- vlprompt table results/demo")
    assert text.endswith("\n\n<!-- end -->\nbetween\n<!-- vlprompt table nowhere -->\nkept\n<!-- end -->\nafter\n")
