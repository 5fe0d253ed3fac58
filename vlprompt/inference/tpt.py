"""Test-time prompt tuning: a learner's context takes a step on each test image."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vlprompt.errors import UserError
from vlprompt.inference.base import Adaptation, ImageViews
from vlprompt.inference.views import by_confidence, check_selection
from vlprompt.learners.around import AroundLearner
from vlprompt.learners.base import Learner, normalize
from vlprompt.learners.cocoop import CoCoOp
from vlprompt.learners.context import words_of
from vlprompt.learners.coop import CoOp
from vlprompt.learners.ivlp import IVLP
from vlprompt.learners.p_tuning import PTuning
from vlprompt.learners.zero_shot import ZeroShot
from vlprompt.towers import Images

Loss = Callable[[Float[Tensor, "n C"], Float[Tensor, "C e"]], Float[Tensor, ""]]
"""From the logits of the selected views and the class features."""
SCALE = 2.0**10  # of losses, so that gradients do not vanish in float16; a power of two rounds nothing


class TPT(Adaptation):
    """Test-time prompt tuning: the context is tuned until views of the test image are classified alike and surely.

    loss = entropy of the mean prediction of the views whose own predictions have the lowest entropies

    The centre crop is classified with the context after the last step; the next image starts from the learner's own.

    Args:
        views, augmix: as in Adaptation.
        selection: share of the views whose predictions are averaged, rounded down, at least one view.
        steps: of AdamW; those after the first one keep its views.
        lr, weight_decay: of AdamW.
        ctx_init: the context that zero-shot CLIP starts from, whatever its template; learners start from theirs.

    Source: Shu et al., NeurIPS 2022, https://arxiv.org/abs/2209.07511, section 3.2, and the authors' code
    (azshue/TPT, commit 63ecbac, tpt_classification.py). CoCoOp's context is the one of the centre crop; of MaPLe all
    parameters are tuned, as in PromptAlign (Abdul Samadh et al., NeurIPS 2023).

    Raises:
        UserError: a setting out of range.
    """

    name = "tpt"
    takes_gradients = True

    def __init__(
        self,
        *,
        views: int = 64,
        augmix: bool = True,
        selection: float = 0.1,
        steps: int = 1,
        lr: float = 5e-3,
        weight_decay: float = 0.01,
        ctx_init: str = "a photo of a",
    ) -> None:
        super().__init__(views=views, augmix=augmix)
        check_selection(selection)
        if steps < 1 or not 0 < lr < math.inf or not 0 <= weight_decay < math.inf:
            raise UserError(
                f"test_time.{steps=}, {lr=}, {weight_decay=}: allowed are at least one step, a rate above 0, and a "
                "decay of 0 or more"
            )
        if not words_of(ctx_init):
            raise UserError("test_time.ctx_init is empty: give the words that zero-shot CLIP starts from")
        self.selection, self.steps, self.lr, self.weight_decay = selection, steps, lr, weight_decay
        self.ctx_init = ctx_init

    def losses(self) -> Sequence[Loss]:
        """What each step goes down, one update after the other."""
        return [entropy_of_mean]

    def check(self, learner: Learner) -> None:
        if not isinstance(learner, ZeroShot) and not context_of(learner, any_feature(learner)):
            raise UserError(
                f"test_time={self.name} tunes a context in front of the class names, and {type(learner).__name__} has "
                "none: choose a learner of one (coop, cocoop, kgcoop, prograd, tcp, maple, ivlp, promptsrc, "
                "language_prompts, p_tuning for the text, dept around one of them), zero_shot, or another test_time"
            )

    def start(self, learner: Learner, class_features: Float[Tensor, "C *e"] | None) -> "Tuning":
        self.check(learner)
        if isinstance(learner, ZeroShot):
            return Tuning(self, CoOp(learner.clip, learner.classes, n_context=None, ctx_init=self.ctx_init))
        return Tuning(self, learner, of_image=class_features is None)


class CTPT(TPT):
    """Calibrated test-time prompt tuning: TPT that also spreads the class features, against over-confidence.

    loss = TPT's - dispersion * mean distance of the normalised class features from their mean

    Args:
        views, augmix, selection, steps, lr, weight_decay, ctx_init: as in TPT.
        dispersion: weight of the second term (lambda).
        two_step: an update on each term, one after the other, instead of one on both.

    Source: Yoon et al., ICLR 2024, https://arxiv.org/abs/2403.14119, section 4, and the authors' code
    (hee-suk-yoon/C-TPT, commit 085e6c2, tpt_classification.py).
    """

    name = "c_tpt"

    def __init__(
        self,
        *,
        views: int = 64,
        augmix: bool = True,
        selection: float = 0.1,
        steps: int = 1,
        lr: float = 5e-3,
        weight_decay: float = 0.01,
        ctx_init: str = "a photo of a",
        dispersion: float = 50.0,
        two_step: bool = False,
    ) -> None:
        of_tpt: dict[str, Any] = {"selection": selection, "steps": steps, "lr": lr, "weight_decay": weight_decay}
        super().__init__(views=views, augmix=augmix, ctx_init=ctx_init, **of_tpt)
        if not 0 <= dispersion < math.inf:
            raise UserError(f"test_time.dispersion is {dispersion}, allowed is a weight of 0 or more")
        self.dispersion, self.two_step = dispersion, two_step

    def losses(self) -> Sequence[Loss]:
        def closeness(logits: Tensor, classes: Tensor) -> Tensor:
            return -self.dispersion * dispersion_of(classes)

        def both(logits: Tensor, classes: Tensor) -> Tensor:
            return entropy_of_mean(logits, classes) + closeness(logits, classes)

        return [entropy_of_mean, closeness] if self.two_step else [both]


@dataclass(frozen=True)
class Point:
    """Values of the context by names of the learner's parameters, and the class features that depend on them."""

    context: Mapping[str, Tensor]
    classes: Float[Tensor, "C *e"]

    def detach(self) -> "Point":
        return Point({name: value.detach() for name, value in self.context.items()}, self.classes.detach())


class Tuning:
    """The adapter of a learner: each image starts from the learner's own context, whose parameters stay as they are.

    Where all images start from the same context, the text tower runs from there once, and each image goes back through
    that. With `of_image` the start is each image's own.
    """

    def __init__(self, method: TPT, learner: Learner, *, of_image: bool = False) -> None:
        self.method, self.learner, self.calls = method, learner, Calls(learner)
        self.reads_images = moves_images(learner) or type(learner).logits is not Learner.logits
        self.begun = None if of_image else self.begin(any_feature(learner))

    def begin(self, centre: Float[Tensor, "1 e"]) -> Point:
        with torch.no_grad():
            context = context_of(self.learner, centre)
        return self.point(context)

    @torch.enable_grad()
    def point(self, context: Mapping[str, Tensor]) -> Point:
        """With gradients. The tensors are no leaves of the graph, whose rounded values autocast remembers."""
        context = {name: value.detach().requires_grad_().clone() for name, value in context.items()}
        return Point(context, self.calls.at(context, encode_classes))

    @torch.enable_grad()
    def __call__(self, views: ImageViews) -> Float[Tensor, " C"]:
        with torch.no_grad():
            features = None if self.reads_images else self.learner.encode_images(views.images)
            centre = slice(1)
            begun = self.begun or self.begin(self.learner.encode_images(rows(views.images, centre)))

            def logits(at: Any, point: Point) -> Float[Tensor, "n C"]:
                if features is None:
                    images = rows(views.images, at)
                    return self.calls.at(point.context, type(self.learner).logits, images, point.classes)
                return self.learner.compare(features[at], point.classes)

            selected, _ = by_confidence(logits(slice(None), begun.detach()), self.method.selection)
        context = {name: value.detach().clone() for name, value in begun.context.items()}
        optimizer = torch.optim.AdamW(context.values(), lr=self.method.lr, weight_decay=self.method.weight_decay)
        for n, loss in enumerate([*self.method.losses()] * self.method.steps):
            now = self.point(context) if n else begun
            value = SCALE * loss(logits(selected, now), now.classes)
            gradients = torch.autograd.grad(value, [*now.context.values()], retain_graph=n == 0, allow_unused=True)
            for tensor, gradient in zip(context.values(), gradients, strict=True):
                tensor.grad = None if gradient is None else gradient / SCALE
            optimizer.step()
        with torch.no_grad():
            return logits(centre, Point(context, self.calls.at(context, encode_classes)))[0]


class Calls(nn.Module):
    """Calls functions of a learner with other values of some of its parameters."""

    def __init__(self, learner: Learner) -> None:
        super().__init__()
        self.learner = learner

    def at(self, values: Mapping[str, Tensor], function: Callable[..., Tensor], *arguments: Any) -> Tensor:
        values = {f"learner.{name}": value for name, value in values.items()}
        return torch.func.functional_call(self, values, (function, *arguments))

    def forward(self, function: Callable[..., Tensor], *arguments: Any) -> Tensor:
        return function(self.learner, *arguments)


def context_of(learner: Learner, centre: Float[Tensor, "1 e"]) -> dict[str, Tensor]:
    """What is tuned, by the names of the learner's parameters; CoCoOp's is generated from the centre crop's feature."""
    if isinstance(learner, AroundLearner):
        return {f"inner.{name}": value for name, value in context_of(learner.inner, centre).items()}
    if isinstance(learner, CoCoOp):
        return {"context": learner.context_for(centre)[0]}
    return {name: p for name, p in learner.named_parameters() if name.startswith(learner.context_names)}


def encode_classes(learner: Learner) -> Float[Tensor, "C *e"]:
    """Class features with the context as it stands, also of CoCoOp, whose meta-network has had its turn."""
    inner = inner_of(learner)
    if isinstance(inner, CoCoOp):
        return inner.text(inner.prompts.with_context(inner.context))
    classes = learner.encode_classes()
    assert classes is not None
    return classes


def moves_images(learner: Learner) -> bool:
    """Whether image features depend on what is tuned; where image tokens have nothing of the text's, they do not."""
    return learner.edits_image and not isinstance(inner_of(learner), IVLP | PTuning)


def inner_of(learner: Learner) -> Learner:
    return learner.inner if isinstance(learner, AroundLearner) else learner


def entropy_of_mean(logits: Float[Tensor, "n C"], classes: Tensor | None = None) -> Float[Tensor, ""]:
    """The entropy of the mean of the views' predictions."""
    log_p = logits.log_softmax(-1).logsumexp(0) - math.log(len(logits))
    return -(log_p.exp() * log_p).sum()


def dispersion_of(classes: Float[Tensor, "C e"]) -> Float[Tensor, ""]:
    """The mean distance of the normalised class features from their mean."""
    classes = normalize(classes)
    return (classes - classes.mean(0)).norm(dim=-1).mean()


def rows(images: Images, at: Any) -> Images:
    """Some of the images."""
    pixels, features = images.pixels, images.features
    return Images(None if pixels is None else pixels[at], None if features is None else features[at])


def any_feature(learner: Learner) -> Float[Tensor, "1 e"]:
    return torch.ones(1, learner.clip.image.embed_dim, device=learner.clip.device)
