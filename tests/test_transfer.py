"""Runs that train on one data set and test on several, on tiny worlds: one record, one hash, one command."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from running import Answer, ask, check_mistake, succeed
from tiny_world import CLASSES, PER_CLASS

import vlprompt.run
from vlprompt import sweep
from vlprompt.config.build import clip_at, features_at
from vlprompt.config.compose import read_reference, read_run
from vlprompt.config.spec import RunSpec
from vlprompt.data.loader import Loader
from vlprompt.evaluate import Outside
from vlprompt.results.predictions import Predictions, load_predictions
from vlprompt.results.record import Record
from vlprompt.results.store import find_records
from vlprompt.training.progress import Reporter

CONF = Path(__file__).parent / "fixtures" / "conf"
TINY = ["--config-dir", str(CONF), "dataset=tiny", "backbone.weights=random"]
SHORT = ["fit.epochs=1", "bank.views=1", "shots=2"]
RUN = [*TINY, *SHORT, "method.ctx_init=''", "method.n_context=4"]
CROSS = ["protocol=cross_dataset", "protocol.targets=[tiny_other]"]
DOMAINS = ["protocol=domain_generalization", "protocol.targets=[tiny_sketch,tiny_part]"]
N_TEST = len(CLASSES) * PER_CLASS["test"]


def start(*overrides: str) -> Answer:
    return succeed(sweep.main, [*RUN, *overrides])


def by_method(root: Path) -> dict[str, Record]:
    return {record.method: record for record in find_records([root])}


def totals(record: Record) -> dict[str, float]:
    return {name: scores["total"] for name, scores in record.scores.items()}


def test_cross_dataset_is_one_record_that_is_found_again(results: Path) -> None:
    answer = start(*CROSS)
    records = by_method(results)
    assert set(records) == {"coop", "zero_shot"}
    for record in records.values():
        assert totals(record) == {"tiny": N_TEST, "tiny_other": N_TEST}
        assert list(record.target_hashes) == ["tiny_other"]
        assert record.config["targets"]["tiny_other"]["dataset"]["template"] == "the {}."
    header = next(line for line in answer.out.splitlines() if line.startswith("method"))
    assert header.split()[-8:-5] == ["tiny", "tiny_other", "average"]
    assert start(*CROSS).out.count("is finished already") == 2

    zero_shot = records["zero_shot"].scores["tiny_other"]
    alone = [*TINY, "dataset=tiny_other", "method=zero_shot", "protocol=few_shot"]
    assert ask(sweep.main, alone).code == 0  # in the target's own template, on its own images
    (record,) = (r for r in find_records([results]) if r.protocol == "few_shot")
    assert record.scores["test"] == pytest.approx(zero_shot)


@pytest.mark.slow
def test_class_specific_contexts_meet_variants(results: Path) -> None:
    """A variant with two of the classes, whose images are the source's, and one with the source's names of images."""
    start(*DOMAINS, "method.class_specific=true")
    record = by_method(results)["coop"]
    assert list(totals(record).items()) == [
        ("tiny", N_TEST), ("tiny_sketch", N_TEST), ("tiny_part", 2 * PER_CLASS["test"])
    ]  # fmt: skip
    assert record.bank["test_features"]
    source, sketch, part = load_predictions(record.folder(results) / "predictions.npz").values()
    assert (source.images == sketch.images).all()
    assert not np.isclose(source.label_logit, sketch.label_logit).any()
    row = {image: i for i, image in enumerate(source.images)}
    same = source.label_logit[[row[image] for image in part.images]]
    np.testing.assert_allclose(part.label_logit, same, rtol=1e-5)
    assert set(part.labels) == {0, 1}


def no_training(*_: object) -> None:
    raise AssertionError("a run that makes no sense was trained")


@pytest.mark.parametrize("arguments", [["method.class_specific=true", *RUN[-2:]], ["method=linear_head"]])
def test_class_bound_methods_are_refused_before_training(
    results: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.setattr(vlprompt.run, "train", no_training)
    answer = ask(sweep.main, [*TINY, *SHORT, *CROSS, *arguments])
    check_mistake(answer, ["owns parameters for each of its 5 training classes"], results)


def test_words_that_do_not_fit_a_target_are_refused_before_training(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The context has as many tokens as the source's template has words, and fewer than the target's."""
    monkeypatch.setattr(vlprompt.run, "train", no_training)
    words = "+wording.template.tiny_other='one two three four five six {}.'"
    answer = ask(sweep.main, [*TINY, *SHORT, *CROSS, "method=prograd", "method.n_context=5", words])
    check_mistake(answer, ["method.n_context is 5", "6 words"], results)


def test_a_target_that_is_no_variant_is_refused_before_training(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vlprompt.run, "train", no_training)
    answer = ask(sweep.main, [*RUN, DOMAINS[0], "protocol.targets=[tiny_sketch,tiny_other]"])
    check_mistake(answer, ["tiny_other is no variant of tiny", "protocol=cross_dataset"], results)


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        ("[tiny_othr]", ["unknown data set in protocol.targets 'tiny_othr'", "did you mean 'tiny_other'?"]),
        ("tiny_other", ["protocol.targets is 'tiny_other', allowed is a valid list"]),
        ("[]", ["protocol.targets is empty"]),
        ("[caltech101]", ["cannot load the target caltech101: caltech101 is not complete"]),
        (
            "[caltech101,tiny_sketch,folder]",
            [
                "cannot load caltech101, folder, the first of them because caltech101 is not complete",
                "protocol.targets=[tiny_sketch] does without",
            ],
        ),
    ],
)
def test_wrong_targets_are_one_sentence(results: Path, targets: str, words: list[str]) -> None:
    check_mistake(ask(sweep.main, [*RUN, CROSS[0], f"protocol.targets={targets}"]), words, results)


def plan(targets: str, *overrides: str) -> tuple[RunSpec, RunSpec]:
    """What a cross-dataset run with overrides would be, and its reference."""
    searched = f"hydra.searchpath=['file://{CONF}']"
    given = [searched, *TINY[2:], *SHORT, CROSS[0], f"protocol.targets=[{targets}]", *overrides]
    return read_run(given), read_reference(given)


@pytest.mark.usefixtures("results")
def test_a_run_is_what_it_is_tested_on() -> None:
    """Zero-shot, too. The order of targets changes nothing, nor does the folder of the data."""
    one, both = plan("tiny_other"), plan("tiny_sketch,tiny_other")
    other = plan("tiny_other,tiny,tiny_sketch", "data.root=elsewhere")
    for few, more, same in zip(one, both, other, strict=True):
        assert len({few.hash, more.hash}) == len({few.key.variant, more.key.variant}) == 2
        assert (more.hash, more.key) == (same.hash, same.key)


@pytest.mark.usefixtures("results")
def test_how_a_method_words_the_classes_of_a_target_is_part_of_a_run() -> None:
    """A template that the method names is none of the data set, even where the two are equal on the source."""
    default, _ = plan("tiny_other", "method=lora")
    fixed, _ = plan("tiny_other", "method=lora", "method.template='a photo of a {}.'")
    assert default.arguments == fixed.arguments
    wordings = [run.settings.targets["tiny_other"].method["template"] for run in (default, fixed)]
    assert wordings == ["the {}.", "a photo of a {}."]
    assert default.hash != fixed.hash


@pytest.mark.usefixtures("results")
@pytest.mark.parametrize(("method", "words"), [("lora", "the {}."), ("taskres", "a photo of a {}.")])
def test_what_is_learned_for_each_class_keeps_the_words_of_the_source(
    monkeypatch: pytest.MonkeyPatch, method: str, words: str
) -> None:
    """As in the code of TaskRes, where the source's text features are a part of the checkpoint."""
    searched = f"hydra.searchpath=['file://{CONF}']"
    spec = read_run([searched, *TINY[2:], CROSS[0], "protocol.targets=[tiny_other]", f"method={method}"])
    clip = clip_at("shapes_vit", "random", spec.device)
    learner = spec.learner(clip, CLASSES, **spec.arguments)
    texts: list[list[str]] = []
    no_predictions = Predictions.from_logits([], torch.empty(0, dtype=torch.long), torch.empty(0, 5))

    def evaluate(learner: Any, tests: Any, *_: Any, **__: Any) -> Any:
        texts.extend(getattr(learner, "templates", [learner.template]) for _ in tests)
        return dict.fromkeys(tests, no_predictions)

    monkeypatch.setattr(vlprompt.run, "evaluate", evaluate)
    tests = {"tiny": spec.dataset.split("test"), "tiny_other": spec.targets["tiny_other"].split("test")}
    vlprompt.run.test(spec, learner, tests, Loader(clip), Reporter(), Outside({}))
    assert [*map(list, texts)] == [["a photo of a {}."], [words]]


def test_choosing_settings_leaves_the_targets_alone(results: Path) -> None:
    start(CROSS[0], "protocol.targets=[caltech101]", "protocol.part=val")  # which is not there
    assert [list(record.scores) for record in find_records([results])] == [["tiny"], ["tiny"]]


@pytest.mark.slow
def test_features_of_two_data_sets_are_separate_and_shared_between_runs(results: Path) -> None:
    clip_at.cache_clear()
    features_at.cache_clear()
    arguments = ["-m", *RUN, CROSS[0], "protocol.targets=[tiny_sketch,tiny_other]", "seed=1,2"]
    assert ask(sweep.main, arguments).code == 0
    assert features_at.cache_info().misses == 1
    records = [r for r in find_records([results]) if r.method == "coop"]
    assert sorted(r.seed for r in records) == [1, 2]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("protocol", "tests"),
    [
        ("cross_dataset", ["shapes", "digits"]),
        ("domain_generalization", ["shapes", "shapes_sketch", "shapes_mosaic"]),
        ("train_val", ["test"]),
    ],
)
def test_the_demo(results: Path, protocol: str, tests: list[str]) -> None:
    answer = ask(sweep.main, [f"protocol={protocol}", "fit.epochs=1", "bank.views=1"])
    assert (answer.code, answer.err) == (0, "")
    for record in by_method(results).values():
        assert list(record.scores) == tests
