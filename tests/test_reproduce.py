"""`vlprompt reproduce` compared with made-up published numbers: verdicts, and runs that are missing or interrupted."""

import math
import signal
import time
from collections.abc import Callable
from pathlib import Path
from statistics import stdev
from typing import Any

import pytest
from running import SECONDS, VLPROMPT, Answer, ask, check_mistake, environment_in, start

from vlprompt import cli, run
from vlprompt.config.spec import RunSpec
from vlprompt.errors import UserError
from vlprompt.reports.averages import ELEVEN
from vlprompt.reports.verdict import Published, Verdict, allowed, floor_of, judge, unprinted_averages
from vlprompt.results.record import FILE
from vlprompt.results.store import find_records, find_runs

HEADER = "source,protocol,dataset,method,backbone,shots,metric,value,recipe,printed\n"
DATASET = """# @package _global_
defaults:
  - override /backbone: shapes_vit
workers: 0
dataset:
  name: tiny
  template: "a photo of the digit {}."
  source:
    _target_: tiny_world.load
"""
TINY = ["backbone.weights=random", "fit.epochs=1", "bank.views=1", "method.ctx_init=''"]


def published(**changes: Any) -> Published:
    row = {"source": "A paper", "protocol": "base_to_novel", "dataset": "caltech101", "method": "coop"}
    row |= {"backbone": "vit_b16", "shots": 16, "metric": "base", "value": 80.0, "recipe": "coop/base_to_novel"}
    return Published(**(row | changes))


def seeds(*pairs: tuple[float, float]) -> list[dict[str, float]]:
    return [{"base": float(base), "novel": float(novel), "all": 1.0} for base, novel in pairs]


# Verdicts


@pytest.mark.parametrize(
    ("row", "floor"),
    [
        ({}, 1.0),
        ({"metric": "novel"}, 2.0),
        ({"metric": "H"}, 1.5),
        ({"metric": "novel", "dataset": "eurosat"}, 5.0),
        ({"metric": "base", "dataset": "eurosat"}, 1.0),
        ({"metric": "accuracy", "shots": 1}, 2.0),
        ({"metric": "accuracy", "shots": 4}, 1.0),
        ({"metric": "novel", "shots": 0}, 0.5),
        ({"dataset": "average_11"}, 0.5),
        ({"dataset": "average_11", "metric": "H"}, math.sqrt(9 * 1.5**2 + 16 + 4) / 11),
        ({"dataset": "average_11", "metric": "novel"}, math.sqrt(9 * 4 + 25 + 9) / 11),
        ({"dataset": "average of 2", "of": ("food101", "sun397"), "metric": "novel"}, math.sqrt(2)),
    ],
)
def test_floors(row: dict[str, Any], floor: float) -> None:
    assert floor_of(published(**row)) == pytest.approx(floor)


def test_the_larger_of_floor_and_seeds_is_allowed() -> None:
    values = [70.0, 75.0, 80.0]
    expected = 4.302653 * stdev(values) * math.sqrt(1 / 3 + 1 / 3)  # t of 2 degrees of freedom, 97.5 %
    assert allowed(published(), values) == (pytest.approx(expected, rel=1e-5), "seeds")
    assert allowed(published(), [80.0, 80.1, 79.9]) == (1.0, "floor")
    assert allowed(published(), [80.0]) == (1.0, "floor")


@pytest.mark.parametrize(("value", "verdict"), [(80.9, "inside"), (81.1, "outside"), (78.9, "outside")])
def test_inside_and_outside(value: float, verdict: str) -> None:
    row = published(value=value)
    judged = judge(row, {row.key("caltech101"): seeds((80.0, 60), (80.1, 70), (79.9, 80))})
    assert (judged.verdict, judged.n, judged.decided_by) == (verdict, 3, "floor")
    assert (judged.mean, judged.deviation) == (pytest.approx(80), pytest.approx(0.1))


def test_the_harmonic_mean_is_that_of_means() -> None:
    row = published(metric="H", value=66.67)
    judged = judge(row, {row.key("caltech101"): seeds((100, 40), (60, 80), (80, 51.43))})
    assert judged.mean == pytest.approx(2 * 80 * 57.1433 / (80 + 57.1433), abs=1e-3)
    assert judged.verdict == "inside"
    assert judged.decided_by == "seeds" or judged.tolerance == 1.5


def test_a_printed_average_is_that_of_all_its_data_sets() -> None:
    row = published(dataset="average_11", metric="H", value=2 * 60 * 40 / 100)
    runs: dict[Any, Any] = {row.key(name): seeds((55 + i, 35 + i), (55 + i, 35 + i)) for i, name in enumerate(ELEVEN)}
    judged = judge(row, runs)
    assert (judged.verdict, judged.mean, judged.tolerance) == ("inside", pytest.approx(48), floor_of(row))
    del runs[row.key("dtd")]
    assert judge(row, runs) == Verdict(row, "not run", "no result on 1 of 11 data sets")


def test_an_average_of_what_ran_where_none_is_printed() -> None:
    numbers = {"base": 60.0, "novel": 40.0, "H": 48.0}
    names = ("dtd", "food101", "sun397")
    rows = [published(dataset=name, metric=metric, value=v) for name in names for metric, v in numbers.items()]
    runs = {row.key(row.dataset): seeds((60, 40)) for row in rows if row.dataset != "sun397"}
    ours = unprinted_averages([judge(row, runs) for row in rows])
    assert [(row.dataset, row.metric, row.value) for row in ours] == [
        ("average of 2", "base", 60), ("average of 2", "novel", 40), ("average of 2", "H", 48)
    ]  # fmt: skip
    assert [judge(row, runs).verdict for row in ours] == ["inside"] * 3


def test_transfer_is_trained_on_imagenet_and_tested_by_name() -> None:
    row = published(protocol="cross_dataset", dataset="dtd", metric="accuracy", value=41.0)
    assert row.key("dtd").dataset == "imagenet"
    assert judge(row, {row.key("dtd"): [{"imagenet": 71.0, "dtd": 41.5}]}).verdict == "inside"
    judged = judge(row, {row.key("dtd"): [{"imagenet": 71.0}]})
    assert (judged.verdict, judged.reason) == ("not judged", "runs have no score 'test'")


# The command


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Arguments for short runs, and for the data set `tiny`."""
    folder = tmp_path_factory.mktemp("conf")
    (folder / "dataset").mkdir()
    (folder / "dataset" / "tiny.yaml").write_text(DATASET)
    return ["--config-dir", str(folder), *TINY]


def write(path: Path, *rows: str) -> Path:
    path.write_text(HEADER + "".join(f"made up,{row},CoOp\n" for row in rows))
    return path


Reproduce = Callable[..., Answer]


@pytest.fixture
def reproduce(tiny: list[str], results: Path) -> Reproduce:
    return lambda path, *more: ask(cli.main, ["reproduce", "coop", "--published", str(path), *tiny, *more])


def lines(answer: Answer, *words: str) -> list[str]:
    """The rows of the tables that have all the words in them."""
    return [line for line in answer.out.splitlines() if set(words) <= set(line.split())]


def row_of(shots: int, value: float, recipe: str = "coop/few_shot") -> str:
    return f"few_shot,tiny,coop,shapes_vit,{shots},accuracy,{value:.2f},{recipe}"


@pytest.mark.slow
def test_one_inside_one_outside_one_missing_one_unknown(reproduce: Reproduce, results: Path, tmp_path: Path) -> None:
    made = write(tmp_path / "made.csv", row_of(1, 0), row_of(2, 0))
    assert reproduce(made, "--seeds", "1,2").code == 1  # to learn what the tiny runs come to
    records = find_records([results])
    assert sorted(record.shots for record in records) == [1, 1, 2, 2]
    one, two = (50 * sum(r.scores["test"]["accuracy"] for r in records if r.shots == shots) for shots in (1, 2))
    made = write(
        tmp_path / "made.csv",
        row_of(1, one + 0.3),
        row_of(2, two + 50),
        "few_shot,caltech101,coop,vit_b16,16,accuracy,90,coop_few_shot",
        row_of(16, 50, ""),
        row_of(4, 50, "coop/unheard_of"),
    )
    answer = reproduce(made, "--seeds", "1,2")
    assert (answer.code, answer.err) == (1, "")
    assert answer.out.count("is finished already") == 4
    assert len(lines(answer, "tiny", "finished")) == 2
    assert answer.out.count("caltech101 is not complete") == answer.out.count("'coop/unheard_of'") == 1
    (inside,) = lines(answer, "tiny", "inside")
    assert {f"{one:.2f}", "-0.30", "2"} <= set(inside.split())
    assert len(lines(answer, "tiny", "outside", "-50.00")) == 1
    assert len(lines(answer, "caltech101", "90.00", "not", "run", "cannot")) == 1
    assert len(lines(answer, "16", "50.00", "unknown")) == 1
    assert answer.out.rstrip().endswith("1 inside, 1 outside, 2 not run, 1 not judged")
    file = tmp_path / "verdicts.tex"
    alone = reproduce(made, "--seeds", "1,2", "--shots", "1", "--output", str(file))
    assert (alone.code, alone.out.rstrip()[-8:]) == (0, "1 inside")
    assert r"\toprule" in file.read_text()
    assert "inside" in file.read_text()


def finished(results: Path) -> dict[int, int]:
    """The seeds that are finished, in whatever folder a killed process left them, and the times of their records."""
    return {record.seed: (folder / FILE).stat().st_mtime_ns for folder, record in find_runs([results]).items()}


def check_the_rest(answer: Answer, results: Path, done: dict[int, int]) -> None:
    """The second call ran what the first one had not, and nothing else."""
    assert 1 <= len(done) < 3
    assert f"{len(done)} of 3" in answer.out
    assert answer.out.count("is finished already") == len(done)
    assert sorted(after := finished(results)) == [1, 2, 3]
    assert done.items() <= after.items()
    assert len(lines(answer, "tiny", "outside", "3")) == 1


@pytest.mark.slow
def test_an_interrupted_reproduction_resumes(
    reproduce: Reproduce, results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, make_record = write(tmp_path / "made.csv", row_of(1, 99)), run.make_record

    def stop_at_second(spec: RunSpec, *others: Any) -> Any:
        if spec.key.seed == 2:
            raise KeyboardInterrupt
        return make_record(spec, *others)

    with monkeypatch.context() as patch:
        patch.setattr(run, "make_record", stop_at_second)
        stopped = reproduce(made)
    assert stopped.code == 130
    assert "interrupted" in stopped.err
    assert "verdict" not in stopped.out
    done = finished(results)
    check_the_rest(reproduce(made), results, done)


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_process_resumes(
    reproduce: Reproduce, tiny: list[str], results: Path, tmp_path: Path, sent: signal.Signals
) -> None:
    """Ctrl-C, or killed, in the middle of a run, in another process."""
    made = write(tmp_path / "made.csv", row_of(1, 99))
    arguments = ["reproduce", "coop", "--published", str(made), *tiny]
    process = start(VLPROMPT, arguments, environment_in(tmp_path), tmp_path)
    limit = time.monotonic() + SECONDS
    while not find_runs([results]):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit
        time.sleep(0.005)
    process.send_signal(sent)
    _, err = process.communicate(timeout=SECONDS)
    if sent == signal.SIGINT:
        assert process.returncode == 130
        assert err.splitlines()[-1].startswith(("interrupted", "stopped by Ctrl-C"))  # in a training
    done = finished(results)
    check_the_rest(reproduce(made), results, done)


def test_a_run_that_fails_is_named_and_the_others_run(
    reproduce: Reproduce, results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = write(tmp_path / "made.csv", row_of(1, 10), row_of(2, 10))
    make_record = run.make_record

    def fail(spec: RunSpec, *others: Any) -> Any:
        if spec.key.shots == 1:
            raise UserError("this one fails")
        return make_record(spec, *others)

    monkeypatch.setattr(run, "make_record", fail)
    answer = reproduce(made, "--seeds", "1", "fit.lr=0.01", "fit.schedule.warmup=none")
    assert answer.code == 1
    assert "failed on tiny (few_shot, 1 shots): this one fails" in answer.out
    assert {record.shots: record.status for record in find_records([results])} == {1: "failed", 2: "finished"}


def test_a_plan_alone_runs_nothing(reproduce: Reproduce, results: Path, tmp_path: Path) -> None:
    made = write(tmp_path / "made.csv", row_of(1, 10))
    answer = reproduce(made, "--dry-run")
    assert (answer.code, answer.err) == (0, "")
    assert "0 of 3" in answer.out
    assert not results.exists()


def test_missing_weights_are_named_before_the_first_run(reproduce: Reproduce, results: Path, tmp_path: Path) -> None:
    answer = reproduce(write(tmp_path / "made.csv", row_of(1, 10)), "backbone.weights=absent")
    assert (answer.code, "cannot run tiny: " in answer.out, "absent" in answer.out) == (1, True, True)
    assert not list(results.rglob("result.json"))


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--protocol", "base_to_novel"], "no published number of coop fits"),
        (["--source", "another"], "no published number of coop fits"),
        (["seed=3"], "'seed=3' cannot be set here"),
        (["--published", "absent.csv"], "cannot read absent.csv"),
    ],
)
def test_mistakes(reproduce: Reproduce, results: Path, tmp_path: Path, more: list[str], words: str) -> None:
    check_mistake(reproduce(write(tmp_path / "made.csv", row_of(1, 10)), *more), [words], results)
