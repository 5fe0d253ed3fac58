"""Bottleneck adapters within the blocks."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from vlprompt.errors import UserError
from vlprompt.learners.head import HeadKind, HeadStart
from vlprompt.learners.sites import SiteLearner, Towers
from vlprompt.towers import Clip

ACTIVATIONS = {"gelu": F.gelu, "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"), "relu": F.relu, "swish": F.silu}


class Adapter(SiteLearner):
    """Bottleneck adapters after the attention and the MLP of each block, or the MLP: h -> h + W_up act(W_down h).

    Args:
        towers, head, head_start: "image", "text" or "both"; as in Learner.
        sites, reads: "attn_mlp" and "branch" (Houlsby et al.); "mlp" and "sum", W_down (h + stream) (Pfeiffer).
        bottleneck, activation: hidden width; "gelu", its approximation by tanh ("gelu_tanh"), "relu" or "swish".
        std: deviation of the initial weights, cut at twice as much, with biases of zero; None: W_up starts at zero.

    Source: Houlsby et al., ICML 2019, https://arxiv.org/abs/1902.00751, section 2.1; Pfeiffer et al., EACL 2021,
    https://arxiv.org/abs/2005.00247, section 3.
    Differs: norms stay frozen.
    """

    neutral_settings: ClassVar = {"std": None}

    def __init__(
        self,
        clip: Clip,
        classes: Sequence[str],
        *,
        template: str = "a photo of a {}.",
        towers: Towers = "both",
        sites: Literal["attn_mlp", "mlp"] = "mlp",
        reads: Literal["branch", "sum"] = "branch",
        bottleneck: int = 16,
        activation: Literal["gelu", "gelu_tanh", "relu", "swish"] = "gelu",
        std: float | None = None,
        head: HeadKind = "text",
        head_start: HeadStart = "probe",
    ) -> None:
        super().__init__(clip, classes, template=template, towers=towers, head=head, head_start=head_start)
        if bottleneck < 1 or (std is not None and std <= 0):
            raise UserError(f"method.bottleneck={bottleneck}, std={std}: allowed are at least 1, and above 0 or null")
        form = (bottleneck, reads, activation, std)
        self.fill(lambda tower, layer: {site: Bottleneck(tower.width, *form) for site in sites.split("_")})


class Bottleneck(nn.Module):
    """h + up(act(down(h))), or h + up(act(down(h + stream))), after a branch whose output is h."""

    def __init__(self, width: int, hidden: int, reads: str, activation: str, std: float | None) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.sum, self.activation = reads == "sum", activation
        for p in (self.up.weight, self.up.bias) if std is None else (self.down.bias, self.up.bias):
            nn.init.zeros_(p)
        if std is not None:
            for weight in (self.down.weight, self.up.weight):
                nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)

    def forward(self, h: Tensor, stream: Tensor) -> Tensor:
        return h + self.up(ACTIVATIONS[self.activation](self.down(h + stream if self.sum else h)))
