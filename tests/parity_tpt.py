"""Cases of TPT and C-TPT: each image's selected views, losses, gradients and contexts step by step."""

from unittest import mock

import pytest
import test_parity as harness
import torch
from parity_closed_form import known

from vlprompt.inference import ADAPTATIONS, tpt
from vlprompt.inference.base import ImageViews
from vlprompt.inference.views import by_confidence
from vlprompt.learners.coop import CoOp
from vlprompt.learners.zero_shot import ZeroShot

OPTIONS = {"n_ctx", "ctx_init", "lr", "selection_p", "tta_steps", "batch_size (number of views)", "load", "run_type",
           "lambda_term", "two_step"}  # fmt: skip
CONFIG = {"method", "options", "optim", "classnames", "init_seed", "argument_names_here", "changed_in_the_source"}
OF_IMAGE = {"entropy_loss_per_step", "loss_per_optimiser_step", "selected_views", "prediction_before",
            "prediction_after", "dispersion_per_forward"}  # fmt: skip
MARGINS = {"gap_to_the_first_view_left_out", "smallest_gap_within"}
CENTRE = slice(1)
TOLERANCES = {"logits": {"atol": 5e-5, "rtol": 1e-5}, "gradient_rel_l2": 2e-4}


def build(clip, told):
    """The learner; words are the context of zero-shot CLIP, whatever its template, unless a trained one is loaded."""
    config, options = told["config"], told["config"]["options"]
    known(config, CONFIG, "config")
    known(options, OPTIONS, "options")
    if (words := options["ctx_init"]) and not options["load"]:
        assert len(words.split("_")) == options["n_ctx"]
        return ZeroShot(clip, config["classnames"])
    start = {"ctx_init": words.replace("_", " "), "n_context": None} if words else {"n_context": options["n_ctx"]}
    return CoOp(clip, config["classnames"], **start)


def method_of(told):
    config, options = told["config"], told["config"]["options"]
    run = options.get("run_type", "tpt")
    assert run in ("tpt", "tpt_ctpt"), f"run_type {run} has no form here"
    settings = {
        "views": options["batch_size (number of views)"],
        "selection": options["selection_p"],
        "steps": options["tta_steps"],
        "lr": options["lr"],
        "weight_decay": config["optim"]["weight_decay"],
    }
    if (words := options["ctx_init"]) and not options["load"]:
        settings["ctx_init"] = words.replace("_", " ")
    if run == "tpt_ctpt":
        settings |= {"dispersion": float(options["lambda_term"]), "two_step": options["two_step"]}
    return ADAPTATIONS["c_tpt" if run == "tpt_ctpt" else "tpt"](**settings)


class Noted(torch.optim.AdamW):
    """AdamW that notes gradients, and values after each step."""

    steps, made = [], {}

    def step(self, *given):
        (value,) = self.param_groups[0]["params"]
        gradient = value.grad.clone()
        super().step(*given)
        self.steps.append((gradient, value.clone()))
        self.made.update({name: self.param_groups[0][name] for name in ("lr", "betas", "eps", "weight_decay")})


def check_tpt(clip, original, case):
    learner, method, bounds = original.build(clip, case.told), method_of(case.told), case.bounds(original)
    start = case["init.prompt_learner.ctx"]
    assert case.told["trainable_names_in_order"] == ["prompt_learner.ctx"]
    if isinstance(learner, CoOp):
        learner.context.data.copy_(start)
    with torch.no_grad():
        adapter = method.start(learner, learner.encode_classes())
    tuned = adapter.learner
    assert torch.equal(tuned.context, start)
    harness.check_tokens(tuned, original, case)
    harness.close(adapter.begun.classes, case["init_forward.text_features_raw"], bounds["features"])
    assert case["inputs.views"].shape[1] == method.views
    for n, (pixels, told) in enumerate(zip(case["inputs.views"].float(), case.told["images"], strict=True)):
        case.strange |= set(told) - OF_IMAGE - MARGINS
        views = ImageViews(harness.Images(pixels))
        with torch.no_grad():
            before = tuned.logits(harness.Images(pixels[CENTRE]), tuned.encode_classes())[0]
        harness.close(before, case["before.logits_centre_view"][n], bounds["logits"])
        assert before.argmax().item() == told["prediction_before"]
        after = check_image(adapter, case, f"image{n}.", told, views, bounds)
        harness.close(after, case["after.logits_centre_view"][n], bounds["final_logits"])
        assert after.argmax().item() == told["prediction_after"]
    assert torch.equal(tuned.context, start)
    wanted = case.told["config"]["optim"]
    made = {name: list(v) if isinstance(v, tuple) else v for name, v in Noted.made.items()}
    assert wanted == {"name": "adamw", **made}
    case.strange -= {"images", "sensitivity_rel_l2_to_1e-6_init_noise"}


def check_image(adapter, case, name, told, views, bounds):
    """What one image goes through; -> the logits at its end."""
    losses, seen = adapter.method.losses(), []

    def noted(loss):
        def call(logits, classes):
            value = loss(logits, classes)
            seen.append((value.item(), tpt.entropy_of_mean(logits).item(), tpt.dispersion_of(classes).item()))
            return value

        return call

    def select(logits, share):
        selected, others = by_confidence(logits, share)
        harness.close(logits, case[name + "logits_views"], bounds["logits"])
        entropy = torch.distributions.Categorical(logits=logits).entropy()
        harness.close(entropy, case[name + "entropy_views"], bounds["loss"])
        assert selected.tolist() == case[name + "selected_views"].tolist() == told["selected_views"]
        return selected, others

    Noted.steps.clear()
    with (
        mock.patch.object(torch.optim, "AdamW", Noted),
        mock.patch.object(tpt, "by_confidence", select),
        mock.patch.object(adapter.method, "losses", return_value=[noted(loss) for loss in losses]),
    ):
        logits = adapter(views)
    values, entropies, dispersions = zip(*seen, strict=True)

    def near(ours, theirs):
        assert list(ours) == pytest.approx(theirs, abs=bounds["loss"]["atol"], rel=bounds["loss"]["rtol"])

    near(values, told["loss_per_optimiser_step"])
    near(entropies[:: len(losses)], told["entropy_loss_per_step"])
    if "dispersion_per_forward" in told:
        near(dispersions, told["dispersion_per_forward"])
    for step, (gradient, value) in enumerate(Noted.steps, start=1):
        harness.near(gradient, case[f"{name}grad{step}.prompt_learner.ctx"], bounds["gradient_rel_l2"])
        harness.near(value, case[f"{name}param{step}.prompt_learner.ctx"], bounds["parameter_rel_l2"])
    return logits
