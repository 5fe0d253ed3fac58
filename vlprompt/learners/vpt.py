"""VPT: learned tokens next to the image's patches."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn

from vlprompt.errors import UserError
from vlprompt.learners.base import Learner, check_depth
from vlprompt.learners.head import HeadKind, HeadStart
from vlprompt.towers import Clip, Edit, Edits


class VPT(Learner):
    """Visual prompt tuning: `n_tokens` learned tokens in each of the first `depth` layers (1: shallow).

    Args:
        head, head_start: as in Learner.
        init: "normal": N(0, 0.02^2), as for CLIP; "patch": uniform within sqrt(6 / (3 p^2 + width)) for patches of p
            by p pixels, as in the paper.
        project: width of the tokens before a linear map to the tower's; None: no such map.
        dropout: on the (mapped) tokens, while training.

    Source: Jia et al., ECCV 2022, https://arxiv.org/abs/2203.12119, section 3.2; on CLIP: Khattak et al., CVPR 2023.
    """

    needs = frozenset({"text", "vit"})
    edits_image = True
    neutral_settings = None  # its tokens are attended to whatever they hold

    def __init__(
        self,
        clip: Clip,
        classes: Sequence[str],
        *,
        n_tokens: int = 8,
        depth: int = 1,
        head: HeadKind = "text",
        head_start: HeadStart = "published",
        template: str = "a photo of a {}.",
        init: Literal["normal", "patch"] = "normal",
        project: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(clip, classes, template=template, head=head, head_start=head_start)
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

    def image_edits(self) -> Edits:
        tokens = self.dropout(self.project(self.tokens))
        return {layer: Edit(tokens=t) for layer, t in enumerate(tokens)}
