"""`vlprompt predict`: classify pictures with a trained model."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlprompt.commands.arguments import words
from vlprompt.commands.output import write
from vlprompt.errors import UserError, printable
from vlprompt.textfiles import path_of


def register(commands: Any) -> None:
    """Add it to the sub-commands."""
    text = "classify pictures with a trained model"
    parser = commands.add_parser("predict", help=text, description=text)
    parser.add_argument("run", help="a run's folder, a learner's folder, or hf://user/repo")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="files, folders, or patterns such as 'photos/*.jpg'")
    parser.add_argument("--top", type=int, default=1, help="how many classes of each picture")
    parser.add_argument("--classes", type=words, help="other names to choose from: zebra,okapi")
    parser.add_argument("--format", choices=("table", "csv", "jsonl"), default="table")
    parser.add_argument("--output", type=path_of, help="write into this file instead of showing")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda")
    parser.set_defaults(command=predict)


def predict(options: argparse.Namespace) -> int:
    """-> 0, or 1 where pictures were left out because they cannot be read."""
    from vlprompt.api import load
    from vlprompt.commands.pictures import find_pictures
    from vlprompt.training.progress import Reporter

    if options.top < 1:
        raise UserError(f"--top is {options.top}, allowed is a number of classes: 1 or more")
    paths = find_pictures(options.images)
    model = load(options.run, device=options.device)
    if options.classes is not None:
        model = model.with_classes(options.classes)
    damaged: list[UserError] = []
    rows: list[dict[str, Any]] = []
    with Reporter(aside=True).track("classifying", len(paths)) as track:
        for indices, logits in model.iterate(paths, damaged=lambda _, error: damaged.append(error)):
            best = logits.softmax(-1).cpu().topk(min(options.top, len(model.classes)))
            for index, labels, values in zip(indices, best.indices.tolist(), best.values.tolist(), strict=True):
                likely = [(model.classes[label], value) for label, value in zip(labels, values, strict=True)]
                rows.append({"image": str(paths[index]), "likely": likely})
            track.advance(len(indices))
    for error in damaged:
        print(printable(f"left out: {error}"), file=sys.stderr)  # noqa: T201
    if not rows:
        raise UserError(f"none of the {len(paths)} pictures can be read")
    show(rows, options.format, options.output)
    if damaged:
        print(f"{len(damaged)} of {len(paths)} pictures were left out", file=sys.stderr)  # noqa: T201
    return int(bool(damaged))


def show(rows: Sequence[dict[str, Any]], form: str, output: Path | None) -> None:
    """One line a picture as CSV or JSON; as a table one a class."""
    from vlprompt.reports.terminal import terminal_width

    if form == "jsonl":
        named = [{"image": row["image"], "classes": [{"class": c, "probability": p} for c, p in row["likely"]]}
                 for row in rows]  # fmt: skip
        write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in named), output)
    elif form == "csv":
        import pandas as pd

        from vlprompt.reports.escapes import csv

        columns = [{"image": row["image"]} | {f"{what}{'' if rank == 1 else f'_{rank}'}": value
                    for rank, pair in enumerate(row["likely"], 1)
                    for what, value in zip(("class", "probability"), pair, strict=True)} for row in rows]  # fmt: skip
        write(csv(pd.DataFrame(columns)), output)
    else:
        write(table(rows, None if output else terminal_width()), output)


def table(rows: Sequence[dict[str, Any]], width: int | None) -> str:
    """One line a class; the start of a path is cut where a line would not fit into the width of a terminal."""
    from tabulate import tabulate

    from vlprompt.reports.escapes import terminal

    names = [terminal(row["image"]) for row in rows]
    classes = [[(terminal(name), f"{value:.1%}") for name, value in row["likely"]] for row in rows]
    if width is not None:
        room = max(width - max(len(name) for of_row in classes for name, _ in of_row) - len("  probability  "), 12)
        names = [name if len(name) <= room else f"…{name[1 - room :]}" for name in names]
    lines = [(name if rank == 0 else "", *pair) for name, of_row in zip(names, classes, strict=True)
             for rank, pair in enumerate(of_row)]  # fmt: skip
    align = ("left", "left", "right")
    return tabulate(lines, ("image", "class", "probability"), disable_numparse=True, colalign=align) + "\n"
