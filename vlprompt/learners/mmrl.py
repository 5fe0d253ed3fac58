"""MMRL: representation tokens, common to both towers, in their upper layers."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from vlprompt.errors import UserError
from vlprompt.learners.base import Learner, at_least_single, check_depth, scaled_cosine
from vlprompt.towers import PLAIN, Clip, Edit, Edits, Images


class MMRL(Learner):
    """Multi-modal representation learning: tokens of a shared space, mapped into the upper layers of both towers, and a
    second image feature read from them.

    logits = alpha * (cosines of the class token's feature) + (1 - alpha) * (cosines of the tokens' feature). Classes
    that were not trained on, and images of any other data set than the one trained on, are classified by the class
    token's feature alone.

    Args:
        n_tokens, space: tokens of the shared space and its width.
        first_layer: counted from 0; from there on, each layer gets its tokens from a map of its own. The maps of a
            tower start equal.
        alpha: share of the class token's feature in loss and logits; the rest is the tokens'.
        weight: of 1 - cosine to the frozen features, of images and of texts (lambda).
        std: deviation of the initial tokens.

    Source: Guo and Gu, CVPR 2025, https://arxiv.org/abs/2503.08497, section 3, and the authors' code
    (https://github.com/yunncheng/MMRL at 27d8821), whose numbers it reproduces.
    Differs: the model's own scale instead of 100.
    """

    revision = 2
    needs = frozenset({"text", "vit"})
    edits_image = True
    neutral_settings = None  # its tokens are attended to whatever they hold

    def __init__(
        self,
        clip: Clip,
        classes: Sequence[str],
        *,
        template: str = PLAIN,
        n_tokens: int = 5,
        space: int = 512,
        first_layer: int = 5,
        alpha: float = 0.7,
        weight: float = 1.0,
        std: float = 0.02,
    ) -> None:
        super().__init__(clip, classes, template=template)
        depth = min(clip.image.depth, self.text.depth)
        check_depth("method.first_layer + 1", first_layer + 1, depth)
        if first_layer < 1 or n_tokens < 1 or not 0 <= alpha <= 1:
            raise UserError(
                f"method.first_layer={first_layer}, n_tokens={n_tokens}, alpha={alpha}: allowed are at least 1, at "
                "least 1, and 0 to 1"
            )
        self.first_layer, self.alpha, self.weight = first_layer, alpha, weight
        self.tokens = nn.Parameter(torch.randn(n_tokens, space) * std)
        widths = {"image": clip.image.width, "text": self.text.width}
        self.maps = nn.ModuleDict()
        for tower, width in widths.items():
            first = nn.Linear(space, width)
            self.maps[tower] = nn.ModuleList(copy.deepcopy(first) for _ in range(first_layer, depth))
        if clip.image.projection is None:
            raise UserError(
                "MMRL reads its tokens by a matrix like the one that reads the class token, which this image tower "
                "does not have: choose one of OpenAI's ViTs (backbone=vit_b16)"
            )
        self.projection = nn.Parameter(torch.randn(clip.image.projection.shape) * clip.image.width**-0.5)  # [d, e]

    def edits(self, tower: str) -> Edits:
        """Tokens written into each layer from the first one on."""
        maps: Any = self.maps[tower]
        tokens = (at_least_single(project(self.tokens)) for project in maps)
        return {layer: Edit(tokens=written) for layer, written in enumerate(tokens, start=self.first_layer)}

    def encode_classes(self) -> Float[Tensor, "C e"]:
        return self.text(self.prompts, self.edits("text"))

    def image_edits(self) -> Edits:
        return self.edits("image")

    def encode_both(self, images: Images) -> tuple[Float[Tensor, "B e"], Float[Tensor, "B e"]]:
        """The class token's feature and that of the representation tokens."""
        tower, n = self.clip.image, len(self.tokens)
        table = tower.tokens(images, self.image_edits())
        tokens = tower.norm_out(table[:, tower.n_prefix_tokens : tower.n_prefix_tokens + n])
        return tower.project(table, n), tokens.mean(1) @ self.token_projection().to(tokens.dtype)

    def token_projection(self) -> Float[Tensor, "d e"]:
        """The matrix that reads the tokens."""
        return self.projection

    @property
    def mixes(self) -> bool:
        """Whether the tokens' feature has a share in the logits."""
        new_classes = self.rows is None and self.classes != self.trained_classes
        return not (self.transfer or new_classes)

    def logits(self, images: Images, class_features: Float[Tensor, "C e"] | None) -> Float[Tensor, "B C"]:
        assert class_features is not None
        if not self.mixes:
            return scaled_cosine(self.encode_images(images), class_features, self.clip.scale)
        by_class, by_tokens = (scaled_cosine(f, class_features, self.clip.scale) for f in self.encode_both(images))
        return self.mix(by_class, by_tokens)

    def mix(self, by_class: Tensor, by_tokens: Tensor) -> Tensor:
        return self.alpha * by_class + (1 - self.alpha) * by_tokens

    def loss(self, images: Images, labels: Int[Tensor, " B"]) -> tuple[Float[Tensor, ""], Float[Tensor, "B C"]]:
        features, classes = self.encode_both(images), self.encode_classes()
        by_class, by_tokens = (scaled_cosine(f, classes, self.clip.scale) for f in features)
        with torch.no_grad():
            frozen = self.clip.image(images)
        pairs = ((features[0], frozen), (classes, self.zero_shot_features([self.template])))
        near = [F.cosine_similarity(at_least_single(a), at_least_single(b)).mean() for a, b in pairs]
        mixed = self.mix(F.cross_entropy(by_class, labels), F.cross_entropy(by_tokens, labels))
        return mixed + self.weight * sum(1 - cosine for cosine in near), self.mix(by_class, by_tokens)
