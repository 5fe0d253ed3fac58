"""`vlprompt table` as it is typed: columns, conditions, papers, and what the notes below say."""

import csv
import io
from pathlib import Path

import pytest
from made_records import few_shot, record, save
from running import ask

from vlprompt import cli
from vlprompt.reports.averages import ELEVEN
from vlprompt.reports.endings import next_steps


@pytest.fixture
def root(tmp_path: Path) -> Path:
    config = {"fit": {"lr": 0.002}}
    made = [record("coop", name, seed, base=0.7, config=config) for name in ("dtd", "eurosat") for seed in (1, 2)]
    save(tmp_path, [*made, record("lora", "dtd", changes={"method.rank": 2}, variant="0123abcd")])
    return tmp_path


def rows_of(*arguments: object) -> list[dict[str, str]]:
    answer = ask(cli.main, ["table", *map(str, arguments), "--format", "csv"])
    assert answer.code == 0, answer
    return list(csv.DictReader(io.StringIO(answer.out)))


def test_columns(root: Path) -> None:
    assert list(rows_of(root, "--columns", "method,n,H")[0]) == ["method", "n", "H"]
    assert "fit.lr" in rows_of(root, "--columns", "fit.lr")[0]
    assert "base" in rows_of(root, "--columns", "fit.lr")[0]  # settings are columns more
    assert list(rows_of(root, "--columns", "fit.lr,base", "novel")[0]) == [
        "fit.lr", "base", "base_sd", "novel", "novel_sd"
    ]  # fmt: skip
    out = ask(cli.main, ["table", str(root), "--layout", "base_to_novel", "--columns", "H,method"]).out
    assert out.splitlines()[1].split() == ["H", "method"]
    plain = ask(cli.main, ["table", str(root), "--where", "method=coop", "dataset=dtd", "--columns", "method,H"]).out
    assert plain.startswith("protocol base_to_novel, dataset dtd, backbone vit_b16, weights openai, precision bf16, sh")
    assert ask(cli.main, ["table", str(root), "--where", "shotss=1"]).err.count(" shots,") == 1
    for more in ([], ["--format", "csv"], ["--layout", "auto"]):
        answer = ask(cli.main, ["table", str(root), "--columns", "metod", *more])
        assert (answer.code, answer.out) == (2, "")
        assert "unknown column 'metod': known are" in answer.err
        assert "did you mean 'method'" in answer.err
    assert "unknown key 'fit.l'" in ask(cli.main, ["table", str(root), "--columns", "fit.l"]).err


def test_conditions_with_commas(root: Path) -> None:
    assert len(rows_of(root, "--where", "method=coop,lora", "dataset=dtd")) == 2
    answer = ask(cli.main, ["table", str(root), "--where", "method=coop,loar"])
    assert (answer.code, answer.out) == (2, "")
    assert "unknown value of method 'loar': known are coop, lora; did you mean 'lora'?" in answer.err


@pytest.mark.slow
def test_rows_of_papers_next_to_ours(root: Path) -> None:
    layout = [root, "--layout", "base_to_novel", "--papers", "maple"]
    rows = rows_of(*layout)
    ours, theirs = ([row for row in rows if bool(row["source"]) == published] for published in (False, True))
    assert {row["dataset"] for row in ours} == {"dtd", "eurosat", "average_2"}
    assert {row["dataset"] for row in theirs} == {*ELEVEN, "average_2", "average_11"}
    by_variant = {row["variant"] for row in theirs if row["method"] == "maple"}
    assert by_variant == {"published: MaPLe", "published: OnPoKD"}
    values = {row["variant"]: round(float(row["mean"]), 2) for row in theirs
              if (row["method"], row["dataset"], row["part"]) == ("maple", "average_11", "base")}  # fmt: skip
    assert values == {"published: MaPLe": 82.28, "published: OnPoKD": 82.28}  # printed; derived
    assert {row["n"] for row in theirs} == {""}
    single = {row["part"] for row in theirs if row["dataset"] == "dtd"}
    assert single == {"base", "novel", "H"}  # a mean over seeds is not known
    answer = ask(cli.main, ["table", *map(str, layout)])
    assert answer.code == 0
    assert "average_2 is over dtd, eurosat." in answer.out
    assert "No average_11 of coop, base_to_novel, 16 shots: imagenet, " in answer.out
    assert "OnPoKD is OnPoKD paper, Table 1 (reprint)" in answer.out
    for format in ("markdown", "latex"):
        assert "published: OnPoKD" in ask(cli.main, ["table", *map(str, layout), "--format", format]).out
    where = [*layout, "--where", "dataset=dtd"]
    assert {row["dataset"] for row in rows_of(*where) if row["source"]} == {"dtd"}


def test_papers_alone_and_unknown_ones(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    nothing = tmp_path_factory.mktemp("nothing")
    rows = rows_of(nothing, "--layout", "few_shot", "--papers", "tip_adapter", "--where", "shots=16")
    assert {(row["method"], row["shots"]) for row in rows} >= {("tip_adapter", "16"), ("tip_adapter_f", "16")}
    answer = ask(cli.main, ["table", str(root), "--papers", "maple,mapel"])
    assert (answer.code, answer.out) == (2, "")
    assert "unknown paper 'mapel': known are" in answer.err
    assert "did you mean 'maple'" in answer.err
    out = ask(cli.main, ["table", str(root), "--layout", "base_to_novel", "--papers", "plot,maple"]).out
    assert "No published number of plot is of these runs' kind." in out


def test_what_comes_after_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VLPROMPT_RESULTS", str(tmp_path / "results"))
    made = [few_shot("coop", "pets", seed=seed) for seed in (1, 2)]
    save(tmp_path / "results", made)
    where, after = next_steps(made[:1]).splitlines()
    assert (tmp_path / where.removeprefix("record: ") / "result.json").is_file()
    assert after == "next: vlprompt table --where protocol=few_shot dataset=pets"
    assert next_steps(made).splitlines() == ["records: 2 below results", after]
    several = next_steps([*made, few_shot("coop", "dtd")]).splitlines()[1]
    assert several == "next: vlprompt table --layout few_shot --where protocol=few_shot dataset=pets,dtd"


def test_a_paper_s_columns_in_csv(root: Path) -> None:
    layout = "--layout", "base_to_novel"
    wide = rows_of(root, *layout, "--columns", "method,dataset,base,H")
    assert {"method", "dataset", "base", "H"} <= {*wide[0]}
    long = {(row["method"], row["dataset"], row["part"]): row["mean"] for row in rows_of(root, *layout)}
    assert {(row["method"], row["dataset"], "H"): row["H"] for row in wide}.items() <= long.items()
    assert list(rows_of(root, *layout, "--columns", "method,part,mean")[0]) == ["method", "part", "mean"]


def test_lists_without_a_value(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for wrong in ("", " ,"):
        with pytest.raises(SystemExit, match="2"):
            cli.main(["table", str(root), "--columns", wrong])
        assert f"argument --columns: '{wrong}' names nothing" in capsys.readouterr().err
    answer = ask(cli.main, ["table", str(root), "--where", "method=coop,"])
    assert (answer.code, "'method=coop,' has an empty value" in answer.err) == (2, True)


def test_a_long_list_of_names_is_cut(root: Path) -> None:
    message = ask(cli.main, ["table", str(root), "--where", "fit.l=1"]).err
    assert "known are fit.lr, " in message
    assert " more; did you mean 'fit.lr'?" in message
    assert message.count(",") < 12


def test_a_condition_of_papers_rows_alone(root: Path) -> None:
    papers = "--layout", "base_to_novel", "--papers", "maple"
    rows = rows_of(root, *papers, "--where", "dataset=food101")
    assert {row["method"] for row in rows} == {"maple"}
    assert (
        "unknown value of dataset 'food'" in ask(cli.main, ["table", str(root), *papers, "--where", "dataset=food"]).err
    )
