"""Learned image tokens next to the patches, and how far image features move."""

from collections.abc import Sequence

import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vlprompt.interpret.observe import Seen
from vlprompt.interpret.view import Dots, View, rounded
from vlprompt.learners.base import Learner, normalize
from vlprompt.towers import Images, ImageTower

SCALE = "Patches: the median length of the patches' tokens that enter the same layer of the frozen tower, on {}."
CHANCE = "Random vectors of this width have cosines within ±{:.2f}, 19 of 20."


def tokens_view(learner: Learner, seen: Seen, pixels: Tensor, images: str) -> View | None:
    """Lengths of the tokens by layer and how alike they are; None where there are none."""
    tower = learner.clip.image
    layers = {layer: edit.tokens for layer, edit in sorted(seen.image.items()) if edit.tokens is not None}
    if not layers:
        return None
    typical = patch_lengths(tower, pixels)
    rows = []
    for layer, tokens in layers.items():
        tokens = (tokens[0] if tokens.ndim == 3 else tokens).detach().double()
        lengths, cosines = tokens.norm(dim=-1), off_diagonal(tokens)
        rows += [
            {"layer": layer, "token": i + 1, "length": float(lengths[i]), "patches": typical[layer],
             "mean_cosine": float(cosines[i].mean()) if len(tokens) > 1 else float("nan"),
             "largest_cosine": float(cosines[i].max()) if len(tokens) > 1 else float("nan")}
            for i in range(len(tokens))
        ]  # fmt: skip
    table = pd.DataFrame(rows)
    grid = pd.DataFrame(
        {"layer": layer, "tokens": len(part), "shortest": rounded(part["length"].min()),
         "longest": rounded(part["length"].max()), "patches": rounded(part["patches"].iloc[0]),
         "mean cosine of two": rounded(part["mean_cosine"].mean()),
         "largest": rounded(part["largest_cosine"].max())}
        for layer, part in table.groupby("layer", sort=False)
    ).map(str)  # fmt: skip
    means = table.groupby("layer")[["length", "patches"]].mean()
    figure = pd.DataFrame({"label": [f"layer {layer}" for layer in means.index], "value": means["length"],
                           "low": means["patches"], "high": means["patches"], "text": ""})  # fmt: skip
    notes = [SCALE.format(images), CHANCE.format(1.96 / tower.width**0.5)]
    notes.append("Nearest patches or words of such tokens are not shown: they mean nothing that is known.")
    return View(
        "learned image tokens", table, {"": grid}, notes,
        Dots(figure, "mean length of the image tokens", "median length of the patches"), ("layer",),
    )  # fmt: skip


def off_diagonal(tokens: Float[Tensor, "n d"]) -> Float[Tensor, "n m"]:
    """Cosines of each to the others."""
    n, unit = len(tokens), F.normalize(tokens, dim=-1)
    return (unit @ unit.T)[~torch.eye(n, dtype=torch.bool, device=tokens.device)].view(n, n - 1)


@torch.no_grad()
def patch_lengths(tower: ImageTower, pixels: Float[Tensor, "B 3 H W"]) -> list[float]:
    """The median length of patches' tokens as they enter each layer (the first before the tower's first norm)."""

    def median(x: Tensor) -> float:
        return float(x[:, tower.n_prefix_tokens :].norm(dim=-1).median())

    x = tower.embed(pixels)
    lengths, x = [median(x)], tower.norm_in(x)
    for block in tower.blocks[:-1]:
        x = block(x)
        lengths.append(median(x))
    return lengths


@torch.no_grad()
def features_view(learner: Learner, pixels: Tensor, names: Sequence[str]) -> View | None:
    """How far the features of these images are from the frozen ones; None where they are the same."""
    adapted, frozen = learner.encode_images(Images(pixels)).double(), learner.clip.image(Images(pixels)).double()
    change = (adapted - frozen).norm(dim=-1) / frozen.norm(dim=-1)
    if adapted.shape != frozen.shape or float(change.max()) < 1e-6:
        return None
    cosines = (normalize(adapted) * normalize(frozen)).sum(-1)
    table = pd.DataFrame({"image": list(names), "cosine": cosines.tolist(),
                          "change_percent": (100 * change).tolist()})  # fmt: skip
    grid = pd.DataFrame({"image": list(names), "cosine to the frozen feature": list(map(rounded, cosines.tolist())),
                         "change in %": [rounded(100 * x, ".1f") for x in change.tolist()]})  # fmt: skip
    figure = pd.DataFrame({"label": list(names), "value": cosines.tolist(), "low": float("nan"), "high": float("nan"),
                           "text": ""})  # fmt: skip
    notes = ["Change: the length of what is added to the frozen feature, in percent of its length."]
    return View("image features", table, {"": grid}, notes, Dots(figure, "cosine to the frozen feature"), ("image",))
