"""What every way of adapting a frozen model is: a module whose parameters are all that is trained."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from vlprompt.errors import ClassBoundError, UserError
from vlprompt.towers import Clip, Edit, Edits, Images, ImageTower, Prompts, TextTower

Towers = Literal["image", "text", "both"]
LossAndLogits = tuple[Float[Tensor, ""], Float[Tensor, "B C"]]


class Learner(nn.Module):
    """A classifier over a frozen CLIP. `parameters()` is the trainable set, `state_dict()` the checkpoint.

    The constructor's signature is the schema of `conf/method/*.yaml`. Most methods define `encode_classes`,
    `encode_images` or both. As it stands this is zero-shot CLIP.

    Args:
        clip: the frozen model; a plain object, so no part of it is a parameter here.
        classes: names to tell apart; underscores become spaces.
        template: text around a class name, with one `{}`.

    Raises:
        UserError: the model lacks what the method needs.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"text"})
    """What the model must have: "text" (a text tower), "vit" (an image tower with blocks to edit)."""
    mergeable: ClassVar[bool] = False
    """Whether `merged()` gives a model that does the same without the learner."""

    edits_image: bool = False
    """Whether features of the unedited image tower are not enough: the learner edits it, or changes its weights."""
    uses_validation: bool = False
    """Whether `prepare` or `conclude` choose something on the validation images; the record says so."""
    augmented: ClassVar[bool] = False
    """Whether `prepare` meets another augmented view of the training images at each pass, instead of centre crops."""

    def __init__(self, clip: Clip, classes: Sequence[str], *, template: str = "a photo of a {}.") -> None:
        super().__init__()
        if "text" in self.needs and clip.text is None:
            raise UserError(f"{type(self).__name__} needs a text tower, {clip.name} has none: choose a CLIP")
        if "vit" in self.needs:
            clip.image.require_blocks()
        self.clip, self.template = clip, template
        self.classes = self.trained_classes = tuple(classes)
        self.rows: tuple[int, ...] | None = None
        self._prompts: Prompts | None = None
        self._frozen: dict[tuple[Any, ...], Tensor] = {}

    @property
    def n_trained(self) -> int:
        """How many numbers are trained; a learner that keeps fewer of them afterwards has its own answer."""
        return sum(p.numel() for p in self.parameters())

    @property
    def class_bound(self) -> bool:
        """Whether it owns one parameter per class, so that it knows no classes but those it was trained on."""
        return False

    def bind(self, classes: Sequence[str], rows: Sequence[int] | None = None) -> None:
        """Tell other classes apart with the same parameters.

        `rows[i]` is the place of class i among the classes trained on, where these are a subset of them.

        Raises:
            ClassBoundError: a learner with one parameter per class is given classes that it was not trained on.
        """
        classes, rows = tuple(classes), None if rows is None else tuple(rows)
        if (classes, rows) == (self.classes, self.rows):
            return
        if self.class_bound and rows is None and classes != self.trained_classes:
            raise ClassBoundError(
                f"{type(self).__name__} owns parameters for each of its {len(self.trained_classes)} training classes "
                f"and cannot tell {len(classes)} other ones apart: use a method or setting without class-specific "
                "parameters, or a protocol that tests the training classes (few-shot)"
            )
        self.classes, self.rows = classes, rows
        self.forget()

    def forget(self) -> None:
        """Let go of what is made once a bind."""
        self._prompts, self._frozen = None, {}

    @property
    def text(self) -> TextTower:
        if self.clip.text is None:
            raise UserError(f"{self.clip.name} has no text tower: choose a CLIP")
        return self.clip.text

    @property
    def prompts(self) -> Prompts:
        """The bound classes' embedded prompts; made once a bind."""
        if self._prompts is None:
            self._prompts = self.make_prompts()
        return self._prompts

    def make_prompts(self) -> Prompts:
        return self.text.prompts(self.classes, template=self.template)

    @torch.no_grad()
    def frozen_classes(self, templates: Sequence[str], *, normalised: bool = True) -> Float[Tensor, "C e"]:
        """Class features of the frozen text tower, averaged over templates (`normalised` first, or as they are).

        Made once a bind: a teacher, or a classifier that is not trained.
        """
        key = (*templates, normalised)
        if key not in self._frozen:
            texts = (self.text.prompts(self.classes, template=template) for template in templates)
            features = [self.text(prompts) for prompts in texts]
            features = [F.normalize(f, dim=-1) for f in features] if normalised else features
            self._frozen[key] = sum(features[1:], features[0]) / len(features)
        return self._frozen[key]

    def encode_classes(self) -> Float[Tensor, "C e"] | None:
        """Un-normalised class features; None where they depend on the image. Here those of the frozen text tower."""
        if () not in self._frozen:  # computed once a bind, as nothing in them is trained
            with torch.no_grad():
                self._frozen[()] = self.text(self.prompts)
        return self._frozen[()]

    def encode_images(self, images: Images) -> Float[Tensor, "B e"]:
        """Un-normalised image features, whatever classes are bound."""
        return self.clip.image(images)

    def compare(
        self, features: Float[Tensor, "B e"], class_features: Float[Tensor, "C e"] | None
    ) -> Float[Tensor, "B C"]:
        """Logits from what `encode_images` gave: cosines times the frozen scale, in float32 whatever the towers use."""
        assert class_features is not None
        return scaled_cosine(features, class_features, self.clip.scale)

    def logits(self, images: Images, class_features: Float[Tensor, "C e"] | None) -> Float[Tensor, "B C"]:
        """Logits of images. A method for which these need more than `encode_images` gives has its own."""
        return self.compare(self.encode_images(images), class_features)

    def forward(self, images: Images, class_features: Float[Tensor, "C e"] | None) -> Float[Tensor, "B C"]:
        return self.logits(images, class_features)

    def loss(self, images: Images, labels: Int[Tensor, " B"]) -> LossAndLogits:
        """Mean cross-entropy, and the logits [B, C]."""
        logits = self.logits(images, self.encode_classes())
        return F.cross_entropy(logits, labels), logits

    def backward(self, images: Images, labels: Int[Tensor, " B"]) -> LossAndLogits:
        """Leave gradients in the parameters; -> the loss and the logits."""
        loss, logits = self.loss(images, labels)
        loss.backward()
        return loss.detach(), logits.detach()

    def merged(self) -> Clip:
        """The model with the adaptation in its weights, which is as large and as fast as the frozen one.

        Raises:
            UserError: there is none (`mergeable` is false).
        """
        raise UserError(f"{type(self).__name__} cannot be merged into the weights of the model: keep the learner")

    def param_groups(self, fit: Any) -> list[dict[str, Any]]:
        """Parameter groups for the optimiser; `fit` is the run's `Fit`."""
        return [{"params": list(self.parameters())}]

    def prepare(self, train: Any, val: Any) -> None:
        """Called once before fitting, with iterables of (images, labels): caches and closed-form fits.

        Each can be gone through several times; `augmented` says what the training images look like then.
        """

    def conclude(self, train: Any, val: Any) -> None:
        """Called once after fitting: a search on the validation images."""


def scaled_cosine(images: Float[Tensor, "B e"], classes: Float[Tensor, "C e"], scale: float) -> Float[Tensor, "B C"]:
    """Cosines times `scale`, at least in float32 even under autocast."""
    with torch.autocast(images.device.type, enabled=False):
        return scale * unit(images) @ unit(classes).T


def at_least_single(x: Tensor) -> Tensor:
    """The same in float32 where it has fewer digits."""
    return x.float() if x.dtype in (torch.half, torch.bfloat16) else x


def unit(x: Float[Tensor, "*n e"]) -> Float[Tensor, "*n e"]:
    """Features of length one, at least in float32."""
    return F.normalize(at_least_single(x), dim=-1)


class ContextLearner(Learner):
    """A learner of a context [n, d] in front of the class names.

    `ctx_init` starts it from the embeddings of a phrase's first `n_context` tokens, whose rest stays as fixed words;
    otherwise it starts from N(0, 0.02^2).
    """

    def __init__(self, clip: Clip, classes: Sequence[str], *, n_context: int, ctx_init: str) -> None:
        super().__init__(clip, classes)
        n_words = len(ctx_init.replace("_", " ").split())
        if n_context < 1:
            raise UserError(f"method.n_context is {n_context}: at least 1 is needed")
        if ctx_init and n_context > n_words:
            raise UserError(
                f"method.ctx_init='{ctx_init}' has {n_words} words for n_context={n_context} tokens: "
                f"use method.n_context={n_words} or fewer, or a longer phrase"
            )
        self.ctx_init, self.n_context = " ".join(ctx_init.replace("_", " ").split()), n_context
        if ctx_init:
            context = self.text.embed_phrase(ctx_init)[:n_context].float().clone()
        else:
            context = torch.randn(n_context, self.text.width) * 0.02
        self.context = nn.Parameter(context)

    def make_prompts(self) -> Prompts:
        if self.ctx_init:
            return self.text.prompts(self.classes, template=self.ctx_init + " {}.")
        return self.text.prompts(self.classes, n_context=self.n_context)


class BlockLearner(Learner):
    """A learner that edits every block of one tower or of both, and leaves the text as it is.

    `towers` holds the edited ones by name, "image" and "text".
    """

    def __init__(self, clip: Clip, classes: Sequence[str], *, template: str, towers: Towers) -> None:
        super().__init__(clip, classes, template=template)
        self.towers: dict[str, ImageTower | TextTower] = {}
        if towers != "text":
            clip.image.require_blocks()
            self.towers["image"] = clip.image
            self.edits_image = True
        if towers != "image":
            self.towers["text"] = self.text

    def edits(self, tower: str) -> Edits:
        """The edits of one tower; none where it is not edited."""
        raise NotImplementedError

    def encode_classes(self) -> Float[Tensor, "C e"] | None:
        edits = self.edits("text")
        return self.text(self.prompts, edits) if edits else super().encode_classes()

    def encode_images(self, images: Images) -> Float[Tensor, "B e"]:
        return self.clip.image(images, self.edits("image"))


class SiteLearner(BlockLearner):
    """A block learner with one module for each of some edit sites of each block, in `layers[tower][layer][site]`."""

    def fill(self, make: Callable[[ImageTower | TextTower, int], Mapping[str, nn.Module]]) -> None:
        """Make the modules: `make(tower, layer)` gives those of one block by site."""
        self.layers = nn.ModuleDict()
        for name, tower in self.towers.items():
            blocks = (nn.ModuleDict(dict(make(tower, layer))) for layer in range(tower.depth))
            self.layers[name] = nn.ModuleList(blocks)

    def edits(self, tower: str) -> Edits:
        layers: Any = self.layers[tower] if tower in self.towers else ()
        return {layer: Edit(**dict(sites.items())) for layer, sites in enumerate(layers)}


def check_depth(setting: str, depth: int, blocks: int) -> None:
    """Refuse a depth that the tower does not have."""
    if not 1 <= depth <= blocks:
        raise UserError(f"{setting} is {depth}, allowed is 1 to {blocks}, the blocks of this tower")
