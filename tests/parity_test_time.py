"""Parity of the test-time methods that take no gradients, on recorded features of views and streams."""

import copy
import math
from dataclasses import replace

import test_parity as harness
import torch
from parity_closed_form import known, names_of, width_of

from vlprompt.inference.base import ImageViews
from vlprompt.inference.mta import MTA, bandwidths, mean_shift
from vlprompt.inference.tda import TDA
from vlprompt.inference.views import by_confidence, entropy
from vlprompt.inference.zero import Zero, votes
from vlprompt.learners.base import normalize
from vlprompt.learners.zero_shot import ZeroShot
from vlprompt.towers import Images

CONFIG = {"method", "n_classes", "dim", "seed", "argument_names_here", "changed_in_the_source"}
FIXED = {"max_iter (fixed)": 5, "threshold (fixed)": 1e-06, "nearest (fixed)": 0.3}
COUNTED = {"caches_after_step", "first_sample_with_a_negative_cache", "replacements_positive", "replacements_negative",
           "samples_within_the_entropy_range (nats over log2 C)"}  # fmt: skip
ABOUT_THE_STREAM = {"smallest_margins", "the same with bits over log2 C (NOT the original)"}
AFFINITY = {"atol": 2e-5}  # from logits up to 100 in float32, whose rounding is larger than what the cases allow
TIES = {"kind", "ties", "tie_winner", "resolved_by_fallback"}
CACHE = {"enabled", "shot_capacity", "alpha", "beta"}


def learner(clip, case):
    """Zero-shot CLIP at the case's scale and width, whose class features are the case's."""
    config = case["config"]
    factor = config["factor (fixed)"] if "factor (fixed)" in config else config["logit_scale_exp"]
    return ZeroShot(replace(width_of(clip, config), scale=factor), names_of(config["n_classes"]))


def adapted(adaptation, built, features, text):
    """Logits of images from the features [N, k, e] of their views, one by one in this order."""
    adaptation.check(built)
    adapt = adaptation.start(built, text)
    seen = [ImageViews(Images(features=x), built.compare(x, text), x) for x in features]
    return torch.stack([adapt(views) for views in seen])


@torch.no_grad()
def check_zero(clip, original, case):
    built, config, bounds = original.build(clip, case.told), case.told["config"], case.bounds(original)
    known(config, CONFIG | {"options", "logit_scale_exp", "kept"}, "config")
    known(config["options"], {"num_views", "gamma", "templates"}, "options")
    share, text, x = config["options"]["gamma"], case["text_features"], case["inputs.view_features"]
    harness.close(x @ text.T, case["logits_unscaled"], bounds["logits_unscaled"])
    case.unread.discard("fp16.output (no target)")
    logits = torch.stack([built.compare(views, text) for views in x])
    ours = adapted(Zero(views=config["options"]["num_views"], selection=share), built, x, text).argmax(-1)
    for i, told in enumerate(case.told["images"]):
        known(told, TIES, "images")
        assert logits.shape[1] == config["options"]["num_views"]
        voters, _ = by_confidence(logits[i], share)
        assert len(voters) == config["kept"]
        assert torch.equal(voters.sort().values, case["kept_views"][i])
        counts = votes(logits[i], share)
        plain = case["votes"][i]
        tied = (plain == plain.max()).nonzero()[:, 0].tolist()
        assert (told["ties"] or tied[:1]) == tied
        if not told["resolved_by_fallback"]:
            assert torch.equal(counts, case["output"][i])
            assert ours[i] == case["prediction"][i]
            assert told["tie_winner"] in (None, int(ours[i]))
        else:  # no view decides: the lowest class of the tie, which the original's is, too, if it leaves the tie
            assert torch.equal(counts, plain + torch.eye(len(plain))[tied[0]])
            assert ours[i] == tied[0]
            assert told["tie_winner"] in tied or case["prediction"][i] == tied[0]


@torch.no_grad()
def check_mta(clip, original, case):
    built, config, bounds = original.build(clip, case.told), case.told["config"], case.bounds(original)
    options, text, x = config["options"], case["text_features"], case["inputs.view_features"]
    views, weights = "batch_size (number of views)", ("lambda_y", "lambda_q")
    known(config, CONFIG | {"options", "logit_scale_exp"}, "config")
    known(options, {*FIXED, *weights, views}, "options")
    assert {name: options[name] for name in FIXED} == FIXED
    weights = {name: options[name] for name in weights}
    adaptation = MTA(views=options[views], iterations=FIXED["max_iter (fixed)"], **weights)
    assert x.shape[1] == options[views]
    for i, features in enumerate(x):
        p = (features @ text.T * config["logit_scale_exp"]).softmax(-1)  # features are of length one
        harness.close(bandwidths(features), case["bandwidth"][i], bounds["bandwidth, affinity"])
        harness.close(p @ p.T, case["affinity"][i], AFFINITY)
        mode, inlierness = mean_shift(features, p @ p.T, iterations=FIXED["max_iter (fixed)"], **weights)
        harness.close(mode, case["mode"][i], bounds["mode"])
        harness.close(inlierness, case["inlierness"][i], bounds["inlierness"])
    logits = adapted(adaptation, built, x, text)
    harness.close(logits, case["output.logits"], bounds["output.logits"])
    first = torch.stack([built.compare(features[:1], text)[0] for features in x])
    harness.close(first, case["centre_view.logits"], bounds["output.logits"])
    mean = torch.stack([built.compare(features.mean(0, keepdim=True), text)[0] for features in x])
    predictions = {"mta": logits, "centre view": first, "mean feature": mean}
    assert {kind: ours.argmax(-1).tolist() for kind, ours in predictions.items()} == case.told["predictions"]
    assert torch.equal(logits.argmax(-1), case["prediction"])


def tda(config, *, positive=True, negative=True):
    """The method with a case's settings, of which a cache may be without weight."""
    cfg = config["cfg"]
    known(cfg, {"positive", "negative"}, "cfg")
    known(cfg["positive"], CACHE, "positive")
    known(cfg["negative"], CACHE | {"entropy_threshold", "mask_threshold"}, "negative")
    used = {"positive": positive and cfg["positive"]["enabled"], "negative": negative and cfg["negative"]["enabled"]}
    settings = {}
    for name, on in used.items():
        if cfg[name]["enabled"]:
            cache = {"shots": cfg[name]["shot_capacity"], "alpha": cfg[name]["alpha"], "beta": cfg[name]["beta"]}
            settings |= {f"{name}_{key}": value for key, value in cache.items()}
        if not on:
            settings[f"{name}_alpha"] = 0.0
    for name in ("entropy", "mask"):
        threshold = cfg["negative"].get(f"{name}_threshold")
        if threshold or cfg["negative"]["enabled"]:  # a cache that is left out may lack it
            settings[f"{name}_range"] = [threshold["lower"], threshold["upper"]]
    return TDA(views=config["n_views"], selection=config["selection (fixed in utils.py)"], **settings)


@torch.no_grad()
def check_tda(clip, original, case):
    built, config, bounds = original.build(clip, case.told), case.told["config"], case.bounds(original)
    about = {"cfg", "n_samples", "n_views", "selection (fixed in utils.py)", "factor (fixed)", "stream_seed"}
    known(config, CONFIG | about, "config")
    x, text = case["stream.features_raw"], case["clip_weights"].T
    x = x[:, None] if x.ndim == 2 else x
    assert x.shape[:2] == (config["n_samples"], config["n_views"])
    used = check_stream(built, case, x, text, tda(config).selection, bounds)
    runs = {"both": {}, "positive_only": {"negative": False}, "negative_only": {"positive": False}}
    whole = all(cache["enabled"] for cache in config["cfg"].values())
    for name, caches in (runs | {"none": {"positive": False, "negative": False}}).items():
        if name not in case.told["results"] and not whole:
            continue
        logits, told = adapted(tda(config, **caches), built, x, text), case.told["results"][name]
        harness.close(logits, case[f"{name}.logits"], bounds["logits"])
        right = (logits.argmax(-1) == case["stream.labels"]).double().mean().item()
        assert abs(100 * right - told["accuracy"]) < 1e-4
        changed = (logits.argmax(-1) != case["stream.clip_logits"].argmax(-1)).sum()
        assert changed == told["final_predictions_differing_from_clip"]
    known(case.told["results"], {*runs, "none", *COUNTED, *ABOUT_THE_STREAM}, "results")
    check_caches(built, case, x, text, used, bounds)


def check_stream(built, case, x, text, share, bounds):
    """What is computed of each image alone. -> Its features as they are used."""
    used = []
    for i, views in enumerate(x):
        logits = built.compare(views, text)
        surest, _ = by_confidence(logits, share)
        used.append(normalize(views)[surest].mean(0))
        p = logits[surest].softmax(-1).mean(0)
        harness.close(logits[surest].mean(0), case["stream.clip_logits"][i], bounds["clip_logits"])
        harness.close(p, case["stream.probabilities"][i], bounds["probabilities"])
        harness.close(entropy(p), case["stream.entropy_nats"][i], bounds["entropy"])
        relative = entropy(p).double() / math.log2(len(text))
        harness.close(relative, case["stream.entropy_over_log2_C"][i], bounds["entropy"])
        assert logits[surest].mean(0).argmax() == case["stream.predicted_class"][i]
    used = torch.stack(used)
    harness.close(used, case["stream.image_features_used"], bounds["features"])
    return used


def check_caches(built, case, x, text, used, bounds):
    """Which images the caches hold after some of the stream, by the position of each in it, and what is counted."""
    config, told = case.told["config"], case.told["results"]
    adapt, replaced, doubtful = tda(config).start(built, text), {"positive": 0, "negative": 0}, []
    enabled = [name for name in replaced if config["cfg"][name]["enabled"]]
    low, high = adapt.tda.entropy_range
    for step, views in enumerate(x, 1):
        before = {name: copy.deepcopy(getattr(adapt, name)) for name in enabled}
        adapt(ImageViews(Images(features=views), built.compare(views, text), views))
        for name in enabled:
            now = getattr(adapt, name)
            if old := before[name]:
                full = old.entropy.isfinite().all(1)
                replaced[name] += int((full & (old.entropy != now.entropy).any(1)).sum())
            if str(step) in told["caches_after_step"]:
                check_cache(now, told["caches_after_step"][str(step)][name], used, bounds)
        if low < case["stream.entropy_over_log2_C"][step - 1] < high:
            doubtful.append(step - 1)
        if "negative" in enabled:
            assert adapt.negative.entropy.isfinite().any() == bool(doubtful)
    assert max(map(int, told["caches_after_step"])) <= len(x)
    ours = {
        "first_sample_with_a_negative_cache": min(doubtful, default=None) if "negative" in enabled else None,
        "samples_within_the_entropy_range (nats over log2 C)": len(doubtful),
        **{f"replacements_{name}": replaced[name] for name in enabled},
    }
    assert ours == {name: told[name] for name in ours}


def check_cache(cache, expected, used, bounds):
    for label, (entropies, keys) in enumerate(zip(cache.entropy, cache.keys, strict=True)):
        ours = entropies.isfinite()
        samples = [int((used - key).square().sum(1).argmin()) for key in keys[ours]]
        items = expected.get(str(label), [])
        assert samples == [item["sample"] for item in items]
        harness.close(entropies[ours], torch.tensor([item["entropy"] for item in items]), bounds["entropy"])
