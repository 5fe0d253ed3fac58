"""Tables of test-time methods, of calibration and of the open world on the page, where runs have what these show."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlprompt.config.about import display_name
from vlprompt.reports import at_test_time, scored
from vlprompt.reports.grid import Grid
from vlprompt.reports.report.notes import averages_in_words, in_print
from vlprompt.reports.report.tables import FILTERS, Cell, Row, Table
from vlprompt.results.record import Record

NUMBER = re.compile(r"[-+]?[\d,]+(\.\d+)?")


@dataclass(frozen=True)
class Section:
    id: str
    title: str
    tables: list[Table]
    notes: list[str]


def sections(runs: Mapping[Path, Record], metric: str) -> list[Section]:
    """Those that these runs have; of scores that are in the records, since predictions are many to read."""
    made = []
    if any(record.test_time and record.scores for record in runs.values()):
        grids, costs, _, notes = at_test_time.tables(list(runs.values()), metric)
        made.append(_section("test-time", "At test time", [*grids, *costs], notes))
    for name, title, needed in (
        ("calibration", "Calibration", "overconfidence"),
        ("open_world", "Open world", "open_auroc"),
    ):
        if having := {folder: r for folder, r in runs.items() if any(needed in scores for scores in r.scores.values())}:
            grids, _, notes = scored.tables(having, name)
            made.append(_section(name.replace("_", "-"), title, grids, notes))
    return made


def _section(id: str, title: str, grids: Sequence[Grid], notes: Sequence[str]) -> Section:
    tables = [of_grid(grid, f"{title}: table {i + 1}") for i, grid in enumerate(grids)]
    return Section(id, title, tables, in_print(notes))


def of_grid(grid: Grid, caption: str) -> Table:
    """A table of texts as the page has them: methods as papers print them, numbers that sort, without its extras."""
    gathered = grid.gathered([name for name in grid.constants if name not in FILTERS])
    columns = [name for name in map(str, gathered.rows) if name not in (*grid.extras, "variant")]
    title = (part.partition(" ") for part in gathered.title.partition(";")[0].split(", "))
    shared = {name: value for name, _, value in title if name in FILTERS}
    rows = []
    for i, row in enumerate(grid.rows.to_dict("records")):
        cells = [_cell(name, row, grid.marks.get((i, name), ""), grid.keys) for name in columns]
        keys = shared | {name: str(row[name]) for name in FILTERS if name in row}
        rows.append(Row(cells, keys))
    texts = frozenset(name for name in columns if name in grid.keys)
    return Table(averages_in_words(gathered.title) or caption, columns, rows, texts, "method")


def _cell(name: str, row: Mapping[Any, Any], mark: str, keys: Sequence[str]) -> Cell:
    text = str(row[name])
    if name == "method":
        return Cell(display_name(text, row.get("variant") or None) if text != "all" else text)
    if name in keys:
        return Cell(averages_in_words(text))
    number = NUMBER.match(text)
    return Cell(text, float(number[0].replace(",", "")) if number else None, mark)
