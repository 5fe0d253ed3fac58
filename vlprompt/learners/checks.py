"""The contract of a learner, as checks that anyone can run on one of their own: `vlprompt check-learner`.

A check is a function of a `Candidate` whose docstring says what has to hold; what does not is a `Broken`.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import SimpleNamespace
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from vlprompt.errors import ClassBoundError, UserError
from vlprompt.learners.base import Batch, Learner
from vlprompt.towers import Clip, Images, NeedsPixels
from vlprompt.towers.tiny import RESNET, VIT, tiny_clip, with_layers

CLASSES = ("cat", "striped red star", "a_very_long_name_with_many_tokens")
OTHERS = ("dog", "sea or lake", "cat", "face")
LABELS = (0, 1, 2, 1)
RATES = (1e-3, 1e-4)  # the second for methods that move every weight
STEPS = 8


class Broken(Exception):
    """What a learner does against the contract."""


def require(condition: object, sentence: str) -> None:
    if not condition:
        raise Broken(sentence)


@dataclass(frozen=True)
class Candidate:
    """A learner's class with settings, on a small model. `resnet` is one without blocks in its image tower."""

    kind: type[Learner]
    settings: Mapping[str, Any] = field(default_factory=dict)
    clip: Clip = field(default_factory=lambda: tiny_clip(with_layers(VIT, 12)))
    resnet: Clip = field(default_factory=lambda: tiny_clip(with_layers(RESNET, 12)))

    def build(self, classes: Sequence[str] = CLASSES, *, seed: int = 0) -> Learner:
        """In train mode, prepared with one batch of labelled noise."""
        torch.manual_seed(seed)
        learner = self.kind(self.clip, classes, **self.settings)
        learner.prepare([self.batch], [self.batch])
        return learner.train()

    def scattered(self, classes: Sequence[str] = CLASSES, *, stage: int | None = None) -> Learner:
        """The same with every number of its checkpoint drawn from N(0, 0.02), in its last stage or in another."""
        learner = self.build(classes)
        with torch.no_grad():
            for number in range(1, len(learner.stages) if stage is None else stage + 1):
                learner.begin(number)
        torch.manual_seed(99)
        for tensor in learner.state_dict().values():
            if tensor.is_floating_point():
                tensor.normal_(0, 0.02)
        return learner

    @cached_property
    def batch(self) -> Batch:
        size, generator = self.clip.preprocess.size, torch.Generator().manual_seed(2)
        pixels = torch.randn(len(LABELS), 3, size, size, generator=generator)
        return Images(pixels.to(next(self.clip.weights.root.parameters()).dtype)), torch.tensor(LABELS)

    @torch.no_grad()
    def logits(self, learner: Learner, images: Images | None = None) -> Tensor:
        """As evaluation gets them: of the batch, or of other images."""
        was_training = learner.training
        try:
            return learner.eval()(images or self.batch[0], learner.encode_classes())
        finally:
            learner.train(was_training)


def close(a: Tensor, b: Tensor, tolerance: float = 1e-5) -> bool:
    """Whether the relative L2 distance is small."""
    return a.shape == b.shape and bool((a - b).norm() <= tolerance * b.norm())


def check_logits(candidate: Candidate) -> None:
    """logits are [B, C], finite, in float32"""
    logits = candidate.logits(candidate.build())
    require(logits.shape == (len(LABELS), len(CLASSES)), f"logits of 4 images and 3 classes are {list(logits.shape)}")
    require(logits.dtype == torch.float32, f"logits are in {logits.dtype}")
    require(logits.isfinite().all(), "logits are not finite")


def check_loss(candidate: Candidate) -> None:
    """loss and backward return the loss and the logits of forward"""
    learner = candidate.scattered().eval()
    logits = candidate.logits(learner)
    results = [learner.loss(*candidate.batch)]
    results += [learner.backward(*candidate.batch)] if list(learner.parameters()) else []
    for loss, told in results:
        require(loss.ndim == 0 and loss.isfinite(), f"the loss is {loss.tolist()}, one finite number is needed")
        require(close(told.detach(), logits), "the logits that come with the loss are not those of forward")
    require(not any(t.requires_grad for t in results[-1]) or len(results) == 1, "backward returns tensors with a graph")


def check_gradients(candidate: Candidate) -> None:
    """every parameter is in float32 and gets a finite gradient that is not zero, in one of the stages at least"""
    learner = candidate.scattered()
    if learner.closed_form or not list(learner.parameters()):
        return
    gradients: dict[str, Tensor] = {}
    for number in range(len(learner.stages)):
        learner = candidate.scattered(stage=number)
        learner.backward(*candidate.batch)
        gradients |= {name: p.grad for name, p in learner.named_parameters() if p.grad is not None}
    for name, p in learner.named_parameters():
        require(p.dtype == torch.float32, f"the parameter {name} is in {p.dtype}")
        require(name in gradients, f"the parameter {name} gets no gradient")
        require(gradients[name].isfinite().all(), f"the gradient of {name} is not finite")
        require(gradients[name].any(), f"the gradient of {name} is zero")


def check_training(candidate: Candidate) -> None:
    """param_groups holds every parameter once, a few steps lower the loss, and no tensor of the model changes"""
    model = candidate.clip.weights.root
    frozen = copy.deepcopy(model.state_dict())
    for rate in RATES:
        losses = descend(candidate, rate)
        if not losses or losses[-1] < losses[0]:
            break
    else:
        raise Broken(f"the loss does not fall: {', '.join(f'{loss:.4g}' for loss in losses)}")
    changed = [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, frozen[name])]
    require(not changed, f"training changes the model: {', '.join(changed[:3])}")
    asking = [name for name, p in model.named_parameters() if p.requires_grad or p.grad is not None]
    require(not asking, f"the model's own tensors get gradients: {', '.join(asking[:3])}")


def descend(candidate: Candidate, rate: float) -> list[float]:
    """Losses of a few steps of Adam; none of a learner that takes no steps."""
    learner = candidate.build().eval()  # the same function at each step, whatever it drops while training
    parameters = list(learner.parameters())
    groups = learner.param_groups(SimpleNamespace(lr=rate, weight_decay=0.0))
    grouped = sorted(id(p) for group in groups for p in group["params"])
    require(grouped == sorted(map(id, parameters)), "param_groups does not hold every parameter once")
    borrowed = {id(p) for p in candidate.clip.weights.root.parameters()}
    require(not borrowed & set(grouped), "a tensor of the model is among the parameters")
    if learner.closed_form or not parameters:
        return []
    optimizer, losses = torch.optim.Adam(groups, lr=rate), []
    for _ in range(STEPS):
        optimizer.zero_grad()
        losses.append(learner.backward(*candidate.batch)[0].item())
        optimizer.step()
    return losses


def check_binding(candidate: Candidate) -> None:
    """other classes are bound, or refused with ClassBoundError; a subset of the training classes is taken by rows"""
    learner = candidate.scattered()
    before = candidate.logits(learner)
    try:
        learner.bind(OTHERS)
        n = candidate.logits(learner).shape[1]
        require(not learner.class_bound and n == len(OTHERS), f"{n} logits for {len(OTHERS)} other classes")
    except ClassBoundError:
        require(learner.class_bound, "other classes are refused, though class_bound is false")
    learner.bind([CLASSES[2], CLASSES[0]], rows=[2, 0])
    require(close(candidate.logits(learner), before[:, [2, 0]]), "a subset by rows has other logits")
    learner.bind(CLASSES)
    require(close(candidate.logits(learner), before), "the training classes have other logits after others were bound")


def check_binding_again(candidate: Candidate) -> None:
    """binding the same classes again changes nothing"""
    learner = candidate.build()
    candidate.logits(learner)  # fills what is computed once a bind
    state = dict(vars(learner))
    learner.bind(list(CLASSES))
    changed = [name for name, value in vars(learner).items() if value is not state.get(name)]
    require(not changed, f"binding the same classes again changes {', '.join(changed)}")


def check_names(candidate: Candidate) -> None:
    """two classes may share a name"""
    learner = candidate.scattered(("cat", "dog", "cat"))
    logits = candidate.logits(learner)
    require(logits.shape == (len(LABELS), 3), f"logits of 4 images and 3 classes are {list(logits.shape)}")
    if not learner.class_bound:
        learner.bind(("dog", "cat", "cat"))  # other classes than those trained on, of which it may know more than names
        logits = candidate.logits(learner)
        require(close(logits[:, 1], logits[:, 2]), "classes of one name have different logits")
        require(not close(logits[:, 0], logits[:, 1]), "classes of different names have the same logits")


def check_checkpoint(candidate: Candidate) -> None:
    """state_dict is the whole learner: saved, loaded strictly, the same logits"""
    learner = candidate.scattered()
    tensors = {name: t.contiguous() for name, t in learner.state_dict().items()}
    if not tensors:
        return
    again = candidate.build(seed=1)
    again.load_state_dict(safetensors.torch.load(safetensors.torch.save(tensors)), strict=True)
    require(torch.equal(candidate.logits(again), candidate.logits(learner)), "a loaded learner has other logits")
    name = next(iter(tensors))
    more, less = {**tensors, "not_a_name": torch.zeros(3)}, {k: t for k, t in tensors.items() if k != name}
    for wrong in (more, less, {**tensors, name: torch.zeros(1, 1, 1, 1, 7)}):
        try:
            candidate.build(seed=1).load_state_dict(wrong, strict=True)
        except RuntimeError:
            continue
        raise Broken("tensors of another name, number or shape are loaded without an error")


def check_features(candidate: Candidate) -> None:
    """cached image features give what pixels give, unless edits_image says that they are not enough"""
    learner = candidate.scattered()
    with torch.no_grad():
        features = candidate.clip.image(candidate.batch[0])
    try:
        logits = candidate.logits(learner, Images(features=features))
    except NeedsPixels:
        require(learner.edits_image, "it edits the image tower: declare edits_image")
        with torch.no_grad():
            edited = learner.eval().encode_images(candidate.batch[0])
        require(not close(edited, features), "edits_image is true, though the image features are the frozen ones")
        return
    require(not learner.edits_image, "edits_image is true, though cached features are enough")
    require(close(logits, candidate.logits(learner)), "logits from cached features differ from those from pixels")


def check_resnet(candidate: Candidate) -> None:
    """a ResNet is taken, or refused with a UserError where edits_image is true"""
    of_resnet = replace(candidate, clip=candidate.resnet)
    try:
        require(of_resnet.logits(of_resnet.build()).isfinite().all(), "logits are not finite on a ResNet")
    except UserError:
        require(candidate.build().edits_image, "a ResNet is refused, though edits_image is false")


def check_merged(candidate: Candidate) -> None:
    """zero-shot on the merged model is the learner, if it is mergeable"""
    learner = candidate.scattered().eval()
    try:
        merged = learner.merged()
    except UserError:
        require(not learner.mergeable, "it is mergeable, but merged() refuses")
        return
    require(learner.mergeable, "merged() gives a model: declare mergeable")
    zero_shot = Learner(merged, CLASSES, template=learner.template)
    require(close(candidate.logits(zero_shot), candidate.logits(learner)), "the merged model has other logits")


def check_neutral(candidate: Candidate) -> None:
    """neutral() equals zero-shot CLIP, or is None for a method that never does"""
    if candidate.clip.text is None:
        return
    zero_shot = candidate.logits(Learner(candidate.clip, CLASSES))
    torch.manual_seed(0)
    neutral = candidate.kind.neutral(candidate.clip, CLASSES, **candidate.settings)
    if neutral is None:
        require(not close(candidate.logits(candidate.build()), zero_shot), "it starts as zero-shot CLIP, not neutral()")
    else:
        require(
            close(candidate.logits(neutral), zero_shot), "neutral() is not zero-shot CLIP: override it or return None"
        )


CHECKS: tuple[Callable[[Candidate], None], ...] = (
    check_logits, check_loss, check_gradients, check_training, check_binding, check_binding_again, check_names,
    check_checkpoint, check_features, check_resnet, check_merged, check_neutral,
)  # fmt: skip


def run_checks(candidate: Candidate) -> Iterator[tuple[str, str]]:
    """What each check holds the learner to, and what is broken, in a sentence ("": nothing)."""
    for check in CHECKS:
        problem = ""
        with torch.random.fork_rng(devices=[]):
            try:
                check(candidate)
            except Broken as error:
                problem = str(error)
            except Exception as error:  # whatever a learner under development raises
                problem = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        yield str(check.__doc__), problem
