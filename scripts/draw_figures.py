"""Draw the figures of docs/figures.md again: run each of its commands, as it stands there, into docs/figures/.

python scripts/draw_figures.py [FOLDER]
"""

import shlex
import sys
from pathlib import Path

from vlprompt.cli import main

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "figures.md"


def commands(folder: Path) -> list[list[str]]:
    """The arguments of each command on the page, its file as an SVG in this folder."""
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("vlprompt plot")]
    return [
        [
            str(folder / Path(word).with_suffix(".svg")) if word.endswith(".pdf") else word
            for word in shlex.split(line.replace("results/demo", str(ROOT / "results" / "demo")))[1:]
        ]
        for line in lines
    ]


def draw(folder: Path) -> int:
    """-> the number of commands that failed."""
    return sum(main(arguments) != 0 for arguments in commands(folder))


if __name__ == "__main__":
    sys.exit(draw(Path(sys.argv[1]) if len(sys.argv) > 1 else PAGE.with_suffix("")))
