"""P-tuning: virtual tokens that a small network makes of an embedding while training."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vlprompt.errors import UserError
from vlprompt.learners.base import Batches, Overridden
from vlprompt.learners.head import HeadKind, HeadStart
from vlprompt.learners.prompt_encoder import Encoder, VirtualTokens, make_encoder
from vlprompt.learners.sites import BlockLearner, Towers
from vlprompt.towers import Clip, Edit, Edits, Prompts


class PTuning(BlockLearner):
    """P-tuning: virtual tokens before the class name, next to the patches or both, made by a prompt encoder.

    tokens = encoder(embedding); after training the encoder is dropped, and only the tokens are saved.

    Args:
        towers: "text" (without encoder: CoOp), "image" (without encoder: shallow VPT) or "both".
        n_tokens: tokens of each tower.
        ctx_init: a phrase whose word embeddings start the text's embedding, and set its length; empty: N(0, std^2).
        std: of the embedding's start; 0.02 as in CoOp, so that tokens without encoder are about as large as words.
        encoder: "none", "mlp" (three maps) or "lstm" (two bidirectional layers and an MLP).
        hidden: the encoder's width (of an LSTM: in each direction); None: half of the tower's.
        template: for the text where it has no virtual tokens.
        head, head_start: as in Learner; next to a linear head the tokens are those of the image.

    Source: Liu et al., 2021, https://arxiv.org/abs/2103.10385, section 3; their code has std=1 and hidden=None.
    Differs: tokens stand before the class name.
    """

    context_names = ("tokens.text.start",)
    neutral_settings: ClassVar = {"towers": "text", "ctx_init": "a photo of a", "encoder": "none"}

    def __init__(
        self,
        clip: Clip,
        classes: Sequence[str],
        *,
        template: str = "a photo of a {}.",
        towers: Towers = "text",
        n_tokens: int = 4,
        ctx_init: str = "",
        std: float = 0.02,
        encoder: Encoder = "lstm",
        hidden: int | None = 128,
        head: HeadKind = "text",
        head_start: HeadStart = "probe",
    ) -> None:
        super().__init__(clip, classes, template=template, towers=towers, head=head, head_start=head_start)
        if n_tokens < 1 or (hidden is not None and hidden < 1):
            raise UserError(f"method.n_tokens={n_tokens}, hidden={hidden}: at least 1 is needed of each")
        if not 0 < std < math.inf:
            raise UserError(f"method.std is {std}, allowed is a positive number, such as 0.02")
        if ctx_init and towers == "image" and not self.has_head:
            raise UserError("method.ctx_init is words for the text: drop it, or use method.towers=text or both")
        self.ctx_init, self.n_tokens = " ".join(ctx_init.replace("_", " ").split()), n_tokens
        self.tokens = nn.ModuleDict()
        for name, tower in self.towers.items():
            start = torch.randn(n_tokens, tower.width) * std
            if name == "text" and ctx_init:
                start = self.text.embed_phrase(self.ctx_init).float().clone()
            self.tokens[name] = VirtualTokens(start, make_encoder(encoder, tower.width, hidden or tower.width // 2))
        self._n_trained: int | None = None  # once the encoders are gone

    @classmethod
    def overridden(cls, settings: Mapping[str, Any], *, val: bool, steps: bool) -> Overridden:
        overridden: Overridden = {}
        n_words = len(settings["ctx_init"].replace("_", " ").split())
        if settings["towers"] == "text" and n_words and settings["n_tokens"] != n_words:
            overridden["n_tokens"] = ("method.ctx_init", f"whose words, {n_words}, are the tokens: drop one of the two")
        if settings["towers"] == "text" and n_words:
            overridden["std"] = ("method.ctx_init", "whose words are the start: drop one of the two")
        if settings["towers"] != "image":
            overridden["template"] = ("method.towers", "where virtual tokens stand before the class name: drop it")
        if settings["encoder"] == "none":
            overridden["hidden"] = ("method.encoder", "which has no network: drop it, or use mlp or lstm")
        return overridden

    @property
    def n_trained(self) -> int:
        return super().n_trained if self._n_trained is None else self._n_trained

    def make_prompts(self) -> Prompts:
        if "text" not in self.towers:
            return super().make_prompts()
        if self.ctx_init:
            return self.text.prompts(self.classes, template=self.ctx_init + " {}.")
        return self.text.prompts(self.classes, n_context=self.n_tokens)

    def encode_classes(self) -> Float[Tensor, "C e"] | None:
        if "text" not in self.towers:
            return super().encode_classes()
        return self.text(self.prompts.with_context(self.tokens["text"]()))

    def image_edits(self) -> Edits:
        return {0: Edit(tokens=self.tokens["image"]())} if "image" in self.towers else {}

    def conclude(self, train: Batches, val: Batches | None) -> None:
        self.drop_encoders()

    def drop_encoders(self) -> None:
        """Keep what the encoders make instead of them; the function stays the same."""
        self._n_trained = self.n_trained
        for tokens in self.tokens.values():
            tokens.drop_encoder()  # type: ignore[operator]

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Also of a learner whose encoders are dropped already; then they are dropped here, too."""
        if not any(".encoder." in name for name in state_dict):
            self.drop_encoders()
        return super().load_state_dict(state_dict, strict, assign)
