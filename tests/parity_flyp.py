"""Cases of FLYP: contrastive training of all weights, of which the larger tensors are told by their norms alone."""

import math
from typing import Any

import torch
from torch import Tensor

from vlprompt.config.schema import Fit
from vlprompt.learners.flyp import contrast
from vlprompt.towers import Images
from vlprompt.training.optim import make_optimizer

OPTIONS = {"warmup_length", "min_lr", "total_steps"}
ROWS = "token_embedding.rows_used"


def check_contrastive(clip: Any, original: Any, case: Any) -> None:
    """All runs of a case; `original.build` makes the learner, whose start is the model itself."""
    config = case.told["config"]
    assert set(config["trainer_options"]) == OPTIONS, f"options without a form here: {config['trainer_options']}"
    for name, texts in (("token_ids", config["captions"]), ("eval_token_ids", texts_of(config))):
        assert torch.equal(clip.text.tokenize(texts), case[f"inputs.{name}"]), name
    check_start(original.build(clip, case.told), original, case)
    for run in case.told["runs"]:
        check_training(original.build(clip, case.told), original, case, run)


def texts_of(config: Any) -> list[str]:
    return [config["eval_template"].replace("{}", name.replace("_", " ")) for name in config["classnames"]]


def pairs_of(learner: Any, images: Images, captions: list[str]) -> tuple[Tensor, Tensor]:
    both = learner.encode_images(images), learner.encode_texts(captions)
    features, texts = (torch.nn.functional.normalize(f, dim=-1) for f in both)
    return features, texts


def check_start(learner: Any, original: Any, case: Any) -> None:
    bounds, captions = case.bounds(original), case.told["config"]["captions"]
    pairs = [f.detach().requires_grad_() for f in pairs_of(learner, case.images(), captions)]
    logits = learner.log_scale.exp().detach() * pairs[0] @ pairs[1].T
    close(logits, case["init_forward.logits"], bounds["init_logits"])
    for name, features, gradient in zip(
        ("image", "text"), pairs, torch.autograd.grad(contrast(logits), pairs), strict=True
    ):
        close(features, case[f"init_forward.{name}_features_normalised"], bounds["features"])
        near(gradient, case[f"init_forward.grad_of_{name}_features_normalised"], bounds["gradient_rel_l2"], name)


def check_training(learner: Any, original: Any, case: Any, run: str) -> None:
    told, bounds, captions = case.told["runs"][run], case.bounds(original), case.told["config"]["captions"]
    parameters = {original.ours(name): name for name in case.told["trainable_names_in_order"]}
    assert set(parameters) == {name for name, _ in learner.named_parameters()}
    learner.captions_of = lambda labels: captions
    optim = {**told["optim"], "optimizer": told["optim"]["name"]}
    fit = Fit(steps=told["steps"], **{k: v for k, v in optim.items() if k != "name"})
    optimizer, labels = make_optimizer(learner, fit), case["inputs.labels"]
    used, compared = case["inputs.token_ids_used"].long(), set()

    def compare(kind: str, step: int, bound: float) -> None:
        now = {name: p.grad if kind == "grad" else p.data for name, p in learner.named_parameters()}
        now[original.ours(ROWS)] = now[original.ours("token_embedding.weight")][used]
        for name, expected in case.below(f"{run}.{kind}{step}.").items():
            near(now[original.ours(name)], expected, bound, name)
            compared.add(name)

    for step, expected in enumerate(told["losses"]):
        rate = rate_of(step, told, case.told["config"]["trainer_options"])
        assert abs(rate / told["lr_used"][step] - 1) <= bounds["lr_rel"]
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        loss, _ = learner.backward(case.images(), labels)
        close(loss, torch.tensor(expected), bounds["loss"])
        compare("grad", step + 1, bounds["gradient_rel_l2"])
        norms = {name: p.grad.double().norm() for name, p in learner.named_parameters()}
        check_norms(norms, told["gradient_l2_norms"][step], parameters, bounds["gradient_l2_norm_rel"])
        optimizer.step()
        compare("param", step + 1, bounds["parameter_rel_l2"])
    norms = {name: p.detach().double().norm() for name, p in learner.named_parameters()}
    skipped = {name for name in parameters if name.endswith("in_proj_bias")}  # which rounding moves, see `not_recorded`
    check_norms(norms, told["parameter_l2_norms_after_last_step"], parameters, bounds["parameter_rel_l2"], skipped)
    assert {name for name in compared if ".grad" not in name} >= {"logit_scale", ROWS}
    learner.eval()
    with torch.no_grad():
        for name in ("train", "eval"):
            images = case.images("inputs.images" if name == "train" else "inputs.eval_images")
            logits = learner.logits(images, learner.encode_classes())
            close(logits, case[f"{run}.logits_final_{name}_images"], bounds["final_logits"])


def rate_of(step: int, told: Any, options: Any) -> float:
    """The original's: up from the first step on, then a cosine to which the floor is added."""
    lr, warm = told["optim"]["lr"], options["warmup_length"]
    if step < warm:
        return lr * (step + 1) / warm
    return lr * (1 + math.cos(math.pi * (step - warm) / (options["total_steps"] - warm))) / 2 + options["min_lr"]


def check_norms(
    ours: dict[str, Tensor], told: Any, names: dict[str, str], rel: float, skipped: set[str] = frozenset()
) -> None:
    assert set(told) | {names[name] for name in skipped} == set(names.values())
    for name in set(ours) - skipped:
        expected = told[names[name]]
        assert abs(ours[name].item() - expected) <= rel * expected, (names[name], ours[name].item(), expected)


def near(ours: Tensor, theirs: Tensor, rel: float, name: str) -> None:
    assert ours.shape == theirs.shape, name
    assert torch.linalg.norm(ours.double() - theirs.double()) <= rel * torch.linalg.norm(theirs.double()), name


def close(ours: Tensor, theirs: Tensor, bound: Any) -> None:
    torch.testing.assert_close(ours, theirs, **{"rtol": 0, **bound})
