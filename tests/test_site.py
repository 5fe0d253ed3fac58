"""What scripts/site_hooks.py makes of the pages for the site; `mkdocs build --strict` checks the site itself."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
for package in ("mkdocs", "latex2mathml"):
    pytest.importorskip(package, reason="needs the extra docs")


@pytest.fixture
def hooks(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import site_hooks

    return site_hooks


def shown(hooks: Any, page: str, markdown: str) -> str:
    return hooks.on_page_markdown(markdown, SimpleNamespace(file=SimpleNamespace(src_uri=page), meta={}), None, None)


@pytest.mark.parametrize(
    ("page", "written", "expected"),
    [
        ("index.md", "[a](docs/data.md#some-of-the-classes)", "[a](data.md#some-of-the-classes)"),
        ("index.md", "![a](docs/edit_sites.svg)", "![a](edit_sites.svg)"),
        ("index.md", '<img src="docs/edit_sites.svg">', '<img src="edit_sites.svg">'),
        ("index.md", "[![a](docs/edit_sites.svg)](SECURITY.md)", "[![a](edit_sites.svg)](security.md)"),
        ("index.md", "[a](#cite) and [b](https://arxiv.org)", "[a](#cite) and [b](https://arxiv.org)"),
        ("data.md", "[a](own_data.md), [b](../SECURITY.md)", "[a](own_data.md), [b](security.md)"),
        ("data.md", "[a](../conf/config.yaml) and [b](../tests)", "`conf/config.yaml` and `tests`"),
        ("api/runs.md", "[a](../code.md)", "[a](../code.md)"),
        ("benchmarks/speed.md", "![a](speed.svg)", "![a](speed.svg)"),
        ("data.md", "```\n[a](../SECURITY.md)\n```", "```\n[a](../SECURITY.md)\n```"),
    ],
)
def test_links(hooks: Any, page: str, written: str, expected: str) -> None:
    assert shown(hooks, page, written) == expected


def test_a_link_to_nothing_is_warned_of(hooks: Any, caplog: pytest.LogCaptureFixture) -> None:
    shown(hooks, "data.md", "[a](../conf/config.yaml)")
    assert not caplog.records
    assert shown(hooks, "data.md", "[a](../conf/no_such.yaml)") == "`conf/no_such.yaml`"
    assert "conf/no_such.yaml" in caplog.text


def test_lists_within_lists_stay(hooks: Any) -> None:
    import markdown

    page = "- one\n  - two\n\n    three\n\n- four\n\n  ```yaml\n  a:\n    b: 1\n  ```\n"
    html = markdown.markdown(shown(hooks, "data.md", page), extensions=["pymdownx.superfences"])
    assert html.count("<ul>") == 2
    assert html.count("<li>") == 3
    assert "a:\n  b: 1\n" in re.sub("<[^>]*>", "", html)


def test_formulas_need_no_script(hooks: Any) -> None:
    html = r'<p><span class="arithmatex">\(a &lt; b\)</span></p><div class="arithmatex">\[\frac{a}{b}\]</div>'
    made = hooks.on_page_content(html, None, None, None)
    assert made.count("<math") == 2
    assert made.count('display="block"') == 1
    assert "arithmatex" not in made
    assert "&#x0003C;" in made


@pytest.mark.parametrize("code", [0, 1, 2])
def test_without_a_report_the_site_is_built(hooks: Any, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def report(arguments: list[str]) -> int:
        if code == 2:
            raise SystemExit(2)  # argparse, of an unknown command
        if code == 0:
            Path(arguments[-1]).write_text("<html>the report</html>", encoding="utf-8")
        return code

    monkeypatch.setattr(hooks, "vlprompt", report)
    assert hooks.make_report() == ("<html>the report</html>" if code == 0 else "")
