"""Cases of methods that are trained in stages: runs that continue others, and logits of other classes at their end."""

import test_parity as harness
import torch

from vlprompt.training.optim import make_optimizer, set_learning_rate


def has_stages(case):
    return case.method == "2SFS" or any(told.get("continues") for told in case.told["runs"].values())


def check_stages(clip, original, case):
    """Each first stage from the start that the case has, then what continues it."""
    learners, runs = {}, case.told["runs"]
    for run, told in runs.items():
        learner = learners.get(told.get("continues")) or start(clip, original, case)
        if told["trainable_names_in_order"] == ["classifier"]:  # maybe without a first stage
            assert case.told["config"]["trainer_options"]["n_iters_frac"] == learner.stages[0]
            with torch.no_grad():
                learner.begin(1)
            compare(learner, original, case, f"{run}.start.", "features")
        learners[run] = train(learner, original, case, run)
        check_end(learner, original, case, run)
    case.strange -= {"new_classnames", "mixed_classnames"}


def start(clip, original, case):
    learner = original.build(clip, case.told).train()
    parameters, names = dict(learner.named_parameters()), case.told["trainable_names_in_order"]
    drawn = case.below("init.")
    assert sorted(drawn) == sorted(names)
    for name, value in drawn.items():
        ours = parameters[original.ours(name)].data
        assert "lora" in name or torch.equal(ours, value), f"{name} is another tensor of the model"
        ours.copy_(value)
    harness.check_tokens(learner, original, case)
    harness.check_start(learner, original, case, case.images())
    return learner


def train(learner, original, case, run):
    told, bounds, images, labels = case.told["runs"][run], case.bounds(original), case.images(), case["inputs.labels"]
    if not told["losses"]:  # a stage of no steps
        return learner
    fit, per_epoch, total = harness.settings(case.told, told)
    optimizer, names = make_optimizer(learner, fit), told["trainable_names_in_order"]
    for step, expected in enumerate(told["losses"]):
        rate = set_learning_rate(optimizer, step, fit, per_epoch=per_epoch, total=total)
        harness.equal(rate, told["lr_used"][step], {"atol": 0, "rtol": bounds["lr_rel"]})
        optimizer.zero_grad()
        loss, _ = learner.backward(images, labels)
        harness.equal(loss.item(), expected, bounds["loss"])
        trained = {name for name, p in learner.named_parameters() if p.grad is not None}
        assert trained == {original.ours(name) for name in names}
        seen = compare(learner, original, case, f"{run}.grad{step + 1}.", "gradient_rel_l2", lambda p: p.grad)
        optimizer.step()
        seen |= compare(learner, original, case, f"{run}.param{step + 1}.", "parameter_rel_l2")
    assert total == len(told["losses"])
    assert seen == set(names)
    return learner


def compare(learner, original, case, prefix, bound, value=lambda p: p.data):
    """The tensors of a case that begin so with the learner's; -> their names."""
    parameters, bound = dict(learner.named_parameters()), case.bounds(original)[bound]
    for name, expected in case.below(prefix).items():
        ours = value(parameters[original.ours(name)])
        harness.close(ours, expected, bound) if isinstance(bound, dict) else harness.near(ours, expected, bound)
    return set(case.below(prefix))


@torch.no_grad()
def check_end(learner, original, case, run):
    bounds, config = case.bounds(original), case.told["config"]
    learner.eval()
    for at in ("train", "eval"):
        images = case.images("inputs.images" if at == "train" else "inputs.eval_images")
        for suffix, expected in case.below(f"{run}.logits_final_{at}_images").items():
            learner.bind(config["classnames" if not suffix else f"{suffix[1:]}_classnames"])
            harness.close(learner.logits(images, learner.encode_classes()), expected, bounds["final_logits"])
        learner.bind(config["classnames"])
        name = f"{run}.image_features_raw_after" if at == "train" else f"{run}.eval_image_features_raw_after"
        if name in case:
            harness.close(learner.encode_images(images), case[name], bounds["features"])
    if f"{run}.text_features_raw_after" in case:
        harness.close(learner.encode_classes(), case[f"{run}.text_features_raw_after"], bounds["features"])
    if f"{run}.new_text_features_raw" in case:
        learner.bind(config["new_classnames"])
        (prompts,) = original.texts(learner)
        ids = case["inputs.new_token_ids"]
        assert torch.equal(prompts.eot + prompts.shared.shape[-2], learner.text.read(ids))
        harness.close(prompts.whole(), learner.text.embed(ids)[:, : prompts.whole().shape[1]], {"atol": 0})
        theirs = torch.nn.functional.normalize(case[f"{run}.new_text_features_raw"], dim=-1)
        harness.close(learner.encode_classes(), theirs, bounds["features"])
        learner.bind(config["classnames"])
    learner.train()
