"""CLIP-Adapter: a small network on the image feature."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from vlprompt.errors import UserError
from vlprompt.learners.base import Learner, Overridden
from vlprompt.towers import PLAIN, Clip, Images


class CLIPAdapter(Learner):
    """A small network on the image feature f.

    f -> ratio * relu(W2 relu(W1 f)) + (1 - ratio) * f

    Args:
        ratio: share of the network's output, 0 to 1.
        reduction: its hidden layer has 1/reduction of the embedding's width.

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
    ) -> None:
        super().__init__(clip, classes, template=template)
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

    def encode_classes(self) -> Float[Tensor, "C e"]:
        return self.zero_shot_features([self.template], normalize=False)

    def encode_images(self, images: Images) -> Float[Tensor, "B e"]:
        features = self.clip.image(images)
        return self.ratio * self.adapter(features) + (1 - self.ratio) * features
