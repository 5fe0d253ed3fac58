"""Parity of the methods in closed form on made-up features: GDA and SS-Text."""

from dataclasses import replace

import torch

from vlprompt.learners.base import normalize, scaled_cosine
from vlprompt.learners.gda import GDA
from vlprompt.learners.ss_text import SSText
from vlprompt.towers import Images

VARIANT_OPTIONS = {"balanced_importance", "repel", "text_lambda"}
PENALTIES = {"adaptive_shots": "shots", "adaptive_perf": "performance"}
OPTIONS = {"method", "cfg", "setting", "n_classes", "dim", "notes", "argument_names_here", "changed_in_the_source"}
CFG = {"augment_epoch", "shots", "seed", "dataset"}
SS_TEXT_OPTIONS = {"method", "n_classes", "dim", "shots_per_class", "logit_scale", "log_logit_scale", "variants",
                   "argument_names_here", "changed_in_the_source"}  # fmt: skip
SETTINGS = {"few_shot": "pooled", "robustness": "pooled", "base_to_novel": "classes"}


def known(given, names, where):
    """What is not known is told, not ignored."""
    assert set(given) <= names, f"unknown in {where}: {sorted(set(given) - names)}"


def width_of(clip, config):
    """The model with features of another width."""
    return replace(clip, image=replace(clip.image, embed_dim=config["dim"]))


def names_of(n):
    return [f"class {i}" for i in range(n)]


def gda(clip, case):
    config, results = case["config"], case["results"]
    known(config, OPTIONS, "config")
    known(config["cfg"], CFG, "cfg")
    return GDA(
        replace(width_of(clip, config), scale=100.0),
        names_of(config["n_classes"]),
        n_views=config["cfg"]["augment_epoch"],
        covariance=SETTINGS[config["setting"]],
        alphas=[float(alpha) for alpha in results["alpha_list"]],
        n_nearest=results.get("k", 64),
        n_copies=results.get("text_copies", 16),
    )


def ss_text(clip, case):
    """One learner for each variant."""
    config = case["config"]
    known(config, SS_TEXT_OPTIONS, "config")
    learners = {}
    for name, options in config["variants"].items():
        known(options, VARIANT_OPTIONS, name)
        penalty = PENALTIES.get(options.get("text_lambda", "adaptive_shots"), 0.1)  # whatever else it is
        if penalty == "shots" and options.get("balanced_importance"):
            penalty = "uniform"
        learners[name] = SSText(
            replace(width_of(clip, config), scale=float(config["logit_scale"])),
            names_of(config["n_classes"]),
            penalty=penalty,
            repel=options.get("repel", False),
        )
    return learners


def near(ours, theirs, bound):
    assert ours.shape == theirs.shape
    assert torch.linalg.norm(ours.double() - theirs.double()) <= bound * torch.linalg.norm(theirs.double())


def passes(case):
    """The next pass over the training images at each iteration."""
    features = iter(case["train_features_raw_per_augment_pass"].float())
    labels = case["train_labels"]

    class Passes:
        def __iter__(self):
            yield Images(features=next(features)), labels

    return Passes()


def judge(learner, case, features, texts):
    """Logits of test features, next to these texts, and their accuracy in percent."""
    learner.encode_classes = lambda: texts
    return learner.compare(case[features].float(), texts)


def accuracy(logits, labels):
    return 100 * (logits.argmax(-1) == labels).double().mean().item()


@torch.no_grad()
def check_gda(clip, original, case):
    """W and b, the search for alpha, and the logits of every test."""
    told, results, bounds = case.told, case.told["results"], case.bounds(original)
    learner, texts = original.build(clip, told), case["clip_weights"].T
    val, labels = case["val_features_raw"].float(), case["val_labels"]
    learner.encode_classes = lambda: texts
    learner.prepare(passes(case), [(Images(features=val), labels)])
    weights = bounds["W_b_rel_l2"]
    near(learner.weight, case["W"].T, weights)
    near(learner.bias, case["b"], weights)
    x = normalize(case["train_features_raw_per_augment_pass"].float()).flatten(0, 1)
    of = case["train_labels"].repeat(learner.n_views)
    mu = torch.stack([x[of == label].mean(0) for label in range(len(texts))])
    near(mu, case["class_means"], weights)
    if "cov_inv" in case:
        near(mu @ case["cov_inv"], learner.weight, weights)
    if "cov_mean_base" in case:
        near(
            torch.stack([x[of == label].T.cov() for label in range(len(texts))]).mean(0), case["cov_mean_base"], weights
        )
    assert learner.alpha.item() == torch.tensor(results["best_alpha"]).item()
    chosen = learner.alpha.clone()
    for alpha, expected in zip(results["alpha_list"], results["val_acc_per_alpha"], strict=True):
        learner.alpha.fill_(alpha)
        assert abs(accuracy(learner.compare(val, texts), labels) - expected) < 1e-4, alpha
    learner.alpha.copy_(chosen)
    for part, keys in (("val", {"best_val_acc", "source_acc"}), ("test", {"test_acc", "base_acc"})):
        logits = judge(learner, case, f"{part}_features_raw", texts)
        near(logits, case[f"{part}_logits"], bounds["logits_rel_l2"])
        for key in keys & set(results):
            assert abs(accuracy(logits, case[f"{part}_labels"]) - results[key]) < 1e-4, key
    for name, of_target in results.get("targets", {}).items():
        rows = of_target["source_class_per_target_class"]
        mapping = torch.nn.functional.one_hot(torch.tensor(rows), len(texts)).T.float()
        assert torch.equal(mapping, case[f"target_{name}.label_mapping"])
        learner.bind([learner.trained_classes[row] for row in rows], rows, transfer=True)
        logits = judge(learner, case, f"target_{name}.features_raw", texts[rows])
        near(logits, case[f"target_{name}.logits"], bounds["logits_rel_l2"])
        assert abs(accuracy(logits, case[f"target_{name}.labels"]) - of_target["acc"]) < 1e-4, name
    if "clip_weights_new" in case:
        check_new(learner, case, bounds)


def check_new(learner, case, bounds):
    """New classes, of which texts alone are known."""
    texts = case["clip_weights_new"].T
    learner.bind([f"new {i}" for i in range(len(texts))])
    logits = judge(learner, case, "new_features_raw", texts)
    weight, bias = learner.from_texts()
    near(weight, case["W_new"].T, bounds["W_b_rel_l2"])
    near(bias, case["b_new"], bounds["W_b_rel_l2"])
    nearest = case["nearest_indices_new"]
    similar = normalize(texts) @ learner.vectors.T
    assert torch.equal(similar.topk(learner.n_nearest).indices.sort().values, nearest.sort().values)
    copies = normalize(texts)[:, None].expand(-1, learner.n_copies, -1)
    near(torch.cat([learner.vectors[nearest], copies], 1).mean(1), case["class_means_new"], bounds["W_b_rel_l2"])
    if "cov_inv_new" in case:
        near(case["class_means_new"] @ case["cov_inv_new"], weight, bounds["W_b_rel_l2"])
    near(logits, case["new_logits"], bounds["logits_rel_l2"])
    assert abs(accuracy(logits, case["new_labels"]) - case.told["results"]["new_acc"]) < 1e-4


@torch.no_grad()
def check_ss_text(clip, original, case):
    """Every variant: its class features, logits, and probabilities of training images."""
    results, bounds, config = case.told["results"], case.bounds(original), case.told["config"]
    train, test = case["train_features"].float(), case["test_features"].float()
    labels, text = case["train_labels"], case["initial_prototypes"]
    assert torch.bincount(labels, minlength=config["n_classes"]).tolist() == config["shots_per_class"]
    for name, learner in original.build(clip, case.told).items():
        learner.zero_shot_features = lambda templates: text
        for part, features in (("test", train[:0]), ("train", train), ("test", test)):
            logits = learner.compare(features, text)
            if len(features):
                torch.testing.assert_close(logits, case[f"zero_shot.{part}_logits"], rtol=0, **bounds["logits"])
        assert abs(accuracy(logits, case["test_labels"]) - results["zero_shot"]["test_acc"]) < 1e-4
        learner.fit(train, labels)  # they were of length one before they were stored in float16
        near(learner.weight, case[f"{name}.prototypes"], bounds["prototypes_rel_l2"])
        classes = learner.encode_classes()
        logits = learner.compare(test, classes)
        torch.testing.assert_close(logits, case[f"{name}.test_logits"], rtol=0, **bounds["logits"])
        assert abs(accuracy(logits, case["test_labels"]) - results[name]["test_acc"]) < 1e-4, name
        probabilities = learner.compare(train, classes).softmax(-1)
        told = case[f"{name}.train_probabilities"]
        torch.testing.assert_close(probabilities, told, rtol=0, **bounds["probabilities"])
        member = torch.nn.functional.one_hot(labels, config["n_classes"]).float()
        share = learner.shares(member, member * scaled_cosine(train, text, config["logit_scale"]).softmax(-1))
        expected = torch.tensor(results[name]["coefficient_of_the_scaled_sum"])
        torch.testing.assert_close(share, expected, rtol=1e-4, atol=1e-6)
