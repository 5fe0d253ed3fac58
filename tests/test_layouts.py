"""Tables in the papers' layouts: what is averaged, what is marked, what is missing, what is chosen."""

import csv
import io
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from made_records import few_shot, record, transfer
from rich.text import Text

from vlprompt.errors import UserError
from vlprompt.reports.averages import across_datasets, average, numbers, side_by_side
from vlprompt.reports.filters import select, value_of
from vlprompt.reports.layouts import grids, notes_of, of_layout
from vlprompt.reports.render import general_notes, render, render_grids, spread_text
from vlprompt.reports.summary import missing_metric, summarise
from vlprompt.results.metrics import complete, score
from vlprompt.results.predictions import Predictions, save_predictions
from vlprompt.results.record import Record


def drawn(records: list[Record], format: str = "markdown", width: int | None = None, **how: Any) -> str:
    results, notes = across_datasets(records, **how)
    tables = grids(results, how.get("metric", "accuracy"))
    return render_grids(tables, [*notes_of(results, records), *notes], format, width=width)


def cells(results: pd.DataFrame) -> pd.DataFrame:
    """Of one learner, by data set and part."""
    return results.set_index(["dataset", "part"])


def test_averages_of_base_and_novel_and_both_kinds_of_h() -> None:
    made = [
        record("coop", "dtd", 1, base=0.70, novel=0.50), record("coop", "dtd", 2, base=0.80, novel=0.40),
        record("coop", "eurosat", 1, base=0.90, novel=0.60), record("coop", "eurosat", 2, base=0.94, novel=0.70),
    ]  # fmt: skip
    results, notes = across_datasets(made, interval="t")
    got = cells(results)
    dtd, eurosat = 2 * 75 * 45 / 120, 2 * 92 * 65 / 157
    assert got.loc[("dtd", "H"), "mean"] == pytest.approx(dtd)
    each = (2 * 70 * 50 / 120 + 2 * 80 * 40 / 120) / 2
    assert got.loc[("dtd", "mean of H"), "mean"] == pytest.approx(each)
    base = got.loc[("average_2", "base")]
    assert (base["n"], base["mean"], base["deviation"]) == (2, pytest.approx(83.5), pytest.approx(3.5 * 2**0.5))
    assert got.loc[("average_2", "H"), "mean"] == pytest.approx(2 * 83.5 * 55 / 138.5)
    assert got.loc[("average_2", "mean of H"), "mean"] == pytest.approx((dtd + eurosat) / 2)
    assert len(got.loc[("dtd", "base"), "records"]) == 2
    assert len(got.loc[("average_2", "base"), "records"]) == 4
    assert notes == ["average_2 is over dtd, eurosat."]


def test_average_of_other_seeds_has_no_deviation() -> None:
    same = average([{1: 10.0, 2: 20.0}, {2: 30.0, 1: 30.0}])
    assert (same.n, same.mean, same.deviation) == (2, 22.5, pytest.approx(5 / 2**0.5))
    other = average([{1: 10.0, 2: 20.0}, {1: 30.0}])
    assert (other.n, other.mean) == (1, 22.5)
    assert other.deviation != other.deviation


def test_a_missing_data_set_empties_the_average_and_is_named() -> None:
    made = [few_shot("coop", "dtd", 0.5), few_shot("coop", "eurosat", 0.7), few_shot("lora", "dtd", 0.6)]
    results, notes = across_datasets(made)
    assert results[results["dataset"] == "average_2"]["method"].tolist() == ["coop"]
    assert "No average_2 of lora, few_shot, 16 shots: eurosat missing." in notes
    text = drawn(made)
    (row,) = (row for row in text.splitlines() if "lora" in row and row.startswith("|"))
    assert [cell.strip() for cell in row.split("|")[-3:-1]] == ["", ""]


def test_transfer_averages_leave_the_source_out() -> None:
    made = [transfer("coop", imagenet=0.7, dtd=0.4, eurosat=0.5), transfer("maple", imagenet=0.9, dtd=0.5, eurosat=0.7)]
    text = drawn(made)
    header = next(line for line in text.splitlines() if "average" in line and line.startswith("|"))
    assert [cell.strip() for cell in header.split("|")[3:-1]] == ["imagenet", "dtd", "eurosat", "average_2_targets"]
    assert "45.00" in text
    assert "**60.00**" in text
    assert "source imagenet" in text


def test_average_of_as_many_other_data_sets_has_another_name() -> None:
    made = [few_shot("coop", f"mine{i}", 0.5) for i in range(11)]
    names = set(across_datasets(made)[0]["dataset"])
    assert "average_11_other" in names
    assert "average_11" not in names


def test_failed_runs_are_named_and_have_a_row() -> None:
    failed = record("linear_head", "dtd", status="not_applicable", reason="owns classes", scores={})
    text = drawn([record("coop", "dtd"), failed])
    assert "linear_head on dtd, base_to_novel, 16 shots, seed 1: not applicable, owns classes" in text
    (row,) = (row for row in text.splitlines() if "linear_head" in row and row.startswith("|"))
    assert "| 0 " in row
    many = [record("coop", "dtd", seed, status="failed", reason="x", scores={}) for seed in range(1, 30)]
    text = drawn(many)
    assert "29 times: Without a result: coop on dtd, base_to_novel, 16 shots, seed 1; " in text
    assert "seed 3 and 26 more: failed, x" in text
    assert text.count("Without") == 1


def test_best_is_bold_and_second_underlined_within_a_block() -> None:
    made = [
        few_shot("zero_shot", "dtd", 0.44, shots=0, seed=0), few_shot("coop", "dtd", 0.50, shots=1),
        few_shot("lora", "dtd", 0.50, shots=1), few_shot("maple", "dtd", 0.48, shots=1),
        few_shot("coop", "dtd", 0.70), few_shot("maple", "dtd", 0.60),
    ]  # fmt: skip
    rows = [line for line in drawn(made).splitlines() if line.startswith("| 1")]
    marks = {tuple(cell.strip() for cell in row.split("|")[1:3]): row.split("|")[-2].strip() for row in rows}
    assert marks == {
        ("1", "zero_shot"): "44.00", ("1", "coop"): "**50.00**", ("1", "lora"): "**50.00**",
        ("1", "maple"): "<u>48.00</u>",
        ("16", "zero_shot"): "44.00", ("16", "coop"): "**70.00**", ("16", "maple"): "<u>60.00</u>",
    }  # fmt: skip
    latex = drawn(made, "latex")
    assert latex.count(r"\midrule") == 2  # below the header and between the numbers of shots
    assert r"\textbf{70.00}" in latex
    assert r"\underline{60.00}" in latex
    assert "% Caption: Few-shot, CLIP ViT-B/16, weights openai, bf16; accuracy" in latex


def test_lower_is_better_for_errors() -> None:
    errors = (("coop", 0.1), ("lora", 0.05))
    both = [few_shot(m, scores={"test": {"accuracy": 0.5, "ece": ece, "nll": 2 * ece}}) for m, ece in errors]
    assert "**5.00**" in drawn(both, metric="ece")
    assert "**0.100**" in drawn(both, metric="nll")
    halves = [record("coop", "dtd", scores={"base": {"ece": 0.1}, "novel": {"ece": 0.2}})]
    assert "H" not in summarise(halves, metric="ece").columns
    assert "mean of H" not in drawn(halves, metric="ece")


def test_terminal_marks_and_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    made = [few_shot("coop", "dtd", 0.7), few_shot("lora", "dtd", 0.6), few_shot("coop", "dtd", 0.5, shots=4)]
    plain = drawn(made, "terminal")
    assert "\x1b" not in plain
    assert sum(set(line) <= {"-", " "} for line in plain.splitlines() if line) == 2
    monkeypatch.setenv("FORCE_COLOR", "1")
    text = drawn(made, "terminal", width=120)
    assert "\x1b[1m70.00" in text
    assert "\x1b[4m60.00" in text
    assert {"coop", "lora", "70.00", "50.00"} <= set(Text.from_ansi(text).plain.split())


def test_csv_of_a_layout_is_long_and_raw() -> None:
    made = [record("coop", "dtd", seed, base=0.7 + seed / 100) for seed in (1, 2, 3)]
    results, _ = across_datasets(made, interval="t")
    rows = {row["part"]: row for row in csv.DictReader(io.StringIO(numbers(results).to_csv(index=False)))}
    assert set(rows) == {"base", "novel", "mean of H", "H"}
    base = rows["base"]
    assert (base["n"], base["mean"], float(base["deviation"])) == ("3", "72.0", pytest.approx(1))
    assert float(base["low"]) == pytest.approx(72 - 4.302653 / 3**0.5)
    assert float(base["high"]) == pytest.approx(72 + 4.302653 / 3**0.5)
    assert rows["H"]["deviation"] == ""


def test_rows_that_differ_in_a_column_are_not_merged() -> None:
    made = [record("coop", "dtd", s, variant=f"v{s}", config={"fit": {"lr": lr}}) for s, lr in ((1, 0.002), (2, 0.02))]
    same = [record("coop", "dtd", s, config={"fit": {"lr": 0.1 * s}}) for s in (1, 2)]
    table = summarise(same, columns=["fit.lr"])
    assert table["fit.lr"].tolist() == [0.1, 0.2]
    assert table["n"].tolist() == [1, 1]
    assert "fit.lr" in render(table)
    assert "0.02" in drawn(made, columns=["fit.lr"])
    with pytest.raises(UserError, match=r"unknown key 'fit\.l'.*did you mean 'fit\.lr'"):
        summarise(made, columns=["fit.l"])


def test_conditions_choose_runs() -> None:
    runs = {
        Path("a"): record("coop", "dtd", config={"fit": {"lr": 0.002, "epochs": {"1": 50, "16": 200}}}),
        Path("b"): record("coop", "dtd", 2, config={"fit": {"lr": 0.02}}, variant="high"),
        Path("c"): record("zero_shot", "dtd", 0, shots=0),
    }

    def chosen(*conditions: str) -> str:
        return "".join(map(str, select(runs, conditions)[0]))

    assert chosen() == "abc"
    assert chosen("method=coop") == "ab"
    assert chosen("fit.lr=0.002") == "a"
    assert chosen("config.fit.lr=2e-2") == "b"
    assert chosen("fit.epochs=200") == "a"
    assert chosen("seed=2") == "bc"  # what is not trained stays with it
    assert chosen("method=coop", "method=zero_shot", "seed=1") == "ac"
    assert chosen("variant=null", "method=coop") == "a"
    assert chosen("learner=coop@high") == "b"
    whole = runs[Path("a")].model_copy(update={"shots": "all"})
    assert (value_of(whole, "fit.epochs"), value_of(whole, "fit.none")) == (200, None)
    assert value_of(whole.model_copy(update={"shots": 4}), "fit.epochs") == 200  # the next larger
    assert select(runs, ["method=coop"])[1] == ["Only method=coop: 2 of 3 runs."]
    assert chosen("method=coop,zero_shot", "seed=1") == "ac"
    assert chosen("fit.lr=2e-2,0.002") == "ab"
    assert chosen("variant=null,high", "method=coop") == "ab"
    assert chosen("seed=2,1") == "abc"
    mistakes = {"method": "no condition", "methd=coop": "did you mean 'method'", "seed=9": "seed '9': known are 1, 2",
                "method=coop,cop": "value of method 'cop': known are coop; did",
                "variant=low": "known are high, null"}  # fmt: skip
    for condition, words in mistakes.items():
        with pytest.raises(UserError, match=words):
            select({path: run for path, run in runs.items() if run.shots}, [condition])


def test_values_with_commas_are_the_longest_that_a_run_has() -> None:
    targets = {"protocol": {"targets": ["dtd", "eurosat"]}}
    runs = {
        Path("a"): record("coop", variant="x", changes={"fit.lr": 0.01, "fit.epochs": 5}),
        Path("b"): record("coop", variant="a,b"),
        Path("c"): record("coop", variant="a", config=targets),
        Path("d"): record("coop", variant="b"),
    }

    def chosen(*conditions: str) -> str:
        return "".join(map(str, select(runs, conditions)[0]))

    assert chosen("variant=a,b") == "b"
    assert chosen("variant=b,a") == "cd"
    assert chosen("variant=b,a,b,x") == "abd"
    assert chosen("learner=coop@a,b,coop@b") == "bd"
    assert chosen("protocol.targets=[dtd,eurosat]") == "c"


def test_layout_of_one_protocol_says_what_it_leaves_out() -> None:
    made = [record("coop", "dtd"), few_shot("coop", "dtd", 0.5), few_shot("lora", "dtd", 0.5)]
    shown, notes = of_layout(made, "base_to_novel")
    assert (len(shown), notes) == (1, ["Not in this layout: 2 runs of few_shot."])
    assert of_layout(made, "auto") == (made, [])
    with pytest.raises(UserError, match="no runs of cross_dataset"):
        of_layout(made, "cross_dataset")


def test_metrics_come_from_the_predictions_next_to_a_record(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(40, 8, generator=generator)
    predicted = Predictions.from_logits([str(i) for i in range(40)], torch.arange(40) % 8, logits)
    save_predictions(tmp_path / "predictions.npz", {"test": predicted})
    old = few_shot("coop", "dtd", 0.125)
    runs = {tmp_path: old, tmp_path / "imported": few_shot("lora", "dtd", 0.5)}
    made = complete(runs, "top5", [])
    assert made[0].scores["test"]["top5"] == score(predicted)["top5"]
    assert made[0].scores["test"]["accuracy"] == 0.125  # what a record has stays
    assert "top5" not in old.scores["test"]
    (note,) = missing_metric(made, "top5")
    assert note.startswith("1 runs have neither this metric nor predictions")
    assert "lora" in note
    table = summarise(made, metric="top5").set_index("method")
    assert table.loc["coop", "test"] == pytest.approx(100 * score(predicted)["top5"])
    assert table.loc["lora", ["test"]].isna().all()
    assert complete(runs, "accuracy", []) == list(runs.values())
    with pytest.raises(UserError, match="did you mean 'accuracy'"):
        complete(runs, "acuracy", [])


def test_intervals_in_summaries() -> None:
    made = [record("coop", seed=seed, base=base) for seed, base in ((1, 0.876), (2, 0.802), (3, 0.839))]
    table = summarise(made, interval="t")
    assert table["base_ci95"].tolist() == [pytest.approx(4.302653 * 3.7 / 3**0.5)]
    assert "83.90 ± 3.70 [74.71, 93.09]" in render(table)
    assert "± 3.02 [80.48, 87.32]" in render(summarise(made, interval="normal"))
    assert "base_ci95" not in summarise(made)
    assert spread_text(5.0, float("nan")) == "5.00"


def test_how_settings_were_chosen_is_a_column_where_any_image_chose_them() -> None:
    plain = [few_shot("coop"), few_shot("coop", "eurosat"), few_shot("tip_adapter")]
    for text in (drawn(plain), render(summarise(plain), "markdown")):
        assert "selection" not in text
    made = [
        *plain[:2],
        few_shot("tip_adapter", selection="few_shot_val"),
        few_shot("tip_adapter", "eurosat", selection="test"),
        few_shot("lora", selection="per_target"),
        few_shot("maple", accuracy=0, scores={}, status="failed", selection="val"),
    ]
    results, _ = across_datasets(made)
    for text in (drawn(made), render(summarise(made), "latex"), render(summarise(made), "markdown")):
        rows = "\n".join(line for line in text.splitlines() if "coop" in line.lower() or "tip" in line.lower())
        assert "election" in text
        assert rows.count("fixed") == rows.lower().count("coop")
        assert "test" in rows.replace("few_shot", "")
    (note,) = [note for note in general_notes(results) if note.startswith("selection")]
    assert re.findall(r"(\w+):", note.partition(":")[2]) == ["fixed", "few_shot_val", "per_target", "test"]
    table = numbers(results).query("method == 'tip_adapter'")
    assert table["selection"].tolist() == [
        "few_shot_val",
        "test",
        "few_shot_val, test",
    ]  # of each data set, the average
    assert side_by_side(table)["selection"].tolist() == ["few_shot_val, test"]


def test_images_in_all_are_a_number_of_shots_of_their_own() -> None:
    config = {"shots": 4, "fit": {"epochs": {"1": 50, "4": 100, "16": 200}}}
    few = {"shots": "37-in-all", "config": config}
    made = [*(few_shot("coop", accuracy=a, seed=s, **few) for a, s in ((0.5, 1), (0.7, 2))), few_shot("coop"),
            few_shot("coop", shots="all"), few_shot("zero_shot", seed=0, shots=0)]  # fmt: skip
    table = summarise(made)
    assert table["shots"].tolist() == [16, 16, "37-in-all", "37-in-all", "all", "all"]
    row = table.query("method == 'coop' and shots == '37-in-all'").iloc[0]
    assert (row["n"], row["test"]) == (2, pytest.approx(60))
    assert value_of(made[0], "fit.epochs") == 100  # that of the shots in its configuration
    assert select({Path("a"): made[0], Path("b"): made[2]}, ["shots=37-in-all"])[0] == {Path("a"): made[0]}
    assert "37-in-all" in drawn(made)
    assert made[0].folder(Path("r")).parts[-2] == "shots37-in-all"
    with pytest.raises(ValueError, match="shots"):
        few_shot("coop", shots="many")
