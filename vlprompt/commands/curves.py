"""`vlprompt curve`: a metric against one setting, and where it comes near a reference."""

import argparse
from typing import Any

from vlprompt.commands.output import FORMATS, add_output, show
from vlprompt.commands.selection import add_selection, naming_left_out, selected
from vlprompt.errors import UserError


def register(commands: Any) -> None:
    """Add `curve` to the sub-commands."""
    curve = commands.add_parser("curve", help="accuracy against a setting: method.dimension, method.rank")
    curve.add_argument("key", metavar="KEY", help="a numeric setting: method.dimension")
    add_selection(curve)
    curve.add_argument("--split", help="the test that counts (default: the first: test, base)")
    curve.add_argument("--reference", metavar="METHOD", help="compare with this method: full_finetune")
    curve.add_argument("--share", type=float, default=0.9, help="how near is near enough, above 0 to 1 (default: 0.9)")
    add_output(curve, [name for name in FORMATS if name != "csv"])
    curve.set_defaults(command=show_curve)


def show_curve(options: argparse.Namespace) -> int:
    from vlprompt.reports.curves import curves
    from vlprompt.reports.render import general_notes
    from vlprompt.reports.summary import frame
    from vlprompt.results.metrics import complete

    if not 0 < options.share <= 1:
        raise UserError(f"--share is {options.share}, allowed is above 0 to 1")
    runs, notes = selected(options)
    records = complete(runs, options.metric, notes)
    how = {"split": options.split, "metric": options.metric, "against": options.reference}
    with naming_left_out(notes):
        drawn = curves(records, options.key, **how)
    notes = [*(curve.finding(options.share) for curve in drawn), *general_notes(frame(records)), *notes]
    show([curve.grid() for curve in drawn], [note for note in notes if note], options, [])
    return 0
