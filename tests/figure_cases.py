"""Runs of so many learners, made by hand, that every kind of figure can be drawn of."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from made_records import few_shot, record

from vlprompt.results.metrics import score
from vlprompt.results.predictions import Predictions, save_predictions
from vlprompt.results.record import FILE, Record

METHODS = [
    *("zero_shot", "$x_1^{2}$ <b>a & b</b> \\frac", "long " * 200, "coop", "maple", "lora", "vpt_deep", "adapter"),
    *("bitfit", "clip_adapter", "clip_lora", "cocoop", "dylora", "full_finetune", "hard_prompts", "promptsrc"),
    *("intrinsic_dimension", "ivlp", "kgcoop", "language_prompts", "linear_head", "linear_probe", "llama_adapter"),
    *("lora_plus", "lp_plus_plus", "mmrl", "p_tuning", "prefix_tuning", "prograd", "qlora", "taskres", "tcp"),
    *("tip_adapter", "tip_adapter_f", "gda", "ss_text"),
]
CLASSES = [f"{colour} {shape}" for colour in ("plain red", "dotted yellow") for shape in ("star", "flower", "moon")]
IMAGES = 60


def write(folder: Path, run: Record, **predictions: Predictions) -> None:
    folder.mkdir(parents=True)
    (folder / FILE).write_text(run.model_dump_json(), encoding="utf-8")
    if predictions:
        save_predictions(folder / "predictions.npz", predictions)


def predicted(strength: float, rng: np.random.Generator) -> Predictions:
    labels = torch.arange(IMAGES) % len(CLASSES)
    logits = torch.from_numpy(rng.normal(size=(IMAGES, len(CLASSES)))).float()
    logits[torch.arange(IMAGES), labels] += strength
    images = [f"test/{CLASSES[int(label)].replace(' ', '_')}/{i}.jpg" for i, label in enumerate(labels)]
    return Predictions.from_logits(images, labels, logits)


def made(root: Path, n: int, *, datasets: int = 3, seeds: int = 2) -> Path:
    """`n` learners: few-shot runs of some data sets and shots, with predictions on d0 with 16 shots, and base-to-novel.

    The first one is zero-shot. The third and every fifth after it have runs with 16 shots alone.
    """
    assert n <= len(METHODS)
    for i, method in enumerate(METHODS[:n]):
        rng = np.random.default_rng(i)
        level = 0.5 + 0.3 * i / n + 0.05 * rng.normal()
        numbers = [0] if i == 0 else [16] if i % 5 == 2 else [1, 4, 16]
        for seed in [0] if i == 0 else range(1, seeds + 1):
            for dataset in range(datasets):
                for shots in numbers:
                    accuracy = level + 0.02 * np.log2(shots + 1) + 0.03 * dataset + 0.01 * rng.normal()
                    known: dict[str, Any] = {"shots": shots, "cost": cost(i, rng), "curve": curve(i, level, rng)}
                    folder = root / "few_shot" / f"{i}-{dataset}-{shots}-{seed}"
                    if dataset == 0 and shots in (0, 16):
                        test = predicted(1.0 + i / n, rng)
                        write(
                            folder, few_shot(method, "d0", seed=seed, scores={"test": score(test)}, **known), test=test
                        )
                    else:
                        write(folder, few_shot(method, f"d{dataset}", min(accuracy, 1.0), seed, **known))
            for dataset in range(2):
                base, novel = 0.6 + 0.3 * i / n + 0.02 * rng.normal(), 0.7 - 0.2 * i / n + 0.02 * rng.normal()
                shots = 16 if i else 0
                fields: dict[str, Any] = {"base": base, "novel": novel, "shots": shots, "cost": cost(i, rng)}
                run = record(method, f"d{dataset}", seed, **fields)
                run.scores["all"] = {
                    "accuracy": base / 2,
                    "open_base": 0.9 * base,
                    "open_novel": 0.8 * novel,
                    "open_H": 0.5,
                }
                write(root / "base_to_novel" / f"{i}-{dataset}-{seed}", run)
    return root


def cost(i: int, rng: np.random.Generator) -> dict[str, float]:
    trained = i > 0
    flops = 3.4e10 * (1 + 0.1 * rng.random())
    return {"trained_parameters": int(trained * 10 ** rng.uniform(3, 8)), "flops_per_image": flops,
            "train_seconds": trained * 10 ** rng.uniform(0.5, 3.5)}  # fmt: skip


def curve(i: int, level: float, rng: np.random.Generator) -> list[dict[str, float]]:
    epochs = (5, 20, 50)[i % 3] if i else 0
    return [
        {"epoch": epoch, "loss": float(2.5 * np.exp(-epoch / 8) + 0.3 * rng.random()), "lr": 0.002,
         "accuracy": float(min(1.0, level * (1 - 0.5 * np.exp(-epoch / 6))))}
        for epoch in range(epochs)
    ]  # fmt: skip
