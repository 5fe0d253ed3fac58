"""How far runs are from the papers' numbers, and whether the noise of seeds explains it."""

from collections.abc import Mapping, Sequence

from vlprompt.config.about import display_name
from vlprompt.reports.published import SettingsOf, status
from vlprompt.reports.report.again import reproduction
from vlprompt.reports.report.notes import averages_in_words
from vlprompt.reports.report.tables import Cell, Row, Table, cell, keys_of
from vlprompt.reports.summary import UNTRAINED
from vlprompt.reports.variants import labels
from vlprompt.reports.verdict import Published, Verdict, judge, read_published, scores_of
from vlprompt.results.record import Record

Cells = Mapping[tuple[str, str, str, object], list[Record]]  # by protocol, backbone, data set and shots
COLUMNS = ["method", "protocol", "dataset", "backbone", "shots", "metric", "published", "ours", "n", "difference"]
COLUMNS += ["allowed", "within", "settings", "source"]
TEXTS = frozenset(["method", "protocol", "dataset", "backbone", "metric", "within", "settings", "source"])


def distances(records: Sequence[Record], settings_of: SettingsOf) -> tuple[Table | None, Table | None]:
    """The published numbers of the same cells as these runs, and the commands that compare with them again."""
    learners: dict[tuple[str, str], dict[tuple[str, str, str, object], list[Record]]] = {}
    for record, label in zip(records, labels(records), strict=True):
        if record.status == "finished" and all("accuracy" in scores for scores in record.scores.values()):
            cell_of = record.protocol, record.backbone, record.dataset, record.shots
            learners.setdefault((record.method, label), {}).setdefault(cell_of, []).append(record)
    known = {method for method, _ in learners}
    published = [row for row in read_published() if row.method in known]
    rows: list[Row] = []
    wanted: dict[tuple[str, str, str], list[Published]] = {}
    for (method, label), cells in learners.items():
        for row in published:
            if row.method == method and (compared := compare(row, cells)):
                verdict, of_cells = compared
                rows.append(_row(display_name(label), verdict, status(of_cells, row.recipe, settings_of)))
                wanted.setdefault((method, row.protocol, row.backbone), []).append(row)
    if not rows:
        return None, None
    return Table("Distance to the papers, accuracies in percent", COLUMNS, rows, TEXTS, "method"), _again(wanted)


def compare(row: Published, cells: Cells) -> tuple[Verdict, list[Record]] | None:
    """The verdict on a published number, and the runs that it rests on; None where there are none."""
    requests = [row.key(member) for member in row.members]
    of_cells = {r: cells.get((r.protocol, r.backbone, r.dataset, r.shots), []) for r in requests}
    verdict = judge(row, {request: [scores_of(record) for record in of] for request, of in of_cells.items()})
    return (verdict, [record for of in of_cells.values() for record in of]) if verdict.n else None


def _row(name: str, verdict: Verdict, settings: str) -> Row:
    row, mean = verdict.row, verdict.mean or 0.0
    ours = f"{mean:.2f}" + ("" if verdict.deviation is None else f" ± {verdict.deviation:.2f}")
    cells = [
        Cell(name),
        *(cell(averages_in_words(str(getattr(row, key)))) for key in COLUMNS[1:6]),
        cell(row.value, ".2f"),
        Cell(ours, mean),
    ]
    cells += [cell(verdict.n, "d"), cell(mean - row.value, "+.2f"), cell(verdict.tolerance, ".2f")]
    cells += [
        Cell({"inside": "yes", "outside": "no"}.get(verdict.verdict, verdict.verdict)),
        Cell(settings),
        Cell(row.source),
    ]
    return Row(cells, keys_of(vars(row)))


def _again(wanted: Mapping[tuple[str, str, str], Sequence[Published]]) -> Table:
    rows = []
    for (method, protocol, backbone), of_cell in wanted.items():
        datasets = [row.dataset for row in of_cell]
        shots = [row.shots for row in of_cell if row.shots != UNTRAINED]
        words = reproduction(method, protocol, backbone, datasets, shots)
        rows.append(
            Row([Cell(display_name(method)), Cell(protocol), Cell(backbone), Cell(words)], {"protocol": protocol})
        )
    columns = ["method", "protocol", "backbone", "command"]
    return Table("Published numbers, run again", columns, rows, frozenset(columns), "method")
