"""Methods as an estimator of scikit-learn."""

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import pytest
import torch
from PIL import Image
from running import ROOT, set_up
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score

from vlprompt import ClassBoundError, PromptClassifier, UserError

METHODS = sorted(path.stem for path in (ROOT / "conf" / "method").glob("*.yaml"))
NAMES = ["zero", "one", "two"]
DIGITS = load_digits(n_class=3)
PICTURES = [Image.fromarray((pixels * 15).astype("uint8")) for pixels in DIGITS.images[:24]]
NUMBERS = DIGITS.target[:24]
LABELS = [NAMES[label] for label in NUMBERS]


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    made = tmp_path_factory.mktemp("estimator")
    with pytest.MonkeyPatch.context() as patch:
        set_up(patch, made)
        yield made


def classifier(**settings: Any) -> PromptClassifier:
    """CoOp on views that leave a digit what it is."""
    views = ("augment.scale=[0.8,1.0]", "augment.flip=0")
    defaults = {"backbone": "shapes_vit", "steps": 12, "batch_size": 6, "lr": 0.02, "settings": views}
    return PromptClassifier(**{**defaults, **settings})


@pytest.fixture(scope="module")
def fitted(folder: Path) -> PromptClassifier:
    return classifier().fit(PICTURES, LABELS)


def test_it_predicts_labels_and_probabilities(fitted: PromptClassifier, folder: Path) -> None:
    assert fitted.classes_.tolist() == sorted(NAMES)
    rows = fitted.predict_proba(PICTURES)
    assert rows.shape == (24, 3)
    assert np.allclose(rows.sum(1), 1, atol=1e-5)
    predicted = fitted.predict(PICTURES)
    assert (predicted == fitted.classes_[rows.argmax(1)]).all()
    assert fitted.score(PICTURES, LABELS) == np.mean(predicted == np.array(LABELS)) > 0.8
    assert fitted.predict_proba(np.stack([np.asarray(picture) for picture in PICTURES[:2]])[..., None]).shape == (2, 3)
    assert len(fitted.curve_) == 3
    assert not list(folder.iterdir()), "it leaves files"


def test_two_fits_are_equal(fitted: PromptClassifier) -> None:
    rows = fitted.predict_proba(PICTURES)
    again = clone(fitted)
    with pytest.raises(NotFittedError):
        again.predict(PICTURES)
    assert np.array_equal(again.fit(PICTURES, LABELS).predict_proba(PICTURES), rows)


@pytest.mark.slow
def test_another_seed_is_another_fit(fitted: PromptClassifier) -> None:
    other = clone(fitted).set_params(seed=2).fit(PICTURES, LABELS)
    assert not np.array_equal(other.predict_proba(PICTURES), fitted.predict_proba(PICTURES))


def test_parameters_are_those_given() -> None:
    given = classifier(settings=("method.n_context=2",), class_names={0: "zero"})
    assert given.get_params()["lr"] == 0.02
    assert clone(given).get_params() == given.get_params()
    assert given.set_params(lr=0.1).lr == 0.1
    with pytest.raises(ValueError, match="learning_rate"):
        given.set_params(learning_rate=1)
    assert "steps=12" in repr(given)


def test_it_is_pickled_before_and_after_a_fit(fitted: PromptClassifier) -> None:
    unfitted = pickle.loads(pickle.dumps(classifier(lr=0.5)))
    assert unfitted.lr == 0.5
    with pytest.raises(NotFittedError):
        unfitted.predict_proba(PICTURES)
    content = pickle.dumps(fitted)
    assert len(content) < 1e5, "the frozen model is in it"
    before = torch.get_rng_state()
    copy = pickle.loads(content)
    assert torch.equal(before, torch.get_rng_state())
    assert np.allclose(copy.predict_proba(PICTURES), fitted.predict_proba(PICTURES), atol=1e-6)
    assert copy.classes_.tolist() == fitted.classes_.tolist()
    assert np.allclose(pickle.loads(pickle.dumps(copy)).predict_proba(PICTURES[:2]), copy.predict_proba(PICTURES[:2]))


@pytest.mark.parametrize("method", ["zero_shot", pytest.param("coop", marks=pytest.mark.slow)])
def test_labels_may_be_numbers_with_names(method: str, fitted: PromptClassifier) -> None:
    """Names in the order of the texts' labels, so that the trainings are equal."""
    order = sorted(NAMES)
    numbers = np.array([10 * order.index(label) for label in LABELS])
    names = {10 * i: name for i, name in enumerate(order)}
    if method == "coop":
        by_number, by_text = classifier(class_names=names), fitted
    else:
        by_number = PromptClassifier(method, "shapes_vit", class_names=names)
        by_text = PromptClassifier(method, "shapes_vit").fit(PICTURES, LABELS)
    by_number.fit(PICTURES, numbers)
    assert by_number.classes_.tolist() == [0, 10, 20]
    assert by_number.model_.classes == tuple(order)
    assert np.array_equal(by_number.predict_proba(PICTURES), by_text.predict_proba(PICTURES))
    assert set(by_number.predict(PICTURES)) <= {0, 10, 20}
    listed = PromptClassifier("zero_shot", "shapes_vit", class_names=NAMES)
    assert listed.fit(PICTURES, torch.tensor(NUMBERS)).model_.classes == tuple(NAMES)


@pytest.mark.parametrize(
    ("settings", "pictures", "labels", "said"),
    [
        ({}, PICTURES, LABELS[:3], "24 pictures and labels [3]"),
        ({}, [], [], "0 pictures"),
        ({}, PICTURES, None, "24 pictures and labels []"),
        ({}, "pictures", LABELS, "images are a single str: give a list"),
        ({}, DIGITS.images, NUMBERS, "images are a single ndarray [537, 8, 8]"),
        ({}, PICTURES, ["one"] * 24, "all pictures are of the class one"),
        ({}, PICTURES, [0.5, 1.0] * 12, "such as 0.5, allowed are strings or integers"),
        ({}, PICTURES, np.array([1, "one"] * 12, dtype=object), "labels are of the kinds int, str"),
        ({}, PICTURES, ["", "one"] * 12, "the classes are ('', 'one')"),
        ({}, PICTURES, ["quark", "one"] * 12, "quark"),
        ({}, ["nothing.jpg", "gone.png"], ["one", "two"], "there is no picture 'nothing.jpg'"),
        ({}, torch.zeros(2, 3, 48, 48), ["one", "two"], "Tensor float32 [3, 48, 48] is no picture"),
        ({"method": "coup"}, PICTURES, LABELS, "unknown method 'coup'"),
        ({"method": "coop,lora"}, PICTURES, LABELS, "several values"),
        ({"backbone": "vit"}, PICTURES, LABELS, "unknown backbone 'vit'"),
        pytest.param({"epochs": 2}, PICTURES, LABELS, "either epochs or steps", marks=pytest.mark.slow),
        pytest.param({"lr": -1}, PICTURES, LABELS, "fit.lr is -1", marks=pytest.mark.slow),
        pytest.param({"template": "a photo"}, PICTURES, LABELS, "exactly one {}", marks=pytest.mark.slow),
        pytest.param({"device": "gpu"}, PICTURES, LABELS, "allowed is auto, cpu, cuda", marks=pytest.mark.slow),
        pytest.param({"precision": "fp12"}, PICTURES, LABELS, "precision is 'fp12'", marks=pytest.mark.slow),
        ({"settings": "method.n_ctx=2"}, PICTURES, LABELS, "did you mean 'method.n_context'"),
        ({"settings": ("n_ctx",)}, PICTURES, LABELS, "NAME=VALUE"),
        ({"class_names": ["zero"]}, PICTURES, NUMBERS, "none is of the label 1"),
        ({"class_names": 5}, PICTURES, NUMBERS, "class_names is 5"),
        (
            {"method": "zero_shot", "steps": None, "batch_size": None, "settings": ()},
            PICTURES,
            LABELS,
            "nothing is trained",
        ),
    ],
)
def test_mistakes(settings: dict[str, Any], pictures: Any, labels: Any, said: str) -> None:
    jaxtyping.config.update("jaxtyping_disable", True)  # the package's own checks answer, as for users
    try:
        with pytest.raises(UserError) as caught:
            classifier(**settings).fit(pictures, labels)
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_mistakes_in_prediction(fitted: PromptClassifier, tmp_path: Path) -> None:
    (bad := tmp_path / "bad.jpg").write_bytes(b"no picture")
    for wrong, said in (([], "at least one"), ([bad], "bad.jpg"), (["gone.png"], "gone.png")):
        with pytest.raises(UserError, match=said):
            fitted.predict(wrong)


@pytest.mark.slow
def test_cross_validation_and_a_search_over_the_learning_rate(tmp_path: Path) -> None:
    paths = [str(tmp_path / f"{i}.png") for i in range(len(PICTURES))]
    for path, picture in zip(paths, PICTURES, strict=True):
        picture.save(path)
    scores = cross_val_score(classifier(), np.array(paths), np.array(LABELS), cv=2)
    assert np.allclose(scores, cross_val_score(classifier(), PICTURES, LABELS, cv=2))
    search = GridSearchCV(classifier(), {"lr": [0.02, 100.0]}, cv=2).fit(PICTURES, LABELS)
    assert search.best_params_ == {"lr": 0.02}
    assert search.best_score_ > 0.8
    assert search.best_estimator_.predict(PICTURES[:2]).shape == (2,)
    wrong = GridSearchCV(classifier(), {"lr": [-1.0]}, cv=2, error_score="raise")
    with pytest.raises(UserError, match=r"fit\.lr is -1"):
        wrong.fit(PICTURES, LABELS)


SHORT = ("debug=fast", "debug.images=16")
NEED_VALIDATION = {
    "linear_probe": "chooses C on validation images and this data set has none",
    "cross_modal": "chooses one of 6 trainings on validation images and this data set has none",
    "tip_adapter_f": r"fit\.keep=best needs validation images",
}


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_every_method_fits_and_pickles(method: str) -> None:
    if method == "qlora":
        pytest.importorskip("bitsandbytes")
    steps: dict[str, Any] = {"steps": None, "lr": None, "batch_size": None, "settings": SHORT}
    if said := NEED_VALIDATION.get(method):
        with pytest.raises(UserError, match=said):
            classifier(method=method, **steps).fit(PICTURES, LABELS)
        if "fit.keep" not in said:
            return
        steps["settings"] = (*SHORT, "fit.keep=last")
    one = classifier(method=method, **steps).fit(PICTURES, LABELS)
    rows = one.predict_proba(PICTURES)
    assert rows.shape == (24, 3)
    assert np.allclose(pickle.loads(pickle.dumps(one)).predict_proba(PICTURES), rows, atol=1e-5)
    assert np.array_equal(clone(one).fit(PICTURES, LABELS).predict_proba(PICTURES), rows)
    few = one.model_.with_classes(["two", "one"])
    assert few.classes == ("two", "one")
    if one.model_.learner.class_bound:
        with pytest.raises(ClassBoundError):
            one.model_.with_classes(["circle", "square"])
