"""Linear probing in closed form: a logistic regression on frozen features."""

import warnings
from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from jaxtyping import Float, Int
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import nn

from vlprompt.errors import UserError
from vlprompt.learners.base import Batches, check_every_class
from vlprompt.learners.linear_head import LinearHead
from vlprompt.towers import Clip

COARSE = (1e6, 1e4, 1e2, 1.0, 1e-2, 1e-4, 1e-6)


class LinearProbe(LinearHead):
    """L2-regularised logistic regression on un-normalised features of centre crops, for the training classes only.

    logits = W f + b; C is the best of a coarse grid on validation images, then of a bisection in log C around it.

    Args:
        n_steps: bisection steps.
        max_iter: of the solver (L-BFGS).

    Source: Zhou et al., IJCV 2022, https://arxiv.org/abs/2109.01134, section 4.1 ("linear probe CLIP"); Radford et al.,
    ICML 2021, https://arxiv.org/abs/2103.00020, appendix A.
    """

    with_steps = "linear_head"
    uses_validation = True
    closed_form = True

    def __init__(self, clip: Clip, classes: Sequence[str], *, n_steps: int = 8, max_iter: int = 1000) -> None:
        super().__init__(clip, classes)
        if n_steps < 1 or max_iter < 1:
            raise UserError(f"method.n_steps={n_steps}, max_iter={max_iter}: allowed is at least 1")
        self.n_steps, self.max_iter = n_steps, max_iter
        self.c = float("nan")  # the C that was chosen
        for p in self.head.parameters():
            nn.init.zeros_(p)

    @torch.no_grad()
    def prepare(self, train: Batches, val: Batches | None) -> None:
        """Fit the head.

        Raises:
            UserError: no validation images to choose C on, or a class without training images.
        """
        if val is None:
            raise UserError(
                "linear_probe chooses C on validation images and this data set has none: use linear_head, or give "
                "vlprompt.fit a `val`"
            )
        seen = self._read(train)
        check_every_class(self, torch.from_numpy(seen[1]))
        self.c, model = search_c(seen, self._read(val), n_steps=self.n_steps, max_iter=self.max_iter)
        weight, bias = torch.from_numpy(model.coef_), torch.from_numpy(model.intercept_)
        if len(self.classes) == 2:  # scikit-learn has one row, for the second class
            weight, bias = (torch.cat([torch.zeros_like(t), t]) for t in (weight, bias))
        self.head.weight.copy_(weight)
        self.head.bias.copy_(bias)

    def _read(self, batches: Batches) -> tuple[np.ndarray, np.ndarray]:
        features, labels = self.collect_features(batches)
        return features.cpu().double().numpy(), labels.cpu().numpy()


def search_c(
    train: tuple[Float[np.ndarray, "n e"], Int[np.ndarray, " n"]],
    val: tuple[Float[np.ndarray, "m e"], Int[np.ndarray, " m"]],
    *,
    n_steps: int,
    max_iter: int,
) -> tuple[float, LogisticRegression]:
    """C by the accuracy on `val`, and the model with it; the last step's better end, as in CoOp's protocol."""

    @cache
    def fit(c: float) -> tuple[float, LogisticRegression]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # part of the protocol: it stops at max_iter
            model = LogisticRegression(C=c, max_iter=max_iter).fit(*train)
        return float(np.mean(model.predict(val[0]) == val[1])), model

    peak = max(COARSE, key=lambda c: fit(c)[0])  # the first of equals
    low, high = np.log10(peak) - 1, np.log10(peak) + 1
    for _ in range(n_steps):
        (left, left_model), (right, right_model) = fit(10**low), fit(10**high)
        middle = (low + high) / 2
        if left < right:
            c, model, low = 10**high, right_model, middle
        else:
            c, model, high = 10**low, left_model, middle
    return float(c), model
