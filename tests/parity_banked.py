"""What the original implementations of probes on banked features give, reproduced.

`test_parity` runs these, and lends its comparisons.
"""

import pytest
import test_parity as parity
import torch
from originals import part_of_config

from vlprompt.towers import Images
from vlprompt.training.optim import make_optimizer, set_learning_rate


def check_zs_lp(clip, original, case):
    """The texts, the start, lambda, and each run step by step."""
    bounds = case.bounds(original)
    features, labels = case["train_features_raw"].float(), case["train_labels"]
    test = Images(features=case["test_features_raw"].float())
    case.unread.discard("test_labels")  # of which no number is told
    n_views = part_of_config(case.told, "views")

    def fresh():
        learner = original.build(clip, case.told)
        views = parity.Passes(features.chunk(n_views), labels[: len(labels) // n_views])
        assert torch.equal(labels, views.labels.repeat(n_views))
        learner.prepare(views, None)
        return learner.train()

    learner = fresh()
    parity.check_tokens(learner, original, case)
    of_templates = torch.stack([learner.zero_shot_features([t], normalize=False) for t in learner.templates], 1)
    parity.close(of_templates, case["text_features_raw_per_template"], bounds["features"])
    parity.near(learner.weight.data, case["init.prototypes"], bounds["parameter_rel_l2"])
    assert case.told["trainable_names_in_order"] == ["prototypes"]
    if "lambda" in case:
        parity.near(learner.lambdas, case["lambda"], bounds["lambda_rel"])
    for name, images in (("train", Images(features=features)), ("test", test)):
        logits = learner.logits(images, learner.encode_classes())
        parity.close(logits, case[f"init_forward.{name}_logits"], bounds["init_logits"])
    for run, told in case.told["runs"].items():
        learner = fresh()
        start = case["init.prototypes"]
        learner.weight.data.copy_(start)
        learner.zero_shot_features = lambda *_, start=start, **__: start  # to the last bit, which distances begin with
        rows = case[f"{run}.train_step_indices_concat"].split(told["train_step_batch_sizes"])
        batches = [(Images(features=features[r]), labels[r]) for r in rows]
        descend(learner, case, run, batches, bounds)
        logits = learner.eval().logits(test, learner.encode_classes())
        parity.close(logits, case[f"{run}.logits_final_test"], bounds["final_logits"])


def descend(learner, case, run, batches, bounds):
    told = case.told["runs"][run]
    fit, per_epoch, total = parity.settings(case.told, told)
    assert len(batches) == total == told["steps"] == len(told["losses"])
    optimizer, compared = make_optimizer(learner, fit), 0
    for step, ((images, labels), expected) in enumerate(zip(batches, told["losses"], strict=True)):
        rate = set_learning_rate(optimizer, step, fit, per_epoch=per_epoch, total=total)
        assert rate == pytest.approx(told["lr_used"][step], rel=1e-9)
        optimizer.zero_grad()
        for name, value in told.get("loss_components", [{}] * total)[step].items():
            parity.equal(parts_of_loss(learner, images, labels)[name], value, bounds["loss"])
        loss, _ = learner.backward(images, labels)
        parity.equal(loss.item(), expected, bounds["loss"])
        for kind, value, bound in (("grad", lambda: learner.weight.grad, "gradient_rel_l2"),
                                   ("param", lambda: learner.weight.data, "parameter_rel_l2")):  # fmt: skip
            if f"{run}.{kind}{step + 1}.prototypes" in case:
                parity.near(value(), case[f"{run}.{kind}{step + 1}.prototypes"], bounds[bound])
                compared += 1
            if kind == "grad":
                optimizer.step()
        if (step + 1) % per_epoch == 0:
            learner.end_epoch()
            for name, ours in (("lambda", "lambdas"), ("rho", "rho")):
                if (key := f"{run}.{name}_after_epoch{step // per_epoch}") in case:
                    parity.near(getattr(learner, ours), case[key], bounds["lambda_rel"])
    assert compared >= 2


@torch.no_grad()
def parts_of_loss(learner, images, labels):
    logits = learner.logits(images, learner.encode_classes())
    penalty = learner.penalty().item() if hasattr(learner, "penalty") else 0.0
    return {"ce": torch.nn.functional.cross_entropy(logits, labels).item(), "constraint": penalty}


CHECKS = {"ZS-LP": check_zs_lp, "CLAP": check_zs_lp}
"""By method: how a case of it is compared."""
