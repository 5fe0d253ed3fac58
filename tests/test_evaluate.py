"""Predictions: images that several tests share pass the image tower once."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_learners import CLASSES, build, plain, scatter

from vlprompt.data.dataset import Item, Split
from vlprompt.data.loader import Loader
from vlprompt.evaluate import evaluate
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
