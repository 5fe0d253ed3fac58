"""What a run or a sweep says last: where its records lie, and the command that comes next."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from vlprompt.config.paths import results_root
from vlprompt.errors import printable
from vlprompt.reports.layouts import PAPERS
from vlprompt.results.record import Record

MOST_VALUES = 6  # of one condition


def next_steps(records: Sequence[Record]) -> str:
    """A line on the records, and one with the command that shows them next to others of their kind."""
    root = results_root()
    if len(records) == 1:
        where = f"record: {near(records[0].folder(root))}"
    else:
        where = f"records: {len(records)} below {near(root)}"
    conditions = []
    for key in ("protocol", "dataset"):
        values = list(dict.fromkeys(str(getattr(record, key)) for record in records))
        if len(values) <= MOST_VALUES:
            conditions.append(shlex.quote(f"{key}={','.join(values)}"))
    where_clause = ["--where", *conditions] if conditions else []
    protocols, datasets = ({getattr(record, key) for record in records} for key in ("protocol", "dataset"))
    layout = [f"--layout {p}" for p in protocols if len(protocols) == 1 < len(datasets) and p in PAPERS]
    return printable(f"{where}\nnext: {' '.join(['vlprompt table', *layout, *where_clause])}")


def near(path: Path) -> Path:
    """A path as it is typed from here."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
