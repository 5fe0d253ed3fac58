"""VPT: learned tokens next to the image's patches."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vlprompt.errors import UserError
from vlprompt.learners.base import Learner, Overridden, check_depth
from vlprompt.learners.linear_head import make_head, without_decay_on_bias
from vlprompt.towers import Clip, Edit, Images


class VPT(Learner):
    """Visual prompt tuning: `n_tokens` learned tokens in each of the first `depth` layers (1: shallow).

    Args:
        head: "text": class names in the template; "linear": a head that works for the training classes only.
        init: "normal": N(0, 0.02^2), as for CLIP; "patch": uniform within sqrt(6 / (3 p^2 + width)) for patches of p
            by p pixels, as in the paper.
        project: width of the tokens before a linear map to the tower's; None: no such map.
        dropout: on the (mapped) tokens, while training.

    Source: Jia et al., ECCV 2022, https://arxiv.org/abs/2203.12119, section 3.2; on CLIP: Khattak et al., CVPR 2023.
    """

    needs = frozenset({"vit"})
    edits_image = True
    neutral_settings = None  # its tokens are attended to whatever they hold

    def __init__(
        self,
        clip: Clip,
        classes: Sequence[str],
        *,
        n_tokens: int = 8,
        depth: int = 1,
        head: Literal["text", "linear"] = "text",
        template: str = "a photo of a {}.",
        init: Literal["normal", "patch"] = "normal",
        project: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(clip, classes, template=template)
        check_depth("method.depth", depth, clip.image.depth)
        if n_tokens < 1 or (project or 1) < 1 or not 0 <= dropout < 1:
            raise UserError(
                f"method.n_tokens={n_tokens}, project={project}, dropout={dropout}: allowed are at least 1 token, a "
                "width of at least 1, and a dropout from 0 to below 1"
            )
        width = project or clip.image.width
        tokens = torch.randn(depth, n_tokens, width) * 0.02
        if init == "patch":
            bound = math.sqrt(6 / (3 * clip.image.patch_size**2 + width))
            tokens = tokens.uniform_(-bound, bound)
        self.tokens = nn.Parameter(tokens)  # [depth, n, d]
        self.project: nn.Module = nn.Identity()
        if project:
            self.project = nn.Linear(project, clip.image.width)
            nn.init.kaiming_normal_(self.project.weight, mode="fan_out")
        self.dropout = nn.Dropout(dropout)
        if head == "linear":
            self.head = make_head(clip.image.embed_dim, len(self.classes))
        elif clip.text is None:
            raise UserError(f"{clip.name} has no text tower: use method.head=linear")
        self.head_kind = head

    @classmethod
    def overridden(cls, settings: Mapping[str, Any], *, val: bool, steps: bool) -> Overridden:
        if settings["head"] != "linear":
            return {}
        return {"template": ("method.head", "which knows no names: drop it, or use text")}

    @property
    def class_bound(self) -> bool:
        return self.head_kind == "linear"

    def encode_classes(self) -> Float[Tensor, "C e"] | None:
        return None if self.head_kind == "linear" else super().encode_classes()

    def encode_images(self, images: Images) -> Float[Tensor, "B e"]:
        tokens = self.dropout(self.project(self.tokens))
        return self.clip.image(images, {layer: Edit(tokens=t) for layer, t in enumerate(tokens)})

    def compare(
        self, features: Float[Tensor, "B e"], class_features: Float[Tensor, "C e"] | None
    ) -> Float[Tensor, "B C"]:
        if class_features is not None:
            return super().compare(features, class_features)
        return self.select(self.head(features).to(self.head.weight.dtype), 1)

    def param_groups(self, fit: Any) -> list[dict[str, Any]]:
        return without_decay_on_bias(self) if self.class_bound else super().param_groups(fit)
