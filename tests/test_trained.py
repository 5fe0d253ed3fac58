"""Trained learners again, without training: tested at other settings, and in PEFT's format."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
from running import ask, check_mistake, set_up
from tiny_world import RUN

from vlprompt import cli, sweep
from vlprompt.commands.tested import test_again as retest
from vlprompt.commands.tested import test_line as line
from vlprompt.commands.trained import read_setting
from vlprompt.config.build import restore_learner
from vlprompt.config.spec import spec_of_record
from vlprompt.errors import UserError
from vlprompt.learners.dylora import DyLoRA
from vlprompt.results.record import Record
from vlprompt.results.store import find_runs

WORLD = [*RUN[:3], "shots=2", "fit.epochs=2", "fit.lr=0.05"]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Two seeds of DyLoRA of four ranks, one run of P-tuning, and zero-shot."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        set_up(patch, folder)
        for seed in (1, 2):
            dynamic = ["method=dylora", "method.rank=4", "method.sites=[v,fc1]", f"seed={seed}", "name=four"]
            assert ask(sweep.main, [*WORLD, *dynamic]).code == 0
        assert ask(sweep.main, [*WORLD, "method=p_tuning", "method.n_tokens=2"]).code == 0
        yield folder / "results"


def run_of(results: Path, method: str, seed: int = 1) -> tuple[Path, Record]:
    return next((f, r) for f, r in find_runs([results]).items() if (r.method, r.seed) == (method, seed))


@pytest.mark.slow
def test_all_ranks_are_tested_without_training(results: Path, tmp_path: Path) -> None:
    table = tmp_path / "ranks.csv"
    options = ["--results", str(results), "--format", "csv", "--output", str(table)]
    assert ask(cli.main, ["evaluate", "method.test_rank=1,2,4", *options]).code == 0
    rows = pd.read_csv(table).set_index(["seed", "test_rank"])
    assert sorted(rows.index) == [(seed, rank) for seed in (1, 2) for rank in (1, 2, 4)]
    for seed in (1, 2):
        folder, record = run_of(results, "dylora", seed)
        for split, scores in record.scores.items():  # the largest rank is that of the run
            assert rows.loc[(seed, 4), split] == pytest.approx(100 * scores["accuracy"])
        losses = {rank: retest(spec_of_record(folder, record), folder, {"test_rank": rank}) for rank in (1, 4)}
        assert losses[4]["base"]["nll"] == pytest.approx(record.scores["base"]["nll"], rel=1e-5)
        assert abs(losses[1]["base"]["nll"] - losses[4]["base"]["nll"]) > 1e-6


def test_the_table_is_over_seeds(results: Path) -> None:
    answer = ask(cli.main, ["evaluate", "method.test_rank=1,4", "--results", str(results)])
    assert answer.code == 0
    rows = [line.split()[:5] for line in answer.out.splitlines() if line.startswith("dylora")]
    assert rows == [["dylora", "four", "2", str(rank), "2"] for rank in (1, 4)]
    assert "±" in answer.out


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("method.test_rank=1,9", "method.test_rank is 9, allowed is 1 to method.rank=4"),
        ("method.test_rank=one", "method.test_rank is 'one'"),
        ("method.rank=2", "does not fit DyLoRA"),
        ("method.nothing=2", "no finished run has the setting method.nothing"),
        ("fit.lr=2", "is no setting of a method with values"),
        ("method.test_rank", "is no setting of a method with values"),
    ],
)
def test_what_needs_training_is_refused(setting: str, said: str, results: Path, tmp_path: Path) -> None:
    check_mistake(ask(cli.main, ["evaluate", setting, "--results", str(results)]), [said], tmp_path)


def test_runs_without_tensors_are_left_out(results: Path, tmp_path: Path) -> None:
    copies = tmp_path / "results"
    for seed in (1, 2):
        folder, _ = run_of(results, "dylora", seed)
        shutil.copytree(folder, copies / folder.relative_to(results))
    copied = sorted(find_runs([copies]))
    (copied[0] / "learner.safetensors").unlink()
    answer = ask(cli.main, ["evaluate", "method.test_rank=1", "--results", str(copies), "--metric", "nll"])
    assert answer.code == 0, answer.err
    assert "1 of 2 runs hold no learner.safetensors and are left out" in answer.out
    (copied[1] / "learner.safetensors").unlink()
    answer = ask(cli.main, ["evaluate", "method.test_rank=1", "--results", str(copies)])
    assert (answer.code, "holds no learner.safetensors" in answer.err) == (2, True)


@pytest.mark.slow
def test_interpolation_is_from_zero_shot_to_the_tuned_model(results: Path, tmp_path: Path) -> None:
    folder, record = run_of(results, "dylora")
    _, zero_shot = run_of(results, "zero_shot", 0)
    before = {path: path.read_bytes() for path in sorted(results.rglob("*")) if path.is_file()}
    frozen, half, tuned = line(spec_of_record(folder, record), folder, [0, 0.5, 1])
    for split, of_split in record.scores.items():
        assert frozen[split]["accuracy"] == zero_shot.scores[split]["accuracy"]
        assert frozen[split]["nll"] == pytest.approx(zero_shot.scores[split]["nll"], rel=1e-5)
        assert tuned[split]["nll"] == pytest.approx(of_split["nll"], rel=1e-5)
        assert len({scores[split]["nll"] for scores in (frozen, half, tuned)}) == 3
    table, figure = tmp_path / "line.csv", tmp_path / "line.png"
    answer = ask(cli.main, ["evaluate", "interpolation=0,0.5,...,1", str(folder), "--format", "csv",
                            "--output", str(table), "--plot", str(figure)])  # fmt: skip
    assert answer.code == 0, answer.err
    rows = pd.read_csv(table).set_index("interpolation")
    assert rows.index.tolist() == [0, 0.5, 1]
    assert rows["base"].tolist() == pytest.approx([100 * s["base"]["accuracy"] for s in (frozen, half, tuned)])
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert {path: path.read_bytes() for path in sorted(results.rglob("*")) if path.is_file()} == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["interpolation=0,1", "--where", "method=p_tuning"], "PTuning, as it is set here, leaves no others"),
        (["interpolation=0,2"], "allowed are numbers from 0, the frozen weights, to 1, the tuned ones"),
        (["interpolation=0,half"], "allowed are numbers from 0"),
        (["method.interpolation=0,1"], "is a setting of the training"),
        (["interpolation=0,...,1"], "is no row of numbers"),
        (["interpolation=0,0.3,...,1"], "is no row of numbers"),
        (["interpolation=0,1", "--plot", "line.txt"], "is no figure"),
        (["method.test_rank=1,[2]", "--plot", "line.png"], "a curve needs numbers"),
    ],
)
def test_lines_that_there_are_not(arguments: list[str], said: str, results: Path, tmp_path: Path) -> None:
    setting, *more = arguments
    check_mistake(ask(cli.main, ["evaluate", setting, str(results), *more]), [said], tmp_path)


def test_values_in_a_row() -> None:
    assert read_setting("interpolation=0,0.1,...,1") == ("interpolation", [0, *(i / 10 for i in range(1, 10)), 1])
    assert read_setting("method.test_rank=8,6,...,2") == ("test_rank", [8, 6, 4, 2])


def test_another_split_or_a_missing_file_is_refused(results: Path, tmp_path: Path) -> None:
    folder, record = run_of(results, "dylora")
    with pytest.raises(UserError, match="was trained on another split of digits"):
        spec_of_record(folder, record.model_copy(update={"split_hash": "0"}))
    with pytest.raises(UserError, match=r"config\.yaml: No such file"):
        spec_of_record(tmp_path, record)


def test_a_run_becomes_a_folder_of_peft(results: Path, tmp_path: Path) -> None:
    folder, _ = run_of(results, "dylora")
    learner = restore_learner(folder)
    assert isinstance(learner, DyLoRA)
    answer = ask(cli.main, ["export", str(folder), str(tmp_path / "adapter")])
    assert answer.code == 0, answer.err
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 4, 8.0)
    tensors = safetensors.torch.load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    name = "base_model.model.vision_model.encoder.layers.3.self_attn.v_proj.lora_A.weight"
    assert torch.equal(tensors[name], learner.layers["image"][3]["v"].a)
    assert len(tensors) == 2 * 2 * 2 * 4  # matrices, sites, towers, layers


def test_what_has_no_form_in_peft_is_refused(results: Path, tmp_path: Path) -> None:
    folder, record = run_of(results, "p_tuning")
    assert record.cost["trained_parameters"] > 2 * 96  # with the encoder, which is not stored
    assert sum(t.numel() for t in safetensors.torch.load_file(folder / "learner.safetensors").values()) == 2 * 96
    check_mistake(ask(cli.main, ["export", str(folder), str(tmp_path)]), ["PTuning"], tmp_path)
    check_mistake(ask(cli.main, ["export", str(tmp_path), str(tmp_path)]), ["no learner lies in"], tmp_path)


def test_a_run_becomes_a_folder_of_a_hub(results: Path, tmp_path: Path) -> None:
    """With its scores, and the tensors alone."""
    folder, record = run_of(results, "p_tuning")
    out = tmp_path / "out"
    answer = ask(cli.main, ["export", str(folder), str(out), "--to", "hub"])
    assert answer.code == 0, answer.err
    card = (out / "README.md").read_text()
    for split, scores in record.scores.items():
        assert re.search(rf"^\| {split} \| {scores['total']} \|.*\| {100 * scores['accuracy']:.2f} \|", card, re.M)
    assert f"| {record.split_hash} |" in card
    assert str(tmp_path) not in card + (out / "learner_config.json").read_text()
    theirs, ours = (safetensors.torch.load_file(path / "learner.safetensors") for path in (out, folder))
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[name], ours[name]) for name in ours)
    check_mistake(ask(cli.main, ["export", str(folder), str(out), "--to", "hub"]), ["README.md", "--force"], tmp_path)
    answer = ask(cli.main, ["export", str(out), str(tmp_path / "matrix"), "--to", "classifier", "--classes", "a,b_c"])
    assert answer.code == 0, answer.err
    with np.load(tmp_path / "matrix" / "classifier.npz") as saved:
        assert (list(saved["classes"]), len(saved["weight"])) == (["a", "b_c"], 2)


def test_options_of_an_export(results: Path, tmp_path: Path) -> None:
    folder, _ = run_of(results, "dylora")
    out = str(tmp_path / "out")
    for form in ("peft", "open_clip", "hub"):
        answer = ask(cli.main, ["export", str(folder), out, "--to", form, "--classes", "a,b"])
        check_mistake(answer, ["--classes", form], tmp_path)
    check_mistake(ask(cli.main, ["export", "hf://me", out, "--to", "onnx"]), ["hf://owner/name"], tmp_path)
    assert not (tmp_path / "out").exists()
