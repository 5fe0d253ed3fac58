"""The words of the vocabulary that learned text vectors are nearest to, next to what chance gives.

Source: Zhou et al., IJCV 2022, https://arxiv.org/abs/2109.01134, section 4 (nearest words of CoOp's contexts).
"""

from collections.abc import Mapping, Sequence

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from vlprompt.interpret.observe import Seen
from vlprompt.interpret.view import Dots, View, rounded
from vlprompt.learners.base import Learner
from vlprompt.learners.cocoop import CoCoOp
from vlprompt.learners.context import ContextLearner

DRAWS = 200
Layers = Mapping[int, Float[Tensor, "*C n d"]]
CHANCE = (
    f"Random: the vector's own numbers in {DRAWS} random orders, so of the same length; the median of their nearest "
    "words, then what one in 20 reaches. A nearest word that is no nearer says nothing, and of many vectors "
    "one in 20 passes the bar by chance."
)
PIECES = "A plus shows where a word goes on: pho+ is a piece of a word."
LOOSE = (
    "Layers from 1 on: tokens of the residual stream after that many blocks, compared with the word embeddings that "
    "enter layer 0; the spaces differ, so this comparison is loose."
)


def contexts(learner: Learner, seen: Seen) -> Layers:
    """Learned text vectors by layer, [n, d], or [C, n, d] where each class has some."""
    layers: dict[int, Tensor] = {}
    prompts = seen.prompts
    if isinstance(learner, ContextLearner):
        layers[0] = learner.context
    elif prompts is not None and prompts.slot:
        at, end = prompts.n_prefix_tokens, prompts.n_prefix_tokens + prompts.slot
        shared = prompts.shared.shape[-2] >= end
        layers[0] = prompts.shared[..., at:end, :] if shared else prompts.suffix[:, : prompts.slot]
    layers |= {layer: edit.tokens for layer, edit in seen.text.items() if edit.tokens is not None}
    return {layer: (v[0] if v.ndim == 4 else v).detach().double() for layer, v in sorted(layers.items())}


def view(
    learner: Learner, layers: Layers, *, classes: Sequence[int], top: int = 3, start: Layers | None = None
) -> View | None:
    """Nearest words of learned text vectors; None where there are none. `start`: what they were before training."""
    if not layers:
        return None
    words, table = learner.clip.vocabulary()
    table = table.double()
    rows, shown = [], []
    for layer, vectors in layers.items():
        each = [(None, vectors)] if vectors.ndim == 2 else [(c, vectors[c]) for c in classes if c < len(vectors)]
        first = None if start is None or layer not in start else start[layer]
        for c, of_class in each:
            name = "" if c is None else learner.classes[c]
            for i, vector in enumerate(of_class):
                numbers = nearest(vector, words, table, top)
                before = None if first is None else (first[i] if c is None else first[c][i])
                moved = None if before is None else float((vector - before).norm())
                about = {"layer": layer, "class": name, "vector": i + 1}
                rows += [{**about, **number, "length": float(vector.norm()), "moved": moved} for number in numbers]
                shown.append({"layer": layer, "class": name, "#": i + 1, **as_cells(numbers, vector, moved)})
    notes = [
        CHANCE,
        *([LOOSE] if max(layers) else []),
        *([PIECES] if any("+" in str(row["word"]) for row in rows) else []),
    ]
    notes += clear_of_chance(rows)
    if getattr(learner, "ctx_init", ""):
        notes.append(f"The context started from the words '{learner.ctx_init}'; how far it has moved counts, too.")
    if isinstance(learner, CoCoOp):
        notes.append("These are the vectors before an image shifts all of them by the same amount.")
    cells = pd.DataFrame(shown).map(str)
    grids = {f"layer {layer}": part.drop(columns="layer") for layer, part in cells.groupby("layer", sort=False)}
    return View(
        f"nearest of {len(table):,} words",
        pd.DataFrame(rows),
        {name: part.loc[:, (part != "").any()] for name, part in grids.items()},
        notes,
        dots(rows),
        ("#", "class"),
    )


def nearest(
    vector: Float[Tensor, " d"], words: Sequence[str], table: Float[Tensor, "V d"], top: int
) -> list[dict[str, object]]:
    """The `top` words by cosine and by Euclidean distance, and what random vectors reach at best."""
    own, chance = compare(vector[None], table), compare(shuffled(vector).float(), table.float())
    rows: list[dict[str, object]] = []
    for measure, values, random, sign in (("cosine", own[0][0], chance[0], 1), ("distance", own[1][0], chance[1], -1)):
        best = (sign * (sign * random).amax(-1)).quantile(torch.tensor([0.5, 0.5 + sign * 0.45]).to(random))
        rows += [
            {"measure": measure, "rank": rank, "word": words[i], "value": float(values[i]),
             "random": float(best[0]), "random_one_in_20": float(best[1])}
            for rank, i in enumerate((sign * values).topk(min(top, len(words))).indices.tolist(), 1)
        ]  # fmt: skip
    return rows


def compare(vectors: Float[Tensor, "n d"], table: Float[Tensor, "V d"]) -> tuple[Tensor, Tensor]:
    """Cosines and Euclidean distances [n, V], by one product. A vector of zeros has cosines of zero."""
    products, a, b = vectors @ table.T, vectors.norm(dim=-1)[:, None], table.norm(dim=-1)
    return products / (a * b).clamp(min=1e-12), (a**2 + b**2 - 2 * products).clamp(min=0).sqrt()


def shuffled(vector: Float[Tensor, " d"]) -> Float[Tensor, "draws d"]:
    """Its numbers in random orders, the same at each call."""
    keys = torch.rand(DRAWS, len(vector), generator=torch.Generator().manual_seed(0)).to(vector.device)
    return vector[keys.argsort(-1)]


def as_cells(numbers: Sequence[Mapping[str, object]], vector: Tensor, moved: float | None) -> dict[str, str]:
    """One row of the table that is read."""
    cells = {}
    for measure in ("cosine", "distance"):
        of = [number for number in numbers if number["measure"] == measure]
        cells[f"by {measure}"] = ", ".join(str(number["word"]) for number in of)
        cells[measure] = rounded(of[0]["value"])
        cells[f"random {measure}"] = f"{rounded(of[0]['random'])}, {rounded(of[0]['random_one_in_20'])}"
    if moved is not None:
        cells["moved"] = rounded(moved, ".3f")
    return {**cells, "length": rounded(float(vector.norm()))}


def clear_of_chance(rows: Sequence[Mapping[str, object]]) -> list[str]:
    """How many vectors are nearer to a word than one in 20 random ones."""
    first = [row for row in rows if row["rank"] == 1]
    counts = []
    for measure, sign in (("cosine", 1), ("distance", -1)):
        of = [row for row in first if row["measure"] == measure]
        passed = sum(sign * float(row["value"]) > sign * float(row["random_one_in_20"]) for row in of)  # type: ignore[arg-type]
        counts.append(f"{passed} of {len(of)} by {measure}")
    return [f"Nearer to a word than 19 of 20 random vectors: {' and '.join(counts)}."]


def dots(rows: Sequence[Mapping[str, object]]) -> Dots:
    """Cosines of the nearest words."""
    first = [row for row in rows if row["rank"] == 1 and row["measure"] == "cosine"]
    deep, named = len({row["layer"] for row in first}) > 1, any(row["class"] for row in first)
    table = pd.DataFrame(
        {
            "label": ", ".join([
                *([str(row["class"])] if named and row["class"] else []), *([f"layer {row['layer']}"] if deep else []),
                f"vector {row['vector']}",
            ]),
            "value": row["value"], "low": row["random"], "high": row["random_one_in_20"], "text": row["word"],
        }
        for row in first
    )  # fmt: skip
    return Dots(table, "cosine to the nearest word", "random vectors, median to one in 20")
