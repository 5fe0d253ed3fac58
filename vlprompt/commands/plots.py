"""`vlprompt plot`: figures for papers."""

import argparse
from typing import Any

from vlprompt.commands.known_data import class_names
from vlprompt.commands.output import show_notes
from vlprompt.commands.selection import add_selection, naming_left_out, selected
from vlprompt.errors import UserError, unknown
from vlprompt.textfiles import path_of

KINDS = {
    "few-shot": "accuracy against shots, of each data set and on average",
    "base-novel": "novel against base accuracy, with contours of their harmonic mean",
    "open-world": "the same of base and novel images among all classes",
    "cost": "accuracy against trained parameters, time and FLOPs, with the Pareto front",
    "critical-difference": "mean ranks over data sets, and which do not differ",
    "reliability": "accuracy against confidence, a panel a learner",
    "confusion": "the pairs of classes that are confused most",
    "class-gains": "accuracy of each class less that of zero-shot",
    "training": "loss and accuracy by epoch",
    "forest": "differences to zero-shot on the same images, with intervals",
}
APPLIES = {
    "metric": ("few-shot", "base-novel", "cost", "critical-difference"),
    "split": tuple(kind for kind in KINDS if kind not in ("base-novel", "open-world", "training")),
    "against": ("class-gains", "forest"),
}
WIDTHS = ("column", "text")


def register(commands: Any) -> None:
    """Add `plot` to the sub-commands."""
    listed = "\n".join(f"  {name:<20} {text}" for name, text in KINDS.items())
    plot = commands.add_parser(
        "plot",
        help=f"figures: {', '.join(KINDS)}",
        description=f"Figures for papers, with vector fonts in PDF and SVG.\n\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    plot.add_argument("kind", metavar="KIND", help="few-shot, base-novel, cost, ...: see above")
    add_selection(plot)
    plot.add_argument("--split", help="the test that counts: base, novel, H, all, test; reliability: base,novel")
    plot.add_argument("--against", metavar="LEARNER", help="class-gains, forest: compare with it (default: zero_shot)")
    plot.add_argument(
        "--width",
        choices=WIDTHS,
        help="column: 3.35 inches, one of two columns; text: 6.9 inches (default: by the kind)",
    )
    plot.add_argument("--no-title", action="store_true", help="without the line that says what is drawn")
    plot.add_argument("--output", type=path_of, required=True, help="a file that ends with .pdf, .svg or .png")
    plot.set_defaults(command=draw)


def draw(options: argparse.Namespace) -> int:
    if options.kind not in KINDS:
        raise unknown("figure", options.kind, KINDS)
    for name, applies in APPLIES.items():
        if options.kind not in applies and getattr(options, name) not in (None, "accuracy"):
            raise UserError(f"--{name} has no effect on {options.kind}: leave it out, or draw {', '.join(applies)}")
    from vlprompt.reports.figures import kinds, style
    from vlprompt.reports.figures.cells import Request

    style.check_suffix(options.output)
    with style.styled():  # whether matplotlib is there, before anything is computed
        pass
    runs, notes = selected(options)
    kind = kinds.KINDS[options.kind]
    request = Request(options.metric, options.split, options.against, class_names)
    with naming_left_out(notes):
        table = kind.data(runs, request, notes)
    if options.no_title:
        table.attrs["title"] = ""
    figure = kind.draw(table, style.WIDTHS.get(options.width))
    style.save(figure, options.output)
    if (height := figure.get_figheight()) > style.PAGE:
        notes.append(f"The figure is {height:.1f} inches high, more than a page: choose learners by --where method=...")
    show_notes(notes)
    return 0
