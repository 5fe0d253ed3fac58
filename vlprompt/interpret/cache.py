"""What a cache of training images holds: the images nearest to a picture, and which of its classes are alike."""

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
def confusions(learner: TipAdapter, cached: Sequence[str], chosen: Sequence[int] | None, most: int) -> View:
    """For each class the other one that its images in the cache are nearest to: of `chosen`, else of the `most` alike.

    All of them are in the table of numbers.
    """
    rows = [row for c in range(len(learner.trained_classes)) if (row := nearest_class(learner, c, cached)) is not None]
    if not rows:
        return View("classes in the cache", pd.DataFrame(), {}, ["The cache holds images of fewer than two classes."])
    table = pd.DataFrame(rows)
    share = table["nearest in other"] / table["images"]
    table = table.assign(share=share).sort_values(["share", "affinity"], ascending=False, kind="stable")
    names = None if chosen is None else [learner.trained_classes[c] for c in chosen]
    worst = table.head(most) if names is None else table[table["class"].isin(names)]
    worst = worst.drop(columns="share").reset_index(drop=True)
    counts = [f"{n} of {total}" for n, total in zip(worst["nearest in other"], worst["images"], strict=True)]
    shown = worst.assign(**{c: list(map(rounded, worst[c])) for c in ("affinity", "within")})
    shown["nearest in other"] = counts
    labels = [f"{a} → {b}" for a, b in zip(worst["class"], worst["other"], strict=True)]
    figure = pd.DataFrame({"label": labels, "value": worst["affinity"], "low": worst["within"],
                           "high": worst["within"], "text": counts})  # fmt: skip
    notes = [
        AFFINITY.format(float(learner.beta), float(learner.alpha)),
        "Nearest in other: images of the class whose nearest other image in the cache is of the other class. Affinity: "
        "the mean over pairs of images of the two classes; within: of the class itself.",
        *(["With one image a class there is no pair within a class."] if (worst["images"] == 1).all() else []),
        "Name images after the run to see the training images nearest to them.",
    ]
    which = "that are most alike " if chosen is None else ""
    title = f"classes {which}in the cache: {len(worst)} of {len(table)}"
    return View(title, table.drop(columns="share"), {"": shown.drop(columns="images")}, notes,
                Dots(figure, "mean affinity", "within the class"), ("class", "other"))  # fmt: skip


def nearest_class(learner: TipAdapter, c: int, cached: Sequence[str]) -> dict[str, object] | None:
    """The other class that most images of a class have their nearest image in; of equals that with most affinity."""
    keys, labels, names = learner.keys.double(), learner.labels, learner.trained_classes
    of = (labels == c).nonzero()[:, 0]
    counts = labels.bincount(minlength=len(names)).double()
    if not len(of) or (counts > 0).sum() < 2:
        return None
    cosines = keys[of] @ keys.T
    affinities = (learner.beta.double() * (cosines - 1)).exp().scatter(1, of[:, None], 0.0)  # not to itself
    sums = torch.zeros(len(names), dtype=torch.double, device=keys.device).index_add(0, labels, affinities.sum(0))
    means = sums / (counts * len(of)).clamp(min=1)
    nearest = cosines.scatter(1, of[:, None], -torch.inf).argmax(1)
    taken = labels[nearest].bincount(minlength=len(names))
    score = (taken + means / (1 + means.max())).masked_fill(counts == 0, -1)  # affinity decides between equals
    score[c] = -1
    other = int(score.argmax())
    pairs = [(i, j) for i, j in zip(of.tolist(), nearest.tolist(), strict=True) if int(labels[j]) == other]
    best = max(pairs, key=lambda pair: float(keys[pair[0]] @ keys[pair[1]]), default=None)
    return {
        "class": names[c], "other": names[other], "images": len(of), "nearest in other": int(taken[other]),
        "affinity": float(means[other]), "within": float(sums[c]) / (len(of) * (len(of) - 1)) if len(of) > 1 else None,
        "for example": "" if best is None else f"{cached[best[0]]} → {cached[best[1]]}",
    }  # fmt: skip
