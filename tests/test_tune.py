"""`vlprompt tune` on the tiny world: what it reads, what it leaves, and how it resumes."""

import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from running import SECONDS, VLPROMPT, Answer, ask, check_mistake, environment_in, set_up, start
from tiny_world import RUN

import vlprompt.run
from vlprompt import cli
from vlprompt.config.spec import RunSpec
from vlprompt.results.record import Record
from vlprompt.results.store import find_records
from vlprompt.tuning.search import Search
from vlprompt.tuning.study import Study, best

pytest.importorskip("optuna", reason="needs the extra tune")

ARGUMENTS = ["tune", "coop", "--trials", "3", *RUN, "fit.epochs=1"]
HALF = 3  # base classes, each with one validation image


def tune(*more: str) -> Answer:
    return ask(cli.main, [*ARGUMENTS, *more])


def study(root: Path) -> Study:
    (path,) = root.rglob("study.json")
    return Study.model_validate_json(path.read_bytes())


def trials(root: Path) -> dict[str, Record]:
    """The trials' records by the name of their folder."""
    records = {path.parent.name: Record.read(path.parent) for path in root.glob("tune/**/trials/*/result.json")}
    return {name: record for name, record in records.items() if record}


def answers(root: Path, of: Study) -> list[dict[str, dict[str, int | float]]]:
    """All scores of each trial, which differ where the accuracy on a few images does not."""
    return [trials(root)[Path(trial.record).name].scores for trial in of.trials]


@pytest.fixture
def choice_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the tests, which take their time."""
    monkeypatch.setattr(Search, "test", lambda *_: [])


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Answer]:
    """A finished search with two test seeds: its results root, which is not to be changed, and what it said."""
    folder = tmp_path_factory.mktemp("tuned")
    with pytest.MonkeyPatch.context() as patch:
        set_up(patch, folder)
        return folder / "results", tune("--final-seeds", "1,2")


def test_what_a_search_leaves(tuned: tuple[Path, Answer]) -> None:
    root, answer = tuned
    assert (answer.code, answer.err) == (0, ""), answer
    search, records = study(root), trials(root)
    assert (len(search.trials), search.budget, search.status) == (3, 3, "tested")
    for trial in search.trials:
        record = records[Path(trial.record).name]
        assert (record.status, record.variant) == ("finished", Path(trial.record).name)
        assert trial.accuracy == record.scores["base"]["accuracy"]
        assert trial.setting["fit.lr"] == record.config["fit"]["lr"]
        assert trial.setting["method.position"] == record.config["method"]["position"]
        assert record.cost["train_seconds"] + record.cost["test_seconds"] == pytest.approx(trial.seconds)
    assert search.trials[0].setting["fit.lr"] == 0.002  # the default
    assert search.seconds == pytest.approx(sum(trial.seconds for trial in search.trials))
    assert search.chosen in search.trials
    assert search.chosen.accuracy == max(trial.accuracy for trial in search.trials)


def test_the_choice_is_tested_once_a_seed_next_to_the_default(tuned: tuple[Path, Answer]) -> None:
    root, answer = tuned
    search = study(root)
    assert search.chosen is not None
    records = {(r.variant, r.seed): r for r in find_records([root]) if r.method == "coop"}
    name = search.cell.variant
    assert set(records) == {(variant, seed) for variant in (name, f"tuned-{name}") for seed in (1, 2)}
    for (variant, seed), record in records.items():
        assert list(record.scores) == ["base", "novel", "all"]
        expected = search.chosen.setting["fit.lr"] if str(variant).startswith("tuned") else 0.002
        assert record.config["fit"]["lr"] == expected
        assert record.selection == ("few_shot_val" if str(variant).startswith("tuned") else "fixed")
        assert {"variant": variant, "seed": seed, "status": "finished", "reason": None, "scores": record.scores} in (
            search.tests
        )
    table = answer.out[answer.out.index("\nchosen on few-shot validation") :]
    line = next(line for line in table.splitlines() if line.startswith(f"coop@{name} "))
    assert f"fit.lr={search.chosen.setting['fit.lr']}" in line
    assert line.split()[1:3] == ["3", "0"]
    assert line.split()[-1] == f"{search.seconds:.1f}"
    rows = [row.split()[0] for row in table.splitlines() if row.startswith(("zero_shot ", "coop "))]
    assert rows == ["zero_shot", "coop", "coop"]


def test_trials_are_shown_where_they_are_asked_for_alone(tuned: tuple[Path, Answer]) -> None:
    root, _ = tuned
    assert {record.variant for record in find_records([root])}.isdisjoint(trials(root))
    assert {record.variant for record in find_records([root / "tune"])} == set(trials(root))
    assert not [record for record in find_records([root]) if "search" in record.config]


# What is read before the choice


@pytest.mark.parametrize("protocol", ["base_to_novel", pytest.param("few_shot", marks=pytest.mark.slow)])
@pytest.mark.slow
def test_no_test_image_is_opened_before_the_choice(results: Path, protocol: str) -> None:
    """Here none can be opened. The choice is made and stored; the first test then fails."""
    answer = tune("+dataset.source.sealed=test", f"protocol={protocol}")
    assert answer.code == 1
    search = study(results)
    assert search.chosen is not None
    assert [trial.reason for trial in search.trials] == [None] * 3
    assert [test["status"] for test in search.tests] == ["failed", "failed"]
    assert all("AssertionError: test/" in test["reason"] and "was opened" in test["reason"] for test in search.tests)
    assert not list(results.glob("runs/**/predictions.npz"))


@pytest.mark.usefixtures("choice_alone")
def test_the_few_shot_validation_images_of_the_base_classes_are_what_counts(results: Path) -> None:
    """Where these cannot be opened, there is no trial; and there are no others in it."""
    with pytest.raises(AssertionError, match="val/0/0 was opened"):
        tune("+dataset.source.sealed=val", "--trials", "1")
    assert tune("--trials", "1").code == 0
    (record,) = (r for r in trials(results).values() if r.status == "finished")
    assert {name: scores["total"] for name, scores in record.scores.items()} == {"base": HALF}


@pytest.mark.slow
def test_test_labels_do_not_move_the_choice(tuned: tuple[Path, Answer], results: Path) -> None:
    """With labels of the test images exchanged, the tests come out otherwise and the search is the same."""
    assert tune("+dataset.source.turned=1", "--trials", "2").code == 0
    mine, theirs = study(results), study(tuned[0])
    assert [trial.setting for trial in mine.trials] == [trial.setting for trial in theirs.trials[:2]]
    assert answers(results, mine) == answers(tuned[0], theirs)[:2]
    expected = best(theirs.trials[:2])
    assert mine.chosen is not None
    assert expected is not None
    assert mine.chosen.setting == expected.setting
    assert mine.tests[0]["scores"]["base"]["nll"] != theirs.tests[0]["scores"]["base"]["nll"]  # both of the default


# Resuming


@pytest.mark.slow
@pytest.mark.usefixtures("choice_alone")
def test_an_interrupted_search_resumes(
    tuned: tuple[Path, Answer], results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_record = vlprompt.run.make_record
    with monkeypatch.context() as patch:

        def stop_at_third(spec: RunSpec, *others: Any) -> Record:
            if len(trials(results)) == 2:
                raise KeyboardInterrupt
            return make_record(spec, *others)

        patch.setattr(vlprompt.run, "make_record", stop_at_third)
        answer = tune()
    assert answer.code == 130
    assert answer.err.splitlines()[-1].startswith("interrupted: finished runs stay")
    half = study(results)
    assert (len(half.trials), half.chosen, half.status) == (2, None, "searching")
    before = {path: path.stat().st_mtime_ns for path in results.glob("tune/**/trials/*/*")}

    answer = tune()
    assert answer.code == 0
    assert answer.out.count("is finished already") == 2
    assert {path: path.stat().st_mtime_ns for path in before} == before
    whole = study(results)
    assert [(t.setting, t.accuracy) for t in whole.trials] == [(t.setting, t.accuracy) for t in study(tuned[0]).trials]
    assert whole.seconds == pytest.approx(sum(record.cost["train_seconds"] + record.cost["test_seconds"]
                                              for record in trials(results).values()))  # fmt: skip


@pytest.mark.slow
def test_a_killed_search_resumes(tuned: tuple[Path, Answer], results: Path, tmp_path: Path) -> None:
    process = start(VLPROMPT, ARGUMENTS, environment_in(tmp_path), tmp_path)
    limit = time.monotonic() + SECONDS
    while len(list(results.glob("tune/**/trials/*/result.json"))) < 2:
        assert process.poll() is None
        assert time.monotonic() < limit
        time.sleep(0.01)
    process.kill()
    process.communicate()
    done = {path: path.stat().st_mtime_ns for path in results.glob("tune/**/trials/[!.]*/result.json")}
    assert tune().code == 0
    assert {path: path.stat().st_mtime_ns for path in done} == done
    assert [(t.setting, t.accuracy) for t in study(results).trials] == [
        (t.setting, t.accuracy) for t in study(tuned[0]).trials
    ]


@pytest.mark.slow
def test_more_trials_continue_the_search(tuned: tuple[Path, Answer], results: Path) -> None:
    shutil.copytree(tuned[0], results)
    answer = tune("--trials", "4")
    assert answer.code == 0
    assert answer.out.count("is finished already") == 3 + 3  # the default, the choice (or its tests), zero-shot
    assert len(study(results).trials) == 4


@pytest.mark.usefixtures("choice_alone")
@pytest.mark.slow
def test_failed_trials_count_and_are_told(results: Path) -> None:
    wild = ["search.fit.lr.low=1e29", "search.fit.lr.high=1e30", "fit.epochs=3", "fit.lr=0.002"]
    answer = tune(*wild, "--trials", "3")
    search = study(results)
    assert [trial.accuracy is None for trial in search.trials] == [False, True, True]
    assert answer.code == 0
    assert answer.out.count("failed: training stopped at step") == 2
    assert search.chosen == search.trials[0]
    records = trials(results)
    assert sorted(record.status for record in records.values()) == ["failed", "failed", "finished"]
    again = tune(*wild, "--trials", "3")
    assert study(results).trials == search.trials  # with the same cost: nothing was tried again
    assert again.code == 0


def test_all_trials_failed(results: Path) -> None:
    answer = tune("search.fit.lr.low=1e29", "search.fit.lr.high=1e31", "fit.epochs=3", "fit.lr=1e30", "--trials", "2")
    assert answer.code == 1
    assert study(results).chosen is None
    assert not list(results.glob("runs/**/result.json"))
    assert "none" in answer.out.splitlines()[-1]


# Mistakes


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["tune", "zero_shot", "dataset=digits"], "zero_shot is not trained"),
        (["tune", "coop", "~search.fit", "~search.method"], "coop declares no search space"),
        pytest.param(["tune", "cop"], "unknown method 'cop'", marks=pytest.mark.slow),
        (["tune", "coop", "name=x"], "'name=x' cannot be set here"),
        pytest.param(
            ["tune", "coop", "protocol.part=val"], "'protocol.part=val' cannot be set here", marks=pytest.mark.slow
        ),
        (["tune", "fit.lr=1"], "name at least one method"),
        (["tune", "coop", "--shots", "1,2"], "shots=1,2 is several values"),
        pytest.param(
            ["tune", "coop", "linear_head", "dataset=digits"],
            "LinearHead owns parameters for each",
            marks=pytest.mark.slow,
        ),
        (["tune", "coop", "--config-dir", "absent"], "--config-dir=absent is no folder"),
    ],
)
def test_a_mistake_is_one_sentence_before_the_first_trial(results: Path, arguments: list[str], words: str) -> None:
    answer = ask(cli.main, [*arguments, *([] if "dataset=digits" in arguments else RUN)])
    check_mistake(answer, [words], results)


@pytest.mark.parametrize("arguments", [["table", "fit.lr=1", "--formats"], ["tune", "coop", "--trial-count", "3"],
                                       ["tune", "coop", "--trials", "0"], ["tune"]])  # fmt: skip
def test_unknown_arguments(results: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2
    assert "error: " in capsys.readouterr().err


def test_without_optuna_one_sentence_says_so(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    check_mistake(tune(), ["pip install 'vlprompt[tune]'"], results)


@pytest.mark.slow
def test_a_method_that_the_user_brings(results: Path, tmp_path: Path) -> None:
    folder = tmp_path / "conf"
    (folder / "method").mkdir(parents=True)
    text = "defaults: [coop, _self_]\nsearch: {method: {position: {choices: [end, front, middle]}}}\n"
    (folder / "method" / "mine.yaml").write_text(f"# @package _global_\n{text}")
    answer = ask(cli.main, ["tune", "mine", "--trials", "2", "--config-dir", str(folder), *RUN, "~search.fit"])
    assert (answer.code, answer.err) == (0, ""), answer
    search = study(results)
    assert search.cell.method == "mine"
    assert list(search.space) == ["method.position"]
    assert json.dumps(search.trials[1].setting).startswith('{"method.position": ')


@pytest.mark.slow
def test_a_search_on_a_model_without_text_has_no_zero_shot_row(results: Path) -> None:
    plain_vit = ["backbone=timm_vit", "backbone.model=test_vit", "backbone.weights=random", "backbone.images.size=16"]
    given = [text for text in RUN if not text.startswith(("method.", "backbone"))]
    answer = ask(cli.main, ["tune", "lora", "--trials", "1", *given, *plain_vit, "protocol=few_shot"])
    assert (answer.code, answer.err) == (0, "")
    assert "no zero-shot row" in answer.out
    assert {record.method for record in find_records([results])} == {"lora"}
