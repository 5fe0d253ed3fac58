"""Write the committed tables again, from the records that are committed with them.

    python scripts/refresh_tables.py                            # results/tables/*.md, and all pages with tables
    python scripts/refresh_tables.py results/tables/costs.md

A table stands after `<!-- vlprompt ... -->`, the command that prints it, up to the next `<!-- end -->` or the end of
the file. What a command cannot print here (trained learners are not committed) stays as it is, and is named.
"""

import io
import os
import re
import shlex
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path

from vlprompt.cli import main as vlprompt
from vlprompt.data.disk import whole_file

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "docs/demo_results.md", "docs/real_images.md")
TABLE = re.compile(r"(<!-- vlprompt (?P<command>.*?) -->\n).*?(?=<!-- end -->|\Z)", re.DOTALL)


def refresh(path: Path) -> list[str]:
    """Fill a file's tables; -> the commands that failed."""
    failed = []

    def fill(table: re.Match[str]) -> str:
        out = io.StringIO()
        with redirect_stdout(out):
            code = vlprompt(shlex.split(table["command"]))
        if code:
            failed.append(table["command"])
            return table[0]
        return f"{table[1]}\n{out.getvalue().strip()}\n" + ("\n" if table.end() < len(table.string) else "")

    text = TABLE.sub(fill, path.read_text(encoding="utf-8"))
    with whole_file(path) as draft:
        draft.write_text(text, encoding="utf-8")
    return failed


def main(paths: Sequence[str] = ()) -> None:
    os.chdir(ROOT)  # commands name folders from here
    pages = [*sorted((ROOT / "results" / "tables").glob("*.md")), *map(ROOT.joinpath, PAGES)]
    failed = {str(path): refresh(path) for path in map(Path, paths or pages)}
    for path, commands in failed.items():
        for command in commands:
            print(f"left as it was in {path}: vlprompt {command}", file=sys.stderr)


if __name__ == "__main__":
    main(sys.argv[1:])
