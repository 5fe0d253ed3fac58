"""2SFS: first the towers are tuned a little, then a linear classifier that starts from their texts."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vlprompt.errors import UserError
from vlprompt.learners.base import Learner, Overridden, normalize
from vlprompt.learners.block_biases import BlockBiases
from vlprompt.learners.ln_tuning import LNTuning
from vlprompt.learners.lora import LoRA
from vlprompt.learners.sites import Towers
from vlprompt.towers import PLAIN, Clip, Edits, Images, ImageTower


class TwoStage(Learner):
    """Two-stage few-shot adaptation (2SFS): towers, then a classifier, with the same budget of steps.

    At first the class features are the text tower's, and a method of few parameters tunes the towers. Then these stay,
    and a vector for each training class is learned, from its text's feature (of length one) on. Of the classes that are
    classified, those that were trained on, by name, have these vectors, others the tuned tower's texts.

    Args:
        stage1: what is tuned first: "layer_norm" (LNTuning), "lora" (as in CLIP-LoRA), "bitfit" (without q, k and v).
        fraction: of the steps, that the first stage takes.
        towers: that are tuned: "image", "text" or "both".
        first_image_layer, first_text_layer: the 0-based first block that is tuned, in each tower; not for LoRA.
        sites, rank, alpha, dropout: of LoRA alone, as there.

    Source: Farina et al., CVPR 2025, https://arxiv.org/abs/2503.11609, section 4, and the authors' code
    (https://github.com/FarinaMatteo/rethinking_fewshot_vlms at 64ac143), whose numbers it reproduces.
    """

    def __init__(
        self,
        clip: Clip,
        classes: Sequence[str],
        *,
        template: str = PLAIN,
        stage1: Literal["layer_norm", "lora", "bitfit"] = "layer_norm",
        fraction: float = 0.6,
        towers: Towers = "both",
        first_image_layer: int = 0,
        first_text_layer: int = 0,
        sites: list[str] | None = None,
        rank: int = 2,
        alpha: float = 1.0,
        dropout: float = 0.25,
    ) -> None:
        super().__init__(clip, classes, template=template)
        if not 0 <= fraction <= 1:
            raise UserError(f"method.fraction is {fraction}, allowed is 0 to 1, the first stage's share of the steps")
        self.stages = (fraction, 1 - fraction)
        shared: dict[str, Any] = {"template": template, "towers": towers}
        self.tuned: Learner
        if stage1 == "lora":
            low_rank: dict[str, Any] = {"sites": sites, "rank": rank, "alpha": alpha, "dropout": dropout}
            self.tuned = LoRA(clip, classes, **shared, **low_rank, scaling="alpha/sqrt(r)")
        else:
            shared |= {"first_image_layer": first_image_layer, "first_text_layer": first_text_layer}
            self.tuned = (LNTuning if stage1 == "layer_norm" else BlockBiases)(clip, classes, **shared)
        self.classifier = nn.Parameter(torch.zeros(len(self.classes), clip.image.embed_dim))
        self.register_buffer("stage", torch.tensor(0))

    @classmethod
    def overridden(cls, settings: Mapping[str, Any], *, val: bool, steps: bool) -> Overridden:
        of_lora, of_blocks = ["sites", "rank", "alpha", "dropout"], ["first_image_layer", "first_text_layer"]
        if not settings["fraction"]:
            why = "so that there is no first stage: drop it, or give another fraction"
            return dict.fromkeys(["stage1", "towers", *of_lora, *of_blocks], ("method.fraction", why))
        if settings["stage1"] == "lora":
            why = "which is in all blocks: drop it, or use layer_norm"
            return dict.fromkeys(of_blocks, ("method.stage1", why))
        why = "which has none: drop it, or use lora"
        rules: Overridden = dict.fromkeys(of_lora, ("method.stage1", why))
        return rules | LNTuning.overridden(settings, val=val, steps=steps)

    @property
    def edits_image(self) -> bool:
        return self.tuned.edits_image

    def bind(self, classes: Sequence[str], rows: Sequence[int] | None = None, *, transfer: bool = False) -> None:
        super().bind(classes, rows, transfer=transfer)
        self.tuned.bind(classes, rows, transfer=transfer)

    def begin(self, stage: int) -> None:
        self.classifier.copy_(normalize(self.encode_classes()))
        super().begin(stage)

    def encode_classes(self) -> Float[Tensor, "C e"]:
        """At first the tuned tower's texts; after that the classifier's vectors where it has them."""
        known = {name: row for row, name in enumerate(self.trained_classes)} if self.stage else {}
        rows = [known.get(name) for name in self.classes]
        if None not in rows:
            return self.classifier.index_select(0, torch.tensor(rows, device=self.classifier.device))
        texts = self.tuned.encode_classes()
        assert texts is not None
        if not self.stage:
            return texts
        learned = [None if row is None else normalize(self.classifier[row]) for row in rows]
        pairs = zip(normalize(texts), learned, strict=True)
        return torch.stack([text if vector is None else vector for text, vector in pairs])

    def image_edits(self) -> Edits:
        return self.tuned.image_edits()

    def image_tower(self) -> ImageTower:
        return self.tuned.image_tower()

    def encode_images(self, images: Images) -> Float[Tensor, "B e"]:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.stage):
            return super().encode_images(images)
