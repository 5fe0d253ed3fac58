"""Predictions and scores: against the published evaluator, against hand-made cases, and on disk."""

import json
from dataclasses import MISSING, fields
from pathlib import Path

import numpy as np
import pytest
import torch

from vlprompt.errors import NonFiniteError, UserError
from vlprompt.results.metrics import per_class_accuracy, reliability, score
from vlprompt.results.predictions import Predictions, load_predictions, save_predictions

EVALUATOR = Path(__file__).parent / "fixtures" / "data" / "evaluator.json"


def predictions(logits: torch.Tensor, labels: list[int]) -> Predictions:
    return Predictions.from_logits([f"{i}.jpg" for i in range(len(labels))], torch.tensor(labels).long(), logits)


def confident(confidence: list[float], correct: list[bool]) -> Predictions:
    """Predictions of class 0 among two with given confidences."""
    p = torch.tensor(confidence, dtype=torch.float64)
    return predictions(torch.stack([p.log(), (1 - p).log()], dim=1), [0 if right else 1 for right in correct])


def earlier(predicted: Predictions) -> Predictions:
    """With the fields that predictions of earlier versions have."""
    return Predictions(**{f.name: vars(predicted)[f.name] for f in fields(Predictions) if f.default is MISSING})


def test_published_evaluator() -> None:
    case = json.loads(EVALUATOR.read_text())
    got = score(predictions(torch.tensor(case["logits"]), case["labels"]))
    assert 100 * got["accuracy"] == pytest.approx(case["results"]["accuracy"], abs=1e-9)
    assert 100 * got["macro_f1"] == pytest.approx(case["results"]["macro_f1"], abs=1e-9)
    assert (got["correct"], got["total"]) == (19, 37)
    assert 100 * got["per_class"] == pytest.approx(case["results"]["perclass_accuracy"], abs=1e-9)


def test_top5_and_accuracy_of_each_class() -> None:
    logits = torch.arange(7.0).repeat(3, 1)  # class 6 first, then 5, 4, 3, 2; 1 and 0 are not among the five
    predicted = predictions(logits.repeat(2, 1), [6, 2, 1, 0, 6, 5])
    assert score(predicted)["accuracy"] == pytest.approx(2 / 6)
    assert score(predicted)["top5"] == pytest.approx(4 / 6)
    classes = per_class_accuracy(predicted)
    assert classes.index.tolist() == [0, 1, 2, 5, 6]
    assert classes["images"].tolist() == [1, 1, 1, 1, 2]
    assert classes["accuracy"].tolist() == [0, 0, 0, 0, 1]
    assert score(predicted)["per_class"] == pytest.approx(1 / 5)
    assert score(predictions(torch.randn(4, 5), [0, 1, 2, 3]))["top5"] == 1.0


def test_reliability_curve_adds_up_to_the_calibration_error() -> None:
    generator = torch.Generator().manual_seed(3)
    predicted = predictions(torch.randn(500, 6, generator=generator) * 2, torch.randint(6, (500,)).tolist())
    curve = reliability(predicted)
    assert (len(curve), curve["images"].sum()) == (15, 500)
    assert curve["low"].tolist()[1:] == curve["high"].tolist()[:-1]
    gaps = (curve["accuracy"] - curve["confidence"]).abs() * curve["images"] / 500
    assert gaps.sum() == pytest.approx(score(predicted)["ece"], abs=1e-6)
    empty = curve[curve["images"] == 0]
    assert len(empty)
    assert empty[["confidence", "accuracy"]].isna().all(axis=None)


def test_nll_is_cross_entropy_and_confidence_is_softmax() -> None:
    logits, labels = torch.randn(50, 7, generator=torch.Generator().manual_seed(0)) * 5, torch.arange(50) % 7
    predicted = predictions(logits, labels.tolist())
    loss = torch.nn.functional.cross_entropy(logits, labels).item()
    assert score(predicted)["nll"] == pytest.approx(loss, rel=1e-6)
    np.testing.assert_allclose(predicted.confidence, logits.softmax(1).amax(1).numpy(), rtol=1e-5)
    np.testing.assert_array_equal(predicted.top5, logits.topk(5).indices.numpy())


def test_ties_go_to_the_first_class_and_few_classes_give_a_short_top5() -> None:
    predicted = predictions(torch.tensor([[1.0, 2.0, 2.0], [0.0, 0.0, 0.0]]), [1, 0])
    assert predicted.top5.tolist() == [[1, 2, 0], [0, 1, 2]]
    assert score(predicted)["accuracy"] == 1.0


def test_calibration_error() -> None:
    # two bins: (0.9, 0.9) half right: gap 0.4; (0.62) right: gap 0.38
    got = score(confident([0.9, 0.9, 0.62], [True, False, True]))
    assert got["ece"] == pytest.approx((2 * 0.4 + 0.38) / 3, abs=1e-6)


def test_calibration_error_of_full_confidence() -> None:
    # 1.0 falls into the last bin with 0.95: mean confidence 0.975, accuracy 0.5
    got = score(predictions(torch.tensor([[200.0, 0.0], [np.log(0.95 / 0.05), 0.0]]), [0, 1]))
    assert got["ece"] == pytest.approx(0.475, abs=1e-6)
    over = Predictions(**{**vars(confident([0.9, 0.9], [True, True])), "confidence": np.float32([1.0000001, 0.9])})
    assert score(over)["ece"] == pytest.approx(0.05, abs=1e-6)  # not taken for logits


def test_non_finite_logits_and_empty_splits_are_refused() -> None:
    with pytest.raises(NonFiniteError, match="NaN"):
        predictions(torch.tensor([[0.0, float("nan")]]), [0])
    with pytest.raises(UserError, match="no images"):
        score(predictions(torch.zeros(0, 3), []))


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "predictions.npz"
    splits = {
        "base": Predictions.from_logits(["a/é.jpg", "b.jpg"], torch.tensor([0, 6]), torch.randn(2, 7).bfloat16()),
        "novel": predictions(torch.randn(3, 2), [0, 1, 1]),
        "all": Predictions.from_logits(["a", "b", "c"], torch.tensor([0, 6, 2]), torch.randn(3, 7), known=[6, 1]),
        "earlier": earlier(predictions(torch.randn(3, 2), [0, 1, 1])),
    }
    save_predictions(path, splits)
    back = load_predictions(path)
    assert list(back) == list(splits)
    for name, predicted in splits.items():
        for field, array in vars(predicted).items():
            np.testing.assert_array_equal(vars(back[name])[field], array)
            assert array is None or vars(back[name])[field].dtype == array.dtype
    with np.load(path) as file:
        assert "base/label_logit" in file.files
        assert "base/known" not in file.files
    assert "brier" in score(back["base"])
    assert "brier" not in score(back["earlier"])


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 cut short"])
def test_damaged_predictions_are_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "predictions.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"predictions\.npz"):
        load_predictions(path)
