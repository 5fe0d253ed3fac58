"""ProLIP: the projection that ends the image tower, held near where it was."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from vlprompt.errors import UserError
from vlprompt.learners.base import Batches, Overridden, at_least_single
from vlprompt.learners.weights import WeightLearner
from vlprompt.towers import PLAIN, Clip, expand_templates

PROJECTIONS = ("visual.proj", "visual.attnpool.c_proj.weight", "visual.head.proj.weight")
"""A CLIP's last weight of the image tower, under the names of a ViT, of a ResNet and of timm's towers."""


class ProLIP(WeightLearner):
    """The image projection P alone is trained, on stored features of augmented images before it.

    loss = cross-entropy + weight * |P - P of the model|^2, a sum. Each step is one on a view of all training images,
    the views in turn.

    Args:
        templates: one, a list, or a published one by name. Of several, normalised features are averaged.
        n_views: augmented views of each training image.
        iterations: steps of Adam, with a cosine down to 0.
        lr: of the first step.
        weight: a number, or 1 over the images of a class ("1/shots") or over their square ("1/shots^2").
        search_lr, search_weight: of these the pair that is best on validation images is taken instead, the first of
            equals; null: no search.

    Source: Fahes et al., 2024, https://arxiv.org/abs/2410.05270, section 3, and the authors' code
    (https://github.com/astra-vision/ProLIP at b43e795), whose numbers it reproduces in float32.
    Differs: the model's own scale instead of 100; float32 whatever the towers use, where the authors' is float16.
    """

    augmented = True
    closed_form = True

    def __init__(
        self,
        clip: Clip,
        classes: Sequence[str],
        *,
        templates: str | list[str] = PLAIN,
        n_views: int = 300,
        iterations: int = 300,
        lr: float = 1e-5,
        weight: float | Literal["1/shots", "1/shots^2"] = "1/shots",
        search_lr: list[float] | None = None,
        search_weight: list[float] | None = None,
    ) -> None:
        self.templates = expand_templates(templates)
        super().__init__(clip, classes, template=self.templates[0], towers="image")
        weights = [value for value in (0.0, weight, *(search_weight or ())) if not isinstance(value, str)]
        out_of_range = n_views < 1 or min(iterations, *weights) < 0 or min([lr, *(search_lr or ())]) <= 0
        if out_of_range or bool(search_lr) != bool(search_weight):
            raise UserError(
                f"method.{n_views=}, {iterations=}, {lr=}, {weight=}, {search_lr=}, {search_weight=}: allowed are at "
                "least 1, 0 or more, weights of 0 or more, and rates above 0; both lists or neither"
            )
        self.n_views, self.iterations, self.lr, self.weight = n_views, iterations, lr, weight
        self.search = [(rate, value) for rate in search_lr or () for value in search_weight or ()]
        self.uses_validation = bool(self.search)
        tensors = clip.tensors("image")
        if (name := next((name for name in PROJECTIONS if name in tensors), None)) is None:
            raise UserError(f"the image tower of {clip.name} ends without a projection: choose one of OpenAI's CLIPs")
        self.name = name
        self.projection = nn.Parameter(at_least_single(tensors[name]).detach().clone())
        bias = tensors.get(name.replace("weight", "bias")) if name.endswith("weight") else None
        self.bias = None if bias is None else at_least_single(bias)

    @classmethod
    def overridden(cls, settings: Mapping[str, Any], *, val: bool, steps: bool) -> Overridden:
        if not settings["search_lr"]:
            return {}
        if not val:
            why = "of which there are no images here: drop it, or use fit.select_on=test"
            return dict.fromkeys(("search_lr", "search_weight"), ("fit.select_on", why))
        why = "whose search replaces it: drop it, or use method.search_lr=null method.search_weight=null"
        return dict.fromkeys(("lr", "weight"), ("method.search_lr", why))

    @classmethod
    def searches(cls, settings: Mapping[str, Any]) -> bool:
        return bool(settings["search_lr"])

    def changed(self, tower: str) -> Mapping[str, Tensor]:
        return {self.name: self.projection}

    def encode_classes(self) -> Float[Tensor, "C e"]:
        return self.zero_shot_features(self.templates)

    def project(self, x: Float[Tensor, "N d"]) -> Float[Tensor, "N e"]:
        """Image features of what is before the projection."""
        return x @ self.projection if self.name == PROJECTIONS[0] else F.linear(x, self.projection, self.bias)

    @torch.no_grad()
    def collect(self, batches: Batches) -> tuple[Float[Tensor, "N d"], Int[Tensor, " N"]]:
        """What the projection reads, and labels, of all images."""
        width = self.projection.shape[0 if self.name == PROJECTIONS[0] else 1]
        old = self.clip.tensors("image")[self.name]
        identity = {self.name: torch.eye(width).to(old)}
        if self.bias is not None:
            identity[self.name.replace("weight", "bias")] = torch.zeros(width).to(old)
        tower = self.clip.with_weights(identity, any_shape=True).image
        pairs = [(at_least_single(tower(images)), labels) for images, labels in batches]
        return torch.cat([features for features, _ in pairs]), torch.cat([labels for _, labels in pairs])

    def prepare(self, train: Batches, val: Batches | None) -> None:
        passes = [self.collect(train) for _ in range(self.n_views)]
        views, labels = [features for features, _ in passes], passes[0][1]
        shots, weight = int(labels.bincount().max()), self.weight
        if isinstance(weight, str):
            weight = 1 / shots if weight == "1/shots" else 1 / shots**2
        seen = self.collect(val) if val and self.search else None
        most, best = -1, self.projection.detach()
        for pair in self.search if seen else [(self.lr, weight)]:
            for _ in self.descend(views, labels, *pair):
                pass
            right = self.n_right(*seen) if seen else 0
            if right > most:
                most, best = right, self.projection.detach().clone()
        self.projection.data.copy_(best)

    @torch.no_grad()
    def n_right(self, x: Float[Tensor, "N d"], labels: Int[Tensor, " N"]) -> int:
        return int((self.compare(self.project(x), self.encode_classes()).argmax(-1) == labels).sum())

    def descend(
        self, views: Sequence[Float[Tensor, "N d"]], labels: Int[Tensor, " N"], lr: float, weight: float
    ) -> Iterator[Tensor]:
        """The steps, from the model's projection on; yields the loss of each after it is taken."""
        start, classes = at_least_single(self.clip.tensors("image")[self.name]), self.encode_classes()
        self.projection.data.copy_(start)
        optimizer = torch.optim.Adam([self.projection], lr=lr, eps=1e-4)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(self.iterations, 1))
        for step in range(self.iterations):
            optimizer.zero_grad()
            logits = self.compare(self.project(views[(step + 1) % len(views)]), classes)  # view 0 is the last of a turn
            loss = F.cross_entropy(logits, labels) + weight * (self.projection - start).square().sum()
            loss.backward()
            optimizer.step()
            schedule.step()
            yield loss.detach()
        self.projection.grad = None
