"""Comparisons on the same images and across data sets, and their command."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import running
import torch
from made_records import few_shot, save
from running import Answer

from vlprompt import cli
from vlprompt.errors import UserError
from vlprompt.reports.averages import across_datasets
from vlprompt.reports.significance import paired, rankings, runs_of
from vlprompt.results.metrics import score
from vlprompt.results.predictions import Predictions, save_predictions
from vlprompt.results.record import Record
from vlprompt.results.store import find_runs

IMAGES = [f"{i}.jpg" for i in range(40)]


def predictions(right: list[bool], images: list[str] = IMAGES, labels: list[int] | None = None) -> Predictions:
    """Of two classes."""
    truth = torch.tensor(labels or [i % 2 for i in range(len(right))])
    predicted = torch.where(torch.tensor(right), truth, 1 - truth)
    return Predictions.from_logits(images, truth, torch.nn.functional.one_hot(predicted, 2) * 2.0)


def write(root: Path, method: str, seed: int, predicted: Predictions, dataset: str = "dtd", **fields: Any) -> Record:
    record = few_shot(method, dataset, seed=seed, **{"scores": {"test": score(predicted)}, **fields})
    save(root, [record])
    save_predictions(record.folder(root) / "predictions.npz", {"test": predicted})
    return record


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """coop: 30 and 34 of 40 right; zero_shot: 28; on the images that both have right, they agree."""
    write(tmp_path, "coop", 1, predictions([True] * 30 + [False] * 10))
    write(tmp_path, "coop", 2, predictions([True] * 34 + [False] * 6))
    write(tmp_path, "zero_shot", 0, predictions([False] * 4 + [True] * 28 + [False] * 8), shots=0)
    return tmp_path


def test_two_learners_on_the_same_images(root: Path) -> None:
    runs = find_runs([root])
    table, notes = paired(runs_of(runs, "coop"), runs_of(runs, "zero_shot"))
    assert not notes
    assert table["seed"].tolist() == ["1", "2", "mean of 2"]
    first = table.iloc[0]
    assert (first["images"], first["first"], first["second"]) == (40, 75.0, 70.0)
    assert (first["difference"], first["only_first"], first["only_second"]) == (5.0, 4, 2)
    assert first["p"] == pytest.approx(2 * (1 + 6 + 15) / 2**6)
    mean = table.iloc[2]
    assert mean["difference"] == pytest.approx((5 + 15) / 2)
    assert mean["low"] < 10 < mean["high"]
    assert np.isnan(mean["p"])
    swapped, _ = paired(runs_of(runs, "zero_shot"), runs_of(runs, "coop"))
    assert swapped["difference"].tolist() == (-table["difference"]).tolist()
    assert swapped["p"].tolist()[:2] == table["p"].tolist()[:2]


def test_images_are_matched_by_name(root: Path) -> None:
    order = list(range(40))[::-1]
    right = [True] * 30 + [False] * 10
    predicted = predictions([right[i] for i in order], [IMAGES[i] for i in order], [i % 2 for i in order])
    write(root, "lora", 1, predicted)
    runs = find_runs([root])
    table, _ = paired(runs_of(runs, "lora"), {f: r for f, r in runs_of(runs, "coop").items() if r.seed == 1})
    assert table["difference"].tolist() == [0.0]
    assert table["p"].tolist() == [1.0]


def test_other_images_or_labels_are_not_compared(root: Path) -> None:
    write(root, "lora", 1, predictions([True] * 39, IMAGES[:39]))
    write(root, "maple", 1, predictions([True] * 40, labels=[1] * 40))
    runs = find_runs([root])
    for method, words in (("lora", "not tested on the same images"), ("maple", "other labels")):
        with pytest.raises(UserError, match=words):
            paired(runs_of(runs, method), runs_of(runs, "coop"))


def test_learners_that_meet_nowhere_or_are_not_there(root: Path) -> None:
    write(root, "lora", 1, predictions([True] * 40), dataset="eurosat")
    runs = find_runs([root])
    with pytest.raises(UserError, match="nothing to compare"):
        paired(runs_of(runs, "lora"), runs_of(runs, "coop"))
    with pytest.raises(UserError, match=r"unknown learner 'cop'.*did you mean 'coop'"):
        runs_of(runs, "cop")
    folder = next(path for path, record in runs.items() if record.seed == 2)
    assert list(runs_of(runs, str(folder))) == [folder]


def many(scores: dict[str, list[float]]) -> list[Record]:
    return [
        few_shot(method, f"d{i}", scores={"test": {"accuracy": value, "nll": value}})
        for method, values in scores.items()
        for i, value in enumerate(values)
    ]


def test_ranks_across_data_sets_leave_out_and_name() -> None:
    records = many({"coop": [0.5, 0.6, 0.7], "lora": [0.6, 0.7, 0.8], "maple": [0.9, 0.9]})
    (ranking,) = rankings(across_datasets(records)[0], "accuracy")
    assert ranking.ranks.to_dict() == {"lora": 1.0, "coop": 2.0}
    assert ranking.notes == ["Left out: maple has no test on d2."]
    assert ranking.pairs[["first", "second", "wins", "losses"]].values.tolist() == [["coop", "lora", 0, 3]]
    (errors,) = rankings(across_datasets(records, metric="nll")[0], "nll")
    assert errors.ranks.index[0] == "coop"  # the lower the better
    assert rankings(across_datasets(many({"coop": [0.5, 0.6]}))[0], "accuracy") == []


# The commands


def ask(*arguments: object) -> Answer:
    return running.ask(cli.main, [str(argument) for argument in arguments])


def test_compare_command(root: Path) -> None:
    code, out, err = ask("compare", "coop", "zero_shot", "--results", root)
    assert (code, err) == (0, "")
    assert out.startswith("first: coop, second: zero_shot")
    assert "McNemar" in out
    code, out, _ = ask("compare", "coop", "zero_shot", "--results", root, "--format", "csv", "--where", "seed=1")
    assert len(out.splitlines()) == 2
    for arguments, words in (
        (("coop",), "two learners or none"),
        ((), "ranks need two learners"),
        (("coop", "zero_shot", "--dataset", "eurosat"), "value of dataset 'eurosat': known are dtd"),
    ):
        code, out, err = ask("compare", *arguments, "--results", root)
        assert (code, out) == (2, "")
        assert words in err


def test_compare_command_across_data_sets(root: Path) -> None:
    write(root, "coop", 1, predictions([True] * 30 + [False] * 10), dataset="eurosat")
    write(root, "zero_shot", 0, predictions([True] * 20 + [False] * 20), dataset="eurosat", shots=0)
    code, out, _ = ask("compare", "--results", root)
    assert code == 0
    for words in ("mean ranks by test over 2 data sets", "critical difference 1.39", "coop", "p_holm", "Wilcoxon"):
        assert words in out


def test_table_command_in_a_papers_layout(root: Path) -> None:
    assert ask("table", root, "--layout", "few_shot", "--metric", "nll", "--interval", "t")[::2] == (0, "")
    code, out, err = ask("table", root, "--layout", "auto", "--format", "csv", "--where", "method=coop")
    assert "method=coop: 2 of 3 runs" in err
    assert out.splitlines()[0].startswith("protocol,trained_on,backbone")
    assert len(out.splitlines()) == 2
    code, out, err = ask("table", root, "--layout", "base_to_novel")
    assert (code, out) == (2, "")
    assert "no runs of base_to_novel (but of few_shot)" in err
    for options, words in ((("--where", "shots=16", "method=zero_shot"), "no published number"),
                           (("--metric", "ece"), "published numbers are accuracies")):  # fmt: skip
        code, _, err = ask("table", root, "--layout", "published", *options)
        assert (code, words in err) == (2, True)


def test_table_command_next_to_published_numbers(root: Path) -> None:
    """The settings of a run are compared with those that the recipe composes to."""
    from vlprompt.config.compose import compose

    shutil.rmtree(root / "runs")
    asked = ["method=maple", "dataset=caltech101", "shots=16"]
    scores = {"base": {"accuracy": 0.98}, "novel": {"accuracy": 0.94}}
    for name, more in ((None, []), ("long", ["fit.epochs=50"]), ("short", ["fit.epochs=5", "fit.lr=0.1"])):
        write(root, "maple", 1, predictions([True] * 40), "caltech101", variant=name, protocol="base_to_novel",
              scores=scores, config=compose([*asked, *more]))  # fmt: skip
    code, out, err = ask("table", root, "--layout", "auto")
    assert (code, err) == (0, "")
    assert "Distance to the papers" in out
    assert "97.74 (+0.26)" in out
    rows = [line for line in out.split("Distance")[1].splitlines() if line.startswith("caltech101")]
    assert "as published (maple/base_to_novel)" in rows[0]
    assert "settings differ from maple/base_to_novel: fit.epochs 50 (published 5)" in rows[1]
    assert "fit.lr 0.1 (published 0.0035)" in rows[2]
    assert "Distance" not in ask("table", root, "--published", "none")[1]
    assert "Distance" not in ask("table", root, "--metric", "ece")[1]
    code, out, _ = ask("table", root, "--layout", "published", "--format", "csv")
    assert len(out.splitlines()) == 4
    code, out, _ = ask("table", root, "--layout", "base_to_novel", "--published", "rows")
    assert "OnPoKD paper, Table 1 (reprint)" in out
    assert "73.23" not in out  # only the data sets that we have
    assert "cocoop" in out.split("Distance")[0]
