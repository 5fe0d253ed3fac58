"""`vlprompt interpret`: what a trained learner holds."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlprompt.commands.arguments import positive, words
from vlprompt.commands.output import show_notes, write
from vlprompt.errors import UserError
from vlprompt.textfiles import path_of

if TYPE_CHECKING:
    from torch import Tensor

    from vlprompt.interpret.view import View
    from vlprompt.learners.base import Learner

FORMATS = ("table", "markdown", "csv", "json")
ABOUT = (
    "Look inside a trained learner: the words nearest to each vector of a context, where the weights changed, what a "
    "cache holds, which texts the classes are near to."
)


def register(commands: Any) -> None:
    """Add `interpret` to the sub-commands."""
    parser = commands.add_parser(
        "interpret", help="what a trained learner holds, in words and numbers", description=ABOUT
    )
    parser.add_argument("run", metavar="RUN", help="a run's folder, a learner's folder, or hf://owner/name")
    parser.add_argument(
        "images", metavar="IMAGE", nargs="*",
        help="pictures: of tip_adapter the training images nearest to them; others are measured on them",
    )  # fmt: skip
    parser.add_argument("--classes", type=words, help="only these, of what there is for each class: cat,dog")
    parser.add_argument("--top", type=positive, default=3, help="nearest words or images of each (default: 3)")
    parser.add_argument("--tensors", action="store_true", help="all trained tensors, too")
    parser.add_argument("--format", choices=FORMATS, default="table")
    parser.add_argument("--output", type=path_of, metavar="FIGURE", help="a figure, too: .pdf, .svg or .png")
    parser.set_defaults(command=interpret)


def interpret(options: argparse.Namespace) -> int:
    if options.output:
        from vlprompt.reports.figures import style

        style.check_suffix(options.output)
        with style.styled():  # whether matplotlib is there, before anything is computed
            pass
    from vlprompt.api import folder_of
    from vlprompt.commands.pictures import find_pictures
    from vlprompt.interpret.look import Asked, before_training, look

    folder = folder_of(options.run)
    learner, as_shown = load(folder)
    images = find_pictures(options.images)
    pixels = read_images(images, learner, as_shown=as_shown)
    views = look(
        learner,
        Asked(options.classes, options.top, options.tensors),
        pixels=pixels,
        names=[str(path) for path in images],
        cached=cached_images(folder, learner),
        start=before_training(learner, folder),
    )
    kind = type(learner).__name__
    if not views:
        views = [nothing(kind)]
    show(views, f"{kind} over {learner.clip.name}, {len(learner.classes)} classes", options.format)
    if options.output:
        draw(views, kind, options.output)
    return 0


def load(folder: Path) -> tuple["Learner", bool]:
    """The learner on the CPU with its frozen model in full precision, and whether its images were taken as shown."""
    from vlprompt.config.build import saved_learner

    learner, _, as_shown = saved_learner(folder)
    return learner, as_shown


def read_images(paths: Sequence[Path], learner: "Learner", *, as_shown: bool) -> "Tensor | None":
    """Pixels [B, 3, H, W] of the pictures named; None of none. Raises: UserError of a damaged one."""
    import torch

    from vlprompt.data.photos import crop
    from vlprompt.data.transforms import normalise

    pre = learner.clip.preprocess
    crops = [crop(path, pre, as_shown=as_shown) for path in paths]
    return normalise(torch.stack(crops), pre) if crops else None


def cached_images(folder: Path, learner: "Learner") -> list[str] | None:
    """Names of the training images in the order of a cache; None where there is no cache, or no data set here."""
    from vlprompt.config.build import make_episode
    from vlprompt.config.spec import spec_of_record
    from vlprompt.learners.tip_adapter import TipAdapter
    from vlprompt.results.record import Record

    record = Record.read(folder)
    if not isinstance(learner, TipAdapter) or record is None or record.imported:
        return None
    try:
        items = make_episode(spec_of_record(folder, record, device="cpu")).train.items
    except (UserError, OSError):
        return None
    same = [item.label for item in items] == learner.labels.tolist()
    return [item.image for item in items] if same else None


def nothing(kind: str) -> "View":
    import pandas as pd

    from vlprompt.interpret.view import View

    text = f"{kind} trains nothing: it is the frozen model with its classes in words, so there is nothing to look at."
    return View("nothing", pd.DataFrame(), {}, [text])


def show(views: Sequence["View"], title: str, format: str) -> None:
    """All views below one another; in CSV and JSON the numbers, with the notes on stderr or in it."""
    from vlprompt.reports.escapes import csv
    from vlprompt.reports.grid import Grid
    from vlprompt.reports.render import render_grids
    from vlprompt.reports.terminal import terminal_width

    if format == "json":
        rows = [json.loads(view.table.to_json(orient="records", double_precision=15)) for view in views]
        parts = [{"title": v.title, "rows": r, "notes": v.notes} for v, r in zip(views, rows, strict=True)]
        write(json.dumps({"learner": title, "views": parts}, indent=2, ensure_ascii=False) + "\n", None)
        return
    if format == "csv":
        write("\n".join(csv(view.table) for view in views if len(view.table)), None)
        show_notes([note for view in views for note in view.notes])
        return
    for i, view in enumerate(views):
        head = f"{title}: {view.title}" if i == 0 else view.title
        grids = [
            Grid(f"{head}{': ' * bool(name)}{name}" if n == 0 else name, cells, keys=view.keys, shared=("layer",))
            for n, (name, cells) in enumerate(view.grids.items())
        ]
        form, width = ("markdown", None) if format == "markdown" else ("terminal", terminal_width())
        write(("\n" if i else "") + render_grids(grids, view.notes, form, width=width), None)


def draw(views: Sequence["View"], kind: str, output: Path) -> None:
    from vlprompt.reports.figures import inside, style

    view = next((view for view in views if view.figure is not None), None)
    if view is None or view.figure is None:
        raise UserError(f"there is nothing to draw of {kind}: leave out --output")
    with style.styled():
        figure = inside.draw(view.figure, f"{kind}: {view.title}")
    style.save(figure, output)
