"""Where a learner changes the frozen weights, or what it adds within the blocks, by tower, layer and site."""

import re
from collections.abc import Iterator, Mapping
from types import EllipsisType

import pandas as pd
import torch
from torch import Tensor

from vlprompt.interpret.observe import Seen
from vlprompt.interpret.view import Cells, View, rounded
from vlprompt.learners.base import Learner
from vlprompt.learners.lora import LoRA
from vlprompt.towers import Clip

SITES = ("q", "k", "v", "o", "fc1", "fc2")
RELATIVE = "Change: the Frobenius norm of what is added to the frozen tensor, in percent of the norm of that tensor."
OF_ZERO = "Where the frozen tensor is zero, |0.01| is the norm of the change itself."
STABLE = (
    "Stable rank: the squared Frobenius norm of the change over its largest squared singular value; from 1, one "
    "direction, to the rank."
)
Held = tuple[str, str, int | None, str, slice | EllipsisType]
"""Tower, kind, layer (None: outside of the blocks), site, and the rows of the tensor."""
KEYS = ("tower", "layer")
COLUMNS = ["tower", "kind", "layer", "site", "norm_of_change", "norm_of_frozen", "change_percent", "stable_rank"]
KINDS = ("weights", "biases", "others of the blocks", "outside the blocks")


def changes_view(learner: Learner) -> View | None:
    """Of methods that can be merged; None of others."""
    if type(learner).merge is Learner.merge:
        return None
    with torch.no_grad():
        table = changes(learner.clip, learner.merge())
    if isinstance(learner, LoRA):  # a stacked matrix has rows of sites without an update
        adapted = {(tower, layer, site) for tower, layer, site in learner.updates_by_site()}
        table = table[[key in adapted for key in zip(table["tower"], table["layer"], table["site"], strict=True)]]
    grids: dict[str, pd.DataFrame] = {}
    panels: dict[str, pd.DataFrame] = {}
    drawn = ""
    for kind in KINDS:
        of_kind = table[table["kind"] == kind]
        if of_kind.empty:
            continue
        if kind == KINDS[3]:
            grids["outside the blocks, in %"] = pd.DataFrame(
                {"tower": of_kind["tower"], "tensor": of_kind["site"], "change": percents(of_kind)}
            )
            continue
        grids[f"{kind}, in %"] = wide(of_kind, percents(of_kind))
        if not panels:
            drawn = kind
            panels = {str(t): pivot(part, part["change_percent"]) for t, part in of_kind.groupby("tower", sort=False)}
        if kind == KINDS[0]:
            grids["stable rank of the change"] = wide(of_kind, [rounded(x, ".1f") for x in of_kind["stable_rank"]])
    of_zero = (table["norm_of_frozen"] == 0) & (table["norm_of_change"] > 0)
    notes = [
        RELATIVE,
        *([OF_ZERO] if of_zero.any() else []),
        *([STABLE] if "weights" in {*table["kind"]} else []),
        *totals(table),
    ]
    figure = Cells(panels, f"{drawn}: change in % of the frozen norm") if panels else None
    return View("change of the frozen weights", table, grids, notes, figure, KEYS)


def changes(clip: Clip, merged: Clip) -> pd.DataFrame:
    """Norms of what a merged model's tensors have in addition to the frozen ones, a row each."""
    places, roots = dict(sites(clip)), block_roots(clip)
    rows = []
    for name, tensor in merged.weights.replaced.items():
        frozen = clip.weights.tensor(name)
        if tensor is frozen:
            continue
        old, delta = frozen.double(), tensor.double() - frozen.double()
        held: list[Held] = places.get(name) or [elsewhere(clip, roots, name)]
        for tower, kind, layer, site, at in held:
            change, norm = float(delta[at].norm()), float(old[at].norm())
            rows.append({
                "tower": tower, "kind": kind, "layer": layer, "site": site, "norm_of_change": change,
                "norm_of_frozen": norm,
                "change_percent": 100 * change / norm if norm else float("nan"),
                "stable_rank": stable_rank(delta[at]) if kind == KINDS[0] else float("nan"),
            })  # fmt: skip
    table = pd.DataFrame(rows, columns=COLUMNS)
    return table.astype({"layer": "Int64"})


def sites(clip: Clip) -> Iterator[tuple[str, list[Held]]]:
    """Names of tensors with the sites that they hold: of the six maps of each block, matrices and biases."""
    for tower, blocks in (("image", clip.image.blocks), ("text", clip.text.blocks if clip.text else ())):
        for layer, block in enumerate(blocks):
            by_name: dict[str, list[Held]] = {}
            for site, matrix in block.matrices.items():
                bias = f"{matrix.name.removesuffix('weight')}bias"
                by_name.setdefault(matrix.name, []).append((tower, KINDS[0], layer, site, matrix.rows))
                by_name.setdefault(bias, []).append((tower, KINDS[1], layer, site, matrix.rows))
            yield from by_name.items()


def block_roots(clip: Clip) -> dict[str, tuple[str, int | None]]:
    """What the names of a block's tensors begin with."""
    roots = {}
    for name, held in sites(clip):
        if match := re.match(r".*\.\d+\.|\D*\d+\.", name):
            roots[match[0]] = held[0][0], held[0][2]
    return roots


def elsewhere(clip: Clip, roots: Mapping[str, tuple[str, int | None]], name: str) -> Held:
    root = next((root for root in roots if name.startswith(root)), None)
    if root is not None:
        return roots[root][0], KINDS[2], roots[root][1], name.removeprefix(root), ...
    return "image" if name in clip.tensors("image") else "text", KINDS[3], None, name, ...


def stable_rank(delta: Tensor) -> float:
    """Squared Frobenius norm over the largest squared singular value; NaN of zero."""
    gram = delta @ delta.T if delta.shape[0] <= delta.shape[1] else delta.T @ delta
    largest = float(torch.linalg.eigvalsh(gram)[-1])
    return float(delta.square().sum()) / largest if largest > 0 else float("nan")


def totals(table: pd.DataFrame) -> list[str]:
    """How far each tower's tensors moved, all of them together."""
    texts = []
    for tower, part in table.groupby("tower", sort=False):
        change, frozen = (float((part[name] ** 2).sum() ** 0.5) for name in ("norm_of_change", "norm_of_frozen"))
        texts.append(f"{tower} {rounded(100 * change / frozen if frozen else float('nan'))} %")
    return [f"All changed tensors as one: {', '.join(texts)}."] if texts else ["No tensor differs from the frozen one."]


def percents(table: pd.DataFrame) -> list[str]:
    """Relative changes as cells: all with two decimals, or more where the largest of them is small."""
    largest = table["change_percent"].max()
    form = f".{4 if largest < 0.1 else 3 if largest < 1 else 2}f"
    pairs = zip(table["change_percent"], table["norm_of_change"], strict=True)
    return [f"|{norm:.2g}|" if pd.isna(part) and norm else rounded(part, form) for part, norm in pairs]


def pivot(table: pd.DataFrame, values: pd.Series) -> pd.DataFrame:
    """Layers by sites, both in their order."""
    made = table.assign(value=values).pivot(index="layer", columns="site", values="value")
    return made[sorted(made, key=lambda site: SITES.index(site) if site in SITES else len(SITES))]


def wide(table: pd.DataFrame, cells: list[str]) -> pd.DataFrame:
    """Texts by tower and layer, a column for each site."""
    parts = []
    texts = table.assign(value=cells)
    for tower, part in texts.groupby("tower", sort=False):
        made = pivot(part, part["value"]).reset_index()
        made.insert(0, "tower", str(tower))
        parts.append(made)
    return pd.concat(parts, ignore_index=True).fillna("").map(str)


def branches_view(seen: Seen, images: str) -> View | None:
    """How much adapters within the blocks add, in percent of what their branch gives."""
    if not seen.added:
        return None
    rows = [
        {"tower": tower, "layer": layer, "site": site, "added_percent": 100 * sum(values) / len(values)}
        for (tower, layer, site), values in sorted(seen.added.items())
    ]
    table = pd.DataFrame(rows)
    grid = wide(table, percents(table.assign(change_percent=table["added_percent"], norm_of_change=0.0)))
    panels = {str(t): pivot(part, part["added_percent"]) for t, part in table.groupby("tower", sort=False)}
    of_text = "; text: the class prompts" if "text" in panels else ""
    note = f"Mean over tokens of |what is added| / |output of the attention or MLP|{of_text}{images}."
    axis = "added, in % of the branch's output"
    return View(
        "what is added after the branches",
        table,
        {"in % of their output": grid},
        [note],
        Cells(panels, axis),
        ("tower", "layer"),
    )


@torch.no_grad()
def prefixes_view(seen: Seen) -> View | None:
    """Learned keys and values: lengths, and gates where there are some."""
    rows = []
    for tower, edits in (("image", seen.image), ("text", seen.text)):
        for layer, edit in sorted(edits.items()):
            if (prefix := edit.prefix) is None:
                continue
            parts = {"keys": prefix.key, "values": prefix.value, "tokens": prefix.tokens}
            lengths = {name: float(t.norm(dim=-1).mean()) for name, t in parts.items() if t is not None}
            gate = prefix.gate
            gates = (
                {} if gate is None else {"mean_gate": float(gate.abs().mean()), "largest_gate": float(gate.abs().max())}
            )
            rows.append({"tower": tower, "layer": layer, **lengths, **gates})
    if not rows:
        return None
    table = pd.DataFrame(rows)
    grid = table.assign(
        **{c: [rounded(x, "#.3g" if "gate" in c else ".3f") for x in table[c]] for c in table.columns[2:]}
    ).astype(str)
    grid.columns = [{"keys": "length of keys", "values": "of values", "tokens": "length of tokens",
                     "mean_gate": "mean |gate|", "largest_gate": "largest |gate|"}.get(c, c) for c in grid]  # fmt: skip
    notes = ["Lengths: means over the layer's vectors" + (", within a head." if "keys" in table else ".")]
    column = "mean_gate" if "mean_gate" in table else ("values" if "values" in table else "tokens")
    if "mean_gate" in table:
        notes.append("A gate of 0, the start, lets nothing of the prompts through; gates are those of the heads.")
    panels = {str(t): part.set_index("layer")[[column]].rename(columns={column: column.replace("_", " ")})
              for t, part in table.groupby("tower", sort=False)}  # fmt: skip
    return View(
        "learned keys and values", table, {"": grid}, notes, Cells(panels, column.replace("_", " ")), ("tower", "layer")
    )
