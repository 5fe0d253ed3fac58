"""The cross-modal linear probe: texts are training samples next to images."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from itertools import islice, product
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from vlprompt.errors import UserError
from vlprompt.learners.base import Batches, Learner, Overridden, at_least_single, normalize
from vlprompt.learners.half_batches import Samples, fitting, half_batches, warm_cosine
from vlprompt.towers import PLAIN, Clip, expand_templates


class CrossModal(Learner):
    """A linear probe on images and texts. Works for the training classes only.

    logits = scale * w f, with unit features f; w, whose length counts, is learned. Half of a batch are texts, of any
    classes. There is a training for each rate, decay and batch size; the first of their best evaluations on validation
    images remains, without such images the end of the only one.

    Args:
        templates, texts: one, a list, or a published one by name; without texts all of a batch is images.
        init: w at first: "zeroshot" (the mean of un-normalised text features, normalised) or "random".
        adapter: a bottleneck before w: f -> 0.2 relu(W2 relu(W1 f)) + 0.8 f.
        rates, decays, batch_sizes: of AdamW; of the sizes those with more samples than each half. None: as published.
        iterations: steps of a training, and the length of the rate's cosine, after `warmup_steps` along a line whose
            first step has `warmup_rate`. The first is judged, and one in `evaluate_every`.
        n_views: augmented views of each training image, next to its centre crop.
        interpolation: share of the zero-shot weights in the final w (WiSE-FT), below 1.

    Source: Lin et al., CVPR 2023, https://arxiv.org/abs/2301.06267, section 3, and the authors' code
    (https://github.com/linzhiqiu/cross_modal_adaptation at ac9077e), whose numbers it reproduces.
    Differs: the model's own scale instead of 100; all trainings begin with the same random weights.
    """

    augmented = "after_crop"
    class_bound = True
    closed_form = True
    uses_validation = True
    neutral_settings = None  # `prepare` trains it

    def __init__(
        self,
        clip: Clip,
        classes: Sequence[str],
        *,
        templates: str | list[str] = PLAIN,
        texts: bool = True,
        init: Literal["zeroshot", "random"] = "zeroshot",
        adapter: bool = False,
        rates: list[float] | None = None,
        decays: list[float] | None = None,
        batch_sizes: list[int] | None = None,
        iterations: int = 12_800,
        warmup_steps: int = 50,
        warmup_rate: float = 1e-5,
        evaluate_every: int = 100,
        n_views: int = 1,
        interpolation: float = 0.0,
    ) -> None:
        super().__init__(clip, classes)
        self.rates, self.decays = rates or [1e-3, 1e-4], decays or [0.0, 0.01, 1e-4]
        self.batch_sizes, e = batch_sizes or [8, 32], clip.image.embed_dim
        positive = iterations, evaluate_every, *self.batch_sizes, *self.rates, warmup_rate
        no_less = *self.decays, warmup_steps, n_views, interpolation
        if min(positive) <= 0 or min(no_less) < 0 or interpolation >= 1 or [] in (rates, decays, batch_sizes):
            raise UserError(
                f"method.{rates=}, {decays=}, {batch_sizes=}, {iterations=}, {evaluate_every=}, {warmup_steps=}, "
                f"{warmup_rate=}, {n_views=}, {interpolation=}: allowed are lists that are not empty, "
                "decays, warmup_steps and n_views of 0 or more, 0 to below 1 for the last, all others above 0"
            )
        self.templates, self.texts, self.init = expand_templates(templates), texts, init
        self.schedule: dict[str, Any] = {"warmup": warmup_steps, "first": warmup_rate, "period": iterations}
        self.iterations, self.evaluate_every, self.n_views = iterations, evaluate_every, n_views
        self.seed, self.interpolation = torch.initial_seed(), interpolation  # the batches' seed
        self.weight = nn.Parameter(torch.empty(len(self.classes), e).uniform_(-(e**-0.5), e**-0.5))
        down, up = nn.Linear(e, e // 4, bias=False), nn.Linear(e // 4, e, bias=False)
        self.adapter = nn.Sequential(down, nn.ReLU(), up, nn.ReLU()) if adapter else None

    @classmethod
    def overridden(cls, settings: Mapping[str, Any], *, val: bool, steps: bool) -> Overridden:
        rules = {} if val else {"evaluate_every": ("fit.select_on", "of which there are no images here: drop it")}
        if not settings["texts"] and settings["init"] == "random" and not settings["interpolation"]:
            rules["templates"] = ("method.texts", "so that no text is read: drop it")
        if not settings["warmup_steps"]:
            rules["warmup_rate"] = ("method.warmup_steps", "so that there is no warm-up: drop it")
        return rules

    def encode_classes(self) -> Float[Tensor, "C e"]:
        return self.select(self.weight)

    def compare(
        self, features: Float[Tensor, "B e"], class_features: Float[Tensor, "C e"] | None
    ) -> Float[Tensor, "B C"]:
        assert class_features is not None
        with torch.autocast(class_features.device.type, enabled=False):
            x = normalize(features)
            x = x if self.adapter is None else 0.2 * self.adapter(x) + 0.8 * x
            return self.clip.scale * x @ at_least_single(class_features).T

    def prepare(self, train: Batches, val: Batches | None) -> None:
        """The trainings. Raises: UserError: no validation images to choose one on, or too few samples."""
        views = [self.collect_features(train) for _ in range(1 + self.n_views)]
        images = torch.cat([features for features, _ in views]), torch.cat([labels for _, labels in views])
        kinds = [images, self.all_texts()] if self.texts else [images]
        grid = list(product(self.rates, self.decays, fitting(self.batch_sizes, kinds)))
        if val is None and len(grid) > 1:
            raise UserError(
                f"cross_modal chooses one of {len(grid)} trainings on validation images and this data set has none: "
                "give method.rates, decays and batch_sizes one value each, or draw some with sampler.name=lp_plus_plus"
            )
        zero_shot = normalize(self.zero_shot_features(self.templates, normalize=False))
        if self.init == "zeroshot":
            self.weight.data.copy_(zero_shot)
        seen, most = self.collect_features(val) if val else None, -1
        start = best = deepcopy(self.state_dict())
        for rate, decay, size in grid:
            self.load_state_dict(start)
            batches = islice(half_batches(kinds, size, seed=self.seed), self.iterations)
            for step, _ in enumerate(self.descend(batches, rate=rate, decay=decay)):
                if seen is not None and step % self.evaluate_every == 0 and (right := self.n_right(*seen)) > most:
                    most, best = right, deepcopy(self.state_dict())
        self.load_state_dict(best if seen else self.state_dict())
        self.zero_grad()
        self.weight.data.lerp_(zero_shot, self.interpolation)

    def descend(self, batches: Iterable[Samples], *, rate: float, decay: float) -> Iterator[Tensor]:
        """A step on each batch; yields the loss before it."""
        optimizer = torch.optim.AdamW(self.parameters(), lr=rate, weight_decay=decay, fused=self.weight.is_cpu)
        for step, (features, labels) in enumerate(batches):
            optimizer.param_groups[0]["lr"] = warm_cosine(step, rate, **self.schedule)
            optimizer.zero_grad()
            loss = F.cross_entropy(self.compare(features, self.encode_classes()), labels)
            loss.backward()
            optimizer.step()
            yield loss.detach()

    @torch.no_grad()
    def n_right(self, features: Float[Tensor, "N e"], labels: Int[Tensor, " N"]) -> int:
        return int((self.compare(features, self.encode_classes()).argmax(-1) == labels).sum())

    def all_texts(self) -> Samples:
        """Features and classes, template by template."""
        features = torch.cat([self.zero_shot_features([text], normalize=False) for text in self.templates])
        return features, torch.arange(len(self.classes), device=features.device).repeat(len(self.templates))
