"""Cases of ProLIP: training on stored views step by step, and the search over rates and weights."""

from unittest import mock

import pytest
import test_parity as harness
import torch

from vlprompt.learners.base import normalize
from vlprompt.towers import Images


class Views(list):
    """A list that notes which of its items were asked for."""

    def __init__(self, items):
        super().__init__(items)
        self.used = []

    def __getitem__(self, index):
        self.used.append(index)
        return super().__getitem__(index)


class Noted(torch.optim.Adam):
    """Adam that notes its rates, and how it was made."""

    rates, made = [], {}

    def step(self, *given):
        group = self.param_groups[0]
        self.rates.append(group["lr"])
        self.made.update({name: group[name] for name in ("eps", "betas", "weight_decay")}, lr=group["initial_lr"])
        return super().step(*given)


def check_prolip(clip, original, case):
    clip = clip.with_weights({"visual.proj": case["init.vit_proj"]})
    learner, bounds = original.build(clip, case.told), case.bounds(original)
    assert dict(learner.named_parameters()).keys() == {"projection"}
    assert case.told["trainable_names_in_order"] == ["vit_proj"]
    harness.check_tokens(learner, original, case)
    harness.close(normalize(learner.encode_classes()).T, case["clip_weights"], bounds["features"])
    made_up = "train_features_before_projection" in case
    labels = case["train_labels" if made_up else "inputs.labels"]
    views = case["train_features_before_projection"] if made_up else collected(learner, original, case, labels)
    for run, told in case.told["runs"].items():
        check_steps(learner, original, case, run, views, labels)
        if made_up:
            check_search(clip, original, case, run, views, labels)
        else:
            check_whole(clip, original, case, run, told, labels)


def collected(learner, original, case, labels):
    """The stored features, made from the images of the case, and logits of them."""
    bounds, views = case.bounds(original), []
    for images, expected in zip(case["inputs.view_images"], case["features_before_projection"], strict=True):
        features, _ = learner.collect([(Images(images.float()), labels)])
        harness.close(features, expected, bounds["features"])
        views.append(features)
    images = case.images("inputs.eval_images")
    eval_features, _ = learner.collect([(images, labels[: len(images)])])
    harness.close(eval_features, case["eval_features_before_projection"], bounds["features"])
    ours = [judged(learner, view) for view in views]
    harness.close(torch.stack(ours), case["init_forward.logits_per_view"], bounds["init_logits"])
    harness.close(judged(learner, eval_features), case["init_forward.eval_logits"], bounds["init_logits"])
    return torch.stack(views)


@torch.no_grad()
def judged(learner, features):
    return learner.compare(learner.project(features), learner.encode_classes())


def check_steps(learner, original, case, run, views, labels):
    told, bounds, views = case.told["runs"][run], case.bounds(original), Views(views)
    start, before, seen = case["init.vit_proj"], case["init.vit_proj"].clone(), 0
    Noted.rates.clear()
    with mock.patch.object(torch.optim, "Adam", Noted):
        steps = learner.descend(views, labels, told["optim"]["lr"], told["lambda"])
        views.used.clear()  # what the check of types has looked at
        for step, (loss, expected) in enumerate(zip(steps, told["losses"], strict=True)):
            harness.equal(loss.item(), expected, bounds["loss"])
            parts = told["loss_components"][step]
            distance = (before - start).square().sum().item()
            harness.equal(distance, parts["squared_distance"], bounds["loss"])
            harness.equal(loss.item() - told["lambda"] * distance, parts["ce"], bounds["loss"])
            last = step + 1 == told["steps"]
            for kind, value in (("grad", learner.projection.grad), ("param", learner.projection.data)):
                bound = bounds["gradient_rel_l2" if kind == "grad" else "parameter_rel_l2"]
                for name in (f"{run}.{kind}{step + 1}.vit_proj", f"{run}.{kind}_last.vit_proj" if last else ""):
                    if name in case:
                        harness.near(value, case[name], bound)
                        seen += 1
            before = learner.projection.detach().clone()
    assert seen == len([name for name in case.tensors if name.startswith(f"{run}.") and name.endswith(".vit_proj")])
    assert views.used == told["view_used"]
    assert Noted.rates == pytest.approx(told["lr_used"], rel=bounds["lr_rel"])
    wanted = {name: told["optim"][name] for name in Noted.made}
    assert {name: list(v) if isinstance(v, tuple) else v for name, v in Noted.made.items()} == wanted
    assert told["optim"]["name"] == "adam"


def check_whole(clip, original, case, run, told, labels):
    """From the images on, as a run does it."""
    learner, bounds = original.build(clip, case.told), case.bounds(original)
    learner.lr = told["optim"]["lr"]
    passes = iter(case["inputs.view_images"])
    learner.prepare(Again(lambda: (Images(next(passes).float()), labels)), None)
    harness.near(learner.projection.data, case[f"{run}.param{told['steps']}.vit_proj"], bounds["parameter_rel_l2"])
    images = {
        "eval_images": case.images("inputs.eval_images"),
        "train_images_view0": Images(case["inputs.view_images"][0].float()),
    }
    with torch.no_grad():
        for name, given in images.items():
            ours = learner.logits(given, learner.encode_classes())
            harness.close(ours, case[f"{run}.logits_final_{name}"], bounds["final_logits"])


class Again:
    """One batch at each pass, another each time."""

    def __init__(self, make):
        self.make = make

    def __iter__(self):
        yield self.make()


def check_search(clip, original, case, run, views, labels):
    learner, bounds, results = original.build(clip, case.told), case.bounds(original), case.told["results"]
    val = case["val_features_before_projection"], case["val_labels"]
    given = iter([*((view, labels) for view in views), val])
    with mock.patch.object(learner, "collect", side_effect=given):
        learner.prepare([(Images(), labels)], [(Images(), labels)])  # which `collect` does not look at
    harness.near(learner.projection.data, case[f"{run}.param_last.vit_proj"], bounds["parameter_rel_l2"])
    ours = judged(learner, case["test_features_before_projection"])
    harness.close(ours, case[f"{run}.test_logits"], bounds["final_logits"])
    right = (ours.argmax(-1) == case["test_labels"]).double().mean().item()
    assert 100 * right == pytest.approx(results["test_acc"])
    grid = []
    for pair in learner.search:
        for _ in learner.descend(list(views), labels, *pair):
            pass
        grid.append(100 * learner.n_right(*val) / len(val[1]))
    assert grid == pytest.approx(case["val_acc_grid_lr_by_lambda"].flatten().tolist(), abs=1e-4)
    best = grid.index(max(grid))
    assert list(learner.search[best]) == pytest.approx(results["best_lr_lambda"])
    assert grid[best] == pytest.approx(results["best_val_acc"], abs=1e-4)
