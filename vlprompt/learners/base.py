"""What every way of adapting a frozen model is: a module whose parameters are all that is trained."""

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from types import MappingProxyType
from typing import Any, ClassVar, Literal, TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from vlprompt.errors import ClassBoundError, UserError, first_names
from vlprompt.learners.head import HeadKind, HeadStart, make_head
from vlprompt.towers import NO_EDITS, PLAIN, Clip, Edits, Images, ImageTower, Prompts, TextTower

Batch: TypeAlias = tuple[Images, Int[Tensor, "_"]]
Batches: TypeAlias = Iterable[Batch]
"""Labelled images, batch after batch; can be iterated over several times."""
Overridden: TypeAlias = dict[str, tuple[str, str]]
"""Settings that have no effect: by name, the setting next to which they have none, and a clause that says why."""
WITHOUT_TEXT = (
    "linear_probe, linear_head, tip_adapter, tip_adapter_f, clip_adapter, and those that edit the image tower: "
    "vpt_shallow, vpt_deep, lora, lora_plus, dylora, clip_lora, qlora, adapter, prefix_tuning, llama_adapter, "
    "p_tuning, bitfit, ln_tuning, full_finetune, intrinsic_dimension"
)
"""The methods that need no text tower, in words."""


class Learner(nn.Module):
    """A classifier over a frozen CLIP. `parameters()` is the trainable set, `state_dict()` the checkpoint.

    The constructor's signature is the schema of `conf/method/*.yaml`. Most methods define `encode_classes`,
    `image_edits` or both. As it stands this is zero-shot CLIP.

    Args:
        clip: the frozen model; a plain object, so no part of it is a parameter here.
        classes: names of the classes; underscores become spaces.
        template: text around a class name, with one `{}`.
        head: "text": class names classify; "linear": a trained head does, for the training classes only; "auto": class
            names where the model has a text tower, else a head. A method that passes it on may have a head.
        head_start: of a linear head: "probe" (a logistic regression on the training images, LP-FT) or "zero", both on
            centred and scaled features; "published": VPT's, on features as they are.

    Raises:
        UserError: the model lacks what the method needs.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"text"})
    """What the model must have: "text" (a text tower), "vit" (an image tower with blocks to edit)."""
    mergeable: bool = False
    """Whether `merged()` gives a model that does the same without the learner."""
    neutral_settings: ClassVar[Mapping[str, Any] | None] = MappingProxyType({})
    """Settings with which it starts as zero-shot CLIP; None: with none does it."""
    with_steps: ClassVar[str | None] = None
    """The method that is trained by an optimiser, where this one is its closed form."""
    uses_validation: bool = False
    """Whether `prepare` or `conclude` choose something on the validation images; the record says so."""
    without_text: ClassVar[str] = "linear"
    """The head that `head=auto` stands for on a model without a text tower."""
    context_names: ClassVar[tuple[str, ...]] = ("context",)
    """How the names begin of the parameters that test-time prompt tuning tunes; a learner may have none of these."""
    revision: ClassVar[int] = 1
    """Raised when the same settings give other numbers than before, so that finished runs are made again."""
    scale_loss: Callable[[Tensor], Tensor] | None = None
    """In float16, what a `backward` of a method's own applies to its losses, so that small gradients do not vanish."""
    calibration: Any = None
    """What scales its logits after the training: an `inference.Calibration`, which those who use it apply."""
    stages: Sequence[float] = (1.0,)
    """The stages of its training: the share of the steps of each. Where there are several, each has an optimiser and a
    schedule of the learning rate of its own, over the parameters that `loss` leaves a gradient in; the buffer `stage`,
    which such a learner registers as 0, says which one is reached."""
    stage: Tensor
    augmented: ClassVar[bool | Literal["after_crop"]] = False
    """Whether `prepare` sees a new augmented view of the training images in each pass, instead of centre crops.

    "after_crop": the first pass has centre crops.
    """

    def __init__(
        self,
        clip: Clip,
        classes: Sequence[str],
        *,
        template: str = PLAIN,
        head: HeadKind | Literal["cache"] = "text",
        head_start: HeadStart = "probe",
    ) -> None:
        super().__init__()
        if not isinstance(clip, Clip):
            raise UserError(f"{clip!r:.80} is no frozen model: give what vlprompt.load_clip(NAME) loads")
        self.head_kind = self.for_model({"head": head}, text=clip.text is not None)["head"]
        if "text" in self.needs and clip.text is None and self.head_kind == "text":
            raise UserError(
                f"{type(self).__name__} classifies by class names and {clip.name} has no text tower: choose a CLIP, or "
                f"one of the methods that can do without, by default or with method.head=linear ({WITHOUT_TEXT})"
            )
        if "vit" in self.needs:
            clip.image.require_blocks()
        self.clip, self.template = clip, template
        self.classes = self.trained_classes = check_classes(classes)
        self.rows: tuple[int, ...] | None = None
        self.transfer = False
        self._prompts: Prompts | None = None
        self._cache: dict[tuple[Any, ...], Tensor] = {}
        if self.has_head:
            self.head = make_head(clip.image.embed_dim, len(self.classes), head_start)
            self.mergeable = False  # no model holds the head

    @classmethod
    def neutral(cls, clip: Clip, classes: Sequence[str], **settings: Any) -> "Learner | None":
        """The method where it equals zero-shot CLIP with "a photo of a {}."; None if it never does.

        `settings` are a run's, of which `neutral_settings` replace some.
        """
        if cls.neutral_settings is None or cls.for_model(settings, text=True).get("head", "text") != "text":
            return None
        settings = {name: value for name, value in settings.items() if name not in ("template", "templates")}
        return cls(clip, classes, **settings | dict(cls.neutral_settings))

    @classmethod
    def for_model(cls, settings: Mapping[str, Any], *, text: bool) -> dict[str, Any]:
        """A run's settings of the method with what `head=auto` stands for; `text`: the model has a text tower."""
        if settings.get("head") != "auto":
            return dict(settings)
        return {**settings, "head": "text" if text else cls.without_text}

    @classmethod
    def resolved(cls, settings: Mapping[str, Any]) -> dict[str, Any]:
        """A run's settings of the method, those filled in that others of them set."""
        if settings.get("head") == "linear":
            return {**settings, **({"towers": "image"} if "towers" in settings else {})}
        return {name: value for name, value in settings.items() if name != "head_start" or "head" not in settings}

    @classmethod
    def built_around(cls, settings: Mapping[str, Any]) -> tuple[type["Learner"], dict[str, Any]] | None:
        """The method that this one is built around with these settings, and that one's; None: there is none."""
        return None

    @classmethod
    def overridden(cls, settings: Mapping[str, Any], *, val: bool, steps: bool) -> Overridden:
        """Which of its settings, all of them given, have no effect next to others of them.

        A user who gives one of these is told so; where a file of settings has it, the record does not. `val`: whether
        there are images to select on; `steps`: whether an optimiser takes any. What holds next to any head is told of
        all methods, whatever they tell in addition.
        """
        if settings.get("head") != "linear":
            return {"head_start": ("method.head", "which has no weights to start: drop it, or use linear")}
        names = ("method.head", "which knows no names: drop it, or use text")
        rules = dict.fromkeys(("template", "ctx_init"), names)
        if settings.get("towers", "image") != "image":
            rules["towers"] = ("method.head", "which sees images alone: drop it, or use image")
        return rules

    @classmethod
    def searches(cls, settings: Mapping[str, Any]) -> bool:
        """Whether it chooses something on validation images with these settings."""
        return cls.uses_validation

    @classmethod
    def takes_steps(cls, settings: Mapping[str, Any]) -> bool:
        """Whether an optimiser trains it with these settings; it does not where `prepare` fits it, or nothing does."""
        return cls.closed_form is not True

    @property
    def edits_image(self) -> bool:
        """Whether it changes the image tower, so that cached features of the frozen one are not enough."""
        return False

    @property
    def has_head(self) -> bool:
        """Whether a linear head classifies, instead of class names."""
        return self.head_kind == "linear"

    @property
    def class_bound(self) -> bool:
        """Whether it owns one parameter per class, so that it knows no classes but those it was trained on."""
        return self.has_head

    @property
    def closed_form(self) -> bool:
        """Whether `prepare` fits it, without a step of an optimiser."""
        return False

    @property
    def cosine_scale(self) -> float:
        """What cosines are multiplied by to give logits: the frozen model's, unless the learner trains one."""
        return self.clip.scale

    @property
    def n_trained(self) -> int:
        """How many numbers are trained; a learner that keeps fewer of them afterwards overrides it."""
        return sum(p.numel() for p in self.parameters())

    def bind(self, classes: Sequence[str], rows: Sequence[int] | None = None, *, transfer: bool = False) -> None:
        """Classify among other classes with the same parameters.

        `rows[i]` is the index of class i among the classes trained on, where these are a subset of them. `transfer`
        says that the images are of another data set than the one trained on, be its classes the same or not.

        Raises:
            ClassBoundError: a learner with one parameter per class is given classes that it was not trained on.
        """
        classes, rows = tuple(classes), None if rows is None else tuple(rows)
        if (classes, rows, transfer) == (self.classes, self.rows, self.transfer):
            return
        if self.class_bound and rows is None and classes != self.trained_classes:
            others = [name for name in classes if name not in self.trained_classes]
            raise ClassBoundError(
                f"{type(self).__name__} owns parameters for each of its {len(self.trained_classes)} training classes "
                f"and cannot classify others ({first_names(others or classes, 3)}): use a method or setting without "
                "class-specific parameters, or a protocol that tests the training classes (few-shot)"
            )
        self.classes, self.rows, self.transfer = classes, rows, transfer
        self.forget()

    def forget(self) -> None:
        """Drop what is computed once per bind."""
        self._prompts, self._cache = None, {}

    def select(self, x: Tensor, dim: int = 0) -> Tensor:
        """The bound classes' entries of a tensor that has one for each training class along `dim`."""
        return x if self.rows is None else x.index_select(dim, torch.tensor(self.rows, device=x.device))

    @property
    def text(self) -> TextTower:
        if self.clip.text is None:
            raise UserError(f"{self.clip.name} has no text tower: choose a CLIP")
        return self.clip.text

    @property
    def prompts(self) -> Prompts:
        """The bound classes' embedded prompts; made once per bind."""
        if self._prompts is None:
            self._prompts = self.make_prompts()
        return self._prompts

    def make_prompts(self) -> Prompts:
        return self.text.prompts(self.classes, template=self.template)

    @torch.no_grad()
    def zero_shot_features(self, templates: Sequence[str], *, normalize: bool = True) -> Float[Tensor, "C e"]:
        """Class features of the frozen text tower, averaged over templates (after they are normalised, or as they are).

        Computed once per bind: a teacher, or a classifier that is not trained.
        """
        key = (*templates, normalize)
        if key not in self._cache:
            texts = (self.text.prompts(self.classes, template=template) for template in templates)
            features = [self.text(prompts) for prompts in texts]
            features = [F.normalize(f, dim=-1) for f in features] if normalize else features
            self._cache[key] = sum(features[1:], features[0]) / len(features)
        return self._cache[key]

    @torch.no_grad()
    def collect_features(self, batches: Batches) -> tuple[Float[Tensor, "N e"], Int[Tensor, " N"]]:
        """Features, at least in float32, and labels of all images."""
        pairs = [(at_least_single(self.encode_images(images)), labels) for images, labels in batches]
        return torch.cat([features for features, _ in pairs]), torch.cat([labels for _, labels in pairs])

    def encode_classes(self) -> Float[Tensor, "C e"] | None:
        """Un-normalised class features; None where they depend on the image, or a head holds what is known of classes.

        Here those of the frozen text tower.
        """
        if self.has_head:
            return None
        if () not in self._cache:  # computed once per bind, as nothing in them is trained
            with torch.no_grad():
                self._cache[()] = self.text(self.prompts)
        return self._cache[()]

    def image_edits(self) -> Edits:
        """What it does to the blocks of the image tower; here nothing."""
        return NO_EDITS

    def image_tower(self) -> ImageTower:
        """The image tower that `image_edits` are made in; another one than the frozen where its weights change."""
        return self.clip.image

    def encode_images(self, images: Images) -> Float[Tensor, "B e"]:
        """Un-normalised image features, whatever classes are bound."""
        return self.image_tower()(images, self.image_edits())

    def classes_for(
        self, features: Float[Tensor, "B e"], class_features: Float[Tensor, "C e"] | None
    ) -> Float[Tensor, "#B C e"] | None:
        """The class features that images with these features are compared with; None where a head compares them."""
        return None if class_features is None else class_features[None]

    def compare(
        self, features: Float[Tensor, "B e"], class_features: Float[Tensor, "C e"] | None
    ) -> Float[Tensor, "B C"]:
        """Logits of what `encode_images` gives: cosines times the frozen scale, or the head's.

        In float32 whatever the towers use.
        """
        if self.has_head:
            return self.select(self.head(features), 1)
        assert class_features is not None
        return scaled_cosine(features, class_features, self.clip.scale)

    def logits(self, images: Images, class_features: Float[Tensor, "C e"] | None) -> Float[Tensor, "B C"]:
        """Logits of images. A method for which these need more than `encode_images` gives overrides it."""
        return self.compare(self.encode_images(images), class_features)

    def forward(self, images: Images, class_features: Float[Tensor, "C *e"] | None) -> Float[Tensor, "B C"]:
        return self.logits(images, class_features)

    def loss(self, images: Images, labels: Int[Tensor, " B"]) -> tuple[Float[Tensor, ""], Float[Tensor, "B C"]]:
        """Mean cross-entropy, and the logits."""
        logits = self.logits(images, self.encode_classes())
        return F.cross_entropy(logits, labels), logits

    def backward(self, images: Images, labels: Int[Tensor, " B"]) -> tuple[Float[Tensor, ""], Float[Tensor, "B C"]]:
        """Leave gradients in the parameters; -> the loss and the logits, detached."""
        loss, logits = self.loss(images, labels)
        (self.scale_loss(loss) if self.scale_loss else loss).backward()
        return loss.detach(), logits.detach()

    def merged(self) -> Clip:
        """The model with the adaptation in its weights, which is as large and as fast as the frozen one.

        Raises:
            UserError: there is none (`mergeable` is false).
        """
        if self.has_head:
            raise UserError(f"{type(self).__name__} with a linear head cannot be merged: keep the learner")
        return self.merge()

    def merge(self) -> Clip:
        """What `merged` gives where class names classify."""
        raise UserError(f"{type(self).__name__} cannot be merged into the weights of the model: keep the learner")

    def param_groups(self, fit: Any) -> list[dict[str, Any]]:
        """Parameter groups for the optimiser; `fit` is the run's `Fit`."""
        return [{"params": self.adapting()}, *self.head_groups()]

    def adapting(self) -> list[nn.Parameter]:
        """The parameters without those of a linear head."""
        of_head = set(self.head.parameters()) if self.has_head else set()
        return [p for p in self.parameters() if p not in of_head]

    def head_groups(self) -> list[dict[str, Any]]:
        """The parameter groups of a linear head, whose bias is not decayed."""
        return (
            [{"params": [self.head.weight]}, {"params": [self.head.bias], "weight_decay": 0.0}] if self.has_head else []
        )

    def prepare(self, train: Batches, val: Batches | None) -> None:
        """Called once before the first step: caches and closed-form fits. `augmented` says which views `train` has.

        Here a linear head is made to fit the images' features.
        """
        if self.has_head:
            self.head.start(*self.collect_features(train))

    def begin(self, stage: int) -> None:
        """Called, without gradients, before the first step of each stage but the first, which is 0.

        What the stage starts from, computed here from what the one before has learned, is a parameter or a buffer.
        """
        self.stage.fill_(stage)

    def end_epoch(self) -> None:
        """Called after the last step of each epoch, before it is judged. What changes is in the checkpoint."""

    def conclude(self, train: Batches, val: Batches | None) -> None:
        """Called once after the last step: a search on the validation images."""


def check_classes(classes: Iterable[str]) -> tuple[str, ...]:
    """Names of classes as a tuple. Raises: UserError for what is no list of names."""
    ordered = isinstance(classes, Iterable) and not isinstance(classes, str | Mapping | Set)
    names = tuple(classes) if ordered else ()
    if not names or not all(isinstance(name, str) and name.strip() for name in names):
        raise UserError(f"the classes are {classes!r}, allowed is a list of names, at least one: ['zebra', 'okapi']")
    return tuple(map(str, names))


def check_every_class(learner: Learner, labels: Int[Tensor, " N"]) -> None:
    """Refuse training images that lack a class. Raises: UserError."""
    seen = set(labels.tolist())
    if lacking := [name for label, name in enumerate(learner.classes) if label not in seen]:
        raise UserError(
            f"{type(learner).__name__} needs a training image of each class, but of {len(lacking)} of "
            f"{len(learner.classes)} there is none ({first_names(lacking, 3)}): "
            "add images of these, or choose a method that can do without (ss_text)"
        )


def scaled_cosine(images: Float[Tensor, "B e"], classes: Float[Tensor, "C e"], scale: float) -> Float[Tensor, "B C"]:
    """Cosines times `scale`, at least in float32 even under autocast."""
    with torch.autocast(images.device.type, enabled=False):
        return scale * normalize(images) @ normalize(classes).T


def at_least_single(x: Tensor) -> Tensor:
    """The same in float32 where it has fewer digits."""
    return x.float() if x.dtype in (torch.half, torch.bfloat16) else x


def normalize(x: Float[Tensor, "*n e"]) -> Float[Tensor, "*n e"]:
    """Features of length one, at least in float32."""
    return F.normalize(at_least_single(x), dim=-1)


def check_depth(setting: str, depth: int, blocks: int) -> None:
    """Refuse a depth that the tower does not have."""
    if not 1 <= depth <= blocks:
        raise UserError(f"{setting} is {depth}, allowed is 1 to {blocks}, the blocks of this tower")
