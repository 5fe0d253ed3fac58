"""What is done with a learner at test time: an image adapts it, or a stream of images does."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias

from jaxtyping import Float
from torch import Tensor

from vlprompt.errors import UserError
from vlprompt.learners.base import Learner
from vlprompt.towers import Images


@dataclass(frozen=True)
class ImageViews:
    """One test image: k views of it, the centre crop first, and what the learner makes of them.

    `features` [k, e] are those that the learner compares with classes, un-normalised; None where its logits need more.
    Both are None for a test-time method that takes gradients, which computes them itself.
    """

    images: Images
    logits: Float[Tensor, "k C"] | None = None
    features: Float[Tensor, "k e"] | None = None


Adapter: TypeAlias = Callable[[ImageViews], Float[Tensor, " C"]]
"""Logits of one test image from its views; of an online method it remembers the images before."""


class Adaptation(ABC):
    """A way of adapting a trained learner at test time.

    The constructor's keyword arguments are the schema of `conf/test_time/NAME.yaml`.

    Args:
        views: of each test image: the centre crop, and `views - 1` random ones, functions of (seed, image, view).
        augmix: whether random views are mixed as AugMix has it (Hendrycks et al., ICLR 2020), at severity 1.

    Raises:
        UserError: fewer than one view.
    """

    name: ClassVar[str]  # as in the configuration and in the records
    inference: ClassVar[Literal["episodic", "online"]] = "episodic"
    """Whether each image is judged by itself, or next to those before it in a stream whose order the seed draws."""
    takes_gradients: ClassVar[bool] = False

    def __init__(self, *, views: int = 64, augmix: bool = False) -> None:
        if views < 1:
            raise UserError(f"test_time.views is {views}: give a number of views, at least 1")
        self.views, self.augmix = views, augmix

    def check(self, learner: Learner) -> None:  # noqa: B027  (most can do with any learner)
        """Raises: UserError where the learner lacks what this needs, said before anything is trained."""

    @abstractmethod
    def start(self, learner: Learner, class_features: Float[Tensor, "C *e"] | None) -> Adapter:
        """Called before the first image of each test, with the learner bound to the test's classes.

        `class_features` are what `encode_classes` gives; the learner is in `eval` and what the adapter does leaves it
        as it was. Called without gradients, and so is the adapter, unless `takes_gradients`.
        """


def views_of(
    learner: Learner, images: Images, class_features: Float[Tensor, "C *e"] | None, adaptation: Adaptation
) -> ImageViews:
    """One image's views, with what the learner makes of them unless the method computes that itself."""
    if adaptation.takes_gradients:
        return ImageViews(images)
    if type(learner).logits is not Learner.logits:
        return ImageViews(images, learner.logits(images, class_features))
    features = learner.encode_images(images)
    return ImageViews(images, learner.compare(features, class_features), features)
