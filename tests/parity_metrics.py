"""Parity of the scores of the open world, and of calibration, on made-up logits."""

import re

import numpy as np
import pytest
import torch
from parity_closed_form import known

from vlprompt.results.clip_calibration import (
    ace_clip_calibration,
    ece_c_tpt,
    ece_clip_calibration,
    mce_clip_calibration,
    piece,
)
from vlprompt.results.metrics import score
from vlprompt.results.open_world import auroc, by_side, largest_known, openworld_auc_of
from vlprompt.results.predictions import Predictions

OPEN_OPTIONS = {"method", "n_base", "n_new", "logit_scale", "score", "seed", "argument_names_here",
                "changed_in_the_source"}  # fmt: skip
OPEN_RESULTS = {"base_acc", "new_acc", "auroc", "openworld_auc", "openauc (new samples need no right class)",
                "harmonic_mean_of_the_accuracies", "tied_base_new_pairs",
                "openworld_auc_degenerate (no target)"}  # fmt: skip
SCORE = (
    r"largest softmax probability of a base class, softmax over base and new classes(?:, rounded to 1/(\d+) \(ties\))?"
)
CALIBRATION_OPTIONS = {"method", "cfg", "n_base", "n_new", "val_batch_size", "optim", "seed", "argument_names_here",
                       "changed_in_the_source"}  # fmt: skip
CALIBRATION_CFG = {"CALIBRATION.SCALING", "CALIBRATION.DAC.K", "METRICS.ECE_BINS", "METRICS.PIECE_BINS"}
C_TPT = r"C-TPT: ECE_Loss with (\d+) bins \(a fraction\)"
SIDES = ("base", "new")


def check_open_world(clip, original, case):
    config, results, bounds = case.told["config"], case.told["results"], case.bounds(original)
    known(config, OPEN_OPTIONS, "config")
    known(results, OPEN_RESULTS, "results")
    n_base, n_new = config["n_base"], config["n_new"]
    logits = torch.cat([case[f"{side}.logits_all_classes"] for side in SIDES])
    labels = torch.cat([case[f"{side}.labels"] for side in SIDES])
    assert logits.shape[1] == n_base + n_new
    predictions = Predictions.from_logits([""] * len(labels), labels, logits, range(n_base))
    assert predictions.known.sum() == len(case["base.labels"])
    among = by_side(predictions, np.where(predictions.known, *predictions.side_class.T))
    right = by_side(predictions, np.where(predictions.known, *predictions.side_class.T) == predictions.labels)
    scores = by_side(predictions, np.exp(largest_known(predictions)))
    form = re.fullmatch(SCORE, config["score"])
    assert form, f"unknown score: {config['score']}"
    if form[1]:
        scores = [(of_side * int(form[1])).round() / int(form[1]) for of_side in scores]
    theirs = [case[f"{side}.score"].numpy() for side in SIDES]
    for side, ours, recorded in zip(SIDES, scores, theirs, strict=True):
        np.testing.assert_allclose(ours, recorded, rtol=0, atol=bounds["base.score, new.score"]["atol"])
        first = 0 if (side == "base" or case["new.prediction_among_new"].max() >= n_new) else n_base
        assert (among[SIDES.index(side)] - first).tolist() == case[f"{side}.prediction_among_{side}"].tolist()
    base, new = (of_side.mean() for of_side in right)
    low, high = [0.1 * theirs[0], 0.5 + 0.1 * theirs[1]]
    assert openworld_auc_of(low, high, *right) == 0  # whatever the original says there
    ours = {
        "base_acc": base,
        "new_acc": new,
        "auroc": auroc(*theirs),
        "openworld_auc": openworld_auc_of(*theirs, *right),
        "openauc (new samples need no right class)": openworld_auc_of(*theirs, right[0], np.ones(len(right[1]), bool)),
        "harmonic_mean_of_the_accuracies": 2 * base * new / (base + new),
        "tied_base_new_pairs": (theirs[0][:, None] == theirs[1]).sum(),
    }
    for name, value in ours.items():
        assert value == pytest.approx(results[name], abs=bounds["values"]["atol"]), name
    if not form[1]:
        assert score(predictions)["openworld_auc"] == pytest.approx(results["openworld_auc"], abs=1e-6)


def check_calibration_metrics(case):
    """The metrics of both splits before, after DAC and at the learned scale: all of `results`."""
    config, results = case.told["config"], case.told["results"]
    known(config, CALIBRATION_OPTIONS, "config")
    known(config["cfg"], CALIBRATION_CFG, "cfg")
    start = re.fullmatch(r"temperature = ([\d.]+) / scale", config["argument_names_here"]["learned scale"])
    assert start, config["argument_names_here"]["learned scale"]
    factor = case.told["temperature"]["scale_learned"] / float(start[1])
    compared = set()
    for side in SIDES:
        logits = case[f"{side}.logits"].double()
        kinds = {"": logits, " after DAC": case[f"{side}.dac_logits"], " at the learned scale": factor * logits}
        for kind, of_kind in kinds.items():
            check_metrics(case, side, of_kind, results[side + kind], after_dac=kind == " after DAC")
            compared.add(side + kind)
    assert compared == set(results), f"unknown in results: {sorted(set(results) - compared)}"


def check_metrics(case, side, logits, told, *, after_dac):
    cfg, bounds = case.told["config"]["cfg"], case.told["tolerances"]
    atol = bounds["after DAC (float32 softmax)" if after_dac else "metrics (percent)"]["atol"]
    labels, proximity = case[f"{side}.labels"], case[f"{side}.proximity"].double().numpy()
    probabilities = logits.softmax(dim=1)
    top = probabilities.max(dim=1)
    confidence, right = top.values.double().numpy(), (top.indices == labels).numpy()
    n, n_piece = cfg["METRICS.ECE_BINS"], cfg["METRICS.PIECE_BINS"]
    usual = score(Predictions.from_logits([""] * len(labels), labels, logits))
    ours = {
        "accuracy": 100 * usual["accuracy"],
        "error_rate": 100 - 100 * usual["accuracy"],
        "macro_f1": 100 * usual["macro_f1"],
        "confidence": confidence.mean(),
        "ece": 100 * ece_clip_calibration(confidence, right, n),
        "mce": 100 * mce_clip_calibration(confidence, right, n),
        "ace": 100 * ace_clip_calibration(confidence, right, n),
        "piece": 100 * piece(confidence, right, proximity, n, n_piece),
        "confidences_equal_to_1": (confidence == 1).sum(),
    }
    for name, value in told.items():
        if form := re.fullmatch(C_TPT, name):
            ours[name] = ece_c_tpt(confidence, right, int(form[1]))
        assert name in ours, f"unknown in results: {name}"
        fraction = name == "confidence" or form
        assert ours[name] == pytest.approx(value, abs=atol / 100 if fraction else atol), name
    assert usual["confidence"] == pytest.approx(told["confidence"], abs=1e-5)
