"""Published numbers: the tables that they fill, and how results are compared with them."""

import csv
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from made_records import record

from vlprompt.config import paths
from vlprompt.config.recipes import known
from vlprompt.errors import UserError
from vlprompt.reports import published
from vlprompt.reports.averages import ELEVEN, across_datasets
from vlprompt.reports.layouts import distance_grid, grids
from vlprompt.reports.render import render_grids
from vlprompt.results.record import Record

ROWS = published.load()
RECORDS = published.as_records(ROWS)
METHODS, PROTOCOLS = (known(group, [paths.config_dir()]) for group in ("method", "protocol"))


def results_from(source: str, protocol: str) -> dict[str, pd.DataFrame]:
    """What tables make of what a source prints of single data sets, by method."""
    chosen = [r for r in RECORDS if r.protocol == protocol and source in r.source]
    return dict(list(across_datasets(chosen)[0].set_index(["dataset", "part"]).groupby("method")))


def printed(protocol: str, dataset: str, method: str, part: str, source: str = "") -> list[float]:
    chosen = ROWS[(ROWS.protocol == protocol) & (ROWS.dataset == dataset) & (ROWS.method == method)]
    return chosen[(chosen.part == part) & chosen.source.str.contains(source, regex=False)]["value"].tolist()


@pytest.mark.parametrize(
    ("method", "h", "mean_of_h"),
    [("coop", 71.66, 70.83), ("cocoop", 75.83, 75.43), ("maple", 78.55, 78.27), ("zero_shot", 71.70, 71.59)],
)
def test_published_averages_of_base_to_novel(method: str, h: float, mean_of_h: float) -> None:
    """H of an average is that of the averaged accuracies; the mean of the H of data sets is another number."""
    got = results_from("OnPoKD", "base_to_novel")[method].loc["average_11"]["mean"].round(2)
    assert (got["H"], got["mean of H"]) == (h, mean_of_h)
    source = "muzairkhattak/multimodal-prompt-learning README"
    for part in ("base", "novel", "H"):
        assert [got[part]] == printed("base_to_novel", "average_11", method, part, source)


def test_published_h_of_each_data_set() -> None:
    by_method = results_from("OnPoKD", "base_to_novel")
    assert len(by_method) == 6
    for method, results in by_method.items():
        for dataset in ELEVEN:
            (value,) = printed("base_to_novel", dataset, method, "H", "OnPoKD")
            assert results.loc[(dataset, "H"), "mean"] == pytest.approx(value, abs=0.0101), (method, dataset)


@pytest.mark.parametrize(
    ("protocol", "source", "average", "n"),
    [("cross_dataset", "ProText paper", "average_10_targets", 6),
     ("domain_generalization", "ProText paper", "average_4_targets", 4)],
)  # fmt: skip
def test_published_averages_of_transfer_leave_the_source_out(protocol: str, source: str, average: str, n: int) -> None:
    by_method = results_from(source, protocol)
    assert len(by_method) == n
    for method, results in by_method.items():
        assert set(results["source"]) == {"imagenet"}
        (value,) = printed(protocol, average, method, "test", source)
        assert results.loc[(average, "test"), "mean"] == pytest.approx(value, abs=0.0151), method


def test_published_rows_in_the_latex_table_of_a_paper() -> None:
    chosen = [r for r in RECORDS if r.protocol == "base_to_novel" and "OnPoKD" in r.source]
    text = render_grids(grids(across_datasets([r for r in chosen if r.method != "promptkd"])[0]), [], "latex")
    last = text.split(r"\midrule")[-1]
    coop, promptsrc, maple = (next(row for row in last.splitlines() if f"& {m} &" in row)
                              for m in ("CoOp", "PromptSRC", "MaPLe"))  # fmt: skip
    assert r"\underline{82.69}" in coop
    assert r"\textbf{79.97}" in promptsrc
    assert r"\underline{78.55}" in maple
    assert last.lstrip().startswith("Average (11) &")
    assert "70.83" in coop
    assert (text.count(r"\toprule"), text.count(r"\bottomrule")) == (1, 1)


def test_published_files_are_whole() -> None:
    assert len(ROWS) == 730
    assert not ROWS.duplicated(["source", "protocol", "dataset", "printed", "backbone", "shots", "metric"]).any()
    assert ROWS["value"].between(0, 100).all()
    for path in sorted(paths.published_dir().glob("*.csv")):
        with path.open(encoding="utf-8", newline="") as file:
            assert {row["protocol"] for row in csv.DictReader(file)} == {path.stem}


def test_published_recipes_are_ours() -> None:
    """A file of conf/recipe, or the default of a method and a protocol."""
    protocols = {*PROTOCOLS, *ROWS["protocol"]}
    defaults = {f"{method}/{protocol}" for method in METHODS for protocol in protocols}
    recipes = set(ROWS["recipe"]) - {""}
    assert not recipes - defaults - set(known("recipe", [paths.config_dir()]))
    assert ROWS[~ROWS["method"].isin(METHODS)]["recipe"].eq("").all()  # what we lack has no recipe of ours
    for recipe in ("coop/ijcv", "coop/base_to_novel", "ivlp/promptsrc", "ivlp/base_to_novel", "maple/cross_dataset"):
        assert recipe in recipes


# Distances

CONFIG: dict[str, Any] = {
    "method": {"n_context": 4, "ctx_init": "a photo of a"},
    "fit": {"lr": 0.002, "epochs": {"1": 50, "16": 200}},
    "bank": {"views": None},
    "protocol": {"part": "test"},
    "precision": "bf16",
}


def run(seed: int = 1, **fields: Any) -> Record:
    return record(**{"method": "coop", "seed": seed, "variant": "v", "config": CONFIG, "novel": 0.4, **fields})


def compared(records: list[Record], config: Any = CONFIG) -> pd.DataFrame:
    return published.distances(across_datasets(records)[0], ROWS, lambda record, recipe: config)


def test_published_numbers_next_to_ours() -> None:
    (row,) = compared([run(1), run(2, base=0.82, novel=0.42)]).to_dict("records")
    (base,) = printed("base_to_novel", "dtd", "coop", "base")
    assert (row["n"], row["base"], row["base_published"]) == (2, pytest.approx(81), base)
    assert row["base_difference"] == pytest.approx(81 - base)
    assert row["H_difference"] == pytest.approx(2 * 81 * 41 / 122 - 54.24)
    assert (row["settings"], row["recipe"]) == ("as published (coop/base_to_novel)", "coop/base_to_novel")


def test_published_other_settings_are_named() -> None:
    theirs = {**CONFIG, "fit": {"lr": 0.002, "epochs": 50}, "method": {"n_context": 16, "ctx_init": ""}}
    (row,) = compared([run()], {**theirs, "precision": "fp16"}).to_dict("records")
    assert row["settings"] == (
        "settings differ from coop/base_to_novel: method.n_context 4 (published 16), "
        "method.ctx_init a photo of a (published ''), fit.epochs 200 (published 50)"
    )
    text = render_grids([distance_grid(compared([run()], theirs))], [], "terminal")
    assert "settings differ" in text
    assert "79.44 (+0.56)" in text


def test_published_setting_that_is_not_told() -> None:
    chosen = [run(1, dataset=dataset) for dataset in ELEVEN]
    table = compared(chosen)
    average = table[table["dataset"] == "average_11"].set_index("printed")
    assert average.loc["CoOp (as re-run by KgCoOp)", "settings"] == "setting unknown"
    assert average.loc["CoOp (as re-run by MaPLe)", "settings"] == "setting unknown"
    assert average.loc["CoOp", "settings"] == "as published (coop/base_to_novel)"
    assert len(average) == 3  # several sources of one cell are not merged
    assert compared([run(config={})])["settings"].str.startswith("setting unknown: the runs keep none").all()
    assert compared([run()], None)["settings"].str.startswith("setting unknown: no configuration").all()


def test_published_averages_need_all_data_sets() -> None:
    assert "average_11" not in set(compared([run(1, dataset=dataset) for dataset in ELEVEN[1:]])["dataset"])


def test_published_numbers_are_not_compared_with_other_cells() -> None:
    for other in ({"backbone": "rn50"}, {"shots": 8}, {"dataset": "shapes"}, {"method": "lora"}, {"base": None}):
        assert compared([run(**other)]).empty, other
    transfer = {"protocol": "cross_dataset", "scores": {"dtd": {"accuracy": 0.4}, "eurosat": {"accuracy": 0.4}}}
    assert len(compared([run(dataset="imagenet", **transfer)])) == 2
    assert compared([run(dataset="caltech101", **transfer)]).empty  # theirs were trained on ImageNet


def test_published_zero_shot_is_compared_once() -> None:
    zero = run(0, method="zero_shot", shots=0, variant=None)
    table = compared([zero, *(run(shots=k) for k in (1, 4, 16))])
    assert (table["method"] == "zero_shot").sum() == 1


def test_published_default_settings_need_no_composition() -> None:
    """A run without a variant has the settings of its default, unless a recipe for a data set applies."""
    asked: list[str] = []

    def compose(record: Record, recipe: str) -> dict[str, Any]:
        asked.append(recipe)
        return CONFIG

    for recipe in ("recipe/coop/base_to_novel", "recipe/coop_base_to_novel"):  # the second in earlier records
        results, _ = across_datasets([run(variant=None, recipe=[recipe])])
        assert published.distances(results, ROWS, compose)["settings"].tolist() == ["as published (coop/base_to_novel)"]
    assert not asked
    for recipe in ("recipe/coop/base_to_novel_dtd", "recipe/dataset/coop_base_to_novel_dtd"):
        published.distances(across_datasets([run(variant=None, recipe=[recipe])])[0], ROWS, compose)
    assert asked == ["coop/base_to_novel"] * 2


def test_published_averages_are_records_where_nothing_else_is_printed() -> None:
    """Tables derive the others."""
    sources = {True: set(), False: set()}
    for one in RECORDS:
        average = one.dataset.startswith("average") or any(name.startswith("average") for name in one.scores)
        sources[average].add((one.protocol, one.method, one.shots, one.source, one.variant))
    assert sources[True]
    assert not sources[True] & sources[False]
    assert all(0 < value["accuracy"] < 1 for r in RECORDS for value in r.scores.values())


def test_rows_of_a_paper_are_its_own_and_of_its_method_what_only_others_print() -> None:
    maple = published.of_papers(ROWS, ["MaPLe"])
    of_paper = maple["source"].str.contains("multimodal-prompt-learning", regex=False)
    assert {"coop", "zero_shot", "maple"} <= set(maple[of_paper]["method"])
    assert set(maple[of_paper]["dataset"]) == {"average_11"}
    assert set(maple[~of_paper]["method"]) == {"maple"}
    halves = maple[maple["protocol"] == "base_to_novel"]
    assert set(halves[halves["method"] == "maple"]["dataset"]) == {*ELEVEN, "average_11"}
    assert not maple.duplicated(["protocol", "backbone", "method", "printed", "shots", "dataset", "part"]).any()
    assert len(published.of_papers(ROWS, ["maple", "maple", "promptkd"])) > len(maple)
    assert published.of_papers(ROWS, []) is ROWS
    with pytest.raises(UserError, match=r"unknown paper 'mapel': known are .*did you mean 'maple'"):
        published.of_papers(ROWS, ["mapel"])


def test_names_of_papers() -> None:
    names = {"OnPoKD paper, Table 1 (reprint)": "OnPoKD", "github:CHENGY12/PLOT plot-pp/README.md": "PLOT",
             "github:muzairkhattak/multimodal-prompt-learning issue 31": "MaPLe", "A, B": "A", "": ""}  # fmt: skip
    assert {source: published.paper_name(source) for source in names} == names
    assert len({published.paper_name(source) for source in ROWS["source"]}) >= 15


HEADER = "source,protocol,dataset,method,backbone,shots,metric,value,recipe,printed\n"
ROW = '"A, B",few_shot,dtd,coop,rn50,16,accuracy,{},coop_ijcv,CoOp\n'


def test_a_file_of_published_numbers(tmp_path: Path) -> None:
    path = tmp_path / "numbers.csv"
    path.write_text(HEADER + ROW.format("63.58"))
    (row,) = published.load([path]).to_dict("records")
    assert (row["source"], row["shots"], row["value"], row["part"]) == ("A, B", 16, 63.58, "test")
    assert row["recipe"] == "coop/ijcv"  # under its present name
    path.write_text(
        "source,protocol,dataset,method,backbone,shots,metric,value\nA,few_shot,dtd,coop,rn50,all,base,63\n"
    )
    (row,) = published.load([path]).to_dict("records")
    assert (row["shots"], row["recipe"], row["printed"]) == ("all", "", "")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (HEADER + ROW.format("63.58") + ROW.format("many"), r"numbers\.csv, row 2: 'value' is 'many'"),
        (HEADER + ROW.format(""), r"numbers\.csv, row 1: 'value'"),
        (HEADER.replace("value", "number") + ROW.format("1"), r"numbers\.csv has no column value"),
        (HEADER, "no published numbers"),
        ("", r"cannot read .*numbers\.csv"),
        (b"\xff\xfe", r"cannot read .*numbers\.csv"),
        (None, r"cannot read .*numbers\.csv: No such file"),
    ],
)
def test_a_damaged_file_of_published_numbers_is_named(tmp_path: Path, content: str | bytes | None, words: str) -> None:
    path = tmp_path / "numbers.csv"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=words):
        published.load([path])


def test_published_folder_of_a_checkout_or_a_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "vlprompt"
    package.mkdir()
    monkeypatch.setattr(paths, "PACKAGE", package)
    assert paths.published_dir() == tmp_path / "results" / "published"
    (package / "published").mkdir(parents=True)
    assert paths.published_dir() == package / "published"
