"""Tip-Adapter: a cache of the training images next to the class names."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from vlprompt.errors import UserError
from vlprompt.learners.base import Batches, Learner, Overridden, normalize, scaled_cosine
from vlprompt.towers import PLAIN, Clip, expand_templates


class TipAdapter(Learner):
    """A cache of the training images' features next to the class names. Works for the training classes only.

    logits = zero-shot logits + alpha * sum over the class's training images of exp(-beta (1 - cosine to the image));
    alpha and beta are then searched on validation images (with `fit.select_on=test`, as some papers do, on the test).

    Args:
        templates: one, a list, or a published one by name. Of several, normalised features are averaged.
        head: "text": as above; "cache": the sum alone; "auto": the sum alone where the model has no text tower.
        finetune: learn the cache's keys, starting from the images' features (Tip-Adapter-F); otherwise nothing is.
        n_views: augmented views of each training image, whose features are averaged to a key.
        alpha, beta: as above, while training; a search replaces them.
        search_scale: largest beta and alpha of the search, whose smallest are 0.1; empty: no search.
        search_steps: values of beta and of alpha that are tried.

    Source: Zhang et al., ECCV 2022, https://arxiv.org/abs/2207.09519, sections 3.1 to 3.3.
    Differs: the model's own scale instead of 100; of the epochs, `fit.keep` chooses on validation images.
    """

    with_steps = "tip_adapter_f"
    augmented = True
    class_bound = True
    without_text: ClassVar = "cache"

    def __init__(
        self,
        clip: Clip,
        classes: Sequence[str],
        *,
        templates: str | list[str] = PLAIN,
        head: Literal["auto", "text", "cache"] = "text",
        finetune: bool = False,
        n_views: int = 10,
        alpha: float = 1.17,
        beta: float = 1.0,
        search_scale: list[float] | None = None,
        search_steps: list[int] | None = None,
    ) -> None:
        super().__init__(clip, classes, head=head)
        self.templates, self.finetune, self.n_views = expand_templates(templates), finetune, n_views
        self.search_scale, self.search_steps = search_scale or [], search_steps or [200, 20]
        if n_views < 1 or len(self.search_scale) not in (0, 2) or len(self.search_steps) != 2:
            raise UserError(
                f"method.n_views={n_views}, search_scale={search_scale}, search_steps={search_steps}: allowed are at "
                "least 1, and two numbers each, of beta and of alpha"
            )
        self.uses_validation = bool(search_scale)
        self.alpha = nn.Buffer(torch.tensor(alpha if self.head_kind == "text" else 1.0))
        self.beta = nn.Buffer(torch.tensor(beta))
        self._set_cache(torch.empty(0, clip.image.embed_dim), torch.empty(0, dtype=torch.long))

    @classmethod
    def overridden(cls, settings: Mapping[str, Any], *, val: bool, steps: bool) -> Overridden:
        alone = ("method.head", "which has no names to mix with: drop it, or use text")
        rules: Overridden = dict.fromkeys(("templates", "alpha") if settings["head"] == "cache" else (), alone)
        if settings["finetune"] and not steps:
            rules["finetune"] = ("fit.epochs", "which takes no step of an optimiser: use method=tip_adapter_f")
        elif not val:
            why = "of which there are no images here: drop it, or use fit.select_on=test"
            rules |= dict.fromkeys(("search_scale", "search_steps"), ("fit.select_on", why))
        elif not settings["search_scale"]:
            rules["search_steps"] = ("method.search_scale", "which means no search: drop it")
        elif not settings["finetune"]:
            why = "whose search replaces it: drop it, or use method.search_scale=null"
            rules |= dict.fromkeys(("alpha", "beta"), ("method.search_scale", why))
        return rules

    @classmethod
    def searches(cls, settings: Mapping[str, Any]) -> bool:
        return bool(settings["search_scale"])

    @classmethod
    def takes_steps(cls, settings: Mapping[str, Any]) -> bool:
        return bool(settings["finetune"])

    @property
    def closed_form(self) -> bool:
        return not self.finetune

    def _set_cache(self, keys: Float[Tensor, "N e"], labels: Int[Tensor, " N"]) -> None:
        self.labels = nn.Buffer(labels)
        self.keys = nn.Parameter(keys) if self.finetune else nn.Buffer(keys)

    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *args: Any) -> None:
        """A cache is as long as the images were many."""
        keys, labels = (state.get(prefix + name) for name in ("keys", "labels"))
        if keys is not None and labels is not None and keys.shape == (len(labels), self.clip.image.embed_dim):
            self._set_cache(keys.to(self.keys, copy=True), labels.to(self.labels, copy=True))
        super()._load_from_state_dict(state, prefix, *args)

    @torch.no_grad()
    def prepare(self, train: Batches, val: Batches | None) -> None:
        passes = [self.collect_features(train) for _ in range(self.n_views)]
        self._set_cache(F.normalize(torch.stack([f for f, _ in passes]).mean(0), dim=-1), passes[0][1])

    def encode_classes(self) -> Float[Tensor, "C e"] | None:
        return self.zero_shot_features(self.templates) if self.head_kind == "text" else None

    def compare(
        self, features: Float[Tensor, "B e"], class_features: Float[Tensor, "C e"] | None
    ) -> Float[Tensor, "B C"]:
        known = 0.0 if class_features is None else scaled_cosine(features, class_features, self.clip.scale)
        return known + self.alpha * self.recall(self.cosines(features), self.beta)

    def cosines(self, features: Float[Tensor, "B e"]) -> Float[Tensor, "B N"]:
        with torch.autocast(features.device.type, enabled=False):
            return normalize(features).to(self.keys.dtype) @ self.keys.T

    def recall(self, cosines: Float[Tensor, "B N"], beta: Tensor | float) -> Float[Tensor, "B C"]:
        """How near the bound classes' images in the cache are."""
        with torch.autocast(cosines.device.type, enabled=False):
            values = F.one_hot(self.labels, len(self.trained_classes)).to(cosines.dtype)
            return self.select(torch.exp(beta * (cosines - 1)) @ values, 1)

    @torch.no_grad()
    def conclude(self, train: Batches, val: Batches | None) -> None:
        """The first of the best pairs of beta (outer) and alpha on a grid."""
        if not self.search_scale or val is None:
            return
        features, labels = self.collect_features(val)
        classes, cosines = self.encode_classes(), self.cosines(features)
        known = 0.0 if classes is None else scaled_cosine(features, classes, self.clip.scale)
        betas, alphas = (
            [0.1 + i * (top - 0.1) / n for i in range(n)]
            for top, n in zip(self.search_scale, self.search_steps, strict=True)
        )
        most = 0
        for beta in betas:
            recalled = self.recall(cosines, beta)
            for alpha in alphas if classes is not None else [1.0]:
                right = int(((known + alpha * recalled).argmax(-1) == labels).sum())
                if right > most:
                    most = right
                    self.alpha.fill_(alpha)
                    self.beta.fill_(beta)
