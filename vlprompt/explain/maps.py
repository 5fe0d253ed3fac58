"""Maps over the patches of a picture: attention rollout, and how well each patch fits the predicted class."""

import math
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from vlprompt.api import Model
from vlprompt.data.transforms import normalise
from vlprompt.errors import UserError
from vlprompt.learners.base import Learner, at_least_single, scaled_cosine
from vlprompt.towers import Edits, Images, ImageTower
from vlprompt.towers.attention import rollout
from vlprompt.towers.precision import autocast

NEAR = 0.02  # in cosines: what the rounding of bf16 may make
NO_BLOCKS = "A ResNet has no tokens: there is no attention and no patch that could be shown."
NO_NAMES = "The frozen model has no text tower, so that it knows no class: only its attention is shown."
POOLED = "No class token is read here: the rollout is the mean over the patches, which are pooled."


@dataclass
class Side:
    """What one model makes of one picture; None where this has no meaning, and `notes` say why."""

    probabilities: Float[Tensor, " C"] | None = None
    rollout: Float[Tensor, "H W"] | None = None  # in multiples of the mean over the patches
    learned: float = 0.0  # share of the rollout that comes from learned tokens
    similarity: Float[Tensor, "H W"] | None = None
    unit: str = "cosine"  # of the similarity, or "logit"
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Explanation:
    """A picture as the models see it, and what the frozen one and the adapted one make of it."""

    photo: UInt8[Tensor, "3 H W"]
    classes: tuple[str, ...]
    method: str
    frozen: Side
    adapted: Side


class Explainer:
    """Explains pictures by a trained model and by the frozen one below it.

    The frozen one is zero-shot CLIP with the learner's template; without class names only its attention is shown.
    """

    def __init__(self, model: Model) -> None:
        self.model, learner = model, model.learner
        self.why = ""
        self.frozen = None
        if learner.clip.text is None:
            self.why = NO_NAMES
        else:
            zero_shot = Learner(learner.clip, learner.classes, template=learner.template).to(learner.clip.device)
            try:
                with torch.no_grad():
                    zero_shot.encode_classes()
                self.frozen = Model(zero_shot.eval(), model.precision, model.as_shown)
            except UserError as error:  # a head's classes may be words that the text tower does not know
                self.why = f"The frozen model cannot read these classes: {error}."

    def __call__(self, photo: UInt8[Tensor, "3 H W"]) -> Explanation:
        clip = self.model.clip
        pixels = normalise(photo[None].to(clip.device), clip.preprocess)
        if self.frozen:
            frozen = explain(self.frozen, pixels)
        else:
            frozen = Side(notes=[self.why])
            with torch.no_grad(), autocast(clip.device, self.model.precision):
                attend(frozen, clip.image, Images(pixels), {})
        adapted = explain(self.model, pixels)
        kind = type(self.model.learner).__name__
        if not self.model.learner.edits_image and adapted.rollout is not None:
            adapted.notes.append(f"{kind} leaves the image tower as it is: its attention is that of the frozen model.")
        return Explanation(photo, self.model.classes, kind, frozen, adapted)


@torch.no_grad()
def explain(model: Model, pixels: Float[Tensor, "1 3 H W"]) -> Side:
    """What a model makes of one picture."""
    learner, images = model.learner, Images(pixels)
    logits = model.logits(pixels)
    side = Side(logits.softmax(-1)[0].cpu())
    with autocast(model.clip.device, model.precision):
        tower, edits = learner.image_tower(), learner.image_edits()
        features = learner.encode_images(images)
        if learner.edits_image and tower.blocks and not _near(tower(images, edits), features):
            side.notes.append(
                f"{type(learner).__name__} makes its image features in a way of its own (encode_images), which cannot "
                "be looked into: with image_edits it could."
            )
        elif (patches := attend(side, tower, images, edits)) is not None:
            if not learner.edits_image:  # what the learner makes of the frozen tower's features
                patches = learner.encode_images(Images(features=patches))
            compare(side, learner, patches, features, logits)
    return side


def attend(side: Side, tower: ImageTower, images: Images, edits: Edits) -> Float[Tensor, "n e"] | None:
    """Add the rollout of one picture; -> the features of its patches, None for a ResNet."""
    if not tower.blocks:
        side.notes.append(NO_BLOCKS)
        return None
    patches = tower.patches(images, edits)[0]
    n_patches, flow = len(patches), rollout(tower.attention(images, edits))[0]
    rows = flow[: tower.n_read] if tower.n_read else flow[-n_patches:]
    shares = rows.mean(0)
    side.rollout = _grid(shares[-n_patches:] / shares[-n_patches:].mean())
    side.learned = float(shares[tower.n_prefix_tokens : -n_patches].sum())
    if not tower.n_read:
        side.notes.append(POOLED)
    return patches


def compare(
    side: Side,
    learner: Learner,
    patches: Float[Tensor, "n e"],
    features: Float[Tensor, "1 e"],
    logits: Float[Tensor, "1 C"],
) -> None:
    """Add how well each patch fits the class with the largest logit."""
    predicted, kind = int(logits.argmax()), type(learner).__name__
    given = learner.encode_classes()
    classes = learner.classes_for(features, given)
    if classes is None:
        side.similarity, side.unit = _grid(learner.compare(patches, given)[:, predicted]), "logit"
        side.notes.append(
            f"{kind} classifies without words here: its map is not a similarity to a text, but the logit that each "
            "patch alone would give the predicted class."
        )
        return
    side.similarity = _grid(scaled_cosine(patches, classes[0, predicted][None], 1.0)[:, 0])
    cosines = scaled_cosine(features, classes[0], 1.0)
    if not _near(logits / learner.clip.scale, cosines, scale=1.0):
        side.notes.append(f"{kind} does not classify by these similarities alone: its logits have further parts.")


def _near(a: Tensor, b: Tensor, scale: float | None = None) -> bool:
    a, b = at_least_single(a), at_least_single(b)
    return bool((a - b).abs().max() <= NEAR * (float(b.abs().max()) if scale is None else scale))


def _grid(values: Float[Tensor, " n"]) -> Float[Tensor, "H W"]:
    side = math.isqrt(len(values))
    return values.float().cpu().view(side, -1)
