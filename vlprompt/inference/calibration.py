"""Calibration: a trained learner's logits scaled, so that its confidences say how often it is right."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from scipy.optimize import minimize_scalar
from torch import Tensor

from vlprompt.errors import UserError
from vlprompt.learners.base import Learner, normalize
from vlprompt.learners.zero_shot import ZeroShot
from vlprompt.towers import PLAIN

Calibrator: TypeAlias = Callable[[Float[Tensor, "N C"]], Float[Tensor, "N C"]]
"""Logits -> logits."""
WIDEST = math.log(100)  # of the optimum's scale: from a hundredth to a hundredfold
NEAR = 0.05  # of a class to one that was trained on, at which DAC takes them for the same


class Calibration(ABC):
    """A way of scaling logits, fitted after the training.

    The constructor's keyword arguments are the schema of `conf/calibration/NAME.yaml`. A learner carries a fitted one
    as `learner.calibration`.
    """

    name: ClassVar[str]  # as in the configuration and in the records
    on_images: ClassVar[bool] = True
    """Whether it is fitted on validation images."""

    def check(self, learner: Learner) -> None:  # noqa: B027  (most can do with any learner)
        """Raises: UserError where the learner lacks what this needs, said before anything is trained."""

    def fit(self, logits: Float[Tensor, "N C"], labels: Int[Tensor, " N"], scale: float) -> None:  # noqa: B027
        """Choose what there is to choose, on logits of validation images; `scale` is that of the frozen model."""

    def attach(self, learner: Learner) -> None:  # noqa: B027
        """Remember what is needed of a learner in `eval` that is bound to the classes it was trained on."""

    @abstractmethod
    def start(self, learner: Learner, class_features: Float[Tensor, "C *e"] | None) -> Calibrator:
        """What is done to the logits of a learner among the classes that it is bound to now.

        `class_features` are what its `encode_classes` gives.
        """

    @property
    def fitted(self) -> dict[str, float]:
        """The numbers that `fit` chose, by the names of the attributes."""
        return {}

    @property
    def stored(self) -> dict[str, Any]:
        """What a file says of it: its name, its arguments, and the numbers that were chosen."""
        arguments = {f.name: getattr(self, f.name) for f in fields(self) if f.init}  # type: ignore[arg-type]
        return {"name": self.name, "arguments": arguments, **self.fitted}

    @property
    def told(self) -> dict[str, Any]:
        """What a record says of it: its name, and the numbers that were chosen."""
        return {"name": self.name, **self.fitted}


def calibrator(learner: Learner, class_features: Float[Tensor, "C *e"] | None) -> Calibrator:
    """What the calibration that a learner carries does to its logits; nothing where it carries none."""
    if learner.calibration is None:
        return lambda logits: logits
    start: Calibrator = learner.calibration.start(learner, class_features)
    return start


@dataclass(kw_only=True)
class Temperature(Calibration):
    """Temperature scaling: one number that multiplies all logits, 1/T, by the likelihood of validation images.

    p(y|x) = softmax(scale * logits); no prediction changes.

    Args:
        solver: "optimum": the scale with the smallest negative log-likelihood; "sgd": that of published benchmarks of
            CLIPs, twenty epochs of SGD on the logarithm of the model's whole scale, which weight decay pulls to zero.

    Where each validation image is classified rightly the likelihood has no maximum, and the optimum's scale stays 1.

    Source: Guo et al., ICML 2017, https://arxiv.org/abs/1706.04599, section 4.2; for "sgd", Wang et al., ICML 2024,
    https://arxiv.org/abs/2402.04655, and its code.
    """

    name: ClassVar[str] = "temperature"
    solver: Literal["optimum", "sgd"] = "optimum"
    scale: float = field(default=1.0, init=False)

    def fit(self, logits: Float[Tensor, "N C"], labels: Int[Tensor, " N"], scale: float) -> None:
        if self.solver == "optimum":
            self.scale = best_scale(logits, labels)
        else:
            *_, last = sgd(logits, labels, math.log(scale))
            self.scale = math.exp(last.log_scale) / scale

    def start(self, learner: Learner, class_features: Float[Tensor, "C *e"] | None) -> Calibrator:
        return lambda logits: self.scale * logits

    @property
    def fitted(self) -> dict[str, float]:
        return {"scale": self.scale}


def nll(logits: Float[Tensor, "N C"], labels: Int[Tensor, " N"], log_scale: float | Tensor = 0.0) -> Float[Tensor, ""]:
    """Mean negative log-likelihood, in nats, at the exponential of `log_scale` times these logits."""
    return F.cross_entropy(torch.as_tensor(log_scale).exp() * logits, labels)


def best_scale(logits: Float[Tensor, "N C"], labels: Int[Tensor, " N"]) -> float:
    """The factor with the smallest negative log-likelihood, a convex function of it; 1 where it has no minimum."""
    logits = logits.double()
    if separates(logits, labels):
        return 1.0
    of_log = minimize_scalar(lambda x: float(nll(logits, labels, x)), bounds=(-WIDEST, WIDEST), method="bounded",
                             options={"xatol": 1e-8})  # fmt: skip
    return math.exp(of_log.x) if of_log.fun < float(nll(logits, labels)) else 1.0


def separates(logits: Float[Tensor, "N C"], labels: Int[Tensor, " N"]) -> bool:
    """Whether every label has the one largest logit, so that a larger scale is always likelier."""
    others = logits.scatter(1, labels[:, None], -math.inf).amax(1)
    return bool((logits.gather(1, labels[:, None])[:, 0] > others).all())


class Step(NamedTuple):
    """One step of `sgd`: the loss before it, its rate, and the logarithm of the scale after it."""

    loss: float
    lr: float
    log_scale: float


def sgd(
    logits: Float[Tensor, "N C"],
    labels: Int[Tensor, " N"],
    log_scale: float,
    *,
    epochs: int = 20,
    lr: float = 0.05,
    batch_size: int = 100,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    warmup_lr: float = 1e-5,
) -> Iterator[Step]:
    """SGD on the logarithm of the scale from that of these logits on, in float32, over the images in their order.

    The first epoch has the rate `warmup_lr`, each later one its own on a cosine.

    Source: https://github.com/ml-stat-Sustech/CLIP_Calibration, TempScaling and Dassl's schedule.
    """
    cosines = logits / math.exp(log_scale)
    learned = torch.tensor(log_scale, dtype=logits.dtype, device=logits.device, requires_grad=True)
    optimizer = torch.optim.SGD([learned], lr=warmup_lr, momentum=momentum, weight_decay=weight_decay)
    for epoch in range(epochs):
        rate = lr * (1 + math.cos(math.pi * (epoch - 1) / epochs)) / 2 if epoch else warmup_lr
        optimizer.param_groups[0]["lr"] = rate
        for x, y in zip(cosines.split(batch_size), labels.split(batch_size), strict=True):
            with torch.enable_grad():
                loss = nll(x, y, learned)
                (learned.grad,) = torch.autograd.grad(loss, learned)
            optimizer.step()
            yield Step(float(loss.detach()), rate, float(learned.detach()))


@dataclass(kw_only=True)
class DAC(Calibration):
    """Distance-aware calibration: logits of classes that were not trained on, by how far the training moved them.

    p(y|x) = softmax(g(c) * logits), c the predicted class,
    g(c) = exp(-d_tuned(c)) / exp(-d_frozen(c)), d(c) the mean distance of its text feature to the k nearest of the
    classes trained on, and 1 where the nearest of the tuned ones is closer than 0.05: these classes stay as they are.

    A picture's logits are multiplied by one number, so no prediction changes. It needs no validation images and, as in
    the paper, includes no temperature.

    Args:
        k: nearest classes.
        template: text of the frozen features, with one {}; None: the data set's.

    Raises:
        UserError: k below 1.

    Source: Wang et al., ICML 2024, https://arxiv.org/abs/2402.04655, section 4. Of fewer than k classes the code, and
    this, divides the sum of the distances by k.
    """

    name: ClassVar[str] = "dac"
    on_images: ClassVar[bool] = False
    k: int = 5
    template: str | None = None
    base: tuple[Tensor, Tensor] | None = field(default=None, init=False)
    """Tuned and frozen text features of the classes trained on."""

    def __post_init__(self) -> None:
        if self.k < 1:
            raise UserError(f"calibration.k is {self.k}: give a number of nearest classes, at least 1")

    @torch.no_grad()
    def check(self, learner: Learner) -> None:
        kind = type(learner).__name__
        if isinstance(learner, ZeroShot):
            why = "is not trained, so that none of its classes has moved"
        elif learner.class_bound:
            why = "knows no classes but those it was trained on"
        elif (features := class_features_of(learner)) is None or features.ndim != 2:
            why = "has no one text feature of each class"
        else:
            return
        raise UserError(
            f"calibration=dac compares text features before and after the training, and {kind} as it is set here "
            f"{why}: use calibration=temperature, or a method such as coop or maple"
        )

    @torch.no_grad()
    def attach(self, learner: Learner) -> None:
        features = learner.encode_classes()
        assert features is not None
        self.base = features, self.zero_shot(learner)

    @torch.no_grad()
    def start(self, learner: Learner, class_features: Float[Tensor, "C *e"] | None) -> Calibrator:
        assert class_features is not None
        assert self.base is not None  # `attach` comes first
        factors = dac_factors(class_features, self.zero_shot(learner), *self.base, k=self.k)
        return lambda logits: factors.to(logits.device)[logits.argmax(-1)][:, None] * logits

    def zero_shot(self, learner: Learner) -> Float[Tensor, "C e"]:
        return learner.zero_shot_features([self.template or PLAIN])


def class_features_of(learner: Learner) -> Float[Tensor, "C *e"] | None:
    """What `encode_classes` gives, of a learner that is to be trained: its caches and all random states stay."""
    training = learner.training
    with torch.random.fork_rng(devices=[]):
        features = learner.eval().encode_classes()
    learner.train(training).forget()
    return features


def dac_factors(
    tuned: Float[Tensor, "C e"],
    frozen: Float[Tensor, "C e"],
    tuned_base: Float[Tensor, "B e"],
    frozen_base: Float[Tensor, "B e"],
    *,
    k: int,
) -> Float[Tensor, " C"]:
    """DAC's factor of each class, from text features of it and of the classes trained on, after and before training."""
    of_tuned, of_frozen = nearest(tuned, tuned_base, k), nearest(frozen, frozen_base, k)
    factors = ((of_frozen.sum(1) - of_tuned.sum(1)) / k).exp()
    return torch.where(of_tuned[:, 0] < NEAR, 1.0, factors)


def nearest(features: Float[Tensor, "C e"], base: Float[Tensor, "B e"], k: int) -> Float[Tensor, "C n"]:
    """Distances to the k nearest of `base`, or to all where these are fewer, smallest first; features normalised."""
    base = normalize(base.to(features.device))
    distances = torch.cdist(normalize(features), base, compute_mode="donot_use_mm_for_euclid_dist")
    return distances.topk(min(k, len(base)), largest=False).values
