"""Variants in words, the folders that commands read, and what must be said of a row."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import running
from made_records import few_shot, record, save
from PIL import Image
from running import Answer
from tiny_world import RUN

from vlprompt import cli, sweep
from vlprompt.config.changes import words
from vlprompt.config.compose import read_run
from vlprompt.data.dataset import Item, Split
from vlprompt.protocols.base import Episode
from vlprompt.reports.render import in_words
from vlprompt.reports.variants import distinguishing, labels, mixed_settings, variant_texts
from vlprompt.results.record import Record
from vlprompt.run import warn_of_single_classes

FIT = {"fit": {"lr": 0.002, "epochs": 50}, "method": {"n_context": 16}}


def ask(*arguments: object) -> Answer:
    return running.ask(cli.main, [str(argument) for argument in arguments])


def changed(variant: str = "0123abcd", seed: int = 1, **changes: Any) -> Record:
    """A run of CoOp with these settings, `fit__lr` for fit.lr."""
    dotted = {key.replace("__", "."): value for key, value in changes.items()}
    config = json.loads(json.dumps(FIT))
    for key, value in dotted.items():
        part, name = key.split(".")
        config.setdefault(part, {})[name] = value
    return few_shot("coop", seed=seed, variant=variant, changes=dotted, config=config)


def default(seed: int = 1, **fields: Any) -> Record:
    return few_shot("coop", seed=seed, changes={}, **{"config": FIT, **fields})


# What a record says


@pytest.mark.parametrize(
    ("overrides", "changes"),
    [
        ([], {}),
        (["fit.lr=0.01"], {"fit.lr": 0.01}),
        (["fit.lr=0.01", "name=mine"], {"fit.lr": 0.01}),
        (["precision=bf16"], {"precision": "bf16"}),
        (["+fit.keep=best"], {"fit.keep": "best"}),
        (["+fit.average={mu:2,sigma:1}"], {"fit.average.mu": 2.0, "fit.average.sigma": 1.0}),
        (["augment.scale=[0.5,1]", "seed=2"], {"augment.scale": [0.5, 1.0]}),
        (["dataset.template='a {}.'"], {"dataset.template": "a {}."}),
        (["method.class_specific=true"], {"method.class_specific": True}),
        (["sampler.name=clip_lora"], {"sampler.name": "clip_lora"}),
        (["device=cpu", "threads=1", "bank.gb=1"], {}),
    ],
)
def test_changes_are_those_of_the_command_line(results: Path, overrides: list[str], changes: dict[str, Any]) -> None:
    spec = read_run(["dataset=digits", "protocol=few_shot", "method=coop", "method.ctx_init=''", *overrides])
    assert {key: value for key, value in spec.changes.items() if key != "method.ctx_init"} == changes
    assert (spec.key.variant == "mine") is ("name=mine" in overrides)


def test_files_are_named_and_what_is_left_out_is_said(results: Path, tmp_path: Path) -> None:
    (tmp_path / "my prompts.json").write_text('{"zero": ["round"]}')
    hard = ["dataset=digits", "protocol=few_shot", "method=hard_prompts", "method.templates=null"]
    spec = read_run([*hard, f"method.descriptions='{tmp_path}/my prompts.json'"])
    assert spec.changes["method.descriptions"] == "my prompts.json"
    assert str(tmp_path) not in words(spec.changes)


def test_a_run_shows_and_keeps_its_changes(results: Path) -> None:
    answer = running.ask(sweep.main, [*RUN, "protocol=few_shot"])
    assert answer.code == 0, answer.err
    assert "fit.epochs=2" in answer.out.splitlines()[0]
    made = next(Record.read(path.parent) for path in results.rglob("coop*/**/result.json"))
    assert made is not None
    assert made.changes is not None
    assert {"fit.epochs": 2, "shots": 2}.items() & made.changes.items() == {("fit.epochs", 2)}
    assert made.n_classes == {"test": 5}
    assert made.variant in str(next(results.rglob("coop@*")))  # the folder keeps its hash
    shown = ask("table").out
    assert "fit.epochs=2" in shown
    assert made.variant not in shown


def test_records_of_before_are_told_by_their_configuration(results: Path) -> None:
    spec = read_run(["dataset=digits", "protocol=few_shot", "method=coop", "fit.lr=0.01", "shots=4"])
    old = Record(**spec.key.model_dump(), status="finished", config=spec.config, precision=spec.precision)
    strange = few_shot("coop", variant="0123abcd", config={**spec.config, "method": {"_target_": "os.system"}})
    save(results, [old, strange])
    shown = ask("table").out
    assert "fit.lr=0.01" in shown
    assert str(old.variant) not in shown
    assert "0123abcd" in shown  # nothing says what it is


# In reports


def test_settings_in_which_rows_differ_are_columns_others_words() -> None:
    records = [few_shot("zero_shot", shots=0, seed=0), default(), changed(fit__lr=0.01), changed("1" * 8, fit__lr=0.1)]
    assert distinguishing(records) == ["fit.lr"]
    rows = [line.split() for line in in_words(records).splitlines() if "coop" in line]
    assert [row[2] for row in rows] == ["0.002", "0.01", "0.1"]  # by size, the default's value among them
    assert variant_texts(records) == ["", "", "fit.lr=0.01", "fit.lr=0.1"]
    assert variant_texts(records, ["fit.lr"]) == [""] * 4
    alone = [few_shot("zero_shot", shots=0, seed=0), changed(fit__lr=0.01, fit__epochs=5)]
    assert distinguishing(alone) == []
    assert "fit.lr=0.01, fit.epochs=5" in in_words(alone)


def test_what_words_do_not_tell_is_told_by_the_hash() -> None:
    same = [changed("0" * 8, method__file="a.json"), changed("1" * 8, method__file="a.json")]
    assert [text.split(" (")[1] for text in variant_texts(same)] == ["00000000)", "11111111)"]
    unknown = few_shot("coop", variant="deadbeef", config=FIT)
    assert variant_texts([unknown]) == ["deadbeef"]
    assert len(set(labels([*same, unknown, default()]))) == 4


def test_a_name_stays_and_is_split_where_it_stands_for_several() -> None:
    named = [changed("mine", fit__lr=0.01), changed("mine", seed=2, fit__lr=0.01)]
    assert variant_texts(named) == ["mine", "mine"]
    several = [*named, changed("mine", seed=3, fit__lr=0.1)]
    assert variant_texts(several) == ["mine: fit.lr=0.01", "mine: fit.lr=0.01", "mine: fit.lr=0.1"]


@pytest.mark.parametrize("layout", ["runs", "auto"])
def test_the_table_command_has_words_columns_and_csv_both(tmp_path: Path, layout: str) -> None:
    save(tmp_path, [default(), changed(fit__lr=0.01), changed("1" * 8, fit__lr=0.1, fit__epochs=5)])
    for format in ("terminal", "markdown", "latex"):
        out = ask("table", tmp_path, "--layout", layout, "--format", format).out
        assert "fit.lr" in out
        assert "0123abcd" not in out
    header, *rows = ask("table", tmp_path, "--layout", layout, "--format", "csv").out.splitlines()
    assert "variant,changes," in header
    assert [row for row in rows if '11111111,"fit.lr=0.1, fit.epochs=5"' in row]


def test_a_learner_of_compare_is_named_as_it_is_shown(tmp_path: Path) -> None:
    made = [few_shot(method, data, changes=changes, variant=variant, config=FIT)
            for data in ("dtd", "eurosat") for method, variant, changes in
            (("coop", None, {}), ("coop", "0123abcd", {"fit.lr": 0.01, "fit.epochs": 5}))]  # fmt: skip
    save(tmp_path, made)
    assert "coop@fit.lr=0.01,fit.epochs=5" in ask("compare", "--results", tmp_path).out
    for name in ("coop@fit.lr=0.01,fit.epochs=5", "coop@fit.lr=0.01, fit.epochs=5", "coop@0123abcd"):
        code, _, err = ask("compare", name, "coop", "--results", tmp_path)
        assert (code, "predictions" in err) == (2, True)  # it is found, and has none
    code, _, err = ask("compare", "coop@fit.lr=0.1", "coop", "--results", tmp_path)
    assert (code, "coop@fit.lr=0.01,fit.epochs=5" in err) == (2, True)


# Which folders are read


@pytest.mark.parametrize("command", [["table"], ["compare"], ["curve", "fit.lr"], ["evaluate", "method.x=1"],
                                     ["plot", "few-shot", "--output", "x.png"]])  # fmt: skip
def test_shipped_records_are_read_where_they_are_named(results: Path, command: list[str]) -> None:
    save(results / "made", [default()])
    (results / "made" / "runs").rename(results / "demo")
    code, out, err = ask(*command)
    assert (code, out) == (2, "")
    assert f"vlprompt table {results / 'demo'}" in err
    assert "python run.py" in err
    assert "coop" in ask("table", results / "demo").out


def test_own_runs_are_not_averaged_with_shipped_ones(results: Path) -> None:
    save(results / "made", [default(seed) for seed in (2, 3)])
    (results / "made" / "runs").rename(results / "demo")
    save(results, [default(1)])
    for arguments in (["table"], ["table", results]):
        (row,) = (line.split() for line in ask(*arguments).out.splitlines() if line.startswith("coop"))
        assert row[2] == "1"
    out = ask("table", results / "demo", results).out
    (row,) = (line.split() for line in out.splitlines() if line.startswith("coop"))
    assert row[2] == "3"
    assert f"seed 2, 3 of {results / 'demo'}" in out
    assert f"seed 1 of {results / 'runs'}" in out


def test_a_replaced_run_is_counted_wherever_it_lies(tmp_path: Path) -> None:
    for person, accuracy in (("alice", 0.5), ("bob", 0.7)):
        save(tmp_path / person, [default(scores={"test": {"accuracy": accuracy}})])
    for folders in ([tmp_path / "alice", tmp_path / "bob"], [tmp_path]):
        out = ask("table", *folders).out
        assert "70.00" in out
        assert f"1 runs of {tmp_path / 'alice' / 'runs'}" in out
    same = ask("table", tmp_path / "bob", tmp_path / "bob" / "runs").out
    assert "left out" not in same


def test_a_damaged_record_is_named_and_hides_no_other(tmp_path: Path) -> None:
    save(tmp_path, [default(1), default(2)])
    broken = next(tmp_path.rglob("seed2/result.json"))
    broken.write_text("{")
    for command in (["table"], ["table", "--format", "csv"], ["table", "--layout", "auto"], ["curve", "fit.lr"]):
        code, out, err = ask(*command, tmp_path)
        assert (code, "coop" in out) == (0, True)
        assert str(broken) in out + err


# What must be said of a row


def test_seeds_of_other_settings_and_splits_are_said() -> None:
    later = {"config": {**FIT, "fit": {"lr": 0.01, "epochs": 50, "new": 1}}}
    (note,) = mixed_settings([default(1), default(2, **later)])
    assert "fit.lr (0.002, 0.01)" in note
    assert "new" not in note
    assert mixed_settings([default(1), default(2)]) == []
    (note,) = mixed_settings([default(1, split_hash="a"), default(2, split_hash="b")])
    assert "2 splits" in note


def test_tests_of_one_class_are_said(tmp_path: Path) -> None:
    save(tmp_path, [record("coop", n_classes={"base": 1, "novel": 2}), default(n_classes={"test": 3})])
    for options in ([], ["--layout", "base_to_novel"], ["--format", "csv"]):
        out = "".join(ask("table", tmp_path, *options)[1:])
        assert "test base has one class" in out
        assert "novel has" not in out
        assert "test test" not in out


def test_a_run_on_one_class_a_half_warns(caplog: pytest.LogCaptureFixture) -> None:
    pair = Split((Item("a", 0), Item("b", 1)), ("zero", "one"), lambda name: Image.new("RGB", (2, 2)))
    warn_of_single_classes(Episode(pair, None, {"base": pair.select([0]), "all": pair}))
    (message,) = caplog.messages
    assert "'base'" in message
    assert "zero" in message


def test_seeds_without_predictions_are_named_in_figures_and_comparisons(results: Path) -> None:
    pytest.importorskip("matplotlib")
    assert running.ask(sweep.main, [*RUN, "protocol=few_shot"]).code == 0
    first = next(results.rglob("coop@*/shots2/seed1"))
    for seed in (2, 3, 4):
        copy = first.with_name(f"seed{seed}")
        shutil.copytree(first, copy)
        record = Record.read(copy)
        assert record is not None
        (copy / "result.json").write_text(record.model_copy(update={"seed": seed}).text())
    (first.with_name("seed2") / "predictions.npz").unlink()
    (first.with_name("seed3") / "predictions.npz").write_bytes(b"PK\x03\x04")
    code, out, err = ask("plot", "reliability", "--output", results / "x.png")
    assert (code, out) == (0, "")
    assert ["seed2:" in err, "seed3" in err, "seed4" in err] == [True, True, False]
    learner = first.parents[1].name
    zero_shot = next(results.rglob("zero_shot*/shots0")).parent.name
    code, out, err = ask("compare", learner, zero_shot)
    assert code == 0, err
    assert ["seed 2" in out, "seed 3" in out] == [True, True]
    code, out, _ = ask("table", "--metric", "macro_f1")
    assert code == 0
