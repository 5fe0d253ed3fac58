"""Tables as papers print them: base, novel and H of each data set; data sets side by side; averages."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from vlprompt.errors import UserError, unknown
from vlprompt.reports.lines import PARTS, Line, average_name, averaged, datasets_of
from vlprompt.reports.render import BEST, SECOND, Grid, spread_text
from vlprompt.reports.statistics import Interval, Spread
from vlprompt.reports.summaries import place
from vlprompt.results.metrics import Measure, measure
from vlprompt.results.record import Record

PROTOCOLS = ("base_to_novel", "few_shot", "cross_dataset", "domain_generalization")
LAYOUTS = ("runs", *PROTOCOLS, "auto", "published")
H_NOTE = (
    "H: harmonic mean of the means of base and novel, as published. mean of H: the mean of harmonic means, over seeds "
    "for a data set, over data sets for an average."
)
N_NOTE = "±: sample deviation over n seeds; of an average, that of the seeds' averages."
MOST_NAMED = 20  # runs without a result that are named one by one


def of_layout(records: Sequence[Record], layout: str) -> tuple[list[Record], list[str]]:
    """The records that a layout shows, and a note on the others. Raises: UserError where it shows none."""
    if layout not in LAYOUTS:
        raise unknown("layout", layout, LAYOUTS)
    if layout not in PROTOCOLS:
        return list(records), []
    kept = [record for record in records if record.protocol == layout]
    others = sorted({record.protocol for record in records} - {layout})
    if records and not kept:
        raise UserError(f"there are no runs of {layout} (but of {', '.join(others)}): use --layout auto")
    note = f"Not in this layout: {len(records) - len(kept)} runs of {', '.join(others)}."
    return kept, [note] if others else []


def grids(lines: Sequence[Line], metric: str = "accuracy") -> list[Grid]:
    """A table for each protocol, source, backbone and weights (of base-to-novel: and number of shots)."""
    groups: dict[tuple, list[Line]] = {}
    for line in lines:
        tall = line.protocol == "base_to_novel"
        groups.setdefault(line.context if tall else line.context[:-1], []).append(line)
    make = {True: _by_dataset, False: _side_by_side}
    ordered = sorted(groups.values(), key=lambda members: str(members[0].context[:4]))
    return [make[m[0].protocol == "base_to_novel"](sorted(m, key=_place), measure(metric)) for m in ordered]


def notes_of(lines: Sequence[Line], interval: Interval = "none") -> list[str]:
    """What a reader must know: how H is made, and which runs have no result."""
    stopped = {r.key: r for line in lines for r in line.records if r.status != "finished"}
    notes = [H_NOTE] if any(part == "H" for line in lines for _, part in line.spreads) else []
    named = [
        f"{cell.learner} on {cell.dataset}, {cell.protocol}, {cell.shots} shots, seed {cell.seed}: "
        f"{record.status.replace('_', ' ')}, {' '.join((record.reason or 'no reason kept').split())}"
        for cell, record in list(stopped.items())[:MOST_NAMED]
    ]
    more = [f"... and {len(stopped) - MOST_NAMED} more without a result (--layout runs counts them)."]
    deviations = any(pd.notna(s.deviation) for line in lines for s in line.spreads.values())
    return [*[N_NOTE] * (deviations and interval != "normal"), *notes, *named, *more * (len(stopped) > MOST_NAMED)]


def _place(line: Line) -> tuple:
    return place({name: getattr(line, name) for name in ("shots", "method", "variant", "precision")})


def _by_dataset(lines: Sequence[Line], shown: Measure) -> Grid:
    """Rows: data sets, in each the learners; columns: the parts. The average comes last."""
    datasets = [*datasets_of(lines), *[average_name(lines)] * (len(averaged(lines)) > 1)]
    found = {part for line in lines for _, part in line.spreads}
    parts = [part for part in PARTS if part in found] + sorted(found - set(PARTS))
    rows: list[dict[str, Any]] = []
    spreads: list[dict[str, Spread]] = []
    for dataset in datasets:
        for line in lines:
            here = {part: line.spreads[dataset, part] for part in parts if (dataset, part) in line.spreads}
            n = max((spread.n for spread in here.values()), default=0)
            rows.append({"dataset": dataset, **_identity(line), "n": str(n)})
            spreads.append(here)
    return _grid(lines, rows, spreads, parts, shown, blocks=[row["dataset"] for row in rows])


def _side_by_side(lines: Sequence[Line], shown: Measure) -> Grid:
    """Rows: numbers of shots, in each the learners; columns: data sets and their average."""
    parts = dict.fromkeys(part for line in lines for _, part in line.spreads)
    names = [*datasets_of(lines), *dict.fromkeys(average_name([line]) for line in lines)]
    names += [name for line in lines for name, _ in line.spreads if name not in names]
    columns = [(name, part) for name in dict.fromkeys(names) for part in parts]
    columns = [place for place in columns if any(place in line.spreads for line in lines)]
    rows: list[dict[str, Any]] = []
    spreads: list[dict[str, Spread]] = []
    for line in lines:
        here = {_heading(place): line.spreads[place] for place in columns if place in line.spreads}
        seeds = sorted({spread.n for spread in here.values()}) or [0]
        n = str(seeds[0]) if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
        rows.append({"shots": str(line.shots), **_identity(line), "n": n})
        spreads.append(here)
    return _grid(lines, rows, spreads, list(map(_heading, columns)), shown, blocks=[row["shots"] for row in rows])


def _heading(place: tuple[str, str]) -> str:
    dataset, part = place
    return dataset if part == "test" else f"{dataset} ({part})"


def _identity(line: Line) -> dict[str, str]:
    found = {"precision": line.precision, "method": line.method, "variant": line.variant, **line.extra}
    return {name: "" if value is None else str(value) for name, value in found.items()}


def _grid(
    lines: Sequence[Line],
    rows: list[dict[str, Any]],
    spreads: list[dict[str, Spread]],
    columns: Sequence[str],
    shown: Measure,
    *,
    blocks: Sequence[str],
) -> Grid:
    """The cells as text, the best and second of each block and column marked, what all rows share in the title."""
    for row, here in zip(rows, spreads, strict=True):
        for column in columns:
            s = here.get(column, Spread(0, float("nan"), float("nan"), float("nan")))
            row[column] = spread_text(s.mean, s.deviation, s.half_width, decimals=shown.decimals)
    table = pd.DataFrame(rows)
    first = lines[0]
    title = {"protocol": first.protocol, "source": first.source, "backbone": first.backbone, "weights": first.weights}
    if "shots" not in table:
        title["shots"] = str(first.shots)
    constant = [name for name in ("precision", "variant", "shots") if name in table and table[name].nunique() == 1]
    title |= {name: table[name].iloc[0] for name in constant}
    table = table.drop(columns=constant)
    text = ", ".join(f"{name} {value}" for name, value in title.items() if value) + f"; {shown.label}"
    return Grid(text, table, _marks(spreads, columns, blocks, shown), blocks)


def _marks(
    spreads: Sequence[dict[str, Spread]], columns: Sequence[str], blocks: Sequence[str], shown: Measure
) -> dict[tuple[int, str], str]:
    """Equal means, as printed, share a mark."""
    marks: dict[tuple[int, str], str] = {}
    for block in dict.fromkeys(blocks):
        inside = [i for i, name in enumerate(blocks) if name == block]
        for column in columns:
            means = {i: round(spreads[i][column].mean, shown.decimals) for i in inside if column in spreads[i]}
            order = sorted(set(means.values()), reverse=shown.higher_is_better)
            if len(means) > 1:
                for name, value in zip((BEST, SECOND), order, strict=False):
                    marks |= {(i, column): name for i, mean in means.items() if mean == value}
    return marks


def distance_grid(table: pd.DataFrame) -> Grid:
    """Published numbers, each with ours less theirs behind it, as `published.distances` has them."""
    shown = pd.DataFrame(index=table.index)
    for name in table:
        if name in ("recipe", "n") or str(name).endswith("_difference"):
            continue
        part = str(name).removesuffix("_published")
        if part != name:
            pairs = zip(table[name], table[f"{part}_difference"], strict=True)
            shown[part] = [
                "" if pd.isna(value) else f"{value:.2f} ({round(gap, 2) + 0.0:+.2f})" for value, gap in pairs
            ]
        elif f"{name}_published" not in table:
            shown[name] = ["" if pd.isna(value) else str(value) for value in table[name]]
    shared = [name for name in ("protocol", "backbone", "variant", "source") if shown[name].nunique() == 1]
    title = ", ".join(f"{name} {shown[name].iloc[0]}" for name in shared if shown[name].iloc[0])
    return Grid(f"Distance to the papers: {title}", shown.drop(columns=shared), blocks=table["dataset"].tolist())
