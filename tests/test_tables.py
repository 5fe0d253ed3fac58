"""Tables: numbers over seeds, order of rows, headlines of protocols, and four formats."""

import csv
import io
from pathlib import Path

import pandas as pd
import pytest
from made_records import few_shot, record, save, transfer

from vlprompt import cli
from vlprompt.errors import UserError
from vlprompt.reports.render import DEMO_NOTE, PRECISION_NOTE, render
from vlprompt.reports.summary import frame, merged, summarise
from vlprompt.results.record import Record

CSV_COLUMNS = (
    "protocol,dataset,backbone,weights,precision,method,variant,changes,shots,selection,n,base,base_sd,novel,novel_sd,"
    "H,mean_H,parameters,train_s,test_s,peak_bytes,stored_bytes,backbone_bytes,step_s,views,image_s,image_flops,frozen_image_flops,"
    "classes_flops,frozen_classes_flops,mergeable,failed,missing"
)


BASE, NOVEL = (0.876, 0.802, 0.839), (0.737, 0.673, 0.657)


@pytest.fixture
def records() -> list[Record]:
    return [
        record("vpt_shallow"),
        *(record("coop", seed=s, base=b, novel=n) for s, b, n in zip((1, 2, 3), BASE, NOVEL, strict=True)),
        record("coop", seed=4, base=None),
        record("coop", variant="long", shots="all"),
        record("coop", shots=2),
        record("lora", base=None, status="not_applicable"),
        record("zero_shot", seed=0, base=0.75, novel=0.72, shots=0),
    ]  # fmt: skip


def test_mean_deviation_and_harmonic_mean_of_means(records: list[Record]) -> None:
    table = summarise(records)
    row = table[(table.method == "coop") & (table.shots == 16)].iloc[0]
    assert (row.n, row.failed) == (3, 1)
    assert row.base == pytest.approx(83.9)
    assert row.base_sd == pytest.approx(3.7)  # sample deviation; that of the population is 3.02
    assert row.novel == pytest.approx(68.9)
    assert pytest.approx(2 * 83.9 * 68.9 / (83.9 + 68.9)) == row.H
    assert table[table.method == "vpt_shallow"].base_sd.isna().all()  # one seed has no deviation


def test_order_and_untrained_at_every_number_of_shots(records: list[Record]) -> None:
    table = summarise(records)
    assert [f"{shots} {method}" for shots, method in zip(table["shots"], table["method"], strict=True)] == [
        "2 zero_shot", "2 coop", "16 zero_shot", "16 coop", "16 lora", "16 vpt_shallow", "all zero_shot", "all coop"
    ]  # fmt: skip
    assert (table[table.method == "zero_shot"].base == 75).all()
    other = summarise([*records, record("coop", "digits", shots=4)])
    assert not ((other.dataset == "digits") & (other.method == "zero_shot")).any()
    alone = summarise([record("zero_shot", seed=0, shots=0)])
    assert alone.shots.tolist() == [0]


def test_runs_without_a_result_are_counted_not_dropped(records: list[Record]) -> None:
    table = summarise(records)
    lora = table[table.method == "lora"].iloc[0]
    assert (lora.n, lora.failed) == (0, 1)
    assert lora[["base", "H"]].isna().all()
    assert "failed" in render(table)
    assert "failed" not in render(summarise([record("coop")]))


@pytest.mark.parametrize("layout", ["runs", "auto"])
def test_the_headline_of_a_strangers_protocol_has_its_columns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], layout: str
) -> None:
    """From the records alone: the protocol is not installed here."""
    made = [transfer("coop", seed, "dtd", clean=0.8, noisy=noisy) for seed, noisy in ((1, 0.7), (2, 0.6))]
    made = [
        one.model_copy(update={"protocol": "label_noise", "headline": {"clean": 0.8, "drop": drop}})
        for one, drop in zip(made, (0.1, 0.2), strict=True)
    ]
    save(tmp_path, made)
    assert cli.main(["table", str(tmp_path), "--layout", layout, "--format", "markdown"]) == 0
    header, _, row = (line for line in capsys.readouterr().out.splitlines() if line.startswith("|"))
    cells = dict(zip(*([cell.strip() for cell in line.split("|")] for line in (header, row)), strict=True))
    names = ("clean", "noisy", "drop") if layout == "runs" else [f"dtd ({n})" for n in ("clean", "noisy", "drop")]
    assert [cells[name] for name in names] == ["80.00 ± 0.00", "65.00 ± 7.07", "15.00 ± 7.07"]
    errors = [r.model_copy(update={"scores": {"clean": {"accuracy": 0.8, "ece": 0.1}}}) for r in made]
    assert "drop" not in summarise(errors, metric="ece")  # it is one of accuracies


def test_columns_of_several_protocols_keep_their_order() -> None:
    assert merged([["base", "novel", "H", "all"], ["test"], ["novel"]]) == ["base", "novel", "H", "all", "test"]
    assert merged([["novel"], ["base", "novel", "H"]]) == ["base", "novel", "H"]
    assert merged([["a", "x", "average"], ["a", "y", "average"]]) == ["a", "y", "x", "average"]


def test_average_of_a_transfer_leaves_the_source_out(records: list[Record]) -> None:
    made = [transfer("coop", seed, "caltech101", caltech101=0.9, dtd=0.4, eurosat=0.5) for seed in (1, 2)]
    table = summarise([*records, *made, record("lora", base=None, protocol="cross_dataset")])
    rows = table[table.protocol == "cross_dataset"].set_index("method")
    assert rows.average["coop"] == pytest.approx(45)
    assert pd.isna(rows.average["lora"])
    assert table[table.protocol == "base_to_novel"].average.isna().all()
    header = next(line for line in render(summarise(made)).splitlines() if line.startswith("method"))
    assert header.split()[3:7] == ["caltech101", "dtd", "eurosat", "average"]


def test_each_protocol_has_a_table_of_its_own(records: list[Record]) -> None:
    few = [few_shot("coop", seed=seed) for seed in (1, 2)]
    for format in ("terminal", "markdown"):
        first, second = (render(summarise(part), format) for part in (records, few))
        assert render(summarise([*records, *few]), format) == f"{first}\n{second}"
    assert render(summarise([*records, *few]), "latex").count("toprule") == 2
    assert "novel" not in second


def test_precisions_and_weights_are_not_averaged() -> None:
    mixed = [record("coop"), record("coop", seed=2, precision="fp32"), record("coop", seed=3, weights=None)]
    table = summarise(mixed)
    assert table.n.tolist() == [1, 1, 1]
    for format in ("terminal", "markdown", "latex"):
        assert PRECISION_NOTE in render(table, format)
    assert PRECISION_NOTE not in render(summarise(mixed[:1]))


def test_the_tidy_frame_has_one_row_a_run_and_value(records: list[Record]) -> None:
    values = frame([one for one in records if one.method != "zero_shot"])
    runs = values.drop_duplicates("run")
    assert len(runs) == len(records) - 1
    assert runs["status"].value_counts().to_dict() == {"finished": 6, "failed": 1, "not_applicable": 1}
    assert values["split"].value_counts().to_dict() == {"base": 6, "novel": 6, "mean of H": 6, "": 2}
    assert values[values["split"] == "base"]["value"].max() == pytest.approx(87.6)


def test_plain_output_is_never_wrapped_cut_or_coloured(records: list[Record], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    name = "a" * 90
    lines = render(summarise([*records, record("coop", variant=name)])).splitlines()
    assert lines[0] == ("protocol base_to_novel, dataset dtd, backbone vit_b16, weights openai, precision bf16")
    assert sum("coop" in line for line in lines) == 4
    line = next(line for line in lines if name in line)
    assert "80.00" in line
    assert "\x1b" not in "".join(lines)
    assert any("83.90 ± 3.70" in line and "vpt" not in line for line in lines)


def test_a_run_without_a_result_knows_no_weights_and_hides_none(records: list[Record]) -> None:
    lost = record("coop", seed=9, status="failed", scores={}, headline={}, cost={})
    lines = render(summarise([*records, lost.model_copy(update={"weights": None, "precision": None})])).splitlines()
    assert lines[0] == "protocol base_to_novel, dataset dtd, backbone vit_b16, weights openai, precision bf16"
    lines = render(summarise([*records, lost.model_copy(update={"weights": "random"})])).splitlines()
    assert "weights" not in lines[0]


def test_csv_holds_raw_numbers(records: list[Record]) -> None:
    text = render(summarise(records), "csv")
    assert text.splitlines()[0] == CSV_COLUMNS
    rows = list(csv.DictReader(io.StringIO(text)))
    coop = next(row for row in rows if row["method"] == "coop" and row["shots"] == "16")
    assert float(coop["H"]) == pytest.approx(75.663743455, abs=1e-9)
    assert (coop["variant"], coop["weights"]) == ("", "openai")


def test_markdown_and_latex(records: list[Record]) -> None:
    markdown, latex = (render(summarise(records), format) for format in ("markdown", "latex"))
    assert markdown.startswith("protocol base_to_novel, dataset dtd")
    assert "| method " in markdown
    assert "vpt_shallow" in markdown
    assert "\\toprule" in latex
    assert "VPT-Shallow" in latex
    assert "83.90 $\\pm$ 3.70" in latex


@pytest.mark.parametrize("fields", [{"dataset": "shapes"}, {"dataset": "shapes_sketch"}, {"backbone": "shapes_vit"}])
def test_the_demo_ranks_nothing(fields: dict[str, str]) -> None:
    demo, real = summarise([record("coop", **fields)]), summarise([record("coop")])
    for format in ("terminal", "markdown", "latex"):
        assert DEMO_NOTE in render(demo, format)
        assert DEMO_NOTE not in render(real, format)
    assert DEMO_NOTE not in render(demo, "csv")


def test_no_runs_and_unknown_format(records: list[Record]) -> None:
    with pytest.raises(UserError, match=r"python run\.py"):
        summarise([])
    with pytest.raises(UserError, match="did you mean 'latex'"):
        render(summarise(records), "latx")
    assert frame([]).empty


def test_costs_and_missing_seeds_are_shown() -> None:
    cost = {"trained_parameters": 512, "train_seconds": 30.0, "test_seconds": 2.0, "peak_memory_bytes": 2**30}
    made = [record("coop", seed=seed, cost=cost) for seed in (1, 2, 3)]
    made += [record("maple"), record("zero_shot", seed=0, shots=0)]
    table = summarise(made).set_index("method")
    assert table.loc["coop", ["parameters", "train_s", "missing"]].tolist() == [512, 30.0, 0]
    assert table.loc["maple", "missing"] == 2
    assert table.loc["zero_shot", "missing"] == 0
    assert "1024" in render(summarise(made), "markdown")
