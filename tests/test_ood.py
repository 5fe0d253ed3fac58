"""Images out of distribution: their scores, the metrics of these, and the runs that have them."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from running import ask, check_mistake, succeed
from scipy.special import logsumexp, softmax
from sklearn.metrics import roc_auc_score, roc_curve
from test_learners import CLASSES, build, plain, scatter
from test_transfer import CONF, N_TEST, TINY
from tiny_world import PER_CLASS

import vlprompt.run
from vlprompt import cli, sweep
from vlprompt.config.compose import read_run
from vlprompt.config.datasets import load_datasets
from vlprompt.config.identity import result_settings, settings_hash
from vlprompt.config.spec import RunSpec
from vlprompt.data.dataset import Item, Split
from vlprompt.data.loader import Loader
from vlprompt.errors import DamagedError, NonFiniteError, UserError
from vlprompt.evaluate import Outside, evaluate
from vlprompt.protocols.few_shot import FewShot
from vlprompt.results import ood
from vlprompt.results.metrics import METRICS, find_metric
from vlprompt.results.ood import INSIDE, SCORES, OodScores, load_ood, save_ood, score_ood
from vlprompt.results.open_world import auroc
from vlprompt.results.open_world import false_positive_rate as fpr95
from vlprompt.results.predictions import load_predictions
from vlprompt.results.record import Record
from vlprompt.results.store import find_runs
from vlprompt.training.progress import Reporter

ZERO_SHOT = [*TINY, "method=zero_shot", "protocol=few_shot"]
BOTH = "protocol.ood=[tiny_other,tiny_sketch]"
SIZES = [(20, 7, 1000), (100, 61, 5), (97, 40, 3), (1, 1, 2), (399, 1, 9)]


def slow(*values: object) -> Any:
    """A case of a test that takes a second or more."""
    return pytest.param(*values, marks=pytest.mark.slow)


def drawn(n: int, mean: float, seed: int = 0, *, classes: int = 7) -> OodScores:
    logits = mean + torch.randn(n, classes, generator=torch.Generator().manual_seed(seed))
    return OodScores.from_logits([f"{seed}/{i}" for i in range(n)], logits, scale=3.0)


# Scores and metrics


@pytest.mark.parametrize(("n", "classes", "scale"), [(9, 4, 100.0), (4, 2, 7.5), (5, 1, 1.0)])
def test_scores_are_those_of_the_formulas(n: int, classes: int, scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ood, "ROWS_AT_ONCE", 4)
    logits = 10 * torch.randn(n, classes, generator=torch.Generator().manual_seed(n))
    scores, x = OodScores.from_logits([str(i) for i in range(n)], logits, scale=scale), logits.double().numpy()
    np.testing.assert_allclose(scores.mcm, softmax(x / scale, axis=1).max(axis=1))
    np.testing.assert_allclose(scores.max_logit, x.max(axis=1))
    np.testing.assert_allclose(scores.energy, logsumexp(x, axis=1))
    np.testing.assert_allclose(scores.msp, softmax(x, axis=1).max(axis=1))
    with pytest.raises(NonFiniteError):
        OodScores.from_logits(["0"], torch.tensor([[0.0, float("nan")]]), scale=1.0)


@pytest.mark.parametrize(("n_in", "n_out", "levels"), SIZES)
def test_metrics_are_those_of_scikit_learn(n_in: int, n_out: int, levels: int) -> None:
    """Ties between and within the two are many where there are few levels."""
    random = np.random.default_rng(n_in)
    inside, outside = random.integers(levels, size=n_in) + 1.0, random.integers(levels, size=n_out) + 0.0
    labels, values = np.repeat([1, 0], [n_in, n_out]), np.concatenate([inside, outside])
    fpr, tpr, _ = roc_curve(labels, values, drop_intermediate=False)
    assert auroc(inside, outside) == pytest.approx(roc_auc_score(labels, values))
    assert fpr95(inside, outside) == pytest.approx(fpr[np.argmax(tpr >= 0.95)])


def test_what_is_separable_is_separated() -> None:
    low, high = np.arange(20.0), np.arange(20.0) + 20
    assert (auroc(high, low), fpr95(high, low)) == (1, 0)
    assert (auroc(low, high), fpr95(low, high)) == (0, 1)
    assert (auroc(low, low), fpr95(low, low)) == (pytest.approx(0.5), 0.95)
    assert (auroc(0 * low, 0 * low), fpr95(0 * low, 0 * low)) == (0.5, 1)


def test_several_sets_have_their_mean_and_numbers_of_their_own() -> None:
    inside, near, far = drawn(30, 1.0), drawn(20, 0.8, 1), drawn(40, -3.0, 2)
    alone = [score_ood({INSIDE: inside, "x": other}) for other in (near, far)]
    assert list(alone[0]) == [f"{score}_{kind}" for score in SCORES for kind in ("auroc", "fpr95")]
    both = score_ood({"near": near, INSIDE: inside, "far": far})
    for name, *values in zip(alone[0], alone[0].values(), alone[1].values(), strict=True):
        assert both[name] == pytest.approx(np.mean(values))
        assert [both[f"{name}/near"], both[f"{name}/far"]] == values
    assert len(both) == 3 * len(alone[0])
    assert score_ood({INSIDE: inside}) == {}


def test_a_metric_of_one_data_set_is_known_by_its_name() -> None:
    assert {f"{score}_{kind}" for score in SCORES for kind in ("auroc", "fpr95")} <= set(METRICS)
    of_set, mean = find_metric("mcm_fpr95/dtd"), find_metric("mcm_fpr95")
    assert replace(of_set, label=mean.label) == mean
    assert "dtd" in of_set.label
    for wrong in ("mcm_fpr/dtd", "mcm_fpr95/", "/dtd"):
        with pytest.raises(UserError, match="unknown metric"):
            find_metric(wrong)


# Files


def test_scores_are_read_as_they_were_written(tmp_path: Path) -> None:
    scores = {"a/b": {INSIDE: drawn(3, 0), "x.y": drawn(2, 1, 1)}, "all": {INSIDE: drawn(4, 0, 2)}}
    save_ood(tmp_path / "ood.npz", scores)
    read = load_ood(tmp_path / "ood.npz")
    assert {test: list(of_test) for test, of_test in read.items()} == {"a/b": [INSIDE, "x.y"], "all": [INSIDE]}
    for field in ("images", *SCORES):
        np.testing.assert_array_equal(getattr(read["a/b"]["x.y"], field), getattr(scores["a/b"]["x.y"], field))


def rewritten(**arrays: Any) -> Callable[[Path], Any]:
    """Damage that is a file of numpy's with other arrays."""

    def damage(path: Path) -> None:
        with np.load(path) as file:
            content = {key: file[key] for key in file.files}
        np.savez(path, **{key: a for key, a in (content | arrays).items() if a is not None})

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(path.read_bytes()[:200]),
        lambda path: path.write_bytes(b""),
        rewritten(**{"t//mcm": None}),
        rewritten(**{"t//mcm": np.zeros(2)}),
        rewritten(**{"t//mcm": np.zeros((3, 1))}),
        rewritten(**{"t//mcm": np.array(["a", "b", "c"])}),
        rewritten(**{"t//images": np.array(["a", None, "c"])}),  # pickled
        rewritten(**{f"t//{name}": None for name in ("images", *SCORES)}),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, damage: Callable[[Path], Any]) -> None:
    path = tmp_path / "ood.npz"
    save_ood(path, {"t": {INSIDE: drawn(3, 0), "x": drawn(2, 0, 1)}})
    damage(path)
    with pytest.raises(DamagedError, match=re.escape(str(path))):
        load_ood(path)


# Settings


def spec_of(*overrides: str) -> RunSpec:
    return read_run([f"hydra.searchpath=['file://{CONF}']", *ZERO_SHOT[2:], *overrides])


class Own(FewShot):
    """A protocol of somebody's own, whose constructor knows no data sets."""


@pytest.mark.slow
@pytest.mark.usefixtures("results")
@pytest.mark.parametrize("protocol", ["own", "few_shot", "base_to_novel", "train_val"])
def test_every_protocol_takes_them(protocol: str) -> None:
    given = ["protocol._target_=test_ood.Own"] if protocol == "own" else [f"protocol={protocol}"]
    plainly, empty = spec_of(*given), spec_of(*given, "protocol.ood=[]")
    sets = "tiny_other", "tiny_other,tiny_sketch", "tiny_sketch,tiny_other"
    one, both, turned = (spec_of(*given, f"protocol.ood=[{names}]") for names in sets)
    assert (plainly.hash, plainly.key, plainly.config) == (empty.hash, empty.key, empty.config)
    assert "ood" not in plainly.result_settings
    assert len({plainly.hash, one.hash, both.hash}) == len({s.key.variant for s in (plainly, one, both)}) == 3
    assert (both.hash, both.key) == (turned.hash, turned.key)
    assert (list(one.ood), list(one.targets), list(both.ood)) == (["tiny_other"], [], ["tiny_other", "tiny_sketch"])
    assert one.changes["protocol.ood"] == ["tiny_other"]


@pytest.mark.slow
@pytest.mark.usefixtures("results")
def test_other_images_out_of_distribution_make_another_run() -> None:
    first, debug = spec_of("protocol.ood=[tiny_other]"), spec_of("protocol.ood=[tiny_other]", "debug=fast")
    assert len(debug.ood["tiny_other"].test) < len(first.ood["tiny_other"].test)
    settings = first.settings.model_copy(deep=True)
    settings.targets["tiny_other"].dataset.source["turned"] = 1
    dataset, others = load_datasets(settings)
    assert settings_hash(result_settings(settings, first.precision, dataset, others)) != first.hash


@pytest.mark.slow
@pytest.mark.usefixtures("results")
def test_choosing_settings_looks_at_no_image_out_of_distribution() -> None:
    assert not spec_of("protocol.ood=[caltech101]", "protocol.part=val").ood  # which is not there


@pytest.mark.parametrize(
    ("names", "words"),
    [
        slow("[tiny_othr]", ["unknown data set in protocol.ood 'tiny_othr'", "did you mean 'tiny_other'?"]),
        slow("tiny_other", ["protocol.ood is 'tiny_other', allowed is a list"]),
        slow("null", ["protocol.ood is None, allowed is a list"]),
        ("[tiny_other,tiny]", ["protocol.ood names tiny,", "in distribution", "base_to_novel"]),
        slow(
            "[caltech101]", ["cannot load protocol.ood caltech101: caltech101 is not complete", "protocol.ood=[] does"]
        ),
        slow(
            "[caltech101,tiny_other,folder]",
            ["cannot load caltech101, folder, the first", "protocol.ood=[tiny_other] does"],
        ),
    ],
)
def test_wrong_data_sets_are_one_sentence(results: Path, names: str, words: list[str]) -> None:
    check_mistake(ask(sweep.main, [*ZERO_SHOT, f"protocol.ood={names}"]), words, results)


@pytest.mark.slow
def test_missing_targets_and_others_are_told_at_once(results: Path) -> None:
    given = ["protocol=cross_dataset", "protocol.targets=[tiny_other,caltech101]", "protocol.ood=[dtd,caltech101]"]
    words = ["caltech101, dtd", "protocol.targets=[tiny_other] does without", "protocol.ood=[] does without"]
    check_mistake(ask(sweep.main, [*TINY, "method=zero_shot", *given]), words, results)


# Runs


def the_run(root: Path) -> tuple[Path, Record]:
    ((folder, record),) = find_runs([root]).items()
    return folder, record


def test_a_run_scores_what_is_out_of_distribution_among_the_classes_of_each_test(results: Path) -> None:
    succeed(sweep.main, [*TINY, "method=zero_shot", "protocol=base_to_novel", BOTH])
    folder, record = the_run(results)
    assert set(record.target_hashes) == {"tiny_other", "tiny_sketch"}
    assert "ood.npz" in record.files
    scores, predictions = load_ood(folder / "ood.npz"), load_predictions(folder / "predictions.npz")
    assert list(scores) == list(predictions) == list(record.scores) == ["base", "novel", "all"]
    for test, of_test in scores.items():
        inside = of_test[INSIDE]
        assert [len(of_set) for of_set in of_test.values()] == [len(predictions[test]), N_TEST, N_TEST]
        assert (inside.images == predictions[test].images).all()
        np.testing.assert_allclose(inside.energy, predictions[test].logsumexp, rtol=1e-6)
        np.testing.assert_allclose(inside.msp, predictions[test].confidence, rtol=1e-5)
        assert score_ood(of_test).items() <= record.scores[test].items()
    assert len({scores[test]["tiny_other"].energy[0] for test in scores}) == 3  # other classes, other energies
    most = np.maximum(*(scores[test]["tiny_other"].max_logit for test in ("base", "novel")))
    np.testing.assert_allclose(scores["all"]["tiny_other"].max_logit, most, rtol=1e-5)

    shown = ask(cli.main, ["table", "--metric", "mcm_auroc/tiny_other"])
    assert (shown.code, f"{100 * record.scores['base']['mcm_auroc/tiny_other']:.2f}" in shown.out) == (0, True)
    assert "neither this metric" in ask(cli.main, ["table", "--metric", "mcm_auroc/dtd"]).out

    with (folder / "ood.npz").open("r+b") as file:
        file.seek(100)
        file.write(b"\0\1\2\3")
    with pytest.raises(DamagedError, match="not the file that its record was written with"):
        load_ood(folder / "ood.npz")


@pytest.mark.slow
def test_what_is_trained_already_is_only_tested(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = [*TINY, "method=coop", "protocol=few_shot", "debug=fast"]
    succeed(sweep.main, given)
    monkeypatch.setattr(vlprompt.run, "train", lambda *_, **__: pytest.fail("it was trained again"))
    succeed(sweep.main, [*given, "protocol.ood=[tiny_other]"])
    runs = {record.variant: (folder, record) for folder, record in find_runs([results]).items() if record.shots}
    (_, first), (_, more) = sorted(runs.values(), key=lambda run: len(run[1].scores["test"]))
    assert more.scores["test"].items() >= first.scores["test"].items()
    assert (more.curve, "mcm_auroc" in more.scores["test"]) == (first.curve, True)


@pytest.mark.slow
def test_a_target_is_out_of_distribution_everywhere_but_in_its_own_test(results: Path) -> None:
    given = ["protocol=cross_dataset", "protocol.targets=[tiny_other]", "protocol.ood=[tiny_other]", "debug=fast"]
    succeed(sweep.main, [*TINY, "method=zero_shot", *given])
    _, record = the_run(results)
    assert ["mcm_auroc" in record.scores[test] for test in ("tiny", "tiny_other")] == [True, False]
    assert record.scores["tiny"]["total"] == N_TEST // PER_CLASS["test"] * 2


@pytest.mark.slow
def test_a_data_set_without_test_images_is_refused_before_training(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vlprompt.run, "train", lambda *_, **__: pytest.fail("it was trained"))
    spec = spec_of("protocol.ood=[tiny_other]")
    lacking = replace(spec.ood["tiny_other"], test=())
    with pytest.raises(UserError, match="tiny_other, which has no test images"):
        vlprompt.run.run(replace(spec, ood={"tiny_other": lacking}))


@pytest.mark.parametrize("method", ["lora", *map(slow, ("linear_head", "cocoop"))])
def test_images_out_of_distribution_are_encoded_once(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = scatter(build(plain(method)))
    pictures = [Image.effect_noise((32, 32), 10 + i).convert("RGB") for i in range(5)]

    def split(origin: str, n: int) -> Split:
        items = tuple(Item(str(i), i % len(CLASSES)) for i in range(n))
        return Split(items, tuple(CLASSES), lambda image: pictures[int(image)], origin=origin)

    whole, other = split("these", 3), replace(split("others", 5), classes=("never", "read", "names"))
    tests = {"base": replace(whole.select([0, 1]), rows=(0, 1)), "all": whole}
    given: Any = {"loader": Loader(learner.clip), "precision": "fp32", "reporter": Reporter()}
    alone = {}
    for name, test in tests.items():
        evaluate(learner, {name: test}, **given, outside=(outside := Outside({"x": other, "same": split("these", 4)})))
        alone |= outside.scores
    encoded, encode = [], learner.encode_images
    monkeypatch.setattr(learner, "encode_images", lambda images: encoded.append(len(images)) or encode(images))
    evaluate(learner, tests, **given, outside=(outside := Outside({"x": other})))
    assert sum(encoded) == len(whole) + len(other)
    for name in tests:
        assert list(alone[name]) == [INSIDE, "x"]
        for score in SCORES:
            for of_set in (INSIDE, "x"):
                one, several = (getattr(of[name][of_set], score) for of in (alone, outside.scores))
                np.testing.assert_allclose(one, several, rtol=1e-4)
