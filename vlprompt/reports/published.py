"""The papers' numbers, and how results differ from them."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from vlprompt.config import recipes
from vlprompt.config.paths import published_dir
from vlprompt.errors import UserError, unknown
from vlprompt.reports.averages import identity, in_papers_order, in_parts_order
from vlprompt.reports.filters import at_shots, shots_of
from vlprompt.reports.summary import UNTRAINED, is_transfer
from vlprompt.results.record import Record

COLUMNS = ("source", "protocol", "dataset", "method", "backbone", "shots", "metric", "value")  # recipe, printed: or ""
SECTIONS = ("method", "fit", "bank", "augment", "backbone", "protocol")
"""The parts of a configuration that a published setting is compared with; precision and device are no part of it."""
UNKNOWN, SAME, DIFFER = "setting unknown", "as published", "settings differ"
TRAINED_ON = "imagenet"  # by what is published of transfer to other data sets
PAPERS = {
    "multimodal-prompt-learning": "MaPLe", "Multi-Modal-Adapter": "MMA", "QCoOp/QMaPLe": "QMaPLe", "vpt": "VPT",
    "Awesome-Prompt-Adapter-Learning-for-VLMs": "Awesome-list",
}  # fmt: skip
"""By the name of the repository, where that is not the method's."""
SHOWN = 6  # differences named in one cell

SettingsOf = Callable[[Record, str], Mapping[str, Any] | None]
"""The configuration that a recipe gives for a record's cell; None where it cannot be composed."""


def load(paths: Sequence[Path] = ()) -> pd.DataFrame:
    """All published rows; `part` is the metric in the words of tables, `shots` a number where it is one.

    `paths`: by default the package's files. Raises: UserError where there are no rows, or one cannot be read.
    """
    tables = [_read(path) for path in paths or sorted(published_dir().glob("*.csv"))]
    if not sum(map(len, tables)):
        raise UserError("there are no published numbers: name a file of them with --published FILE")
    return pd.concat(tables, ignore_index=True)


def _read(path: Path) -> pd.DataFrame:
    try:
        rows = pd.read_csv(path, dtype=str, keep_default_na=False, index_col=False).fillna("")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:  # no table, or no UTF-8
        raise UserError(f"cannot read {path}: {' '.join(str(error).split())}") from None
    if missing := [name for name in COLUMNS if name not in rows]:
        raise UserError(f"{path} has no column {', '.join(missing)}")
    for i, value in enumerate(rows["value"], 1):
        if not re.fullmatch(r"-?[\d.]+", value):
            raise UserError(f"{path}, row {i}: 'value' is '{value}', which is no number")
    rows = rows.assign(**{name: rows.get(name, "") for name in ("recipe", "printed")})
    shots = [int(shots) if shots.isdecimal() else shots for shots in rows["shots"]]
    part = rows["metric"].replace({"accuracy": "test"})
    rows["recipe"] = rows["recipe"].map(recipes.renamed)  # files of before say coop_ijcv
    return rows.assign(value=rows["value"].map(float), shots=pd.Series(shots, dtype=object), part=part)


class Published(Record):
    """Published numbers as the record of a run would have them."""

    source: str


def of_papers(rows: pd.DataFrame, papers: Sequence[str]) -> pd.DataFrame:
    """What these papers print, and of a paper's own method what only others print: of the one that has most of it.

    A paper is named by its source (`paper_name`), or by its method. Raises: UserError: no paper has such a name.
    """
    names = rows["source"].map(paper_name).map(paper_key)
    chosen = []
    for asked in map(paper_key, papers):
        theirs = names == asked
        known = {*names, *rows["method"]}
        if asked not in known:
            raise unknown("paper", asked, known)
        chosen.append(rows[theirs])
        reprinted = rows[(rows["method"] == asked) & ~theirs & ~rows["printed"].str.contains("re-run", regex=False)]
        for source in reprinted["source"].value_counts(sort=True).index:
            cell = ["protocol", "backbone", "shots", "dataset", "part"]
            covered = pd.concat(chosen)
            covered = set(covered[covered["method"] == asked][cell].itertuples(index=False, name=None))
            more = reprinted[reprinted["source"] == source]
            chosen.append(more[[key not in covered for key in more[cell].itertuples(index=False, name=None)]])
    return pd.concat(chosen).loc[lambda all: ~all.index.duplicated()] if chosen else rows


def paper_name(source: str) -> str:
    """MaPLe, of a source in the files of published numbers: the paper's method, or its repository's name."""
    match = re.match(r"github:[^/]+/([^\s/]+)|([^\s,;]*)", source)
    name = (match[1] or match[2]) if match else ""
    return PAPERS.get(name, name)


def paper_key(name: str) -> str:
    """As `--papers` takes it."""
    return re.sub(r"\W+", "_", name.lower())


def as_records(rows: pd.DataFrame) -> list[Published]:
    """Published numbers as records without predictions, the paper as their variant.

    H is left out, and so are averages where the numbers of single data sets are there: tables derive them.
    """
    whole = rows["shots"].map(lambda shots: isinstance(shots, int)).astype(bool)
    shown = rows[whole & (rows["metric"] != "H")]
    line = ["protocol", "backbone", "method", "shots", "source", "printed"]
    averages = shown["dataset"].str.startswith("average_")
    singles = (~averages).groupby([shown[name] for name in line]).transform("any")
    shown = shown[~(averages & singles)].copy()
    transfer = shown["protocol"].map(is_transfer).astype(bool)
    shown["trained_on"] = shown["dataset"].where(~transfer, TRAINED_ON)
    shown["split"] = shown["dataset"].where(transfer, shown["part"])
    shown["paper"] = shown["source"].map(paper_name)
    several = shown.groupby(["protocol", "backbone", "method", "paper"])["printed"].transform("nunique") > 1
    shown["variant"] = "published: " + shown["paper"] + (", " + shown["printed"]).where(several, "")
    records = []
    for key, group in shown.groupby([*line, "variant", "trained_on", "recipe"], sort=False):
        protocol, backbone, method, shots, source, _, variant, dataset, recipe = key
        scores = {split: {"accuracy": value / 100} for split, value in zip(group["split"], group["value"], strict=True)}
        record = Published(
            protocol=protocol, backbone=backbone, method=method, shots=shots, dataset=dataset, variant=variant,
            seed=UNTRAINED if shots == UNTRAINED else 1, recipe=[recipe] if recipe else [], status="finished",
            weights="openai", scores=scores, source=source,
        )  # fmt: skip
        records.append(record)
    return records


def legend(records: Sequence[Record]) -> list[str]:
    """A note that says which sources the papers in a table are."""
    read: dict[str, dict[str, None]] = {}
    for record in records:
        if isinstance(record, Published):
            read.setdefault(paper_name(record.source), {})[record.source] = None
    named = "; ".join(f"{paper} is {' and '.join(of_paper)}" for paper, of_paper in read.items())
    halves = " H is made of the printed base and novel: to 0.01 the printed one."
    any_halves = any("base" in record.scores for record in records)
    return [f"Published, without a number of seeds: {named}.{halves * any_halves}"] if read else []


def distances(results: pd.DataFrame, rows: pd.DataFrame, settings_of: SettingsOf) -> pd.DataFrame:
    """Each mean of ours next to each published number of the same cell: one row a cell and source.

    `results` are those of `across_datasets`. Columns: protocol, dataset, backbone, method, variant, shots, n; for each
    part ours, `<part>_published` and `<part>_difference` (ours less theirs, points); recipe, settings, printed, source.
    A learner that is not trained is compared once. A cell without a published number has no row.
    """
    shown = results[(results["n"] > 0) & results["source"].isin(["", TRAINED_ON])]
    ours = shown.drop(columns=["shots", "source", "metric"]).rename(columns={"given_shots": "shots"})
    both = ours.merge(rows.drop(columns="metric"), on=["protocol", "backbone", "method", "shots", "dataset", "part"])
    cell = ["protocol", "dataset", "backbone", *(name for name in identity(results) if name != "precision"), "shots"]
    last = ["recipe", "settings", "printed", "source"]
    table = []
    names = [*cell, "recipe", "printed", "source"]
    for key, group in both.groupby([*names, "weights", "precision"], sort=False):
        row = dict(zip(names, key, strict=False)) | {"n": group["n"].iloc[0]}
        row["settings"] = status(group["records"].iloc[0], row["recipe"], settings_of)
        for part, mean, value in zip(group["part"], group["mean"], group["value"], strict=True):
            row |= {part: mean, f"{part}_published": value, f"{part}_difference": mean - value}
        table.append(row)
    order = {name: i for i, name in enumerate(in_papers_order(both["dataset"]))}
    table.sort(key=lambda row: (row["protocol"], row["backbone"], order[row["dataset"]]))
    numbers = [f"{part}{end}" for part in in_parts_order(both["part"]) for end in ("", "_published", "_difference")]
    return pd.DataFrame(table, columns=[*cell, "n", *numbers, *last])


def status(records: Sequence[Record], recipe: str, settings_of: SettingsOf) -> str:
    """Whether runs have the settings of a recipe, and if not, which are others."""
    if not recipe:
        return UNKNOWN
    differences: dict[str, None] = {}
    for record in records:
        if not record.config:
            return f"{UNKNOWN}: the runs keep none of theirs"
        if _is_default(record, recipe):
            continue
        if (published := settings_of(record, recipe)) is None:
            return f"{UNKNOWN}: no configuration of {recipe} for {record.dataset}"
        differences |= dict.fromkeys(differing(record.config, published, shots_of(record)))
    if not differences:
        return f"{SAME} ({recipe})"
    named = ", ".join(list(differences)[:SHOWN])
    more = f", and {len(differences) - SHOWN} more" if len(differences) > SHOWN else ""
    return f"{DIFFER} from {recipe}: {named}{more}"


def _is_default(record: Record, recipe: str) -> bool:
    """Whether a run has the default settings of its method and protocol, with no recipe for a data set or backbone."""
    default = record.variant is None and recipe == f"{record.method}/{record.protocol}"
    return default and all(recipes.of_record(name) == f"recipe/{recipe}" for name in record.recipe)


def differing(ours: Mapping[str, Any], published: Mapping[str, Any], shots: int | str) -> list[str]:
    """The settings that are not the published ones, each as "KEY OURS (published THEIRS)"; absent counts as null."""
    a, b = ({k: v for name in SECTIONS for k, v in _flat(c.get(name), name, shots).items()} for c in (ours, published))
    keys = dict.fromkeys([*a, *b])
    return [f"{key} {_text(a.get(key))} (published {_text(b.get(key))})" for key in keys if a.get(key) != b.get(key)]


def _text(value: Any) -> str:
    return "null" if value is None else repr(value) if value == "" else str(value)


def _flat(value: Any, name: str, shots: int | str) -> dict[str, Any]:
    value = at_shots(value, shots if shots != UNTRAINED else "all")
    if isinstance(value, Mapping):
        return {key: leaf for inner in value for key, leaf in _flat(value[inner], f"{name}.{inner}", shots).items()}
    return {name: list(value) if isinstance(value, (list, tuple)) else value}
