"""Class features, heads and residuals: which frozen class texts they are nearest to."""

from collections.abc import Sequence

import pandas as pd
import torch
from torch import Tensor

from vlprompt.interpret.view import Dots, View, rounded
from vlprompt.learners.base import Learner, normalize
from vlprompt.learners.lp_plus_plus import LPPlusPlus
from vlprompt.learners.taskres import TaskRes

SAME = 1e-6


@torch.no_grad()
def view(learner: Learner, chosen: Sequence[int] | None, most: int) -> View | None:
    """A row a class: of `chosen`, else of the `most` that are farthest from their text; None where none moved."""
    rows = learner.head.weight if learner.has_head else learner.encode_classes()
    if rows is None or rows.ndim != 2:
        return None
    rows = rows.double()
    table = pd.DataFrame({"class": list(learner.classes), **columns(learner, rows)})
    notes, axis, value = [], "length", "length"
    if learner.clip.text is not None:
        texts = frozen_texts(learner)
        cosines = normalize(rows) @ normalize(texts).T
        cosines[rows.norm(dim=-1) == 0] = float("nan")  # a row of zeros points nowhere
        own = cosines.diagonal()
        if not learner.has_head and "residual_percent" not in table and float(own.min()) > 1 - SAME:
            return None
        best = cosines.max(-1)
        if learner.has_head:
            notes.append("The rows of a head separate images, and need not be near to any text.")
        table["own_text"] = own.tolist()
        pairs = zip(best.indices.tolist(), best.values.isnan().tolist(), strict=True)
        table["nearest_text"] = ["" if none else learner.classes[i] for i, none in pairs]
        table["nearest"] = best.values.tolist()
        wrong = sum(
            nearest not in (name, "") for name, nearest in zip(table["class"], table["nearest_text"], strict=True)
        )
        template = (getattr(learner, "templates", None) or [learner.template])[0]
        many = len(getattr(learner, "templates", None) or [0])
        worded = f"the mean of {many} templates" if many > 1 else f"'{template}'"
        notes.append(f"Texts: the frozen text features of the classes, worded as {worded}.")
        if isinstance(learner, LPPlusPlus):
            notes.append("Class features: w + alpha times the text of length one.")
        notes.append(f"{wrong} of {len(table)} classes are nearest to the text of another class.")
        axis, value = "cosine to the class's own text", "own_text"
    if "residual_percent" in table:
        axis, value = "length of the residual, in % of the text's", "residual_percent"
    order = table.sort_values(value, ascending=value != "residual_percent", kind="stable").index.tolist()
    shown = list(chosen) if chosen is not None else order[:most]
    what = "rows of the head" if learner.has_head else "class features"
    which = "" if len(shown) == len(table) else f": {len(shown)} of {len(table)} classes"
    if which and chosen is None:
        which += {"length": ", the shortest", "residual_percent": ", those with the largest residuals"}.get(
            value, ", those farthest from their own text"
        )
    return View(f"{what}{which}", table, {"": cells(table.loc[shown])}, notes, figure(table.loc[shown], value, axis),
                ("class",))  # fmt: skip


def columns(learner: Learner, rows: Tensor) -> dict[str, list[float]]:
    """Lengths, and what a method has in addition for each class."""
    more = {}
    if learner.has_head:
        more["bias"] = learner.head.bias.tolist()
    if isinstance(learner, TaskRes):
        texts = learner.zero_shot_features(learner.templates, normalize=False).double()
        more["residual_percent"] = (100 * (rows - texts).norm(dim=-1) / texts.norm(dim=-1)).tolist()
    if isinstance(learner, LPPlusPlus):
        more |= {"w": learner.weight.norm(dim=-1).tolist(), "alpha": learner.alpha.tolist()}
    return {"length": rows.norm(dim=-1).tolist(), **more}


def frozen_texts(learner: Learner) -> Tensor:
    templates = getattr(learner, "templates", None) or [learner.template]
    return learner.zero_shot_features(list(templates)).double()


NAMES = {"own_text": "cosine to own text", "nearest_text": "nearest text", "nearest": "its cosine",
         "residual_percent": "residual in %", "w": "|w|"}  # fmt: skip


FORMS = {"own_text": ".3f", "nearest": ".3f", "length": "#.3g", "bias": ".3f"}


def cells(table: pd.DataFrame) -> pd.DataFrame:
    shown = table.copy()
    for name in shown:
        if pd.api.types.is_float_dtype(shown[name]):
            shown[name] = [rounded(x, FORMS.get(name, ".2f")) for x in shown[name]]
    return shown.rename(columns=NAMES).map(str).reset_index(drop=True)


def figure(table: pd.DataFrame, value: str, axis: str) -> Dots:
    nearest = table.get("nearest_text", pd.Series("", index=table.index))
    text = ["" if name == near else near for name, near in zip(table["class"], nearest, strict=True)]
    return Dots(pd.DataFrame({"label": table["class"], "value": table[value], "low": float("nan"),
                              "high": float("nan"), "text": text}), axis)  # fmt: skip
