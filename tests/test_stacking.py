"""Several seeds or learning rates as one job: one pass of the towers, and each run as if it were alone."""

from pathlib import Path

import pytest
from running import Answer, ask, check_mistake
from safetensors.torch import load_file
from tiny_world import CLASSES, PER_CLASS, RUN

from vlprompt import sweep as run
from vlprompt.results.record import Record
from vlprompt.results.store import find_records
from vlprompt.stacking import Stack

COCOOP = [*RUN, "method=cocoop", "fit.batch_size=2"]


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Members of each stacked pass there was."""
    made: list[int] = []
    backward = Stack.backward

    def counted(self, learners, batches):
        found = backward(self, learners, batches)
        if found is not None:
            made.append(len(learners))
        return found

    monkeypatch.setattr(Stack, "backward", counted)
    return made


def start(*overrides: str, base: list[str] = RUN) -> Answer:
    answer = ask(run.main, [*base, *overrides])
    assert (answer.code, answer.err) == (0, ""), answer
    return answer


def trained(root: Path) -> list[Record]:
    return sorted((r for r in find_records([root]) if r.method != "zero_shot"), key=lambda r: (r.seed, str(r.variant)))


def check_equal(together: Path, alone: Path) -> None:
    """Records and tensors of the same cells, but for rounding."""
    ours, theirs = trained(together), trained(alone)
    assert [r.key for r in ours] == [r.key for r in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert (one.status, one.config_hash, len(one.curve)) == (other.status, other.config_hash, len(other.curve))
        for a, b in zip(one.curve, other.curve, strict=True):
            assert a == pytest.approx(b, rel=1e-4, abs=1e-6)
        tensors = [load_file(r.folder(root) / "learner.safetensors") for r, root in ((one, together), (other, alone))]
        assert tensors[0].keys() == tensors[1].keys()
        for name, tensor in tensors[0].items():
            assert (tensor - tensors[1][name]).norm() <= 1e-4 * tensors[1][name].norm().clamp_min(1e-6), name


@pytest.mark.parametrize("base", [RUN, COCOOP], ids=["coop", "cocoop"])
def test_seeds_in_one_pass_are_runs_of_their_own(
    base: list[str], results: Path, passes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = start("seed=[1,2,3]", base=base)
    assert passes
    assert set(passes) == {3}
    assert [record.seed for record in trained(results)] == [1, 2, 3]
    assert {record.cost["trained_together"] for record in trained(results)} == {3}
    assert answer.out.count("shots") >= 1
    monkeypatch.setenv("VLPROMPT_RESULTS", str(results.parent / "alone"))
    for seed in (1, 2, 3):
        start(f"seed={seed}", base=base)
    check_equal(results, results.parent / "alone")
    tensors = [(r.folder(results) / "learner.safetensors").read_bytes() for r in trained(results)]
    assert len(set(tensors)) == 3  # so that equality above means something


def test_learning_rates_in_one_pass(results: Path, passes: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    start("fit.lr=[0.002,0.02]", "seed=[1,2]")
    assert set(passes) == {4}
    assert len(trained(results)) == 4
    monkeypatch.setenv("VLPROMPT_RESULTS", str(results.parent / "alone"))
    for rate in (0.002, 0.02):
        for seed in (1, 2):
            start(f"fit.lr={rate}", f"seed={seed}")
    check_equal(results, results.parent / "alone")


@pytest.mark.parametrize("method", ["kgcoop", "tcp", "clip_adapter"])
def test_other_methods_are_stacked_and_equal(
    method: str, results: Path, passes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = [*(setting for setting in RUN if "method." not in setting), f"method={method}"]
    base += ["method.layer=2"] if method == "tcp" else []
    start("seed=[1,2]", base=base)
    assert set(passes) == {2}
    monkeypatch.setenv("VLPROMPT_RESULTS", str(results.parent / "alone"))
    for seed in (1, 2):
        start(f"seed={seed}", base=base)
    check_equal(results, results.parent / "alone")


def test_in_half_precision_they_are_stacked_too(results: Path, passes: list[int]) -> None:
    start("seed=[1,2]", "precision=bf16")
    assert set(passes) == {2}


def test_activations_in_parts_are_not_stacked(results: Path, passes: list[int]) -> None:
    start("seed=[1,2]", "text_chunk=2")
    assert passes == []
    assert [(r.seed, "trained_together" in r.cost) for r in trained(results)] == [(1, False), (2, False)]


@pytest.mark.parametrize(
    ("more", "words"),
    [(["seed=[]"], "seed=[] holds no value"), (["name=x", "fit.lr=[0.1,0.2]"], "2 runs share the folder")],
)
def test_mistakes(more: list[str], words: str, results: Path) -> None:
    check_mistake(ask(run.main, [*RUN, *more]), [words], results)


def test_in_a_sweep_each_member_that_cannot_run_has_its_record(results: Path) -> None:
    base = [setting for setting in RUN if "method." not in setting]
    ask(run.main, ["-m", *base, "method=linear_head", "seed=[1,2]"])
    assert [(r.seed, r.status) for r in trained(results)] == [(1, "not_applicable"), (2, "not_applicable")]


def test_what_is_finished_is_found(results: Path, passes: list[int]) -> None:
    start("seed=2")
    kept = next(r for r in trained(results) if r.seed == 2).created
    answer = start("seed=[1,2,3]")
    assert set(passes) == {2}
    assert "1 of 3 runs are finished already" in answer.out
    assert next(r for r in trained(results) if r.seed == 2).created == kept


def test_a_member_that_is_not_finite_ends_alone(results: Path, passes: list[int]) -> None:
    answer = ask(run.main, [*RUN, "fit.lr=[0.002,1e30]", "fit.epochs=4", "seed=[1,2]"])
    assert answer.code == 2
    assert "2 of 4 runs failed: training stopped at step" in answer.err
    assert "Traceback" not in answer.err
    records = trained(results)
    assert sorted(r.status for r in records) == ["failed", "failed", "finished", "finished"]
    assert {r.config["fit"]["lr"] for r in records if r.status == "failed"} == {1e30}
    assert passes[0] == 4
    assert passes[-1] == 2


@pytest.mark.parametrize(
    "more",
    [
        ["method=vpt_shallow", "method.dropout=0.5"],
        ["method=lora", "method.dropout=0.5", "method.towers=text"],  # reads features, and draws random numbers
        ["method=dylora", "method.towers=text"],
        ["method=prograd"],
    ],
    ids=["vpt", "lora", "dylora", "prograd"],
)
def test_what_cannot_be_stacked_is_trained_as_it_is_alone(
    more: list[str], results: Path, passes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = [setting for setting in RUN if "method." not in setting]
    start("seed=[1,2]", *more, base=base)
    assert passes == []
    monkeypatch.setenv("VLPROMPT_RESULTS", str(results.parent / "alone"))
    for seed in (2, 1):
        start(f"seed={seed}", *more, base=base)
    check_equal(results, results.parent / "alone")


def test_each_record_says_what_its_own_run_took_from_the_bank(results: Path) -> None:
    start("seed=[1,2]")
    n_test, n_views = len(CLASSES) * PER_CLASS["test"], 2 * 2 * 3  # views, shots, base classes
    counts = [(r.bank["read"], r.bank["computed"]) for r in trained(results)]
    assert counts == [(0, n_views + n_test), (0, n_views)]  # tests are in memory when the second is tested


def test_in_a_sweep(results: Path, passes: list[int]) -> None:
    answer = ask(run.main, ["-m", *RUN, "method=coop,cocoop", "seed=[1,2]", "fit.batch_size=2"])
    assert answer.code == 0, answer.err
    assert set(passes) == {2}
    assert sorted((r.method, r.seed) for r in trained(results)) == [(m, s) for m in ("cocoop", "coop") for s in (1, 2)]


def test_what_is_not_trained_is_one_run_whatever_the_seeds(results: Path) -> None:
    base = [setting for setting in RUN if not setting.startswith(("method.", "fit."))]
    start("method=zero_shot", "seed=[1,2]", base=base)
    assert [record.seed for record in find_records([results])] == [0]


def test_one_value_in_a_list_is_that_value(results: Path) -> None:
    start("seed=[4]")
    assert [record.seed for record in trained(results)] == [4]
