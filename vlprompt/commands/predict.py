"""`vlprompt predict`: classify pictures with a trained model."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlprompt.commands.arguments import positive, words
from vlprompt.commands.output import check_writable, write
from vlprompt.errors import UserError, printable
from vlprompt.textfiles import path_of

Row = tuple[str, list[tuple[str, float]]]  # a picture, and its likeliest classes with their probabilities


def register(commands: Any) -> None:
    """Add it to the sub-commands."""
    text = "classify pictures with a trained model"
    parser = commands.add_parser("predict", help=text, description=text)
    parser.add_argument("run", metavar="RUN", help="a run's folder, a learner's folder, or hf://owner/name")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="files, folders, or patterns such as 'photos/*.jpg'")
    parser.add_argument("--top", type=positive, default=1, metavar="N", help="classes of each picture (default: 1)")
    parser.add_argument("--classes", type=words, metavar="A,B,C", help="other names to choose from: zebra,okapi")
    parser.add_argument("--format", choices=("table", "csv", "jsonl"), default="table")
    parser.add_argument("--output", type=path_of, metavar="FILE", help="write into this file instead of showing")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    parser.set_defaults(command=predict, resumes=False)


def predict(options: argparse.Namespace) -> int:
    """-> 0, or 1 where pictures were left out because they cannot be read."""
    from vlprompt.commands.pictures import find_pictures

    check_writable(options.output)
    paths = find_pictures(options.images)

    from vlprompt.api import load  # which takes seconds
    from vlprompt.training.progress import Reporter

    model = load(options.run, device=options.device)
    if options.classes is not None:
        model = model.with_classes(options.classes)
    damaged: list[UserError] = []
    rows: list[Row] = []
    with Reporter(aside=True).track("classifying", len(paths)) as track:
        for indices, logits in model.iterate(paths, damaged=lambda _, error: damaged.append(error)):
            best = logits.softmax(-1).cpu().topk(min(options.top, len(model.classes)))
            for index, labels, values in zip(indices, best.indices.tolist(), best.values.tolist(), strict=True):
                rows.append((str(paths[index]), [(model.classes[i], p) for i, p in zip(labels, values, strict=True)]))
            track.advance(len(rows) + len(damaged) - track.done)
    for error in damaged:
        print(printable(f"left out: {error}"), file=sys.stderr)  # noqa: T201
    if not rows:
        raise UserError(f"no picture can be read of the {len(paths)} that were given")
    write({"table": table, "csv": csv, "jsonl": jsonl}[options.format](rows, options.output), options.output)
    if damaged:
        print(f"{len(damaged)} of {len(paths)} pictures left out", file=sys.stderr)  # noqa: T201
    return int(bool(damaged))


def jsonl(rows: Sequence[Row], _: Path | None = None) -> str:
    """One object a picture, with names exactly as they are; of bytes that are no text as \\udcff."""
    named = [{"image": image, "classes": [{"class": name, "probability": p} for name, p in likely]}
             for image, likely in rows]  # fmt: skip
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in named)
    return lines.encode("utf-8", "backslashreplace").decode()


def csv(rows: Sequence[Row], _: Path | None = None) -> str:
    """One line a picture: class, probability, class_2, probability_2, ..."""
    import pandas as pd

    from vlprompt.reports.escapes import csv

    columns = [{"image": image} | {f"{what}_{rank}".removesuffix("_1"): value
                                   for rank, pair in enumerate(likely, 1)
                                   for what, value in zip(("class", "probability"), pair, strict=True)}
               for image, likely in rows]  # fmt: skip
    return csv(pd.DataFrame(columns))


def table(rows: Sequence[Row], output: Path | None = None) -> str:
    """One line a class. On a terminal, the end of a path that is too long stays, and the start of a class's name."""
    import pandas as pd
    from rich.cells import cell_len, set_cell_size

    from vlprompt.reports.escapes import terminal
    from vlprompt.reports.grid import Grid
    from vlprompt.reports.render import render_grids
    from vlprompt.reports.terminal import shortened, terminal_width

    names, width = [terminal(image) for image, _ in rows], None if output else terminal_width()
    rows = [("", [(terminal(name), p) for name, p in likely]) for _, likely in rows]
    if width is not None:
        of_class = min(max(cell_len(name) for _, likely in rows for name, _ in likely), width // 3)
        room = max(width - max(of_class, len("class")) - len("  probability  "), 12)
        names = [n if cell_len(n) <= room else "…" + set_cell_size(n[::-1], room - 1)[::-1].lstrip() for n in names]
        rows = [("", [(shortened(name, of_class), p) for name, p in likely]) for _, likely in rows]
    lines = [("" if rank else shown, name, f"{p:.3f}") for shown, (_, likely) in zip(names, rows, strict=True)
             for rank, (name, p) in enumerate(likely)]  # fmt: skip
    grid = Grid("", pd.DataFrame(lines, columns=["image", "class", "probability"], dtype=object))
    return render_grids([grid], [], "terminal", width=width)
