"""GDA: Gaussian discriminant analysis of the training images' features, in closed form, next to the class names."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vlprompt.errors import UserError
from vlprompt.learners.base import Batches, Learner, Overridden, check_every_class, normalize, scaled_cosine
from vlprompt.towers import PLAIN, Clip, expand_templates


class GDA(Learner):
    """Gaussians of one covariance S, one a class: logits = zero-shot logits + alpha (f W + b), zero-shot CLIP with 0.

    W = mu S^-1, b = log(1/C) - mu S^-1 mu / 2 for the means mu of augmented views; f, views and texts have length one.

    Args:
        templates: one, a list, or a published one by name. Of several, normalised features are averaged.
        n_views: augmented views of each training image, all of them examples.
        covariance: "pooled": of all views about their class means, shrunk: S^-1 = d [(N - 1) S + tr(S) I]^-1.
            "classes": the mean of the classes' own, inverted as far as it can be. It also knows new classes, from the
            `n_nearest` views to a class's text and `n_copies` of that text.
        alphas, alpha: those that are tried on validation images, the first of the best is taken; where none is tried.

    Source: Wang et al., ICLR 2024, https://arxiv.org/abs/2402.04087, section 3; github.com/mrflogs/ICLR24 at 560fe21.
    Differs: the model's own scale instead of 100.
    """

    augmented = True
    closed_form = True
    neutral_settings: ClassVar[Mapping[str, Any] | None] = {"alpha": 0.0, "alphas": []}

    def __init__(
        self,
        clip: Clip,
        classes: Sequence[str],
        *,
        templates: str | list[str] = PLAIN,
        n_views: int = 10,
        covariance: Literal["pooled", "classes"] = "pooled",
        alphas: list[float] | None = None,
        alpha: float = 0.1,
        n_nearest: int = 64,
        n_copies: int = 16,
    ) -> None:
        super().__init__(clip, classes)
        if n_views < 1 or n_nearest < 2 or min([n_copies, alpha, *(alphas or ())]) < 0:
            given = f"method.{n_views=}, {n_nearest=}, {n_copies=}, {alpha=}, {alphas=}"
            raise UserError(f"{given}: allowed are at least 1, 2, 0 and 0")
        self.templates, self.n_views, self.covariance = expand_templates(templates), n_views, covariance
        self.alphas, self.n_nearest, self.n_copies = alphas or [], n_nearest, n_copies
        self.uses_validation, n_classes, width = bool(alphas), len(self.classes), clip.image.embed_dim
        self.alpha = nn.Buffer(torch.tensor(float(alpha)))
        self.weight, self.bias = nn.Buffer(torch.zeros(n_classes, width)), nn.Buffer(torch.zeros(n_classes))
        self.vectors = nn.Buffer(torch.empty(0, width))  # of the training images, where new classes may be asked for

    @classmethod
    def overridden(cls, settings: Mapping[str, Any], *, val: bool, steps: bool) -> Overridden:
        no_new = ("method.covariance", "which knows no new classes: drop it, or use classes")
        rules = dict.fromkeys(("n_nearest", "n_copies") if settings["covariance"] == "pooled" else (), no_new)
        if not val:
            rules["alphas"] = ("fit.select_on", "of which there are no images here: drop it, or use fit.select_on=test")
        elif settings["alphas"]:
            rules["alpha"] = ("method.alphas", "whose search replaces it: drop it, or use method.alphas=null")
        return rules

    @classmethod
    def searches(cls, settings: Mapping[str, Any]) -> bool:
        return bool(settings["alphas"])

    @property
    def class_bound(self) -> bool:
        return self.covariance == "pooled"

    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *args: Any) -> None:
        vectors = state.get(prefix + "vectors")
        if vectors is not None and vectors.shape[1:] == self.vectors.shape[1:]:
            self.vectors = nn.Buffer(self.vectors.new_empty(vectors.shape))
        super()._load_from_state_dict(state, prefix, *args)

    @torch.no_grad()
    def prepare(self, train: Batches, val: Batches | None) -> None:
        """Raises: UserError: a class without images, or too few images for a covariance."""
        passes = [self.collect_features(train) for _ in range(self.n_views)]
        x, labels = normalize(torch.cat([f for f, _ in passes])), torch.cat([labels for _, labels in passes])
        check_every_class(self, labels)
        of_classes = [x[labels == label] for label in range(len(self.classes))]
        mu = torch.stack([of_class.mean(0) for of_class in of_classes])
        if self.covariance == "pooled":
            s = (x - mu[labels]).T.cov()
            inverse = len(s) * torch.linalg.inv((len(x) - 1) * s + s.trace() * torch.eye(len(s), device=s.device))
        else:
            if (least := min(map(len, of_classes))) < 2 or len(x) < self.n_nearest:
                raise UserError(
                    f"method.covariance=classes needs 2 views of each class and n_nearest={self.n_nearest} in all, "
                    f"and there are {least} and {len(x)}: use more shots, or a larger method.n_views"
                )
            s = torch.stack([of_class.T.cov() for of_class in of_classes]).mean(0)
            cut_off = len(s) * torch.finfo(torch.float32).eps  # what is below it in float32 is noise
            inverse = torch.linalg.pinv(s.double().cpu(), rtol=cut_off, hermitian=True).to(s)
            self.vectors = nn.Buffer(x)
        self.weight, self.bias = map(nn.Buffer, linear(mu, inverse))
        if val is not None and self.alphas:
            features, of_val = self.collect_features(val)
            known, more = scaled_cosine(features, self.encode_classes(), self.clip.scale), self.discriminate(features)
            right = {alpha: int(((known + alpha * more).argmax(-1) == of_val).sum()) for alpha in self.alphas}
            self.alpha.fill_(max(right, key=right.__getitem__) if any(right.values()) else self.alpha)

    def encode_classes(self) -> Float[Tensor, "C e"]:
        return self.zero_shot_features(self.templates)

    def compare(
        self, features: Float[Tensor, "B e"], class_features: Float[Tensor, "C e"] | None
    ) -> Float[Tensor, "B C"]:
        assert class_features is not None
        return scaled_cosine(features, class_features, self.clip.scale) + self.alpha * self.discriminate(features)

    def discriminate(self, features: Float[Tensor, "B e"]) -> Float[Tensor, "B C"]:
        """f W + b of the bound classes; where some are new, all as if they were, for one covariance compares them."""
        with torch.autocast(features.device.type, enabled=False):
            seen = self.rows is not None or self.classes == self.trained_classes
            weight, bias = (self.select(self.weight), self.select(self.bias)) if seen else self.from_texts()
            return normalize(features) @ weight.T + bias

    @torch.no_grad()
    def from_texts(self) -> tuple[Float[Tensor, "C e"], Float[Tensor, " C"]]:
        """W, b of new classes: S^-1 is the mean of d [(n - 1) S_t + tr(S_t) I]^-1, S_t of the nearest about text t."""
        if ("weight",) not in self._cache:  # once per bind
            t = normalize(self.encode_classes())
            near = self.vectors[(t @ self.vectors.T).topk(self.n_nearest).indices]  # [C, n, e]
            mu = torch.cat([near, t[:, None].expand(-1, self.n_copies, -1)], 1).mean(1)
            x, one = (
                near - t[:, None],
                torch.eye(self.n_nearest, device=t.device),
            )  # as n < d, n x n is inverted instead
            trace = x.square().sum((1, 2)) / (self.n_nearest - 1)
            solved = torch.linalg.solve(x @ x.mT + trace[:, None, None] * one, x)
            outer = torch.einsum("cnd,cne,c->de", x, solved, 1 / trace) / len(t)
            inverse = len(outer) * ((1 / trace).mean() * torch.eye(len(outer), device=t.device) - outer)
            self._cache["weight",], self._cache["bias",] = linear(mu, inverse)
        return self._cache["weight",], self._cache["bias",]


def linear(mu: Float[Tensor, "C e"], inverse: Float[Tensor, "e e"]) -> tuple[Float[Tensor, "C e"], Float[Tensor, " C"]]:
    weight = mu @ inverse
    return weight, -(weight * mu).sum(1) / 2 - math.log(len(mu))
