"""Predictions: images that several tests share pass the image tower once."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_learners import CLASSES, build, clip_of, plain, scatter

from vlprompt.data.dataset import Item, Split
from vlprompt.data.loader import Loader
from vlprompt.evaluate import evaluate
from vlprompt.learners.base import Learner
from vlprompt.training.progress import Reporter


@pytest.mark.parametrize("method", ["lora", "cocoop", "linear_head", "mmrl"])
def test_images_that_tests_share_are_encoded_once(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = scatter(build(plain(method)))
    pictures = [Image.effect_noise((32, 32), 10 + i).convert("RGB") for i in range(5)]
    items = tuple(Item(str(i), i % len(CLASSES)) for i in range(len(pictures)))
    whole = Split(items, tuple(CLASSES), lambda image: pictures[int(image)], origin="these")
    tests = {"base": whole.select([0, 1]), "all": whole}
    if learner.class_bound:
        tests["base"] = replace(tests["base"], rows=(0, 1))
    given: Any = {"loader": Loader(learner.clip), "precision": "fp32", "reporter": Reporter()}
    alone = {name: evaluate(learner, {name: split}, **given)[name] for name, split in tests.items()}
    encoded, encode = [], learner.encode_images
    monkeypatch.setattr(learner, "encode_images", lambda images: encoded.append(len(images)) or encode(images))
    for name, predictions in evaluate(learner, tests, **given).items():
        assert (predictions.images == alone[name].images).all()
        assert np.allclose(predictions.label_logit, alone[name].label_logit, rtol=1e-5, atol=1e-5)
        assert (predictions.top5 == alone[name].top5).all()
    assert sum(encoded) == len(whole) or method == "mmrl"  # which has its own `logits`


class Told(Learner):
    """Remembers what its class features are asked for."""

    def encode_classes(self) -> Any:
        self.told = [*getattr(self, "told", []), (len(self.classes), self.rows, self.transfer)]
        return super().encode_classes()


class OfBefore(Told):
    """With the `bind` that learners had before transfers were told."""

    def bind(self, classes: Any, rows: Any = None) -> None:
        super().bind(classes, rows)


@pytest.mark.parametrize("kind", [Told, OfBefore])
def test_a_learner_is_told_that_images_are_of_another_data_set(kind: Any) -> None:
    """Even where classes are those trained on; and no longer, once it is back on its own."""
    learner = kind(clip_of("vit"), CLASSES)
    picture = Image.effect_noise((32, 32), 10).convert("RGB")
    source = Split((Item("0", 0),), tuple(CLASSES), lambda image: picture, origin="these")
    tests = {
        "source": source,
        "v2": replace(source, transfer=True),
        "a": replace(source.select([0]), rows=(0,), transfer=True),
    }
    evaluate(learner, tests, Loader(learner.clip), precision="fp32", reporter=Reporter())
    other = kind is Told
    assert learner.told == [(len(CLASSES), None, False), (len(CLASSES), None, other), (1, (0,), other)]
    learner.bind(CLASSES)
    assert not learner.transfer
