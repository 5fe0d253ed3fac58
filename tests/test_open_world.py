"""Trained and other classes in one test: each score against its definition, or scikit-learn's."""

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from made_records import few_shot
from sklearn.metrics import roc_auc_score, roc_curve
from tiny import clip

from vlprompt.data.dataset import Item, Split
from vlprompt.errors import UserError
from vlprompt.evaluate import known_columns
from vlprompt.learners.zero_shot import ZeroShot
from vlprompt.reports.summary import missing_metric
from vlprompt.results.metrics import METRICS, complete, interval, score
from vlprompt.results.open_world import SCORES, auroc, false_positive_rate, openworld_auc_of
from vlprompt.results.predictions import Predictions, load_predictions, pool, save_predictions


def drawn(n: int = 90, n_classes: int = 7, known: list[int] | None = None, *, seed: int = 0) -> Any:
    """Logits that are right more often than chance."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(n_classes, (n,), generator=generator)
    logits = torch.randn(n, n_classes, generator=generator) + torch.nn.functional.one_hot(labels, n_classes)
    logits *= 2
    names = [str(i) for i in range(n)]
    return labels, logits, Predictions.from_logits(names, labels, logits, known)


@pytest.mark.parametrize(
    ("n_classes", "known"), [(7, [0, 1, 2, 3]), (5, [4, 1]), (3, [2]), (9, [8, 0, 3, 5, 6, 7, 1, 2])]
)
def test_scores_are_those_of_the_definitions(n_classes: int, known: list[int]) -> None:
    labels, logits, predicted = drawn(n_classes=n_classes, known=known)
    others = sorted(set(range(n_classes)) - set(known))
    is_known = np.isin(labels, known)
    probabilities = logits.double().softmax(dim=1)
    mass = probabilities[:, known].sum(dim=1).numpy()
    got = score(predicted)
    assert got["open_auroc"] == pytest.approx(roc_auc_score(is_known, mass))
    false, true, _ = roc_curve(is_known, mass, drop_intermediate=False)
    assert got["open_fpr95"] == pytest.approx(false[true >= 0.95][0])
    right = (logits.argmax(dim=1) == labels).numpy()
    assert got["open_base"] == pytest.approx(right[is_known].mean())
    assert got["open_novel"] == pytest.approx(right[~is_known].mean())
    assert 1 / got["open_H"] == pytest.approx((1 / got["open_base"] + 1 / got["open_novel"]) / 2)
    largest = probabilities[:, known].amax(dim=1).numpy()
    among = {True: sorted(known), False: others}
    in_side = [among[k][int(row[among[k]].argmax())] for k, row in zip(is_known.tolist(), logits, strict=True)]
    hits = np.array(in_side) == labels.numpy()
    pairs = [hits[i] * hits[j] * ((largest[i] > largest[j]) + (largest[i] == largest[j]) / 2)
             for i in np.flatnonzero(is_known) for j in np.flatnonzero(~is_known)]  # fmt: skip
    assert got["openworld_auc"] == pytest.approx(np.mean(pairs), abs=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_ties_count_half(seed: int) -> None:
    generator = np.random.default_rng(seed)
    known, new = generator.integers(4, size=33) / 4, generator.integers(5, size=21) / 4
    right = generator.random(33) < 0.6, generator.random(21) < 0.7
    pairs = [a * b * ((s > t) + (s == t) / 2) for s, a in zip(known, right[0], strict=True)
             for t, b in zip(new, right[1], strict=True)]  # fmt: skip
    assert openworld_auc_of(known, new, *right) == pytest.approx(np.mean(pairs))
    assert openworld_auc_of(known, new, np.zeros(33, bool), right[1]) == 0
    everything = [(s > t) + (s == t) / 2 for s in known for t in new]
    assert auroc(known, new) == pytest.approx(np.mean(everything))
    for accepted in (50, 80, 95, 100):
        false, true, _ = roc_curve([1] * 33 + [0] * 21, [*known, *new], drop_intermediate=False)
        assert false_positive_rate(known, new, accepted) == pytest.approx(false[true >= accepted / 100][0])


def test_a_test_that_is_ranked_the_wrong_way_round_has_no_pair() -> None:
    generator = np.random.default_rng(1)
    right = generator.random(40) < 0.5, generator.random(30) < 0.5
    assert openworld_auc_of(generator.random(40), 2 + generator.random(30), *right) == 0


def test_probabilities_that_round_to_1_are_no_ties() -> None:
    logits = torch.tensor([[60.0, 0, 0], [50, 0, 0], [40, 0, 0], [30, 0, 0]])
    predicted = Predictions.from_logits([*"abcd"], torch.tensor([0, 0, 2, 2]), logits, [0, 1])
    assert (predicted.confidence == 1).all()
    assert score(predicted)["open_auroc"] == 1
    assert score(predicted)["open_fpr95"] == 0


def test_confident_images_are_ordered_by_their_exact_probability() -> None:
    """Whose logsumexps in float32 would be coarser than what they differ by."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 6
    logits = 25 + torch.randn(60, 6, generator=generator) + 17 * torch.nn.functional.one_hot(labels % 3, 6)
    predicted = Predictions.from_logits([*map(str, labels)], labels, logits, [0, 1, 2])
    largest = logits.double().log_softmax(dim=1)[:, :3].amax(dim=1)  # near 0, as precise as the probability of the rest
    right = np.where(predicted.known, *predicted.side_class.T) == predicted.labels  # type: ignore[union-attr]
    new = ~predicted.known  # type: ignore[operator]
    wanted = openworld_auc_of(largest.numpy()[~new], largest.numpy()[new], right[~new], right[new])
    assert score(predicted)["openworld_auc"] == pytest.approx(wanted, abs=1e-9)
    coarse = replace(predicted, side_logsumexp=predicted.side_logsumexp.astype(np.float32))  # type: ignore[union-attr]
    assert abs(score(coarse)["openworld_auc"] - wanted) > 1e-3


def test_without_the_fields_or_one_kind_of_image_there_are_no_scores() -> None:
    labels, logits, closed = drawn()
    assert closed.known is None
    assert not set(SCORES) & set(score(closed))
    assert all(METRICS[name].of_some_tests for name in SCORES)
    one_kind = Predictions.from_logits(["a", "b"], torch.tensor([0, 1]), torch.randn(2, 4), [0, 1])
    assert not set(SCORES) & set(score(one_kind))
    with pytest.raises(UserError, match="open_H"):
        interval(closed, "open_H")
    for known in ([], list(range(7)), [0, 0], [9]):
        with pytest.raises(ValueError, match="known"):
            Predictions.from_logits([*map(str, labels)], labels, logits, known)


def test_pooled(tmp_path: Any) -> None:
    whole, half = drawn(known=[0, 1])[2], drawn(known=[0, 1], seed=1)[2]
    pooled = pool([whole, half])
    assert len(pooled) == 180
    assert pooled.known is not None
    assert pooled.classwise_ece is None
    assert "open_H" in score(pooled)
    assert "open_H" not in score(pool([whole, drawn()[2]]))
    save_predictions(tmp_path / "predictions.npz", {"all": whole})
    assert score(load_predictions(tmp_path / "predictions.npz")["all"]) == score(whole)


def test_what_only_some_tests_have_is_missed_where_none_has_it(tmp_path: Any) -> None:
    predicted = {"base": drawn()[2], "all": drawn(known=[0, 1])[2]}
    save_predictions(tmp_path / "predictions.npz", predicted)
    old = few_shot("coop", "dtd", scores={name: {"accuracy": 0.5} for name in predicted})
    made = complete({tmp_path: old}, "open_H", [])
    assert made[0].scores["all"]["open_H"] == score(predicted["all"])["open_H"]
    assert "open_H" not in made[0].scores["base"]
    assert missing_metric(made, "open_H") == []
    closed = few_shot("lora", "dtd", scores={"test": score(predicted["base"])})
    assert complete({tmp_path: closed}, "open_H", []) == [closed]
    (note,) = missing_metric([*made, closed], "open_H")
    assert "lora" in note
    assert "coop" not in note


@cache
def trained() -> ZeroShot:
    learner = ZeroShot(clip()[0], ["crane", "a", "b"], templates="{}")
    learner.bind(["a"])
    return learner


@pytest.mark.parametrize(
    ("classes", "transfer", "known"),
    [
        (("c", "b", "crane", "a"), False, [1, 2, 3]),
        (("crane", "a", "b", "d", "crane"), False, [0, 1, 2]),  # two classes of one name
        (("crane", "a", "b"), False, None),
        (("b", "crane", "a"), False, None),
        (("a", "b", "c", "d"), False, None),
        (("c", "d"), False, None),
        (("c", "b", "crane", "a"), True, None),  # of another data set
    ],
)
def test_open_worlds_are_told_from_other_tests(
    classes: tuple[str, ...], transfer: bool, known: list[int] | None
) -> None:
    split = Split((Item("x", 0),), classes, open_image=None, transfer=transfer)  # type: ignore[arg-type]
    assert known_columns(trained(), split) == known
