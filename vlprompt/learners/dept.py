"""DePT: a prompt learner next to a linear head, which takes over what the training classes alone need."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from vlprompt.errors import UserError
from vlprompt.learners.around import AroundLearner
from vlprompt.learners.base import Learner, Overridden, at_least_single
from vlprompt.learners.inner import computed_once, no_prompts, prompt_learner
from vlprompt.towers import PLAIN, Clip, Images


class DePT(AroundLearner):
    """Decoupled prompt tuning: a head on scaled and shifted channels leaves the prompts what all classes share.

    loss = the inner learner's, with (1 - weight) of its cross-entropy, + weight * cross-entropy of the head, on image
    features and on class features of the labels; logits = (1 - weight) * the inner learner's + weight * the head's for
    training classes and subsets of them, the inner learner's alone for others.

    Args:
        inner: the prompt learner: coop, cocoop, kgcoop, tcp, maple, ivlp, promptsrc, or the import path of another one.
        arguments: its settings, where they differ from its class's.
        template: the inner learner's, where it has one.
        weight: of the head (lambda), 0 to 1; with 0 there is the inner learner alone.
        rate: of the head and the channels, in multiples of `fit.lr`; a constant warm-up has one rate for all.

    Source: Zhang et al., CVPR 2024, https://arxiv.org/abs/2309.07439, section 3.3; features and rates as in the
    authors' code (Koorye/DePT, commit d4ff416, trainers/elp_coop.py).
    """

    def __init__(
        self,
        clip: Clip,
        classes: Sequence[str],
        *,
        inner: str = "coop",
        arguments: dict[str, Any] | None = None,
        template: str = PLAIN,
        weight: float = 0.7,
        rate: float = 6.5,
    ) -> None:
        if not 0 <= weight <= 1 or rate <= 0:
            raise UserError(f"method.weight={weight}, rate={rate}: allowed is a weight from 0 to 1 and a rate above 0")
        kind, settings = self.built_around({"inner": inner, "arguments": arguments, "template": template})
        learner = kind(clip, classes, **settings)
        others = learner.mergeable or learner.has_head or learner.closed_form or len(learner.stages) > 1
        if others or not list(learner.parameters()):
            raise no_prompts(inner)
        super().__init__(clip, classes, learner, template=template)
        self.weight, self.rate, n = weight, rate, clip.image.embed_dim
        self.linear, self.text_channels, self.image_channels = nn.Linear(n, len(self.classes)), Channels(n), Channels(n)

    @classmethod
    def built_around(cls, settings: Mapping[str, Any]) -> tuple[type[Learner], dict[str, Any]]:
        kind, arguments = prompt_learner(settings.get("inner", "coop")), settings.get("arguments") or {}
        worded = "template" in settings and "template" in inspect.signature(kind).parameters
        return kind, {**({"template": settings["template"]} if worded else {}), **arguments}

    @classmethod
    def neutral(cls, clip: Clip, classes: Sequence[str], **settings: Any) -> Learner | None:
        kind, arguments = cls.built_around(settings)
        if (inner := kind.neutral(clip, classes, **arguments)) is None:
            return None
        learner = cls(clip, classes, **{**settings, "weight": 0.0})
        learner.inner = inner
        return learner

    @classmethod
    def overridden(cls, settings: Mapping[str, Any], *, val: bool, steps: bool) -> Overridden:
        kind, arguments = cls.built_around(settings)
        rules: Overridden = {}
        if not settings["weight"]:
            rules["rate"] = ("method.weight", "so that there is no head: drop it, or give another weight")
        if "template" in (settings["arguments"] or {}):
            rules["template"] = ("method.arguments", "which has another one: drop one of the two")
        elif "template" not in arguments:
            rules["template"] = ("method.inner", f"and {kind.__name__} has none: drop it, or use another, as kgcoop")
        return rules

    def compare(
        self, features: Float[Tensor, "B e"], class_features: Float[Tensor, "C e"] | None
    ) -> Float[Tensor, "B C"]:
        return self.mix(super().compare(features, class_features), features)

    def mix(self, logits: Float[Tensor, "B C"], features: Float[Tensor, "B e"]) -> Float[Tensor, "B C"]:
        """The inner learner's logits with the head's, where that knows the classes."""
        if not self.weight or (self.rows is None and self.classes != self.trained_classes):
            return logits
        return (1 - self.weight) * logits + self.weight * self.select(self.classify(self.image_channels(features)), 1)

    def classify(self, features: Float[Tensor, "B e"]) -> Float[Tensor, "B C"]:
        with torch.autocast(features.device.type, enabled=False):
            return self.linear(features)

    def loss(self, images: Images, labels: Int[Tensor, " B"]) -> tuple[Float[Tensor, ""], Float[Tensor, "B C"]]:
        if not self.weight:
            return self.inner.loss(images, labels)
        with computed_once(self.inner, "encode_images", "encode_classes", "classes_for"):
            loss, logits = self.inner.loss(images, labels)
            features = self.encode_images(images)
            classes: Any = self.classes_for(features, self.encode_classes())
        of_labels = classes.expand(len(labels), -1, -1)[torch.arange(len(labels), device=labels.device), labels]
        both = torch.cat([self.text_channels(of_labels), self.image_channels(features)])
        head = F.cross_entropy(self.classify(both), torch.cat([labels, labels]))
        return loss + self.weight * (head - F.cross_entropy(logits, labels)), self.mix(logits, features)

    def param_groups(self, fit: Any) -> list[dict[str, Any]]:
        parts = (self.linear, self.text_channels, self.image_channels)
        others = {"params": [p for part in parts for p in part.parameters()], "lr": fit.lr * self.rate}
        return [*self.inner.param_groups(fit), {**others, "same_warmup": True}]


class Channels(nn.Module):
    """A scale and a shift of each channel, at least in float32."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(n)), nn.Parameter(torch.zeros(n))

    def forward(self, x: Float[Tensor, "*n e"]) -> Float[Tensor, "*n e"]:
        return self.weight * at_least_single(x) + self.bias
