"""`vlprompt explain`: where a trained model looks in pictures, compared with the frozen one."""

import argparse
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlprompt.commands.output import show_notes, show_rows
from vlprompt.errors import UserError
from vlprompt.textfiles import absolute, path_of

if TYPE_CHECKING:
    from vlprompt.explain.maps import Explanation, Side

FORMATS = ("png", "pdf", "svg")
LONGEST = 80  # characters of a name


def register(commands: Any) -> None:
    """Add `explain` to the sub-commands."""
    text = "where a trained model looks in pictures: attention and similarity to the class, next to the frozen model's"
    parser = commands.add_parser("explain", help=text, description=text)
    parser.add_argument("run", metavar="RUN", help="a run's folder, a learner's folder, or hf://owner/name")
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="files, folders, or patterns such as 'photos/*.jpg'")
    parser.add_argument("--output", metavar="DIR", type=path_of, required=True, help="the folder of the drawings")
    parser.add_argument("--format", choices=FORMATS, default="png", help="of the drawings (default: png, of 200 dpi)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    parser.set_defaults(command=explain)


def explain(options: argparse.Namespace) -> int:
    """-> 0, or 1 where pictures were left out because they cannot be read."""
    from vlprompt.reports.figures import style

    with style.styled():  # whether matplotlib is there, before anything is loaded
        pass
    from vlprompt.api import load
    from vlprompt.commands.pictures import find_pictures
    from vlprompt.data.photos import crop
    from vlprompt.explain.maps import Explainer
    from vlprompt.explain.picture import draw
    from vlprompt.training.progress import Reporter

    images = find_pictures(options.images)
    make_folder(options.output)
    model = load(options.run, device=options.device)
    explainer, reporter = Explainer(model), Reporter(aside=True)
    rows, notes, damaged = [], list[str](), 0
    targets = names_for(images, options.output, options.format)
    with reporter.track("pictures", len(images)) as bar:
        for image, target in zip(images, targets, strict=True):
            try:
                photo = crop(image, model.clip.preprocess, as_shown=model.as_shown)
            except UserError as error:
                damaged += 1
                reporter.say(f"left out: {error}")
            else:
                explanation = explainer(photo)
                style.save(draw(explanation, shown(image)), target)
                rows.append(row_of(explanation, target))
                notes += [*explanation.frozen.notes, *explanation.adapted.notes]
            bar.advance()
    if rows:
        show_rows(rows, f"drawings in {options.output}", keys=["drawing"])
    show_notes(notes)
    if damaged:
        sys.stderr.write(f"{damaged} of {len(images)} pictures could not be read.\n")
    if not rows:
        raise UserError(f"none of the {len(images)} pictures can be read")
    return int(bool(damaged))


def make_folder(folder: Path) -> None:
    """Raises: UserError where there can be none."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output={folder} cannot be made a folder: {error.strerror}") from None


def names_for(images: Sequence[Path], folder: Path, suffix: str) -> Iterator[Path]:
    """A file for each picture's drawing, named after it, and after its folder where several have that name.

    None is one of the pictures themselves, and none is there twice, also where case does not count.
    """
    taken = {str(absolute(image).resolve()).lower() for image in images}
    called = Counter(image.stem.lower() for image in images)
    for image in images:
        whole = absolute(image)
        stems = [safe(whole.stem), safe(f"{whole.parent.name}_{whole.stem}")][called[image.stem.lower()] > 1 :]
        numbered = (f"{stems[-1]}_{n}" for n in count(2))
        paths = (folder / f"{stem}.{suffix}" for stem in chain(stems, numbered))
        target = next(path for path in paths if str(path.resolve()).lower() not in taken)
        taken.add(str(target.resolve()).lower())
        yield target


def safe(stem: str) -> str:
    """Letters, digits, dots and hyphens; no hidden file, and not too long."""
    return re.sub(r"[^\w.-]+", "_", stem).strip("._")[-LONGEST:] or "picture"


def shown(image: Path) -> str:
    """A picture's name with that of its folder."""
    return "/".join(absolute(image).parts[-2:])


def row_of(explanation: "Explanation", target: Path) -> dict[str, str]:
    """What both models say, as a line of the table."""
    sides = {"frozen": explanation.frozen, "adapted": explanation.adapted}
    return {"drawing": target.name, **{name: prediction(explanation.classes, side) for name, side in sides.items()}}


def prediction(classes: Sequence[str], side: "Side") -> str:
    """A class and its probability."""
    if side.probabilities is None:
        return ""
    best = int(side.probabilities.argmax())
    return f"{classes[best]} {100 * float(side.probabilities[best]):.1f} %"
