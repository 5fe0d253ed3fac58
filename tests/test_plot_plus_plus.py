"""PLOT++: the plans, the special cases that are other methods, the stages, and the words around names."""

from functools import cache
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import torch.nn.functional as F
from torch import Tensor

from vlprompt.config.compose import compose
from vlprompt.errors import UserError
from vlprompt.learners.base import Learner
from vlprompt.learners.coop import CoOp
from vlprompt.learners.plot_plus_plus import PLOTPlusPlus
from vlprompt.learners.transport import sinkhorn, uniform
from vlprompt.learners.vpt import VPT
from vlprompt.towers import Clip, Images

CLASSES = ("cat", "golden retriever", "star")
OPENINGS = ["a photo of a", "one picture of a"]
LABELS = torch.tensor([2, 0, 1])


@cache
def clip() -> Clip:
    return tiny.clip("vit")[0]  # in float64


@cache
def images() -> Images:
    return Images(tiny.pixels(clip().weights.root, len(LABELS)))


def built(**settings: Any) -> PLOTPlusPlus:
    torch.manual_seed(0)
    learner = PLOTPlusPlus(clip(), CLASSES, **{"openings": OPENINGS, "n_image_prompts": 3, **settings})
    return learner.double()


def logits(learner: Learner) -> Tensor:
    return learner.logits(images(), learner.encode_classes())


def pairs(spread: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return spread * (2 * torch.rand(5, 4, 3, 2, generator=generator, dtype=torch.double) - 1)


def plain_sinkhorn(cosines: Any, threshold: float) -> Any:
    """One image, in NumPy: kernels exp(-cost / 0.1), scaled until their rows' scaling changes little."""
    kernel = np.exp(-(1 - cosines) / 0.1)
    rows, columns = np.ones(cosines.shape[:2]), np.ones((cosines.shape[0], cosines.shape[2]))
    for _ in range(100):
        last = rows
        rows = (1 / cosines.shape[1]) / np.einsum("cmn,cn->cm", kernel, columns)
        columns = (1 / cosines.shape[2]) / np.einsum("cmn,cm->cn", kernel, rows)
        if np.abs(rows - last).mean() < threshold:
            break
    return rows[:, :, None] * kernel * columns[:, None, :]


@pytest.mark.parametrize("threshold", [1e-2, 1e3])
def test_plans_are_those_of_each_image_alone(threshold: float) -> None:
    cosines = pairs()
    expected = [plain_sinkhorn(one.numpy(), threshold) for one in cosines]
    np.testing.assert_allclose(sinkhorn(cosines, threshold=threshold).numpy(), expected, rtol=1e-9)


def test_plans_of_a_batch_end_at_once() -> None:
    cosines = torch.cat([pairs(0.01)[:1], pairs()])  # of the first image alone one iteration is enough
    of_batch, alone = (sinkhorn(those, stop="batch")[:1] for those in (cosines, cosines[:1]))
    assert not torch.equal(of_batch, alone)
    assert torch.equal(sinkhorn(cosines)[:1], alone)


def test_a_plan_moves_all_there_is() -> None:
    plan = sinkhorn(pairs(), threshold=1e-12, iterations=10_000)
    torch.testing.assert_close(plan.sum(-1), torch.full((5, 4, 3), 1 / 3, dtype=torch.double))
    torch.testing.assert_close(plan.sum(-2), torch.full((5, 4, 2), 1 / 2, dtype=torch.double))
    assert plan[0, 0].argmax() == pairs()[0, 0].argmax()


@pytest.mark.parametrize(("m", "n"), [(1, 4), (3, 1), (1, 1)])
def test_one_prompt_leaves_one_plan(m: int, n: int) -> None:
    cosines = torch.rand(2, 3, m, n, dtype=torch.double)
    expected = torch.stack([torch.from_numpy(plain_sinkhorn(one.numpy(), 1e-12)) for one in cosines])
    torch.testing.assert_close(sinkhorn(cosines), expected)
    assert torch.equal(sinkhorn(cosines), uniform(cosines))


def gradients(learner: Learner) -> dict[str, Tensor]:
    learner.backward(images(), LABELS)
    return {name: p.grad for name, p in learner.named_parameters() if p.grad is not None}


def test_one_opening_without_image_tokens_is_coop() -> None:
    learner, coop = built(openings=OPENINGS[:1], n_image_tokens=0), CoOp(clip(), CLASSES, ctx_init=OPENINGS[0]).double()
    assert learner.stages == (1.0,)
    assert not learner.edits_image
    torch.testing.assert_close(logits(learner), logits(coop))
    torch.testing.assert_close(gradients(learner)["context"][0], gradients(coop)["context"])


def test_one_prompt_each_is_coop_with_image_tokens() -> None:
    learner, coop = (
        built(openings=OPENINGS[:1], n_image_prompts=1),
        CoOp(clip(), CLASSES, ctx_init=OPENINGS[0]).double(),
    )
    vpt = VPT(clip(), CLASSES, n_tokens=2).double()
    with torch.no_grad():
        vpt.tokens.copy_(learner.tokens)
        learner.begin(1)
    expected = coop.compare(vpt.encode_images(images()), coop.encode_classes())
    torch.testing.assert_close(logits(learner), expected)
    F.cross_entropy(expected, LABELS).backward()
    ours = gradients(learner)
    torch.testing.assert_close(ours["context"][0], coop.context.grad)
    torch.testing.assert_close(ours["tokens"], vpt.tokens.grad)


def test_a_uniform_plan_is_the_mean_of_all_pairs() -> None:
    learner = built(transport="uniform", image_share=0.0)
    features, classes = learner.encode_each(images()), learner.encode_classes()
    expected = sum(F.cosine_similarity(features[:, None, m], classes[None, :, n], dim=-1)
                   for m in range(3) for n in range(2))  # fmt: skip
    torch.testing.assert_close(logits(learner), clip().scale * expected / 6)
    assert not torch.allclose(logits(built(image_share=0.0)), logits(learner))


def test_no_gradient_goes_through_the_plan() -> None:
    learner = built(image_share=0.0)
    features, classes = (
        F.normalize(learner.encode_each(images()), dim=-1),
        F.normalize(learner.encode_classes(), dim=-1),
    )
    cosines = torch.einsum("bme,cne->bcmn", features, classes)
    plan = sinkhorn(cosines).detach()
    F.cross_entropy(clip().scale * (plan * cosines).sum((2, 3)), LABELS).backward()
    expected = {name: p.grad.clone() for name, p in learner.named_parameters() if p.grad is not None}
    learner.zero_grad()
    torch.testing.assert_close(gradients(learner), expected)


def test_the_first_stage_trains_image_tokens_and_adds_the_means() -> None:
    learner = built()
    assert learner.stages == (0.5, 0.5)
    assert gradients(learner).keys() == {"tokens"}
    features, classes = learner.encode_each(images()), learner.encode_classes()
    means = F.cosine_similarity(features.mean(1)[:, None], classes.mean(1)[None], dim=-1)
    first = logits(learner)
    learner.begin(1)
    torch.testing.assert_close(first - logits(learner), clip().scale * means)
    assert gradients(learner).keys() == {"context", "tokens"}


def test_predictions_do_not_depend_on_the_images_next_to_them() -> None:
    learner = built()
    alone = [learner.logits(Images(one[None]), learner.encode_classes()) for one in images().pixels]
    torch.testing.assert_close(torch.cat(alone), logits(learner))


def whole(learner: PLOTPlusPlus, at: int) -> Tensor:
    return learner.texts()[at].with_context(learner.context[at]).whole()[0]


def embedded(text: str) -> Tensor:
    ids = clip().text.tokenize([text])
    return clip().text.embed(ids[0, : int(clip().text.read(ids)[0]) + 1])


def test_words_beyond_the_context_stay() -> None:
    learner = built(openings=["a photo of", "one photo of a"])  # as the fourth of EuroSAT's
    assert learner.context.shape[1] == 3
    for at, text in enumerate(("a photo of cat.", "one photo of a cat.")):
        torch.testing.assert_close(whole(learner, at)[: len(embedded(text))], embedded(text))


def test_a_short_opening_takes_the_first_token_of_names() -> None:
    openings = ["a photo of a", "this is a"]  # as the third of ImageNet's
    with pytest.raises(UserError, match=r"method\.openings"):
        built(openings=openings)
    learner = built(openings=openings, cut_names=True)
    expected = embedded("this is a cat.").clone()
    expected[4] = embedded("")[-1]  # instead of "cat" what ends the phrase
    torch.testing.assert_close(whole(learner, 1)[: len(expected)], expected)
    assert logits(learner).isfinite().all()
    with pytest.raises(UserError, match="too short"):
        built(openings=["one two three four five six seven", "a"], cut_names=True).encode_classes()


@pytest.mark.parametrize(("settings", "named"), [
    ({"openings": []}, "openings"), ({"openings": [" "]}, "openings"), ({"n_image_prompts": 0}, "n_image_prompts"),
    ({"n_image_tokens": -1}, "n_image_tokens"), ({"image_share": 1.0}, "image_share"), ({"epsilon": 0.0}, "epsilon"),
    ({"iterations": 0}, "iterations"),
])  # fmt: skip
def test_what_cannot_be(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=rf"method\..*{named}"):
        built(**settings)


@pytest.mark.parametrize(("dataset", "words"), [("eurosat", 5), ("imagenet", 4), ("stanford_cars", 4), ("ucf101", 6)])
def test_openings_of_data_sets(dataset: str, words: int) -> None:
    method = compose(["method=plot_plus_plus", f"dataset={dataset}", "protocol=few_shot"])["method"]
    assert len(method["openings"]) == 4
    assert len(method["openings"][0].split()) == words
    assert method["cut_names"] == (dataset == "imagenet")
    built(openings=method["openings"], cut_names=method["cut_names"])
