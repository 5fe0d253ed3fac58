"""Both commands within this process: runs on a tiny world, what they leave, and how they answer mistakes."""

import errno
import io
import json
import logging
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import made_records
import pytest
import safetensors.torch
import torch
import yaml
from hydra._internal.core_plugins import file_config_source
from PIL import Image
from running import Answer, ask, check_mistake, set_up, succeed
from tiny_world import CLASSES, PER_CLASS, RUN, load

import vlprompt.run
from vlprompt import cli, demo, sweep, towers
from vlprompt.config import paths
from vlprompt.config.build import clip_at, features_at
from vlprompt.config.compose import read_reference, read_run
from vlprompt.config.spec import RunSpec
from vlprompt.data.views import Batches, Views
from vlprompt.errors import UserError
from vlprompt.results.predictions import load_predictions
from vlprompt.results.record import Record
from vlprompt.results.store import find_records
from vlprompt.towers import Preprocess

FILES = {"config.yaml", "learner.safetensors", "learner_config.json", "log.txt", "predictions.npz", "result.json"}
HALF = (len(CLASSES) + 1) // 2


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Answer]:
    """A finished run: its results root, which is not to be changed, and what it said."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        set_up(patch, folder)
        return folder / "results", ask(sweep.main, RUN)


@pytest.fixture
def again(finished: tuple[Path, Answer], results: Path) -> Path:
    """A results root that holds a copy of the finished run."""
    shutil.copytree(finished[0], results)
    return results


def start(*overrides: str) -> Answer:
    """The tiny run with overrides; it has to succeed."""
    return succeed(sweep.main, [*RUN, *overrides])


def cells(root: Path) -> dict[str, Record]:
    """Records by method with variant, shots and seed."""
    return {f"{r.learner} {r.shots} {r.seed}": r for r in find_records([root])}


def trained(root: Path) -> Record:
    (record,) = (r for r in find_records([root]) if r.method != "zero_shot")
    return record


def tensors(root: Path) -> bytes:
    (path,) = root.rglob("learner.safetensors")
    return path.read_bytes()


# What a run leaves


def test_files_of_a_run(finished: tuple[Path, Answer]) -> None:
    root, answer = finished
    assert (answer.code, answer.err) == (0, "")
    record = trained(root)
    folder = record.folder(root)
    assert {path.name for path in folder.iterdir()} == FILES
    assert not [path for path in root.rglob("*") if ".partial" in path.name or ".old" in path.name]

    assert (record.method, record.shots, record.seed, record.status) == ("coop", 2, 1, "finished")
    assert (record.precision, record.device, record.weights) == ("fp32", "cpu", "random")
    assert "recipe/coop/base_to_novel" in record.recipe
    n_train = 2 * HALF  # shots and base classes; each in two views
    n_test = len(CLASSES) * PER_CLASS["test"]
    assert record.bank == {"test_features": True, "views": 2, "read": 0, "computed": n_test + 2 * n_train}
    counts = {"base": HALF, "novel": len(CLASSES) - HALF, "all": len(CLASSES)}
    totals = {name: scores["total"] for name, scores in record.scores.items()}
    assert totals == {name: n * PER_CLASS["test"] for name, n in counts.items()}
    assert [epoch["epoch"] for epoch in record.curve] == [0, 1]
    assert [epoch["lr"] for epoch in record.curve] == [0.002, 0.001]

    assert yaml.safe_load((folder / "config.yaml").read_text()) == record.config
    assert record.config["fit"]["epochs"] == 2
    saved = json.loads((folder / "learner_config.json").read_text())
    assert saved["classes"] == list(CLASSES[:HALF])
    assert saved["arguments"]["n_context"] == 4
    state = safetensors.torch.load_file(folder / "learner.safetensors")
    assert {name: t.numel() for name, t in state.items()} == {"context": record.cost["trained_parameters"]}
    predictions = load_predictions(folder / "predictions.npz")
    assert {name: len(predictions[name]) for name in record.scores} == totals


def test_log_of_a_run(finished: tuple[Path, Answer]) -> None:
    record = trained(finished[0])
    log = (record.folder(finished[0]) / "log.txt").read_text()
    first, *lines = log.splitlines()
    for word in (f"coop@{record.variant}", "digits", "base_to_novel", "2 shots", "seed 1", "shapes_vit", "fp32", "cpu"):
        assert word in first
    assert [line.split("]")[1].split()[:2] for line in lines if " loss " in line] == [["epoch", "1"], ["epoch", "2"]]
    for name, scores in record.scores.items():  # in the form that parsers of such logs read
        block = log.split(f"Evaluate on the *test* set ({name})")[1]
        assert block.split("* total: ")[1].splitlines()[0] == str(scores["total"])
        assert block.split("* accuracy: ")[1].splitlines()[0] == f"{100 * scores['accuracy']:.2f}%"
    assert str(record.folder(finished[0])) in lines[-1]


def test_zero_shot_is_stored_once_and_shown_next_to_it(finished: tuple[Path, Answer]) -> None:
    root, answer = finished
    (zero,) = (r for r in find_records([root]) if r.method == "zero_shot")
    assert (zero.shots, zero.seed, zero.curve) == (0, 0, [])
    assert {path.name for path in zero.folder(root).iterdir()} == FILES - {"learner.safetensors"}  # it has no tensors
    header, _, *rows = [re.split(r"\s{2,}", line.strip()) for line in answer.out.split("\n\n")[1].splitlines()[1:]]
    assert [row[0] for row in rows] == ["zero_shot", "coop"]
    for row, record in zip(rows, (zero, trained(root)), strict=True):
        shown = dict(zip(header, row, strict=False))
        assert (shown["shots"], shown["n"]) == ("2", "1")
        assert record.changes
        first = list(record.changes)[:3]  # of many, not all are said
        assert all(key in header or f"{key}=" in shown["variant"] for key in first)
        for split, scores in record.scores.items():
            assert shown[split] == f"{100 * scores['accuracy']:.2f}"


def test_the_same_command_finds_the_finished_run(finished: tuple[Path, Answer], again: Path) -> None:
    """Also as `vlprompt run`."""
    before = {path: path.stat().st_mtime_ns for path in again.rglob("*") if path.is_file()}
    answer = succeed(cli.main, ["run", *RUN])
    assert answer.out.count("is finished already (force=true runs it again)") == 2
    assert answer.out.split("\n\n", 1)[1] == finished[1].out.split("\n\n", 1)[1]  # the same table
    assert {path: path.stat().st_mtime_ns for path in before} == before


Plan = Callable[..., tuple[RunSpec, RunSpec]]


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """What the tiny run with overrides would do: the run and its reference, not carried out."""
    folder = tmp_path_factory.mktemp("planned")

    @cache
    def plan(*overrides: str) -> tuple[RunSpec, RunSpec]:
        with pytest.MonkeyPatch.context() as patch:
            set_up(patch, folder)
            return read_run([*RUN, *overrides]), read_reference([*RUN, *overrides])

    return plan


def test_what_cannot_change_a_result_does_not_make_a_run_another(plan: Plan) -> None:
    others = ("threads=1", "text_chunk=9", "workers=2", "device=cpu", "wandb=disabled", "precision=fp32")
    others += ("data.root=x", "force=true", "compile=true")
    for one, other in zip(plan(), plan(*others), strict=True):
        assert (one.hash, one.key) == (other.hash, other.key)


@pytest.mark.parametrize(
    "change",
    [
        "fit.lr=0.1",
        "bank.views=3",
        "method.position=front",
        "precision=bf16",
        "dataset.template='the {}.'",
        "backbone.weights=pretrained",
        "+dataset.source.style=1",
    ],
)
def test_what_can_change_a_result_makes_a_run_another(plan: Plan, change: str) -> None:
    """Zero-shot, too, unless it concerns the training alone."""
    shared = not change.startswith(("fit", "bank", "method"))
    for one, other, differs in zip(plan(), plan(change), (True, shared), strict=True):
        assert (one.hash != other.hash) == differs
        assert (one.key != other.key) == differs


def test_a_name_and_another_seed_have_their_own_folders(plan: Plan) -> None:
    (plain, zero), (named, other_zero), (seeded, _) = plan(), plan("name=mine"), plan("seed=2")
    assert named.key == plain.key.model_copy(update={"variant": "mine"})
    assert seeded.key == plain.key.model_copy(update={"seed": 2})
    assert other_zero.key == zero.key
    assert (zero.key.shots, zero.key.seed) == (0, 0)
    assert len({one.folder for one in (plain, named, seeded)}) == 3


def test_the_same_command_gives_the_same_result(again: Path) -> None:
    first, content = trained(again), tensors(again)
    clip_at.cache_clear()
    features_at.cache_clear()
    torch.manual_seed(123)
    answer = start("force=true")
    assert "already" not in answer.out
    second = trained(again)
    assert second.created >= first.created
    assert (second.scores, second.curve) == (first.scores, first.curve)
    assert second.config_hash == first.config_hash
    assert tensors(again) == content
    start("seed=2")
    others = [path.read_bytes() for path in again.rglob("learner.safetensors")]
    assert len(set(others)) == 2  # so that equality above means something


@pytest.mark.slow
def test_workers_change_nothing(results: Path) -> None:
    """On fresh views of the images, where the order and the random crops count."""
    pixels = ("bank.views=null", "fit.batch_size=4", "force=true")
    start(*pixels, "workers=0")
    alone = tensors(results), trained(results).curve
    start(*pixels, "workers=2")
    assert (tensors(results), trained(results).curve) == alone


@pytest.mark.slow
def test_images_of_the_same_names_are_not_confused(results: Path) -> None:
    """Two styles in one process: neither a record nor a feature of one stands for the other."""
    answer = ask(sweep.main, ["-m", *RUN, "+dataset.source.style=0,1"])
    assert answer.code == 0, answer.err
    assert "already" not in answer.out
    tests = [load_predictions(r.folder(results) / "predictions.npz")["all"] for r in find_records([results])]
    assert len(tests) == len({test.label_logit.tobytes() for test in tests}) == 4


def test_a_small_class_is_warned_about(results: Path) -> None:
    answer = start("+dataset.source.small=1", "fit.epochs=1")
    log = (trained(results).folder(results) / "log.txt").read_text()
    assert answer.out.count("zero (1)") == log.count("zero (1)") == 1
    assert not logging.getLogger("vlprompt").handlers


def test_untrained_runs_need_no_shots(results: Path) -> None:
    arguments = [a for a in RUN if not a.startswith(("fit", "method", "shots"))]
    succeed(sweep.main, [*arguments, "method=zero_shot"])  # 16 shots, where classes have 4 images
    assert [(r.method, r.shots) for r in find_records([results])] == [("zero_shot", 0)]


def test_a_sweep_continues_and_records_what_failed(results: Path) -> None:
    name = "name=swept_${method.class_specific}"
    answer = ask(sweep.main, ["-m", *RUN, name, "shots=1,9", "method.class_specific=false,true"])
    assert answer.code == 1
    assert "Traceback" not in answer.err
    failures = [line for line in answer.err.splitlines() if "name=swept" in line]
    assert sorted("shots=9" in line for line in failures) == [False, True, True]
    assert answer.err.count("at most 4") == 1  # two cells, one reason
    records = cells(results)
    states = {name: record.status for name, record in records.items() if "swept" in name}
    assert states == {
        "coop@swept_False 1 1": "finished",
        "coop@swept_True 1 1": "not_applicable",
        "coop@swept_False 9 1": "failed",
        "coop@swept_True 9 1": "failed",
    }
    assert "at most 4" in str(records["coop@swept_False 9 1"].reason)


def test_each_cell_is_checked_with_its_own_settings(results: Path) -> None:
    """What does not apply to a cell is told once, with the cells that it holds for; the others run."""
    given = [text for text in RUN if not text.startswith("method.")]
    sweeps = ["method=zero_shot,coop,taskres", "method.scale=0.3", "protocol=few_shot", "seed=1,2"]
    answer = ask(sweep.main, ["-m", *given, *sweeps])
    assert (answer.code, answer.err.count("not_applicable")) == (0, 2), answer.err
    assert answer.err.count("method=zero_shot") == answer.err.count("method=coop") == 2
    refused = next(r for r in find_records([results]) if r.status == "not_applicable")
    assert (refused.changes or {})["method.scale"] == 0.3
    assert "++" not in answer.err
    states = {(r.method, r.seed): r.status for r in find_records([results]) if r.method != "zero_shot"}
    assert states == {
        **{("coop", seed): "not_applicable" for seed in (1, 2)},
        **{("taskres", seed): "finished" for seed in (1, 2)},
    }


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["method=coop,lora", "method.rnk=2"], ["'method.rnk'", "method.rank"]),
        pytest.param(["method=coop,lroa"], ["unknown method 'lroa'", "'lora'"], marks=pytest.mark.slow),
        (["fit.lr=abc"], ["fit.lr is 'abc'"]),
        pytest.param(["seed=1,x"], ["seed is 'x'"], marks=pytest.mark.slow),
        (["shots=9", "seed=1,2"], ["at most 4"]),
        pytest.param(["name=exp", "fit.lr=0.01,0.02"], ["name=exp", "fit.lr", "${fit.lr}"], marks=pytest.mark.slow),
        (["name=exp", "--multirun", "fit.lr=0.01,0.02"], ["name=exp", "fit.lr"]),  # settings on both sides of an option
        (["fit.lr=interval(0,1)"], ["interval"]),
        (["method=glob(zzz*)"], ["zzz"]),
        pytest.param(["--cfg", "hydra"], ["--cfg", "-m"], marks=pytest.mark.slow),
        (["--config-dir", "nowhere"], ["nowhere"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_mistake_in_a_sweep_runs_nothing(results: Path, arguments: list[str], words: list[str]) -> None:
    given = [text for text in RUN if not text.startswith("method.")]
    check_mistake(ask(sweep.main, ["-m", *given, *arguments]), words, results)


def test_equal_cells_run_once(results: Path) -> None:
    answer = ask(sweep.main, ["-m", *RUN, "seed=1,1", "fit.lr=0.01,1e-2"])
    assert (answer.code, answer.err) == (0, "")
    assert "already" not in answer.out
    assert len(find_records([results])) == 2  # and zero-shot


def test_a_name_is_not_given_to_other_settings(again: Path) -> None:
    start("name=mine", "fit.lr=0.01")
    answer = ask(sweep.main, [*RUN, "name=mine", "fit.lr=0.02"])
    check_stop(answer, "fit.lr is 0.01, now 0.02")
    assert "force=true" in answer.err
    start("name=mine", "fit.lr=0.02", "force=true")
    assert cells(again)["coop@mine 2 1"].config["fit"]["lr"] == 0.02


@pytest.mark.parametrize("sweeps", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_backbone_without_text_has_no_zero_shot_row(
    results: Path, monkeypatch: pytest.MonkeyPatch, sweeps: bool
) -> None:
    monkeypatch.setattr(towers, "has_text", lambda model: False)
    given = [text for text in RUN if not text.startswith("method.")]
    arguments = ["-m", "seed=1,2"] if sweeps else []
    answer = ask(sweep.main, [*arguments, *given, "protocol=train_val", "method=linear_head"])
    assert (answer.code, answer.err) == (0, "")
    assert "no zero-shot row" in answer.out
    assert "no text" in answer.out
    assert {record.method for record in find_records([results])} == {"linear_head"}


def test_output_takes_any_text(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(results)
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", out)
    assert cli.main(["table", str(results)]) == 0
    out.flush()
    assert b"\\xb1" in out.buffer.getvalue()  # +-
    assert sweep.main(["seed=\udcc3"]) == 2


def test_settings_are_read_in_utf_8() -> None:
    assert file_config_source.open.keywords == {"encoding": "utf-8"}


@pytest.mark.parametrize("name", ["results", "data"])
def test_a_tilde_is_the_home_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv(f"VLPROMPT_{name.upper()}", "~/mine")
    assert getattr(paths, f"{name}_root")() == tmp_path / "mine"
    monkeypatch.setenv(f"VLPROMPT_{name.upper()}", "")
    assert not getattr(paths, f"{name}_root")().is_absolute()
    for wrong, message in (("~no-such-user/x", "no home folder for '~no-such-user/x'"), ("x" * 300, "too long")):
        monkeypatch.setenv(f"VLPROMPT_{name.upper()}", wrong)
        with pytest.raises(UserError, match=message):
            getattr(paths, f"{name}_root")()


@pytest.mark.slow
def test_a_sweep_may_lie_elsewhere(results: Path, tmp_path: Path) -> None:
    """Its folder may hold a time, too; the summary and the exit code do not depend on it."""
    given = f"hydra.sweep.dir='{tmp_path}/of ${{now:%Y-%m-%d-%H-%M-%S-%f}}'"
    answer = ask(sweep.main, ["-m", given, *RUN, "shots=1,9"])
    assert answer.code == 1
    assert "1 of 2 runs did not finish" in answer.err
    (folder,) = tmp_path.glob("of *")
    assert len(list(folder.glob("jobs/*.json"))) == 2
    assert not (results / "multirun").exists()


def test_a_failure_in_a_sweep_belongs_to_its_variant(results: Path) -> None:
    answer = ask(sweep.main, ["-m", *RUN, "fit.lr=1e30", "fit.epochs=3"])
    assert answer.code == 1
    record = trained(results)
    assert record.status == "failed"
    assert record.variant is not None
    assert "training stopped at step" in str(record.reason)


# Views and loaders


def collect(order: list[tuple[int | None, int]], batch_size: int, workers: int) -> dict[tuple[int | None, int], bytes]:
    split = load("tiny").split("train")
    views = Views(split, Preprocess(size=8), seed=1)
    batches = Batches(views, order, batch_size=batch_size, workers=workers)
    rows = [row for pixels, _ in batches.loader for row in pixels]
    return {key: row.numpy().tobytes() for key, row in zip(order, rows, strict=True)}


def test_a_view_depends_on_seed_epoch_and_image_alone() -> None:
    order: list[tuple[int | None, int]] = [(epoch, index) for epoch in (0, 1, None) for index in range(6)]
    views = collect(order, 4, 0)
    torch.manual_seed(7)
    assert collect(order[::-1], 5, 0) == views
    assert collect(order, 3, 2) == views
    assert len(set(views.values())) == len(order)  # no two are alike
    split = load("tiny").split("train")
    key = (0, 0)
    moved = replace(split, items=split.items[1:] + split.items[:1])
    other_seed = Views(split, Preprocess(size=8), seed=2)[key][0].numpy().tobytes()
    moved_view = Views(moved, Preprocess(size=8), seed=1)[0, len(split) - 1][0].numpy().tobytes()
    assert other_seed != views[key]
    assert moved_view == views[key]


def refuse(image: str) -> Image.Image:
    raise UserError(f"image {image} is missing: put it back.")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_is_one_sentence_from_a_worker_too(workers: int) -> None:
    views = Views(replace(load("tiny").split("train"), open_image=refuse), Preprocess(size=8))
    with pytest.raises(UserError, match=r"^image train/0/0 is missing: put it back\.$"):
        list(Batches(views, [(None, 0)], batch_size=1, workers=workers))


# Mistakes

PRETRAINED = ["dataset=digits", "dataset.source._target_=tiny_world.load", "shots=1", "fit.epochs=1"]

MISTAKES: list[tuple[str, list[str]]] = [
    ("method=cop", ["unknown method 'cop': known are ", "coop", "zero_shot", "did you mean 'coop'?"]),
    ("dataset=digit", ["unknown dataset 'digit': known are ", "did you mean 'digits'?"]),
    ("protocol=base_to_nvel", ["unknown protocol 'base_to_nvel'", "base_to_novel"]),
    ("backbone=vit_b17", ["unknown backbone 'vit_b17'", "did you mean 'vit_b16'?"]),
    ("recipe=coop_icjv", ["unknown recipe 'coop_icjv'", "did you mean 'coop/ijcv'?"]),
    ("method=null", ["cannot be null", "~recipe"]),
    ("~method=1", ["~method=1 is no choice", "method is one name"]),
    ("sed=2", ["unknown setting 'sed'", "did you mean 'seed'?"]),
    ("method.n_contxt=2", ["unknown setting 'method.n_contxt'", "did you mean 'method.n_context'?"]),
    ("+method.foo=1", ["unknown setting of method 'foo': known are class_specific, ctx_init, n_context, position"]),
    ("+fit.foo=1", ["unknown setting 'fit.foo'"]),
    ("+dataset.source.foo=1", ["unknown setting of dataset.source 'foo'"]),
    ("fit.lr.x=1", ["unknown setting 'fit.lr.x'", "fit.lr is 0.0"]),
    ("~seed", ["'seed' is missing"]),
    ("nonsense", ["cannot read 'nonsense'", "NAME=VALUE"]),
    ("name=~tuned", ["cannot read", "\"name='~tuned'\""]),
    ("backbone.weights='~no-such-user/w.pt'", ["no home folder for '~no-such-user/w.pt'"]),
    (f"backbone.weights={'x' * 300}", ["File name too long"]),
    ("seed=[1,2]", ["seed", "-m seed=1,2"]),
    ("fit.lr=[0.1,0.2]", ["fit.lr", "-m fit.lr=0.1,0.2"]),
    ("seed=[]", ["seed", "-m seed=1,2,3"]),
    ("seed=x", ["seed is 'x', allowed is a valid integer"]),
    ("fit.lr=-1", ["fit.lr is -1, allowed is greater than 0"]),
    ("fit.epochs=0.5", ["fit.epochs is 0.5, allowed is a valid integer"]),
    ("fit.epochs=null", ["either epochs or steps"]),
    ("method.ctx_init=5", ["method.ctx_init is 5, allowed is a valid string"]),
    ("method.position=left", ["method.position is 'left', allowed is 'end', 'middle' or 'front'"]),
    ("method._target_=vlprompt.learners.coop.Cop", ["vlprompt.learners.coop.Cop", "cannot be imported"]),
    ("precision=fp12", ["precision is 'fp12', allowed is 'auto', 'fp32', 'tf32', 'bf16' or 'fp16'"]),
    ("shots=0", ["shots is 0, allowed is greater than 0 or 'all'"]),
    ("shots=-1", ["shots is -1, allowed is greater than 0 or 'all'"]),
    ("shots=x", ["shots is 'x', allowed is a valid integer or 'all'"]),
    ("shots=5", ["shots=5, but the largest class of digits has 4", "at most 4, or shots=all"]),
    ("device=tpu", ["device is 'tpu', allowed is auto, cpu, cuda, cuda:N or mps"]),
    ("device=cuda:99", ["device=cuda:99 asks for a GPU", "device=cpu"]),
    ("wandb=ofline", ["wandb is 'ofline', allowed is 'online', 'offline' or 'disabled'"]),
    ("name=a/b", ["'a/b' cannot name a folder"]),
    ("dataset.template=photo", ["dataset.template is 'photo', allowed is a text with exactly one {}"]),
    ("method.class_specific=true", ["CoOp owns parameters for each of its 3 training classes", "few-shot"]),
    ("method.n_context=99", ["101 tokens, the text tower takes 75"]),
    ("backbone.weights=nothere.pt", ["unknown weights 'nothere.pt': known are pretrained, random", "path of a file"]),
    ("backbone.model=ViT-B-61", ["unknown model 'ViT-B-61'", "did you mean 'ViT-B-16'?"]),
    ("fit.lr=1e30 fit.epochs=3", ["training stopped at step 2", "the loss", "lower fit.lr"]),
]


SLOW = {
    "~method=1",
    "seed=[]",
    "seed=x",
    "fit.lr=-1",
    "fit.epochs=0.5",
    "shots=0",
    "shots=-1",
    "device=tpu",
    "wandb=ofline",
    "precision=fp12",
    "fit.lr=[0.1,0.2]",
    "+dataset.source.foo=1",
    "+fit.foo=1",
    "method.n_contxt=2",
    "dataset=digit",
    "protocol=base_to_nvel",
    "method.ctx_init=5",
}
"""Whose kind of sentence others have, too."""


@pytest.mark.parametrize(
    ("mistake", "words"),
    [pytest.param(m, words, id=m, marks=[pytest.mark.slow] * (m in SLOW)) for m, words in MISTAKES],
)
def test_a_mistake_is_one_sentence(results: Path, mistake: str, words: list[str]) -> None:
    check_mistake(ask(sweep.main, [*RUN, *mistake.split()]), words, results)


def test_the_traceback_is_there_for_who_wants_it(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    for mistake, last in (("fit.lr=-1", "UserError: fit.lr is -1"), ("method=cop", "Could not find 'method/cop'")):
        answer = ask(sweep.main, [*RUN, mistake])
        assert answer.code == 2
        assert "Traceback (most recent call last)" in answer.err
        assert last in answer.err
        assert os.environ["HYDRA_FULL_ERROR"] == "1"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["dataset=digits", "method=zero_shot", "fit.epochs=3"], ["unknown setting 'fit.epochs'", "fit is None"]),
        ([*PRETRAINED, "method.ctx_init='a zebra of'"], ["does not know the word 'zebra'", "backbone=vit_b16"]),
        ([*PRETRAINED, "method.class_specific=true"], ["method.ctx_init", "method.class_specific"]),
        (
            [*PRETRAINED, "backbone.model=ViT-B-32", "backbone.weights=openai"],
            ["ViT-B-32", "GELU", "'openai'", "QuickGELU", "ViT-B-32-quickgelu"],
        ),
        (["dataset=caltech101"], ["101_ObjectCategories", "split_zhou_Caltech101.json", "https://"]),
    ],
    ids=["no training", "unknown word", "words for each class", "other activation", "no data"],
)
def test_a_mistake_in_other_runs(results: Path, arguments: list[str], words: list[str]) -> None:
    check_mistake(ask(sweep.main, arguments), words, results)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["an empty file"]),
        (b"x" * 100, ["a text file instead of the weights"]),
        pytest.param("truncated", ["cannot be read as weights", "fetch it again"], marks=pytest.mark.slow),
        ("reshaped", ["do not fit shapes_vit", "'visual.proj' is [1, 1], needed ["]),
    ],
)
def test_damaged_weights(results: Path, tmp_path: Path, content: bytes | str, words: list[str]) -> None:
    good, path = demo.BACKBONES["shapes_vit"] / "open_clip_model.safetensors", tmp_path / "m.safetensors"
    if content == "truncated":
        content = good.read_bytes()[:-1000]
    if content == "reshaped":
        state = safetensors.torch.load_file(good)
        safetensors.torch.save_file({**state, "visual.proj": torch.zeros(1, 1)}, path)
    else:
        path.write_bytes(content)
    answer = ask(sweep.main, [*PRETRAINED, f"backbone.weights={path}"])
    check_mistake(answer, [str(path), *words], results)


def test_an_unreadable_split_file(results: Path, tmp_path: Path) -> None:
    base = tmp_path / "datasets/caltech-101"
    (base / "101_ObjectCategories").mkdir(parents=True)
    (base / "split_zhou_Caltech101.json").write_text('{"train": [')
    check_mistake(ask(sweep.main, ["dataset=caltech101"]), ["split_zhou_Caltech101.json"], results)


def check_stop(answer: Answer, words: str) -> None:
    assert (answer.code, answer.err.count("\n")) == (2, 1)
    assert answer.err.startswith("error: ")
    assert words in answer.err


def test_a_full_disk(again: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(vlprompt.run, "save_predictions", full)
    before = {path: path.read_bytes() for path in again.rglob("result.json")}
    check_stop(ask(sweep.main, [*RUN, "force=true"]), "no space left on the disk")
    assert {path: path.read_bytes() for path in again.rglob("result.json")} == before
    assert trained(again).status == "finished"


def test_results_that_cannot_be_written(results: Path) -> None:
    results.write_text("in the way")
    check_stop(ask(sweep.main, RUN), "VLPROMPT_RESULTS")


def test_a_damaged_record_is_named_and_made_again(again: Path) -> None:
    path = trained(again).folder(again) / "result.json"
    path.write_text("{")
    answer = ask(cli.main, ["table", "--format", "csv"])  # whose notes are no part of the table
    assert (answer.code, answer.err.count(str(path))) == (0, 1)
    assert "zero_shot" in answer.out
    assert "coop " not in answer.out
    assert ask(sweep.main, RUN).code == 0
    assert trained(again).status == "finished"


@pytest.mark.parametrize(("name", "runs"), [("learner.safetensors", 1), ("predictions.npz", 1), ("log.txt", 0)])
def test_a_run_with_a_damaged_file_is_made_again(again: Path, name: str, runs: int) -> None:
    path = trained(again).folder(again) / name
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    answer = ask(sweep.main, RUN)
    assert answer.code == 0
    assert answer.out.count("is finished already") == 2 - runs
    assert (path.read_bytes() != content) == bool(runs)


# The other commands


def made(root: Path) -> None:
    """Two seeds of one method and zero-shot."""
    record = made_records.record
    coop = [record("coop", seed=seed, base=base, novel=novel) for seed, base, novel in ((1, 0.8, 0.6), (2, 0.9, 0.4))]
    made_records.save(root, [*coop, record("zero_shot", seed=0, shots=0)])


@pytest.mark.parametrize("format", ["terminal", "markdown", "latex", "csv"])
def test_table(results: Path, tmp_path: Path, format: str) -> None:
    made(results)
    answer = succeed(cli.main, ["table", "--format", format])
    names = ("CLIP", "CoOp") if format == "latex" else ("zero_shot", "coop")  # in print and as typed
    assert all(name in answer.out for name in names)
    assert "85.0" in next(line for line in answer.out.splitlines() if names[1] in line)

    target = tmp_path / "new" / "table.txt"
    assert ask(cli.main, ["table", str(results), "--format", format, "--output", str(target)]) == (0, "", "")
    assert target.read_text() == answer.out


def test_table_without_runs(results: Path, tmp_path: Path) -> None:
    check_stop(ask(cli.main, ["table"]), "no runs")
    check_stop(ask(cli.main, ["table", str(tmp_path / "absent")]), "absent")
    check_stop(ask(cli.main, ["table", str(tmp_path), "--output", "/dev/null/x"]), "no runs")
    made(results)
    check_stop(ask(cli.main, ["table", "--output", "/dev/null/x/table.md"]), "/dev/null/x/table.md")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "--help"], ["method: ", "zero_shot", "dataset: ", "protocol: ", "fit:"]),
        (["--help"], ["run", "table"]),
        (["table", "--help"], ["--format", "markdown"]),
        (["--version"], ["vlprompt 0."]),
    ],
)
def test_help(capsys: pytest.CaptureFixture[str], results: Path, arguments: list[str], words: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert not stop.value.code
    out = capsys.readouterr().out
    assert not [word for word in words if word not in out], out


def test_output_that_nobody_reads_any_more_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """`vlprompt data path | true`; what is buffered shows it at the end alone."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as out:
        monkeypatch.setattr("sys.stdout", out)
        assert cli.main(["data", "path"]) == 0
