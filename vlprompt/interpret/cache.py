"""What a cache of training images holds: the images nearest to a picture, and the classes that it confuses."""

from collections.abc import Sequence

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from vlprompt.interpret.view import Dots, View, rounded
from vlprompt.learners.tip_adapter import TipAdapter
from vlprompt.towers import Images

AFFINITY = (
    "Affinity: exp(-beta (1 - cosine)) with beta {:.3g}: what an image of the cache adds to its class, before it is "
    "multiplied by alpha, {:.3g}."
)


@torch.no_grad()
def nearest_images(
    learner: TipAdapter, pixels: Float[Tensor, "B 3 H W"], names: Sequence[str], cached: Sequence[str], top: int
) -> View:
    """For each picture the `top` training images with the largest affinities. `cached`: their names, in order."""
    cosines = learner.cosines(learner.encode_images(Images(pixels))).double()
    affinities = (learner.beta.double() * (cosines - 1)).exp()
    best = cosines.topk(min(top, len(learner.keys)))
    labels = learner.labels.tolist()
    rows = [
        {"image": name, "rank": rank, "training image": cached[i], "class": learner.trained_classes[labels[i]],
         "cosine": float(cosines[row, i]), "affinity": float(affinities[row, i])}
        for row, name in enumerate(names) for rank, i in enumerate(best.indices[row].tolist(), 1)
    ]  # fmt: skip
    table = pd.DataFrame(rows)
    shown = table.assign(**{c: [rounded(x, ".3f") for x in table[c]] for c in ("cosine", "affinity")}).astype(str)
    figure = pd.DataFrame({"label": [f"{row['image']}, {row['rank']}" for row in rows], "value": table["affinity"],
                           "low": float("nan"), "high": float("nan"), "text": table["class"]})  # fmt: skip
    notes = [AFFINITY.format(float(learner.beta), float(learner.alpha))]
    return View("nearest training images", table, {"": shown}, notes, Dots(figure, "affinity"), ("image", "rank"))


@torch.no_grad()
def confusions(learner: TipAdapter, cached: Sequence[str], most: int) -> View:
    """For each class the class of its images' nearest other images in the cache; the worst pairs."""
    keys, labels = learner.keys.double(), learner.labels
    cosines = keys @ keys.T
    affinities = (learner.beta.double() * (cosines - 1)).exp()
    cosines.fill_diagonal_(-torch.inf)
    affinities.fill_diagonal_(float("nan"))
    n, names = len(learner.trained_classes), learner.trained_classes
    nearest = cosines.argmax(-1).tolist() if len(keys) > 1 else []
    rows = []
    for a in range(n):
        of = (labels == a).nonzero()[:, 0].tolist()
        inside = affinities[of][:, of].nanmean()
        for b in range(n):
            others = (labels == b).nonzero()[:, 0].tolist()
            taken = [i for i in of if nearest and int(labels[nearest[i]]) == b]
            if a == b or not of or not others:
                continue
            example = max(taken, key=lambda i: float(cosines[i, nearest[i]]), default=None)
            rows.append({
                "class": names[a], "other": names[b], "images": len(of), "nearest in other": len(taken),
                "affinity": float(affinities[of][:, others].mean()), "within the class": float(inside),
                "for example": "" if example is None else f"{cached[example]} → {cached[nearest[example]]}",
            })  # fmt: skip
    table = pd.DataFrame(rows)
    if table.empty:
        return View("classes in the cache", table, {}, ["The cache holds images of fewer than two classes."])
    worst = table.assign(share=table["nearest in other"] / table["images"])
    worst = worst.sort_values(["share", "affinity"], ascending=False, kind="stable").head(most)
    shown = pd.DataFrame({
        "class": worst["class"], "other": worst["other"],
        "nearest in other": [f"{a} of {b}" for a, b in zip(worst["nearest in other"], worst["images"], strict=True)],
        "affinity": list(map(rounded, worst["affinity"])), "within": list(map(rounded, worst["within the class"])),
        "for example": worst["for example"],
    })  # fmt: skip
    figure = pd.DataFrame({
        "label": [f"{a} → {b}" for a, b in zip(worst["class"], worst["other"], strict=True)],
        "value": worst["affinity"], "low": worst["within the class"], "high": worst["within the class"],
        "text": shown["nearest in other"],
    })  # fmt: skip
    alone = int((worst["images"] == 1).all())
    notes = [
        AFFINITY.format(float(learner.beta), float(learner.alpha)),
        "Nearest in other: images of the class whose nearest other image in the cache is of the other class. Affinity: "
        "the mean over pairs of images of the two classes; within: of the class itself.",
        *(["With one image a class there is no pair within a class."] if alone else []),
        "Name images after the run to see the training images nearest to them.",
    ]
    title = f"classes that the cache confuses: {len(worst)} of {len(table)} pairs"
    return View(title, table, {"": shown}, notes, Dots(figure, "mean affinity", "within the class"), ("class", "other"))
