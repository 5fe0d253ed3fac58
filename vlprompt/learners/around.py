"""What methods have in common that are built around another one."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from vlprompt.learners.base import Batches, Learner
from vlprompt.towers import Clip, Edits, Images, ImageTower, Prompts


class AroundLearner(Learner):
    """A learner that does what `inner` does, but for what a method defines in addition."""

    def __init__(self, clip: Clip, classes: Sequence[str], inner: Learner, *, template: str) -> None:
        super().__init__(clip, classes, template=template)
        self.inner = inner

    @property
    def edits_image(self) -> bool:
        return self.inner.edits_image

    @property
    def class_bound(self) -> bool:
        return self.inner.class_bound

    def bind(self, classes: Sequence[str], rows: Sequence[int] | None = None, *, transfer: bool = False) -> None:
        self.inner.bind(classes, rows, transfer=transfer)
        super().bind(classes, rows, transfer=transfer)

    def forget(self) -> None:
        super().forget()
        self.inner.forget()

    def make_prompts(self) -> Prompts:
        return self.inner.make_prompts()

    def encode_classes(self) -> Float[Tensor, "C e"] | None:
        return self.inner.encode_classes()

    def image_edits(self) -> Edits:
        return self.inner.image_edits()

    def image_tower(self) -> ImageTower:
        return self.inner.image_tower()

    def encode_images(self, images: Images) -> Float[Tensor, "B e"]:
        return self.inner.encode_images(images)

    def classes_for(
        self, features: Float[Tensor, "B e"], class_features: Float[Tensor, "C e"] | None
    ) -> Float[Tensor, "#B C e"] | None:
        return self.inner.classes_for(features, class_features)

    def compare(
        self, features: Float[Tensor, "B e"], class_features: Float[Tensor, "C e"] | None
    ) -> Float[Tensor, "B C"]:
        return self.inner.compare(features, class_features)

    def prepare(self, train: Batches, val: Batches | None) -> None:
        self.inner.prepare(train, val)

    def conclude(self, train: Batches, val: Batches | None) -> None:
        self.inner.conclude(train, val)
