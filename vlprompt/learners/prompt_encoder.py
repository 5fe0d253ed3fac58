"""P-tuning's prompt encoder. Source: Liu et al., 2021, https://arxiv.org/abs/2103.10385, section 3."""

from contextlib import nullcontext
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

Encoder = Literal["none", "mlp", "lstm"]


class VirtualTokens(nn.Module):
    """An embedding and the network that turns it into tokens."""

    def __init__(self, start: Float[Tensor, "n d"], encoder: nn.Module) -> None:
        super().__init__()
        self.start, self.encoder = nn.Parameter(start), encoder

    def forward(self) -> Float[Tensor, "n d"]:
        return self.encoder(self.start)

    @torch.no_grad()
    def drop_encoder(self) -> None:
        self.start, self.encoder = nn.Parameter(self().clone()), nn.Identity()


class Recurrent(nn.Module):
    """A bidirectional LSTM over the tokens, and an MLP on its states."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(width, hidden, num_layers=2, bidirectional=True)
        self.mlp = nn.Sequential(nn.Linear(2 * hidden, 2 * hidden), nn.ReLU(), nn.Linear(2 * hidden, width))

    def forward(self, start: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        lacking = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.float16
        with torch.autocast("cpu", enabled=False) if lacking else nullcontext():  # a CPU has no LSTM in float16
            states, _ = self.lstm(start)
        return self.mlp(states)


def make_encoder(kind: Encoder, width: int, hidden: int) -> nn.Module:
    """From embeddings [n, width] to tokens [n, width]."""
    if kind == "none":
        return nn.Identity()
    if kind == "lstm":
        return Recurrent(width, hidden)
    maps = [nn.Linear(width, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, width)]
    return nn.Sequential(maps[0], nn.ReLU(), maps[1], nn.ReLU(), maps[2])
