"""A linear classifier on the frozen image tower's features."""

from collections.abc import Sequence
from typing import Literal

from vlprompt.learners.base import Learner
from vlprompt.learners.head import HeadStart
from vlprompt.towers import Clip


class LinearHead(Learner):
    """Linear probing by gradient descent: the baseline of visual prompt tuning. Works for the training classes only.

    logits = W f + b

    Args:
        head_start: how W and b start: "zero" or "probe", both on centred and scaled features, or "published".

    Source: Jia et al., ECCV 2022, https://arxiv.org/abs/2203.12119, section 4.1 ("Linear").
    """

    neutral_settings = None  # its head knows no names

    def __init__(
        self,
        clip: Clip,
        classes: Sequence[str],
        *,
        head: Literal["linear"] = "linear",
        head_start: HeadStart = "published",
    ) -> None:
        super().__init__(clip, classes, head=head, head_start=head_start)
