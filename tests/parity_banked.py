"""What the original implementations of probes on banked features give, reproduced.

`test_parity` runs these, and lends its comparisons.
"""

from unittest import mock

import pytest
import test_parity as parity
import torch
from originals import part_of_config

import vlprompt.learners.cross_modal as module
from vlprompt.learners.half_batches import shares, warm_cosine
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


def check_cross_modal(clip, original, case):
    """The samples, each step of each run on its recorded batches, and the evaluation that is chosen."""
    bounds, told = case.bounds(original), case.told
    kinds = [k for k in ("train", "val", "test", "text") if f"{k}_features_raw" in case]  # no texts: of images alone
    pairs = {k: (case[f"{k}_features_raw"].float(), case[f"{k}_labels"]) for k in kinds}
    zero_shot, test = case["zero_shot_weights"], pairs["test"]
    images = {name: [(Images(features=f), labels)] for name, (f, labels) in pairs.items()}
    start = {name.removeprefix("init."): case[name] for name in case.tensors if name.startswith("init.")}
    assert sorted(start) == sorted(told["trainable_names_in_order"])

    def fresh(run, **settings):
        learner = original.build(clip, {**told, "run": told["runs"][run]}, **settings)
        mean = zero_shot
        if "text" in pairs:
            texts = [pairs["text"][0][pairs["text"][1] == c] for c in range(len(learner.classes))]
            mean = torch.stack([of_class.mean(0) for of_class in texts])
        learner.zero_shot_features = lambda *_, **__: mean
        learner.all_texts = lambda: pairs["text"]
        ours = dict(learner.named_parameters())
        for name, value in start.items():
            ours[original.ours(name)].data.copy_(value)
        assert sum(v.numel() for v in start.values()) == sum(p.numel() for p in ours.values())
        return learner, ours

    for run, of_run in told["runs"].items():
        expected = told["results"][run]
        learner, ours = fresh(run)
        parity.close(torch.nn.functional.normalize(learner.zero_shot_features(), dim=-1), zero_shot, bounds["features"])
        parity.close(learner.logits(images["test"][0][0], learner.encode_classes()), case["init_forward.test_logits"],
                     bounds["final_logits"])  # fmt: skip
        batches = list(recorded(case, run, pairs, learner, of_run["batch_size"]))
        assert len(batches) == of_run["max_iter"] == len(expected["losses"]) == len(expected["lr_used"])
        compared, accuracies = 0, {}
        rates = dict(zip(("rate", "decay"), (of_run["optim"]["lr"], of_run["optim"]["weight_decay"]), strict=True))
        shape = learner.schedule
        for step, (loss, theirs) in enumerate(zip(learner.descend(batches, **rates), expected["losses"], strict=True)):
            parity.equal(loss.item(), theirs, bounds["loss"])
            now = warm_cosine(step, rates["rate"], **shape)
            assert now == pytest.approx(expected["lr_used"][step], rel=bounds["lr_rel"])
            for kind, value, bound in (("grad", lambda p: p.grad, "gradient_rel_l2"),
                                       ("param", lambda p: p.data, "parameter_rel_l2")):  # fmt: skip
                for name, tensor in case.below(f"{run}.{kind}{step + 1}.").items():
                    parity.near(value(ours[original.ours(name)]), tensor, bounds[bound])
                    compared += 1
            if step % of_run["eval_freq"] == 0:
                accuracies[str(step)] = learner.n_right(*pairs["val"]) / len(pairs["val"][1])
        assert compared == 2 * len(start) * len(of_run["recorded_steps_from_1"])
        assert accuracies == pytest.approx(expected["val_acc_at_iterations"])
        best = max(accuracies, key=accuracies.get)
        assert (int(best), accuracies[best]) == (expected["best_iteration_from_0"], expected["best_val_acc"])
        for share, name in ((0.0, "head"), (0.5, "head_wiseft_0.5")):
            learner, ours = fresh(run, interpolation=share)
            with mock.patch.object(module, "half_batches", lambda *_, batches=batches, **__: iter(batches)):
                learner.prepare(images["train"], images["val"])
            if not share:
                for of_best, tensor in case.below(f"{run}.best.").items():
                    parity.near(ours[original.ours(of_best)].data, tensor, bounds["parameter_rel_l2"])
            logits = learner.logits(images["test"][0][0], learner.encode_classes())
            parity.close(logits, case[f"{run}.test_logits_{name}"], bounds["final_logits"])
            right = learner.n_right(*test) / len(test[1])
            assert right == pytest.approx(expected["test_accs"][name])


def recorded(case, run, pairs, learner, size):
    """A run's batches: images, then texts, in shares of which the learner makes its own."""
    rows = [case[f"{run}.{kind}_indices"] for kind in ("image", "text") if f"{run}.{kind}_indices" in case]
    assert [r.shape[1] for r in rows] == [n for n in shares(size, 1 + learner.texts) if n]
    kinds = [pairs[kind] for kind in ("train", "text")[: len(rows)]]
    for chosen in zip(*rows, strict=True):
        yield tuple(torch.cat([kind[i][at] for kind, at in zip(kinds, chosen, strict=True)]) for i in (0, 1))


CHECKS = {"ZS-LP": check_zs_lp, "CLAP": check_zs_lp, "CrossModal": check_cross_modal}
"""By method: how a case of it is compared."""
