"""All that a learner trains, by name: for methods that nothing else is known of."""

from collections.abc import Mapping

import pandas as pd
from torch import Tensor

from vlprompt.interpret.view import Dots, View, rounded
from vlprompt.learners.base import Learner


def view(learner: Learner, start: Mapping[str, Tensor] | None) -> View | None:
    """Shapes and lengths; the change from `start`, the values before training, where these are known."""
    tensors = {name: t.detach().double() for name, t in learner.state_dict().items() if t.is_floating_point()}
    if not tensors:
        return None
    rows = []
    for name, tensor in tensors.items():
        row = {"tensor": name, "shape": list(tensor.shape), "numbers": tensor.numel(), "norm": float(tensor.norm())}
        if start is not None:
            first = start[name].double()
            change, norm = float((tensor - first).norm()), float(first.norm())
            row |= {"start": norm, "change": change, "change_percent": 100 * change / norm if norm else float("nan")}
        rows.append(row)
    table = pd.DataFrame(rows)
    shown = pd.DataFrame({"tensor": table["tensor"], "shape": [" × ".join(map(str, s)) or "1" for s in table["shape"]],
                          "norm": [rounded(x, ".3f") for x in table["norm"]]})  # fmt: skip
    notes = []
    if start is not None:
        shown["at the start"] = [rounded(x, ".3f") for x in table["start"]]
        shown["change"] = [rounded(x, "#.3g") for x in table["change"]]
        notes.append("At the start: the values before training, drawn again from the run's seed.")
    value = "norm" if start is None else "change"
    figure = pd.DataFrame({"label": table["tensor"], "value": table[value], "low": float("nan"), "high": float("nan"),
                           "text": ""})  # fmt: skip
    axis = "norm" if start is None else "norm of the change since the start"
    return View("trained tensors", table, {"": shown}, notes, Dots(figure, axis), ("tensor",))
