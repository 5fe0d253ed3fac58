"""Tables of test-time methods, of calibration and of the open world; how test images were judged, in all tables."""

import csv
import io
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from made_records import few_shot, record, save, transfer
from rich.cells import cell_len
from rich.text import Text
from running import ROOT, ask

from vlprompt import cli
from vlprompt.reports import at_test_time, scored
from vlprompt.reports.averages import across_datasets, numbers
from vlprompt.reports.grid import NOT_APPLICABLE, choose
from vlprompt.reports.layouts import grids
from vlprompt.reports.render import render, render_grids, summary_grids, told_notes
from vlprompt.reports.summary import summarise
from vlprompt.results.metrics import METRICS, interval, score
from vlprompt.results.predictions import PREDICTIONS, Predictions, save_predictions
from vlprompt.results.record import Record

VIEWS = {"tpt": 64, "zero": 16, "tda": 1, "mine": 3}


def adapted(method: str, name: str, seed: int = 1, **fields: Any) -> Record:
    """A run that is adapted at test time, with this name and `settings`; `changes` are others."""
    settings = fields.pop("settings", {})
    at_test = {"test_time": name, **{f"test_time.{key}": value for key, value in settings.items()}}
    changes = {**fields.pop("changes", {}), **at_test}
    known = {"test_time": {"name": name, "views": VIEWS[name], "seed": seed}, "changes": changes}
    known |= {"inference": "online" if name == "tda" else "episodic", "variant": f"{abs(hash(str(changes))):08x}"[:8]}
    cost = {"views": VIEWS[name], "seconds_per_image": 0.01 * VIEWS[name], "flops_per_image": 3.5e10 * VIEWS[name]}
    return record(method, seed=seed, **{"cost": cost, **known, **fields})


def plain(method: str, seed: int = 1, **fields: Any) -> Record:
    cost = {"seconds_per_image": 0.01, "flops_per_image": 3.5e10}
    return record(method, seed=seed, **{"cost": cost, **fields})


def refused(method: str, name: str, seed: int = 1) -> Record:
    return adapted(method, name, seed, status="not_applicable", scores={}, reason="it has no context", test_time={},
                   inference="inductive", cost={}, config={"test_time": {"name": name}})  # fmt: skip


def both() -> list[Record]:
    made = [plain("coop", seed, base=0.8) for seed in (1, 2)] + [plain("lora", base=0.7)]
    made += [adapted("coop", "tda", seed, base=0.9) for seed in (1, 2)]
    return [*made, adapted("coop", "zero", base=0.85), adapted("lora", "zero", base=0.6), refused("lora", "tpt")]


def cell(grid: Any, method: str, column: str) -> str:
    rows = grid.rows[grid.rows["method"] == method]
    return str(rows[column].iloc[0])


# How test images were judged


def test_every_table_says_how_images_were_judged_where_any_was_judged_otherwise() -> None:
    made = both()
    for grid in [*summary_grids(summarise(made)), *grids(across_datasets(made)[0])]:
        told = dict(zip(grid.rows["variant"], grid.rows["inference"], strict=True))
        assert told["test_time=tda"] == "online"
        assert told["test_time=zero"] == "episodic"
        assert told[""] == "inductive"
    for format in ("markdown", "latex", "csv"):
        assert "online" in render(summarise(made), format)
    results, _ = across_datasets(made)
    assert {*numbers(results)["inference"]} >= {"inductive", "online", "episodic"}
    usual = [plain("coop"), plain("lora")]
    assert "inference" not in summary_grids(summarise(usual))[0].rows
    assert "inference" not in grids(across_datasets(usual)[0])[0].rows
    assert "inference" not in numbers(across_datasets(usual)[0])
    assert "inference" in summarise(usual, columns=["inference"])


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_column_stays_on_a_narrow_terminal(width: int) -> None:
    made = both()
    for tables in (summary_grids(summarise(made), on_terminal=True, mark=True), grids(across_datasets(made)[0])):
        text = Text.from_ansi(render_grids(tables, [], "terminal", width=width)).plain
        assert "inference" in text
        assert max(map(cell_len, text.splitlines())) <= width


def test_nothing_is_marked_best_where_the_column_is_not_chosen() -> None:
    (grid,) = summary_grids(summarise(both()), mark=True)
    assert grid.marks
    assert choose([grid], ["method", "H", "inference"])[0].marks
    assert not choose([grid], ["method", "H"])[0].marks
    (same,) = summary_grids(summarise([plain("coop", base=0.8), plain("lora", base=0.7)]), mark=True)
    assert choose([same], ["method", "H"])[0].marks


def test_conditions_and_columns_know_it(tmp_path: Path) -> None:
    save(tmp_path, [r for r in both() if r.scores])
    answer = ask(cli.main, ["table", str(tmp_path), "--where", "inference=online", "--columns", "method,n,inference"])
    assert answer.out.splitlines()[-1] != ""
    assert "online" in answer.out
    assert "lora" not in answer.out


# Test-time methods


def test_rows_are_learners_and_columns_what_is_done_at_test_time() -> None:
    (grid,), (costs,), raw, notes = at_test_time.tables(both(), "accuracy")
    assert [name for name in grid.rows if name not in (*grid.keys, "n")] == ["none", "tpt", "zero", "tda"]
    assert "inference" not in grid.rows
    assert cell(grid, "coop", "tda") == f"{2 * 90 * 60 / 150:.2f}"
    assert cell(grid, "coop", "n") == "1 to 2"
    assert cell(grid, "coop", "tpt") == ""
    assert cell(grid, "lora", "tpt") == NOT_APPLICABLE
    assert {grid.rows["method"][i]: name for (i, name), mark in grid.marks.items() if mark == "best"} == {
        "coop": "tda", "lora": "none"
    }  # fmt: skip
    assert any("lora, tpt" in note and "it has no context" in note for note in notes)
    assert any("tda: online" in note and "zero: episodic" in note for note in notes)
    by_cost = {(row["cost"], row["method"]): row for row in costs.rows.to_dict("records")}
    assert by_cost["views", "all"]["zero"] == "16"
    assert by_cost["views", "all"]["none"] == "1"
    assert by_cost["ms", "all"]["zero"] == "160.0"
    assert by_cost["GFLOPs", "all"]["zero"] == "560.0"
    assert {*raw["test_time"]} == {"none", "zero", "tda", "tpt"}


def test_blocks_of_tests_in_the_order_asked_for() -> None:
    (grid,), *_ = at_test_time.tables(both(), "accuracy", tests=["base", "H"])
    assert list(dict.fromkeys(grid.rows["test"])) == ["base", "H"]
    (errors,), *_ = at_test_time.tables(with_errors(both()), "ece")
    assert list(dict.fromkeys(errors.rows["test"])) == ["base", "novel"]  # of errors there is no harmonic mean
    assert ("best", "none") in {(mark, column) for (_, column), mark in errors.marks.items()}


def with_errors(records: list[Record]) -> list[Record]:
    """With calibration errors, the smallest of what is not adapted."""
    error = {"inductive": 0.1, "episodic": 0.2, "online": 0.3}
    return [
        r.model_copy(update={"scores": {name: {**of, "ece": error[r.inference]} for name, of in r.scores.items()}})
        for r in records
    ]


def test_of_several_data_sets_the_average_is_shown() -> None:
    made = [transfer("coop", seed, dtd=0.4 + seed / 10, ucf101=0.6) for seed in (1, 2)]
    at_test = adapted("coop", "zero").model_dump(include={"test_time", "changes", "inference", "variant", "cost"})
    made += [transfer("coop", 1, dtd=0.6, ucf101=0.8).model_copy(update=at_test)]
    grids, *_ = at_test_time.tables([*made, plain("coop")], "accuracy")
    (of_transfer,) = (grid for grid in grids if "cross_dataset" in grid.title)
    assert set(of_transfer.rows["test"]) == {"average_2_targets"}
    assert cell(of_transfer, "coop", "zero") == "70.00"
    assert cell(of_transfer, "coop", "none").startswith("57.50 ± ")
    (alone,), *_ = at_test_time.tables([few_shot("coop", accuracy=0.5)], "accuracy")
    assert cell(alone, "coop", "none") == "50.00"


def test_variants_are_those_of_the_training() -> None:
    lr = {"fit.lr": 0.1}
    made = [plain("coop"), plain("coop", changes=lr, variant="0123abcd", base=0.5), adapted("coop", "zero")]
    made += [adapted("coop", "zero", changes=lr, base=0.55)]
    made += [adapted("coop", "mine", settings={"views": 3}, base=0.65), adapted("coop", "mine", base=0.75)]
    fast: dict[str, Any] = {"variant": "fast", "config": {"name": "fast"}, "changes": {"fit.epochs": 1}}
    again: dict[str, Any] = {"variant": "fast+00112233", "config": {"name": "fast+00112233"}}
    made += [plain("coop", **fast), adapted("coop", "zero", **again, changes=fast["changes"], base=0.35)]
    (grid,), *_ = at_test_time.tables(made, "accuracy")
    shown = grid.rows.set_index("variant")
    assert [*shown.index] == ["", "fast", "fit.lr=0.1"]
    columns = [name for name in shown if name.startswith(("none", "zero", "mine"))]
    assert columns == ["none", "zero", "mine", "mine views=3"]
    assert shown.loc["fit.lr=0.1", "zero"] == f"{2 * 55 * 60 / 115:.2f}"
    assert shown.loc["fast", "zero"] == f"{2 * 35 * 60 / 95:.2f}"
    assert (shown.loc["fast", "mine"], shown.loc["", "mine views=3"]) == ("", f"{2 * 65 * 60 / 125:.2f}")


@pytest.mark.parametrize("width", [80, 120])
def test_six_by_six_fits(width: int) -> None:
    methods = ("zero_shot", "coop", "cocoop", "intrinsic_dimension", "maple", "lora")
    made = [plain(method, seed, base=0.7 + seed / 100) for method in methods for seed in (1, 2, 3)]
    made += [adapted(m, name, s, base=0.8) for m in methods for name in VIEWS for s in (1, 2, 3) if name != "mine"]
    tables, costs, *_ = at_test_time.tables([*made, refused("lora", "tpt", 4)], "accuracy")
    text = Text.from_ansi(render_grids([*tables, *costs], [], "terminal", width=width)).plain
    assert max(map(cell_len, text.splitlines())) <= width
    for name in ("none", "tpt", "zero", "tda", *methods):
        assert re.search(rf"\b{name}\b", text), name


def test_latex_aligns_numbers_next_to_what_was_refused() -> None:
    (grid,), *_ = at_test_time.tables([*both(), adapted("coop", "tpt")], "accuracy")
    text = render_grids([grid], [], "latex")
    assert r"\multicolumn{1}{c}{n/a}" in text
    assert re.search(r"@\{\}ll?r+@\{\}", text.replace("{@{}", "@{}", 1))


def test_the_command(tmp_path: Path) -> None:
    save(tmp_path, both())
    layout = ["table", str(tmp_path), "--layout", "test_time"]
    answer = ask(cli.main, [*layout, "--format", "csv"])
    rows = list(csv.DictReader(io.StringIO(answer.out)))
    assert {row["test_time"] for row in rows} >= {"none", "tda"}
    assert ask(cli.main, [*layout, "--split", "novel"]).code == 0
    wrong = ask(cli.main, [*layout, "--split", "novle"])
    assert (wrong.code, wrong.out) == (2, "")
    assert "did you mean 'novel'" in wrong.err
    for more in (["--split", "base"], ["--interval", "bootstrap"]):
        assert ask(cli.main, ["table", str(tmp_path), *more]).code == 2


# Calibration and the open world


def predicted(n: int, seed: int, *, strength: float, known: list[int] | None = None) -> Predictions:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 4
    logits = torch.randn(n, 4, generator=generator)
    logits[torch.arange(n), labels] += strength
    return Predictions.from_logits([f"{i}.jpg" for i in range(n)], labels, logits, known)


def write(root: Path, method: str, seed: int, strength: float, **fields: Any) -> Record:
    tests = {"base": predicted(60, seed, strength=strength), "novel": predicted(40, seed, strength=strength / 2)}
    tests["all"] = predicted(80, seed + 1, strength=strength, known=[0, 1])
    scores = {name: score(of) for name, of in tests.items()}
    made = record(method, fields.pop("dataset", "dtd"), seed, scores=scores, **fields)
    save(root, [made])
    save_predictions(made.folder(root) / PREDICTIONS, tests)
    return made


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two learners on two data sets, one of them also adapted at test time."""
    root = tmp_path_factory.mktemp("evaluated")
    for dataset in ("dtd", "eurosat"):
        for seed in (1, 2):
            write(root, "coop", seed, 1.0, dataset=dataset)
        write(root, "maple", 1, 2.0, dataset=dataset)
    tda = {"changes": {"test_time": "tda"}, "variant": "0a0b0c0d", "inference": "online",
           "test_time": {"name": "tda", "views": 1, "seed": 1}}  # fmt: skip
    write(root, "coop", 1, 1.5, **tda)
    return root


def runs_in(root: Path) -> dict[Path, Record]:
    from vlprompt.results.store import find_runs

    return find_runs([root / "runs"])


def test_calibration_has_base_and_novel_next_to_one_another(written: Path) -> None:
    runs = runs_in(written)
    (grid,), raw, notes = scored.tables(runs, "calibration")
    of_coop = grid.rows[(grid.rows["method"] == "coop") & (grid.rows["variant"] == "")].set_index("dataset")
    values = [r.scores["novel"]["ece"] for r in runs.values() if r.learner == "coop" and r.dataset == "dtd"]
    assert of_coop.loc["dtd", "novel ECE"].startswith(f"{100 * np.mean(values):.2f} ± ")
    shown = [name for name in grid.rows if name not in grid.extras and name.startswith(("base ", "novel "))]
    assert shown == [f"{test} {name}" for test in ("base", "novel") for name in ("acc", "conf", "over", "ECE")]
    assert {"base Brier", "novel cw-ECE"} <= {*grid.extras}
    assert not any(column.endswith(("conf", "over")) for _, column in grid.marks)
    assert any("overconfidence" in metric for metric in raw["metric"])
    assert any("ECE: expected calibration error" in note for note in notes)
    assert "average_2" in set(grid.rows["dataset"])


def test_open_world_is_of_the_test_of_all_classes(written: Path) -> None:
    runs = runs_in(written)
    (grid,), raw, _ = scored.tables(runs, "open_world")
    (maple,) = (r for r in runs.values() if r.method == "maple" and r.dataset == "dtd")
    row = grid.rows[(grid.rows["method"] == "maple") & (grid.rows["dataset"] == "dtd")].iloc[0]
    for heading, metric in scored.LAYOUTS["open_world"].metrics.items():
        assert row[heading] == f"{100 * maple.scores['all'][metric]:.2f}"
    assert set(raw["part"]) == {"all"}
    best = {column: grid.rows["method"][i] for (i, column), mark in grid.marks.items() if mark == "best" and i < 3}
    assert {"AUROC", "FPR95"} <= {*best}


def test_other_protocols_have_the_test(tmp_path: Path) -> None:
    of_test = predicted(40, 1, strength=1.0)
    made = few_shot("coop", scores={"test": score(of_test)})
    save(tmp_path, [made])
    (grid,), *_ = scored.tables(runs_in(tmp_path), "calibration")
    assert "ECE" in grid.rows
    with pytest.raises(Exception, match="open_world"):
        scored.tables(runs_in(tmp_path), "open_world")


@pytest.mark.slow
def test_records_that_lack_fields_have_empty_cells(written: Path, tmp_path: Path) -> None:
    old = record("lora", scores={name: {"accuracy": 0.5, "ece": 0.1} for name in ("base", "novel", "all")})
    save(tmp_path, [old])
    (grid,), *_ = scored.tables({**runs_in(written), **runs_in(tmp_path)}, "calibration")
    row = grid.rows[grid.rows["method"] == "lora"].iloc[0]
    assert (row["base acc"], row["base ECE"], row["base conf"], row["novel Brier"]) == ("50.00", "10.00", "", "")


@pytest.mark.slow
def test_intervals_by_bootstrap_are_those_of_each_seed(written: Path) -> None:
    runs = {folder: r for folder, r in runs_in(written).items() if r.learner == "coop" and r.dataset == "dtd"}
    (grid,), raw, notes = scored.tables(runs, "calibration", how="bootstrap")
    from vlprompt.results.predictions import load_predictions

    ends = [interval(load_predictions(folder / PREDICTIONS)["base"], "ece") for folder in runs]
    low, high = (100 * float(np.mean(of)) for of in zip(*ends, strict=True))
    (row,) = grid.rows.to_dict("records")
    assert row["base ECE"].endswith(f" [{low:.2f}, {high:.2f}]")
    assert "±" not in row["base ECE"]
    (of_csv,) = raw[(raw["metric"] == "ece") & (raw["part"] == "base")].to_dict("records")
    assert (of_csv["low"], of_csv["high"]) == pytest.approx((low, high))
    assert any("bootstrap" in note for note in notes)


@pytest.mark.parametrize("width", [80, pytest.param(120, marks=pytest.mark.slow)])
@pytest.mark.parametrize("layout", ["calibration", "open_world"])
def test_the_layouts_fit(layout: str, width: int, written: Path) -> None:
    runs = {folder: r for folder, r in runs_in(written).items() if r.variant is None}
    tables, *_ = scored.tables(runs, layout)
    text = Text.from_ansi(render_grids(tables, [], "terminal", width=width)).plain
    assert max(map(cell_len, text.splitlines())) <= width
    flat = " ".join(text.split())
    assert all(word in flat for heading in scored.LAYOUTS[layout].metrics for word in heading.split())


@pytest.mark.slow
def test_options_of_the_layouts(written: Path) -> None:
    layout = ["table", str(written), "--layout", "calibration"]
    assert ask(cli.main, [*layout, "--format", "latex"]).out.count(r"\begin{tabular}") == 1
    rows = list(csv.DictReader(io.StringIO(ask(cli.main, [*layout, "--format", "csv"]).out)))
    assert {row["inference"] for row in rows} == {"inductive", "online"}
    assert ask(cli.main, [*layout, "--metric", "ece"]).code == 2


# What commands say of metrics


def test_the_help_lists_every_metric(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("table", "compare", "plot", "report"):
        with pytest.raises(SystemExit):
            cli.main([command, "--help"])
        words = set(re.split(r"[,\s]+", capsys.readouterr().out))
        assert {*METRICS} <= words


@pytest.mark.slow
def test_two_learners_by_other_metrics(written: Path) -> None:
    runs = ["--results", str(written), "--dataset", "dtd"]
    answer = ask(cli.main, ["compare", "coop", "maple", *runs, "--metric", "nll", "--format", "csv"])
    rows = list(csv.DictReader(io.StringIO(answer.out.split("\n\n")[0])))
    assert "p" not in rows[0]
    of_coop = (r for r in runs_in(written).values() if (r.learner, r.dataset) == ("coop", "dtd"))
    known = {r.seed: r.scores["base"]["nll"] for r in of_coop}
    (of_seed,) = (row for row in rows if (row["split"], row["seed"]) == ("base", "1"))
    assert float(of_seed["first"]) == pytest.approx(known[1], abs=1e-5)
    assert float(of_seed["low"]) < float(of_seed["difference"]) < float(of_seed["high"])
    for metric in ("openworld_auc", "ece", "per_class"):
        wrong = ask(cli.main, ["compare", "coop", "maple", *runs, "--metric", metric])
        assert (wrong.code, wrong.out) == (2, "")
        assert metric in wrong.err
        assert "nll" in wrong.err
    ranks = ["--results", str(written), "--where", "learner=coop,maple"]
    across = ask(cli.main, ["compare", *ranks, "--metric", "openworld_auc"])
    assert across.code == 0, across.err
    assert "mean ranks by all" in across.out


@pytest.mark.slow
def test_a_comparison_says_who_was_adapted(written: Path) -> None:
    runs = ["--results", str(written), "--dataset", "dtd"]
    answer = ask(cli.main, ["compare", "coop", "coop@test_time=tda", *runs])
    assert answer.code == 0, answer.err
    assert "coop@test_time=tda: online" in answer.out
    assert "Adapted" not in ask(cli.main, ["compare", "coop", "maple", *runs]).out


@pytest.mark.slow
def test_untrained_learners_meet_by_seed_where_both_have_one(tmp_path: Path) -> None:
    for seed in (1, 2):
        fields = {"changes": {"test_time": "tda"}, "variant": "0a0b0c0d", "inference": "online"}
        write(tmp_path, "zero_shot", seed, 1.0, shots=0, **fields)
        write(tmp_path, "coop", seed, 1.5)
    write(tmp_path, "zero_shot", 0, 1.2, shots=0)
    for pair in (("coop", "zero_shot@0a0b0c0d"), ("zero_shot@0a0b0c0d", "zero_shot")):
        answer = ask(cli.main, ["compare", *pair, "--results", str(tmp_path), "--format", "csv"])
        rows = pd.read_csv(io.StringIO(answer.out.split("\n\n")[0]))
        assert rows[rows["split"] == "base"]["seed"].tolist() == ["1", "2", "mean of 2"]


# The page


PAGE = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
COMMANDS = [
    line.partition("#")[0]
    for block in re.findall(r"<!-- run -->\n```bash\n(.*?)```", PAGE, re.DOTALL)
    for line in block.splitlines()
]


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_of_the_page_run(
    command: str, written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VLPROMPT_RESULTS", str(written))
    name, *arguments = shlex.split(command)
    assert name == "vlprompt"
    answer = ask(cli.main, arguments)
    assert answer.code == 0, answer.err


def test_words_of_tables_that_lack_the_column_are_left_out() -> None:
    """Tables that are put into one, of which one has nothing to say of how images were judged."""
    table = pd.concat([pd.DataFrame({"inference": ["online"]}), pd.DataFrame({"n": [1]})])
    assert told_notes(table["inference"], "inference") == told_notes(["online"], "inference") != []
