"""Parity of temperature scaling by SGD, and of DAC, on made-up features."""

import math
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from parity_closed_form import known

from vlprompt.inference.calibration import DAC, NEAR, dac_factors, nll, sgd

OPTIONS = {"method", "cfg", "n_base", "n_new", "val_batch_size", "optim", "seed", "argument_names_here",
           "changed_in_the_source"}  # fmt: skip
CFG = {"CALIBRATION.SCALING", "CALIBRATION.DAC.K", "METRICS.ECE_BINS", "METRICS.PIECE_BINS"}  # the last two: metrics
SCALING = {"MODE", "INIT_TEMP (log of the scale)", "EPOCH", "LR"}
OPTIM = {"name", "momentum", "weight_decay", "lr", "schedule"}
SCHEDULE = "cosine a epoch, 1 constant warm-up epoch at 1e-5"
TEMPERATURE = {"logit_scale_start", "logit_scale_after_epoch", "scale_learned", "losses_per_step", "lr_per_epoch",
               "first_gradient", "steps_per_epoch"}  # fmt: skip


def check_scaling(clip, original, case):
    """The temperature's curve, and DAC's factors and logits; the metrics are compared elsewhere."""
    config = case.told["config"]
    known(config, OPTIONS, "config")
    known(config["cfg"], CFG, "cfg")
    check_temperature(case, case.told["temperature"])
    check_dac(case)


def check_temperature(case, told):
    config, bounds = case.told["config"], case.told["tolerances"]
    scaling, optim = config["cfg"]["CALIBRATION.SCALING"], config["optim"]
    known(scaling, SCALING, "SCALING")
    known(optim, OPTIM, "optim")
    known(told, TEMPERATURE, "temperature")
    assert (scaling["MODE"], optim["name"], optim["schedule"]) == ("TempScaling", "sgd", SCHEDULE)
    start, n_base = scaling["INIT_TEMP (log of the scale)"], config["n_base"]
    assert (told["logit_scale_start"], optim["lr"]) == (start, scaling["LR"])
    images, labels = case["val.image_features"], case["val.labels"]
    logits = math.exp(start) * F.normalize(images, dim=-1) @ F.normalize(case["text_features.tuned"][:n_base], dim=-1).T
    steps = list(sgd(logits, labels, start, epochs=scaling["EPOCH"], lr=scaling["LR"], momentum=optim["momentum"],
                     weight_decay=optim["weight_decay"], batch_size=config["val_batch_size"]))  # fmt: skip
    per_epoch = math.ceil(len(labels) / config["val_batch_size"])
    assert per_epoch == told["steps_per_epoch"]
    ends = steps[per_epoch - 1 :: per_epoch]
    compare([step.loss for step in steps], told["losses_per_step"], bounds["losses"])
    compare([step.lr for step in ends], told["lr_per_epoch"], bounds["lr"])
    compare([step.log_scale for step in ends], told["logit_scale_after_epoch"], bounds["logit_scale_after_epoch"])
    compare([math.exp(steps[-1].log_scale)], [told["scale_learned"]], {"rtol": 1e-5})
    log_scale = torch.zeros((), requires_grad=True)
    first = slice(0, config["val_batch_size"])
    nll(logits[first], labels[first], log_scale).backward()
    compare([log_scale.grad.item()], [told["first_gradient"]], {"atol": 1e-5})


def check_dac(case):
    config, bounds = case.told["config"], case.told["tolerances"]
    n, k = config["n_base"], config["cfg"]["CALIBRATION.DAC.K"]
    tuned, frozen = case["text_features.tuned"], case["text_features.zeroshot"]
    assert len(tuned) == len(frozen) == n + config["n_new"]
    for name, classes in (("base", slice(0, n)), ("new", slice(n, None))):
        learner = SimpleNamespace(zero_shot_features=lambda templates, c=classes: frozen[c])
        dac = DAC(k=k)
        dac.base = (tuned[:n], frozen[:n])
        factors = dac_factors(tuned[classes], frozen[classes], *dac.base, k=k)
        compare(factors, case[f"{name}.dac_factor_per_class"].float(), bounds["dac_factor"])
        nearest = torch.cdist(tuned[classes].double(), tuned[:n].double()).amin(1)
        assert torch.equal(factors == 1, nearest < NEAR)
        logits = dac.start(learner, tuned[classes])(case[f"{name}.logits"])
        compare(logits, case[f"{name}.dac_logits"], bounds["dac_logits"])


def compare(ours, theirs, bound):
    ours, theirs = (x if isinstance(x, torch.Tensor) else torch.tensor(x, dtype=torch.double) for x in (ours, theirs))
    torch.testing.assert_close(ours, theirs, **{"atol": 0, "rtol": 0, **bound})
