"""PLOT++: several prompts a class and an image, matched by optimal transport."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vlprompt.errors import UserError
from vlprompt.learners.base import Learner, Overridden, normalize, scaled_cosine
from vlprompt.learners.context import words_of
from vlprompt.learners.transport import sinkhorn, uniform
from vlprompt.towers import Clip, Edit, Images, Prompts


class PLOTPlusPlus(Learner):
    """Prompt learning with optimal transport: M features of an image are matched with N features of a class.

    logit = scale * sum T_mn cos(f_m, t_n), T the entropic transport plan between them, through which no gradient goes.
    The first stage trains the image tokens alone, with the cosines of the mean features added to the logits; the second
    one both.

    Args:
        openings: N phrases in front of the class name; their tokens, as many as the first one has words, are learned,
            the others stay.
        cut_names: allow openings that have fewer tokens; what is learned then replaces the first ones of names, too.
        n_image_prompts, n_image_tokens: M, and the tokens of each at the first image layer, from N(0, 0.02^2); without
            tokens the image tower is left alone.
        image_share: share of the steps that the first stage takes; 0: there is none.
        transport: "sinkhorn", or "uniform": all pairs count the same.
        epsilon, iterations, threshold, stop: of the plan, as in `sinkhorn`.

    Source: Chen et al., ICLR 2023, https://arxiv.org/abs/2210.01253, section 3; image prompts and stages as in the
    authors' code (CHENGY12/PLOT, commit 728539f, plot-pp/trainers/plotpp.py).
    """

    context_names = ()  # they are several
    neutral_settings: ClassVar = {"openings": ["a photo of a"], "n_image_tokens": 0}

    def __init__(
        self,
        clip: Clip,
        classes: Sequence[str],
        *,
        openings: list[str],
        cut_names: bool = False,
        n_image_prompts: int = 4,
        n_image_tokens: int = 2,
        image_share: float = 0.5,
        transport: Literal["sinkhorn", "uniform"] = "sinkhorn",
        epsilon: float = 0.1,
        iterations: int = 100,
        threshold: float = 0.01,
        stop: Literal["image", "batch"] = "image",
    ) -> None:
        super().__init__(clip, classes)
        if min(n_image_prompts, epsilon, iterations) <= 0 or n_image_tokens < 0 or not 0 <= image_share < 1:
            raise UserError(
                f"method.{n_image_prompts=}, {epsilon=}, {iterations=}, {n_image_tokens=}, {image_share=}: allowed are "
                "numbers above 0, at least 0 tokens, and a share from 0 to below 1"
            )
        self.openings = [" ".join(words_of(opening)) for opening in openings]
        self.n_context = n = len(self.openings[0].split()) if openings else 0
        if not n or (not cut_names and min(map(self.text.count, self.openings)) < n):
            raise UserError(f"method.openings is {openings}: give phrases, each of as many words as the first or more")
        settings: dict[str, Any] = {"epsilon": epsilon, "iterations": iterations, "threshold": threshold, "stop": stop}
        self.plan: Callable[[Tensor], Tensor] = uniform if transport == "uniform" else partial(sinkhorn, **settings)
        ids, first = self.text.tokenize(self.openings), self.text.n_prefix_tokens
        self.context = nn.Parameter(self.text.embed(ids[:, first : first + n]).float().clone())  # [N, n, d]
        self.tokens = None
        if n_image_tokens:
            clip.image.require_blocks()
            tokens = torch.randn(n_image_prompts, n_image_tokens, clip.image.width) * 0.02
            self.tokens = nn.Parameter(tokens)  # [M, n, d]
        self.stages = (image_share, 1 - image_share) if image_share and n_image_tokens else (1.0,)
        self.register_buffer("stage", torch.tensor(0))
        self._texts: list[Prompts] = []

    @classmethod
    def overridden(cls, settings: Mapping[str, Any], *, val: bool, steps: bool) -> Overridden:
        rules: Overridden = {}
        if settings["transport"] == "uniform":
            why = "which computes no plan: drop it, or use sinkhorn"
            rules |= dict.fromkeys(("epsilon", "iterations", "threshold", "stop"), ("method.transport", why))
        if not settings["n_image_tokens"]:
            why = "which leaves the image tower alone: drop it, or give tokens"
            rules |= dict.fromkeys(("n_image_prompts", "image_share"), ("method.n_image_tokens", why))
        return rules

    @property
    def edits_image(self) -> bool:
        return self.tokens is not None

    @property
    def first_stage(self) -> bool:
        return len(self.stages) > 1 and not self.stage

    def forget(self) -> None:
        super().forget()
        self._texts = []

    def texts(self) -> list[Prompts]:
        """The classes after each opening; made once per bind."""
        self._texts = self._texts or [self.worded(opening) for opening in self.openings]
        return self._texts

    def worded(self, opening: str) -> Prompts:
        prompts = self.text.prompts(self.classes, template=f"{opening} {{}}.")
        n_shared, room = len(prompts.shared), prompts.n_prefix_tokens + self.n_context
        if int(prompts.eot.min()) + n_shared < room:
            raise UserError(f"method.openings: '{opening}' is too short for a context of {self.n_context} tokens")
        if n_shared >= room or not n_shared:
            return prompts
        return replace(prompts, shared=prompts.shared[:0], suffix=prompts.whole(), eot=prompts.eot + n_shared)

    def encode_classes(self) -> Float[Tensor, "C N e"]:
        context = self.context.detach() if self.first_stage else self.context
        pairs = zip(self.texts(), context, strict=True)
        return torch.stack([self.text(texts.with_context(vectors)) for texts, vectors in pairs], 1)

    def encode_each(self, images: Images) -> Float[Tensor, "B M e"]:
        """A feature of each image for each image prompt."""
        edits = [{}] if self.tokens is None else [{0: Edit(tokens=tokens)} for tokens in self.tokens]
        return torch.stack([self.clip.image(images, one) for one in edits], 1)

    def encode_images(self, images: Images) -> Float[Tensor, "B e"]:
        return self.encode_each(images).mean(1)

    def classes_for(
        self, features: Float[Tensor, "B e"], class_features: Float[Tensor, "C N e"] | None
    ) -> Float[Tensor, "1 C e"]:
        assert class_features is not None
        return class_features.mean(1)[None]

    def compare(
        self, features: Float[Tensor, "B e"], class_features: Float[Tensor, "C N e"] | None
    ) -> Float[Tensor, "B C"]:
        return scaled_cosine(features, self.classes_for(features, class_features)[0], self.clip.scale)

    def logits(self, images: Images, class_features: Float[Tensor, "C N e"] | None) -> Float[Tensor, "B C"]:
        assert class_features is not None
        features = self.encode_each(images)
        with torch.autocast(features.device.type, enabled=False):
            cosines = torch.einsum("bme,cne->bcmn", normalize(features), normalize(class_features))
            logits = self.clip.scale * (self.plan(cosines) * cosines).sum((2, 3))
        return logits + self.compare(features.mean(1), class_features) if self.first_stage else logits
