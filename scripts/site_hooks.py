"""What `mkdocs build` does in addition: files from outside docs/, links, lists as on GitHub, formulas, the report.

The pages are written for GitHub, where a link may lead to any file of the repository. On the site README.md is the
front page, the other files of `OUTSIDE` have names of their own, and of a link to anything else its path is shown.
"""

import posixpath
import re
import tempfile
from html import unescape
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import get_plugin_logger
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from vlprompt.cli import main as vlprompt

ROOT = Path(__file__).parents[1]
OUTSIDE = {
    "index.md": "README.md",
    "security.md": "SECURITY.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
    "data_root.md": "datasets/README.md",
    "benchmarks/speed.md": "results/benchmarks/speed.md",
    "benchmarks/speed.svg": "results/benchmarks/speed.svg",
    "benchmarks/loading.md": "results/benchmarks/loading.md",
    "benchmarks/faults.md": "results/benchmarks/fault_campaign.md",
    "published.md": "results/published/README.md",
    "demo_model.md": "vlprompt/demo/shapes_vit/README.md",
}
REPORT = "demo_report.html"  # the report of results/demo, which docs/example.md shows
LINK = re.compile(r'(?:\[(?P<text>[^\[\]]*)\]|\])\((?P<to>[^()\s]+)\)|\b(?P<name>src|srcset|href)="(?P<at>[^"\s]+)"')
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)

log = get_plugin_logger("site")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for name, path in OUTSIDE.items():
        if (ROOT / path).exists():
            files.append(File.generated(config, name, abs_src_path=str(ROOT / path)))
    files.append(File.generated(config, REPORT, content=make_report() or "No report could be made with this site."))
    return files


def make_report() -> str:
    """The report of the demo's records; empty where it cannot be made."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, REPORT)
        try:
            code = vlprompt(["report", str(ROOT / "results" / "demo"), "--output", str(path)])
        except SystemExit as stop:  # no such command
            code = int(stop.code or 0)
        if code or not path.exists():
            log.info("no report of results/demo: vlprompt report ended with %s", code)
            return ""
        return path.read_text(encoding="utf-8")


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    name = page.file.src_uri
    if name == "index.md":
        page.meta["hide"] = ["navigation"]  # whose only entry is this page
    source = OUTSIDE.get(name, f"docs/{name}")

    def link(match: re.Match[str]) -> str:
        to = match["to"] or match["at"]
        if re.match(r"#|\w+:", to):
            return match[0]
        path, _, anchor = to.partition("#")
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        target = site_name(path)
        if target is None:
            return match[0] if match["text"] is None else f"`{path}`"
        new = posixpath.relpath(target, posixpath.dirname(name) or ".") + (f"#{anchor}" if anchor else "")
        return match[0].replace(f"({to})", f"({new})") if match["to"] else f'{match["name"]}="{new}"'

    lines, fence = [], ""
    for line in markdown.splitlines():
        mark = re.match(r" *(`{3,})", line)
        if fence:
            lines.append(f"  {line}" if fence.startswith(" ") else line)
            fence = "" if line.strip() == fence.strip() else fence
        else:
            fence = mark[0] if mark else ""
            deeper = re.match(r" *", line)[0]  # type: ignore[index]
            lines.append("  " * bool(mark and deeper) + line if mark else deeper + LINK.sub(link, line))
    return "\n".join(lines)


def site_name(path: str) -> str | None:
    """The name on the site of a file of the repository; None for one that is not there."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    outside = {file: name for name, file in OUTSIDE.items()}
    if path not in outside and not (ROOT / path).exists():
        log.warning("a link leads to %s, which does not exist", path)
    return outside.get(path)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Formulas as MathML, which browsers show without a script."""
    display = {"div": "block", "span": "inline"}
    return FORMULA.sub(lambda formula: convert(unescape(formula[2]), display=display[formula[1]]), html)
