"""Bottleneck adapters within the blocks."""

from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from vlprompt.errors import UserError
from vlprompt.learners.head import HeadKind, HeadStart
from vlprompt.learners.sites import SiteLearner, Towers
from vlprompt.towers import Clip


class Adapter(SiteLearner):
    """Bottleneck adapters: a small residual network after the attention and the MLP of each block, or the MLP alone.

    h -> h + W_up gelu(W_down h), for a branch's output h; W_up starts at zero, the learner as the frozen model.

    Args:
        towers: "image", "text" or "both".
        sites: "attn_mlp" (Houlsby et al.) or "mlp" (Pfeiffer et al.).
        bottleneck: hidden width.
        head, head_start: as in Learner.

    Source: Houlsby et al., ICML 2019, https://arxiv.org/abs/1902.00751, section 2.1; Pfeiffer et al., EACL 2021,
    https://arxiv.org/abs/2005.00247, section 3.
    Differs: norms stay frozen.
    """

    def __init__(
        self,
        clip: Clip,
        classes: Sequence[str],
        *,
        template: str = "a photo of a {}.",
        towers: Towers = "both",
        sites: Literal["attn_mlp", "mlp"] = "mlp",
        bottleneck: int = 16,
        head: HeadKind = "text",
        head_start: HeadStart = "probe",
    ) -> None:
        super().__init__(clip, classes, template=template, towers=towers, head=head, head_start=head_start)
        if bottleneck < 1:
            raise UserError(f"method.bottleneck is {bottleneck}: at least 1 is needed")
        self.fill(lambda tower, layer: {site: Bottleneck(tower.width, bottleneck) for site in sites.split("_")})


class Bottleneck(nn.Module):
    """h + up(gelu(down(h))), after a branch whose output is h."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width, hidden), nn.Linear(hidden, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, h: Tensor, stream: Tensor) -> Tensor:
        return h + self.up(F.gelu(self.down(h)))
