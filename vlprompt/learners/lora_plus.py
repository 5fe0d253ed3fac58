"""LoRA+: LoRA whose second matrix learns faster than its first."""

from collections.abc import Sequence
from typing import Any, Literal

from vlprompt.errors import UserError
from vlprompt.learners.head import HeadKind, HeadStart
from vlprompt.learners.lora import LoRA
from vlprompt.learners.sites import Towers
from vlprompt.towers import Clip


class LoRAPlus(LoRA):
    """LoRA whose B has `ratio` times the learning rate of A, which is `fit.lr`. A ratio of 1 is LoRA.

    Args:
        sites, rank, alpha, scaling, dropout, head, head_start: as in LoRA.
        ratio: of the two learning rates.

    Source: Hayou et al., ICML 2024, https://arxiv.org/abs/2402.12354, section 4.
    """

    def __init__(
        self,
        clip: Clip,
        classes: Sequence[str],
        *,
        template: str = "a photo of a {}.",
        towers: Towers = "both",
        sites: list[str] | None = None,
        rank: int = 8,
        alpha: float = 8.0,
        scaling: Literal["alpha/r", "alpha/sqrt(r)"] = "alpha/r",
        dropout: float = 0.0,
        ratio: float = 16.0,
        head: HeadKind = "text",
        head_start: HeadStart = "probe",
    ) -> None:
        if ratio <= 0:
            raise UserError(f"method.ratio is {ratio}: a ratio of two learning rates is above 0")
        super().__init__(
            clip, classes, template=template, towers=towers, sites=sites, rank=rank, alpha=alpha, scaling=scaling,
            dropout=dropout, head=head, head_start=head_start,
        )  # fmt: skip
        self.ratio = ratio

    def param_groups(self, fit: Any) -> list[dict[str, Any]]:
        """A at the rate of `fit`, B at `ratio` times that."""
        named = list(self.named_parameters())
        return [
            {"params": [p for name, p in named if name.endswith(".a")], "lr": fit.lr},
            {"params": [p for name, p in named if name.endswith(".b")], "lr": fit.lr * self.ratio},
            *self.head_groups(),
        ]
