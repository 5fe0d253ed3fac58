"""CLIP-Adapter: a small network on the image feature."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from vlprompt.errors import UserError
from vlprompt.learners.base import Learner, Overridden
from vlprompt.learners.head import HeadKind, HeadStart
from vlprompt.towers import PLAIN, Clip, Images


class CLIPAdapter(Learner):
    """A small network on the image feature f.

    f -> ratio * relu(W2 relu(W1 f)) + (1 - ratio) * f

    Args:
        ratio: share of the network's output, 0 to 1.
        reduction: its hidden layer has 1/reduction of the embedding's width.
        head, head_start: as in Learner.

    Source: Gao et al., IJCV 2023, https://arxiv.org/abs/2110.04544, section 3.2; the variant on images alone, which
    the authors' code is.
    """

    neutral_settings: ClassVar = {"ratio": 0.0}

    def __init__(
        self,
        clip: Clip,
        classes: Sequence[str],
        *,
        template: str = PLAIN,
        ratio: float = 0.2,
        reduction: int = 4,
        head: HeadKind = "text",
        head_start: HeadStart = "probe",
    ) -> None:
        super().__init__(clip, classes, template=template, head=head, head_start=head_start)
        if not 0 <= ratio <= 1 or not 1 <= reduction <= clip.image.embed_dim:
            raise UserError(f"method.ratio={ratio}, reduction={reduction}: allowed are 0 to 1, and 1 to the width")
        e, self.ratio = clip.image.embed_dim, ratio
        layers = (nn.Linear(e, e // reduction, bias=False), nn.Linear(e // reduction, e, bias=False))
        self.adapter = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU())

    @classmethod
    def overridden(cls, settings: Mapping[str, Any], *, val: bool, steps: bool) -> Overridden:
        if settings["ratio"]:
            return {}
        return {"reduction": ("method.ratio", "so that its network has no share: drop it, or give another ratio")}

    def encode_images(self, images: Images) -> Float[Tensor, "B e"]:
        features = self.clip.image(images)
        return self.ratio * self.adapter(features) + (1 - self.ratio) * features
