"""How the options and tensors of the original implementations are called here: one entry a method."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any
from unittest import mock

import parity_calibration
import parity_closed_form
import parity_metrics
import parity_test_time
import parity_tpt
import torch
from parity_flyp import check_contrastive
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from vlprompt.interop.dassl.names import ORIGINALS as FAMILY
from vlprompt.learners.base import Learner, normalize, scaled_cosine
from vlprompt.learners.clap import CLAP
from vlprompt.learners.clip_adapter import CLIPAdapter
from vlprompt.learners.cocoop import CoCoOp
from vlprompt.learners.coop import CoOp
from vlprompt.learners.cross_modal import CrossModal
from vlprompt.learners.dept import DePT
from vlprompt.learners.flyp import FLYP
from vlprompt.learners.ivlp import IVLP
from vlprompt.learners.kgcoop import KgCoOp
from vlprompt.learners.lora import LoRA
from vlprompt.learners.lp_plus_plus import LPPlusPlus
from vlprompt.learners.maple import MaPLe
from vlprompt.learners.mma import MMA
from vlprompt.learners.mmrl import MMRL
from vlprompt.learners.mmrl_plus_plus import MMRLPlusPlus
from vlprompt.learners.plot_plus_plus import PLOTPlusPlus
from vlprompt.learners.prograd import ProGrad
from vlprompt.learners.prolip import ProLIP
from vlprompt.learners.promptsrc import PromptSRC
from vlprompt.learners.taskres import TaskRes
from vlprompt.learners.tcp import TCP
from vlprompt.learners.tip_adapter import TipAdapter
from vlprompt.learners.two_stage import TwoStage
from vlprompt.learners.vpt import VPT
from vlprompt.learners.zero_shot import ZeroShot
from vlprompt.learners.zs_lp import ZSLP
from vlprompt.towers import PLAIN, Clip, Images, Preprocess, Prompts
from vlprompt.towers.block import Weights
from vlprompt.towers.clip import build as build_clip
from vlprompt.training.optim import stage_of

TOLERANCES: Mapping[str, Any] = {
    "init_logits": {"atol": 2e-5, "rtol": 1e-5},
    "features": {"atol": 2e-5, "rtol": 1e-5},
    "loss": {"atol": 2e-5, "rtol": 1e-5},
    "gradient_rel_l2": 1e-4,
    "parameter_rel_l2": 1e-5,
    "final_logits": {"atol": 1e-4},
    "lr_rel": 1e-9,
}
"""How near a case has to come that brings no `tolerances`: absolute and relative, or the relative L2 distance."""
COMPARED = frozenset({"config", "runs", "trainable_names_in_order", "name_lens", "init_kg_score", "init_ce", "results",
                      "tolerances", "start_of_the_original", "frozen_text_templates", "train_step_batch_sizes",
                      "ce_loss", "top1_pred", "temperature", "images", "predictions"})  # fmt: skip
ABOUT = {
    **dict.fromkeys(("sinkhorn_iterations_init", "transport_times_MN_min_max_init"), "the plans are compared"),
    **dict.fromkeys(("case", "set", "versions", "tensors", "source", "loss", "notes"), "says what the case is"),
    **dict.fromkeys(
        ("independent_float64_differences", "independent_float64_differences [weights rel, logits abs]"),
        "how near another version came",
    ),
    "texts_tokenised_in_order": "token ids and features of them are compared",
    "given_to_the_optimiser_but_without_gradient": "parameters that no optimiser moves",
    "learning_rates": "the parameters after each step are compared",
    "frozen_params_in_optimizer": "parameters without a gradient, which no optimiser moves",
    "init": "the start is the model's, or in the tensors",
    "not_recorded": "says what the case is",
    "gradient_rule": "the gradients are compared",
    "zero_temperature (float32 eps)": "votes are whole here",
    "kernel_evaluations_per_image": "the mode that they lead to is compared",
    **dict.fromkeys(
        ("notes", "sensitivity_rel_l2_to_1e-6_init_noise", "smallest_margin_of_the_prediction"), "about its numbers"
    ),
    "quirk_cache_keys_mutated_in_place": "the keys after each step and those that are searched with are compared",
}
"""What a case's json holds that no number here is compared with, and why."""
NO_TARGETS = {
    "lora_nonzero_b_mergepath": "documents a fault of the original: it merges updates into frozen weights twice"
}
"""Cases that are skipped, and why; a case of a method that is not in METHODS fails."""

TOWERS = {"v": "image", "t": "text"}

Value = Callable[[Any, Images], Tensor]


def raw(learner: Any, images: Images) -> Tensor:
    """Image features: those of the frozen tower where they are edited after it alone."""
    return learner.clip.image(images) if not learner.edits_image else learner.encode_images(images)


def frozen_text(learner: Any) -> Tensor:
    return normalize(learner.zero_shot_features(teacher_templates(learner)))


def unnormalised_mean(learner: Any, images: Images) -> Tensor:
    features: Tensor = learner.zero_shot_features(teacher_templates(learner), normalize=False)
    return features


VALUES: Mapping[str, Value] = {
    "logits": lambda learner, images: learner.logits(images, learner.encode_classes()),
    "logits_train_mode": lambda learner, images: learner.logits(images, learner.encode_classes()),
    "image_features_raw": raw,
    "image_features_normalised": lambda learner, images: normalize(raw(learner, images)),
    "cls_feature": raw,
    "text_features_raw": lambda learner, images: learner.encode_classes(),
    "text_features_normalised": lambda learner, images: normalize(learner.encode_classes()),
    "frozen_image_features_normalised": lambda learner, images: normalize(learner.clip.image(images)),
    "frozen_text_features_normalised": lambda learner, images: frozen_text(learner),
    "frozen_text_features_unnormalised_mean": unnormalised_mean,
    "frozen_logits": lambda learner, images: scaled_cosine(
        learner.clip.image(images), frozen_text(learner), learner.clip.scale
    ),
}
"""What cases hold of a learner before training (`init_forward.NAME`), and of logits (with their suffix) after it."""


def teacher_templates(learner: Any) -> Sequence[str]:
    return getattr(learner, "templates", None) or [learner.template]


def texts(learner: Any) -> list[Prompts]:
    """What a learner's class features are made of."""
    if hasattr(learner, "context"):
        return [learner.prompts]
    return [learner.text.prompts(learner.classes, template=template) for template in teacher_templates(learner)]


def teacher_texts(learner: Any) -> list[Prompts]:
    return [learner.text.prompts(learner.classes, template=template) for template in teacher_templates(learner)]


@dataclass(frozen=True)
class Original:
    """`build(clip, case)` makes the learner; `names` maps the original's trained tensors (patterns) to ours.

    A name may end in an index or a slice of our parameter. `tolerances` are those that are not as usual (TOLERANCES).
    `values` are a case's quantities that are others than in VALUES, or more; `components` makes the parts of the loss
    that `loss_components` names, apart from the cross-entropy `ce`. `texts` and `teacher_texts` make what `token_ids`
    and `teacher_token_ids` are compared with. With `own_backbone`, `build` gets the case's tensors for a clip.
    With `decay_all` the case was made with one optimiser group, whatever groups the method asks for. `check(clip, self,
    case)` compares all of a case of a kind of its own.
    """

    build: Callable[[Any, Mapping[str, Any]], Learner]
    names: Mapping[str, str | Callable[[re.Match[str]], str]] = field(default_factory=dict)
    tolerances: Mapping[str, Any] = field(default_factory=dict)
    values: Mapping[str, Value] = field(default_factory=dict)
    components: Callable[[Any, Images, Tensor], Mapping[str, float]] = lambda learner, images, labels: {}
    texts: Callable[[Any], list[Prompts]] = texts
    teacher_texts: Callable[[Any], list[Prompts]] = teacher_texts
    own_backbone: bool = False
    decay_all: bool = False
    check: Callable[[Any, Any, Any], None] | None = None

    def ours(self, name: str) -> str:
        for pattern, replacement in self.names.items():
            if re.fullmatch(pattern, name):
                return re.sub(pattern, replacement, name)
        raise AssertionError(f"no name here for the original's {name}")

    def value(self, name: str) -> Value | None:
        """How to compute one of a case's quantities; None where that is not known."""
        return self.values.get(name, VALUES.get(name))


def method_of(name: str, case: Mapping[str, Any]) -> str:
    """A case's method, or for those of Tip-Adapter, which name none, which of the two it is."""
    method: str | None = case["config"].get("method")
    if method is None and name.startswith("tip_adapter"):
        return "tip_adapter_f" if "train_step_batch_sizes" in case else "tip_adapter"
    return method or name


def no_learner(clip: Clip, case: Mapping[str, Any]) -> Learner:
    raise AssertionError("the case has logits and needs no learner")


def check_calibration(clip: Clip, original: "Original", case: Any) -> None:
    parity_metrics.check_calibration_metrics(case)
    parity_calibration.check_scaling(clip, original, case)


def coop(clip: Clip, case: Mapping[str, Any]) -> Learner:
    options = case["config"]["trainer_options"]
    phrase = options["CTX_INIT"] or ""
    return CoOp(
        clip,
        case["config"]["classnames"],
        n_context=None if phrase else options["N_CTX"],  # the original's phrase sets the length, whatever N_CTX says
        ctx_init=phrase,
        class_specific=options["CSC"] and not phrase,  # the original ignores CSC next to CTX_INIT
        position=options["CLASS_TOKEN_POSITION"],
    )


def zero_shot(clip: Clip, case: Mapping[str, Any]) -> Learner:
    names = case["config"]["classnames"]
    return ZeroShot(clip, names, templates=case["config"].get("templates") or template_of(case))


def template_of(case: Mapping[str, Any]) -> str:
    """A template that the original chose by data set: the first that makes as many of its texts as there are classes.

    Names stand in it with underscores or with spaces.
    """
    texts, given = case["texts_tokenised_in_order"], case["config"]["classnames"]
    for names in ([name.replace("_", " ") for name in given], given):
        for first in range(len(texts) - len(names) + 1):
            block = texts[first : first + len(names)]
            for found in re.finditer(re.escape(names[0]), block[0]):
                before, after = block[0][: found.start()], block[0][found.end() :]
                if block == [before + name + after for name in names]:
                    return before + "{}" + after
    raise AssertionError("no template makes the texts that the original tokenised")


def kgcoop(clip: Clip, case: Mapping[str, Any]) -> Learner:
    options = case["config"]["trainer_options"]
    return KgCoOp(
        clip,
        case["config"]["classnames"],
        n_context=None if options["CTX_INIT"] else options["N_CTX"],
        ctx_init="a photo of a" if options["CTX_INIT"] else "",
        template=template_of(case),
        weight=options["W"],
    )


def prograd(clip: Clip, case: Mapping[str, Any]) -> Learner:
    options, loss = case["config"]["trainer_options"], case["config"]["loss_options"]
    return ProGrad(
        clip,
        case["config"]["classnames"],
        n_context=options["N_CTX"],
        init="template" if options["CTX_INIT"] else "random",
        template=template_of(case),
        strength=float(loss["LAMBDA"]),
        temperature=float(loss["T"]),
        class_specific=options["CSC"] and not options["CTX_INIT"],  # the original ignores CSC next to CTX_INIT
        position=options["CLASS_TOKEN_POSITION"],
    )


def tcp(clip: Clip, case: Mapping[str, Any]) -> Learner:
    config = case["config"]
    options = config["trainer_options"]
    n_context = 4 if options["CTX_INIT"] else options["N_CTX"]  # the phrase is always the same
    (layer,) = value_of(config["constants_of_the_source"], "layers")
    words = value_of(config, "learnable_template").split(" ")
    return TCP(
        clip,
        config["classnames"],
        n_context=None if options["CTX_INIT"] else n_context,
        ctx_init="a photo of a" if options["CTX_INIT"] else "",
        learned_template=" ".join(words[n_context:]),
        template=value_of(config, "frozen_template"),
        weight=value_of(config["constants_of_the_source"], "loss weight"),  # W is not read
        layer=layer,
        n_tokens=4,
        reduction=value_of(config["constants_of_the_source"], "reduction"),
    )


def value_of(table: Mapping[str, Any], name: str) -> Any:
    """The value whose key begins so; what follows in it is a remark."""
    (value,) = (value for key, value in table.items() if key.startswith(name))
    return value


def parts_of_prograd(learner: Any, images: Images, labels: Tensor) -> dict[str, float]:
    """The divergence from the zero-shot predictions, and how its gradient and the cross-entropy's lie."""
    features = learner.encode_images(images)
    logits = learner.compare(features, learner.encode_classes())
    losses = nn.functional.cross_entropy(logits, labels), learner.divergence(logits, features)
    pair = (torch.autograd.grad(loss, learner.context, retain_graph=True)[0].flatten() for loss in losses)
    cosine = nn.functional.cosine_similarity(*pair, dim=0).item()
    return {"kl_loss": losses[1].item(), "cosine_of_the_two_gradients": cosine, "projected": cosine < 0}


def parts_of_kgcoop(learner: Any, images: Images, labels: Tensor) -> dict[str, float]:
    with torch.no_grad():
        return {"kg_score": learner.distance(learner.encode_classes()).item()}


def parts_of_promptsrc(learner: Any, images: Images, labels: Tensor) -> dict[str, float]:
    divergence = weighted(learner, images, labels, logit_weight=1.0)
    return {
        "l1_text_raw": weighted(learner, images, labels, text_weight=1.0),
        "l1_image_raw": weighted(learner, images, labels, image_weight=1.0),
        "kl_sum_raw": divergence * len(labels) * len(learner.classes),
    }


def promptsrc(clip: Clip, case: Mapping[str, Any]) -> Learner:
    options = case["config"]["trainer_options"]
    return PromptSRC(
        clip,
        case["config"]["classnames"],
        **of_both_towers(options),
        templates=case["frozen_text_templates"],
        text_weight=float(options["TEXT_LOSS_WEIGHT"]),
        image_weight=float(options["IMAGE_LOSS_WEIGHT"]),
    )


@torch.no_grad()
def weighted(learner: Any, images: Images, labels: Tensor, **weights: float) -> float:
    """PromptSRC's loss with other weights of its three terms, 0 where none is given, less the cross-entropy."""
    zero = dict.fromkeys(("text_weight", "image_weight", "logit_weight"), 0.0)
    with mock.patch.multiple(learner, **zero | weights):
        loss, logits = learner.loss(images, labels)
    return (loss - nn.functional.cross_entropy(logits, labels)).item()


def clip_adapter(clip: Clip, case: Mapping[str, Any]) -> Learner:
    return CLIPAdapter(clip, case["config"]["classnames"], template=template_of(case))


def taskres(clip: Clip, case: Mapping[str, Any]) -> Learner:
    options = case["config"]["trainer_options"]
    names = [name.replace("_", "&#95;") for name in case["config"]["classnames"]]  # the original keeps underscores
    return TaskRes(clip, names, templates=template_of(case), scale=options["RESIDUAL_SCALE"])


def tip_adapter(clip: Clip, case: Mapping[str, Any], *, finetune: bool = False) -> Learner:
    cfg = case["config"]["cfg"]
    return TipAdapter(
        replace(clip, scale=case["config"]["clip_logit_scale"]),
        case["config"]["classnames"],
        templates=case["config"]["templates"],
        finetune=finetune,
        n_views=cfg["augment_epoch"],
        alpha=float(cfg["init_alpha"]),
        beta=float(cfg["init_beta"]),
        search_scale=[float(top) for top in cfg["search_scale"]],
        search_steps=cfg["search_step"],
    )


def cocoop(clip: Clip, case: Mapping[str, Any]) -> Learner:
    options = case["config"]["trainer_options"]
    phrase = options["CTX_INIT"] or ""
    n_context = None if phrase else options["N_CTX"]
    return CoCoOp(clip, case["config"]["classnames"], n_context=n_context, ctx_init=phrase)


def conditional(learner: Any, images: Images) -> Tensor:
    """CoCoOp's class features for each image."""
    shift = learner.meta_net(normalize(learner.encode_images(images)))
    features: Tensor = learner.text(learner.prompts.with_context(learner.context + shift[:, None]))
    return features


def short_phrase(options: Mapping[str, Any], n_context: int) -> str:
    """The originals take the phrase for up to four tokens and start from random values beyond."""
    return options["CTX_INIT"] if n_context <= 4 else ""


def maple(clip: Clip, case: Mapping[str, Any]) -> Learner:
    options = case["config"]["trainer_options"]
    n = options["N_CTX"]
    names = case["config"]["classnames"]
    return MaPLe(clip, names, n_context=n, ctx_init=short_phrase(options, n), depth=options["PROMPT_DEPTH"])


def ivlp(clip: Clip, case: Mapping[str, Any]) -> Learner:
    options = case["config"]["trainer_options"]
    return IVLP(clip, case["config"]["classnames"], **of_both_towers(options))


def of_both_towers(options: Mapping[str, Any]) -> dict[str, Any]:
    """Independent prompts of the text and of the image tower."""
    n = options["N_CTX_TEXT"]
    return {
        "n_context": n,
        "ctx_init": short_phrase(options, n),
        "depth": options["PROMPT_DEPTH_TEXT"],
        "n_tokens": options["N_CTX_VISION"],
        "image_depth": options["PROMPT_DEPTH_VISION"],
    }


def vpt(clip: Clip, case: Mapping[str, Any]) -> Learner:
    options = case["config"]["trainer_options"]
    depth, n = options["PROMPT_DEPTH_VISION"], options["N_CTX_VISION"]
    return VPT(clip, case["config"]["classnames"], n_tokens=n, depth=depth)  # always "a photo of a {}."


def dept(clip: Clip, case: Mapping[str, Any]) -> Learner:
    config = case["config"]
    options, inner = config["trainer_options"], config["inner"]
    head = options["LINEAR_PROBE"]
    published = head["TYPE"] == "linear" and head["TEST_TIME_FUSION"] and options["FILM"]["LINEAR_PROBE"]
    assert published, "another head, or channels as they are, have no form here"
    rates = {run["optim"]["lr_exp"] for run in case["runs"].values()}
    name, more = {"cocoop": ("COCOOP", []), "maple": ("MAPLE", ["PROMPT_DEPTH"])}.get(
        inner, ("COOP", ["CSC", "CLASS_TOKEN_POSITION", "ALPHA", "W"])
    )
    only(options, "LINEAR_PROBE", "FILM", name)
    only(head, "TYPE", "WEIGHT", "TEST_TIME_FUSION")
    only(options["FILM"], "LINEAR_PROBE")
    of_inner = options[name]
    only(of_inner, "N_CTX", "CTX_INIT", *more)
    phrase, n = of_inner["CTX_INIT"] or "", of_inner["N_CTX"]
    if inner == "maple":
        arguments = {"n_context": n, "ctx_init": short_phrase(of_inner, n), "depth": of_inner["PROMPT_DEPTH"]}
    else:
        phrase = "a photo of a" if phrase and inner == "kgcoop" else phrase  # whatever it is
        arguments = {"n_context": None if phrase else n, "ctx_init": phrase}
    if inner == "coop":
        arguments |= {"class_specific": of_inner["CSC"] and not phrase, "position": of_inner["CLASS_TOKEN_POSITION"]}
    if inner == "kgcoop":
        arguments |= {"weight": float(of_inner["W"]), "template": config["frozen_template"]}
    return DePT(
        clip,
        config["classnames"],
        inner=inner,
        arguments=arguments,
        template=config.get("frozen_template") or PLAIN,
        weight=float(head["WEIGHT"]),
        rate=float(*rates),
    )


def parts_of_dept(learner: Any, images: Images, labels: Tensor) -> dict[str, float]:
    """The cross-entropies of the cosines, and of the head on text and image features, and what the inner one adds."""
    with torch.no_grad():
        features, classes = learner.encode_images(images), learner.encode_classes()
        of_labels = torch.stack(
            [row[label] for row, label in zip(text_of_images(learner, images), labels, strict=True)]
        )
        text, image = (
            f * c.weight + c.bias for f, c in ((of_labels, learner.text_channels), (features, learner.image_channels))
        )
        both = learner.linear(torch.cat([text, image]))
        parts = {
            "ce": nn.functional.cross_entropy(learner.inner.compare(features, classes), labels).item(),
            "ce_head": nn.functional.cross_entropy(both, torch.cat([labels, labels])).item(),
        }
        return parts | (parts_of_kgcoop(learner.inner, images, labels) if hasattr(learner.inner, "distance") else {})


def text_of_images(learner: Any, images: Images) -> Tensor:
    """Class features for each image, which are the same ones where they do not depend on it."""
    features = learner.encode_images(images)
    of_classes = learner.classes_for(features, learner.encode_classes())
    return of_classes.expand(len(features), -1, -1)


def of_new_classes(learner: Any, images: Images) -> Tensor:
    """Logits for the classes that a case names in addition."""
    learner.bind(learner.new_classes)
    logits: Tensor = learner.logits(images, learner.encode_classes())
    learner.bind(learner.trained_classes)
    return logits


def plot_plus_plus(clip: Clip, case: Mapping[str, Any]) -> Learner:
    config = case["config"]
    options = config["trainer_options"]
    only(options, "N_CTX", "CSC", "CTX_INIT", "CLASS_TOKEN_POSITION", "N", "M", "N_CTX_V")
    assert options["CTX_INIT"], "without openings the original crashes"
    assert options["CLASS_TOKEN_POSITION"] == "end", "the name stands at the end whatever this says"
    return PLOTPlusPlus(
        clip,
        config["classnames"],
        openings=config["openings"][: options["N"]],
        cut_names=True,
        n_image_prompts=options["M"],
        n_image_tokens=options["N_CTX_V"],
        epsilon=float(config["eps"]),
        iterations=config["max_iter"],
        threshold=float(config["threshold"]),
        stop="batch",
    )


def of_pairs(learner: Any, images: Images) -> Tensor:
    """Cosines of each image's features and each class's."""
    features, classes = normalize(learner.encode_each(images)), normalize(learner.encode_classes())
    return torch.einsum("bme,cne->bcmn", features, classes)


def by_transport(learner: Any, images: Images) -> Tensor:
    pairs = of_pairs(learner, images)
    logits: Tensor = learner.clip.scale * (learner.plan(pairs) * pairs).sum((2, 3))
    return logits


def lp_plus_plus(clip: Clip, case: Mapping[str, Any]) -> Learner:
    """Its features are made up, of a width of their own."""
    config = case["config"]
    classes = [f"class {i}" for i in range(config["n_classes"])]
    image = replace(clip.image, embed_dim=config["dim"])
    return LPPlusPlus(replace(clip, image=image), classes, iterations=config["cfg"]["train_epoch"])


def part_of_config(case: Mapping[str, Any], name: str) -> Any:
    return value_of(case["config"], name)


def zs_lp(clip: Clip, case: Mapping[str, Any]) -> Learner:
    """Its constraint is a string of words."""
    config, options = case["config"], case["config"]["trainer_options"]
    fixed = {"INIT": "ZS", "ENHANCED_BASE": "none", "PREC": "fp32"}
    assert options == {**fixed, "CONSTRAINT": options["CONSTRAINT"]}, f"{options} hold what has no form here"
    assert config["logit_scale"] == "exp of the checkpoint's"
    names = [name.replace("_", "&#95;") for name in config["classnames"]]  # the original keeps underscores
    templates = config["templates_in_order"]
    if options["CONSTRAINT"] == "none":
        return ZSLP(clip, names, templates=templates)
    words = options["CONSTRAINT"].split("_")
    assert set(words) <= {"l2", "cosine", "balanced", "corrected", "constant", "adaptative"}, f"{words} are not known"
    weighing = {"balanced"} & {*words} or {"corrected", "constant"} & {*words}
    return CLAP(
        clip,
        names,
        templates=templates,
        constraint="l2" if "l2" in words else "cosine",
        multipliers={0: "class", 1: min(weighing, default=""), 2: "balanced"}[len(weighing)],  # both: all are 1
        adaptive="adaptative" in words,
        n_views=part_of_config(case, "views"),
    )


def cross_modal(clip: Clip, case: Mapping[str, Any], **settings: Any) -> Learner:
    """Its features are made up, of a width of their own; `case["run"]` is the run that is built."""
    config, run = case["config"], case["run"]
    options = config["options"]
    known = {"classifier_head": ("linear", "adapter"), "classifier_init": ("zeroshot", "random"),
             "modality": ("cross_modal", "uni_modal")}  # fmt: skip
    assert set(options) == {*known, "logit", "image_augmentation"}, f"{sorted(options)} are not the options known"
    assert all(options[name] in values for name, values in known.items()), f"{options} are not built"
    assert config["CROSS_MODAL_BATCH_RATIO"] == 0.5
    optim = {"name": "adamw", "betas": [0.9, 0.999], "eps": 1e-8}
    assert {name: run["optim"][name] for name in optim} == optim
    image = replace(clip.image, embed_dim=config["dim"])
    return CrossModal(
        replace(clip, image=image, scale=math.exp(options["logit"])),
        [f"class {i}" for i in range(config["n_classes"])],
        texts=options["modality"] == "cross_modal",
        init=options["classifier_init"],
        adapter=options["classifier_head"] == "adapter",
        rates=[float(run["optim"]["lr"])],
        decays=[float(run["optim"]["weight_decay"])],
        batch_sizes=[run["batch_size"]],
        iterations=run["max_iter"],
        warmup_steps=run["warmup_iter"],
        warmup_rate=float(run["warmup_min_lr"]),
        evaluate_every=run["eval_freq"],
        n_views=0,  # features of all views are given
        **settings,
    )


def class_by_class(learner: Any) -> list[Prompts]:
    return [
        learner.text.prompts([name], template=template) for name in learner.classes for template in learner.templates
    ]


def elsewhere(learner: Any, images: Images) -> Tensor:
    """Logits of images of another data set than the one trained on."""
    learner.bind(learner.classes, transfer=True)
    logits: Tensor = learner.logits(images, learner.encode_classes())
    learner.bind(learner.classes)
    return logits


def mmrl(clip: Clip, case: Mapping[str, Any]) -> Learner:
    config = case["config"]
    options, layers = config["trainer_options"], config["trainer_options"]["REP_LAYERS"]  # counted from 1
    depth = min(clip.image.depth, clip.text.depth)
    assert layers == list(range(layers[0], depth + 1)), "an original whose tokens stay in upper layers has no form here"
    return MMRL(
        replace(clip, scale=float(config["logit_scale"])),
        config["classnames"],
        template=template_of(case),
        n_tokens=options["N_REP_TOKENS"],
        space=options["REP_DIM"],
        first_layer=layers[0] - 1,
        alpha=float(options["ALPHA"]),
        weight=float(options["REG_WEIGHT"]),
    )


def mmrl_plus_plus(clip: Clip, case: Mapping[str, Any]) -> Learner:
    config = case["config"]
    options, layers = config["trainer_options"], config["trainer_options"]["REP_LAYERS"]  # counted from 1
    only(options, "ALPHA", "BETA", "REG_WEIGHT", "N_REP_TOKENS", "REP_LAYERS", "REP_DIM", "PROJ_LORA_DIM",
         "RES_LORA_DIM")  # fmt: skip
    depth = min(clip.image.depth, clip.text.depth)
    assert layers == list(range(layers[0], depth + 1)), "an original whose tokens stay in upper layers has no form here"
    return MMRLPlusPlus(
        replace(clip, scale=float(config["logit_scale"])),
        config["classnames"],
        template=template_of(case),
        n_tokens=options["N_REP_TOKENS"],
        space=options["REP_DIM"],
        first_layer=layers[0] - 1,
        alpha=float(options["ALPHA"]),
        beta=float(options["BETA"]),
        target_beta=None if config.get("target_beta") is None else float(config["target_beta"]),
        weight=float(options["REG_WEIGHT"]),
        rank=options["RES_LORA_DIM"],
        projection_rank=options["PROJ_LORA_DIM"],
    )


def at_beta(beta: str) -> Value:
    """Logits of the class token's feature at one of the two shares, as new classes and other data sets have them."""

    def logits(learner: Any, images: Images) -> Tensor:
        with mock.patch.object(learner, "target_beta", getattr(learner, beta)):
            return elsewhere(learner, images)

    return logits


def flyp(clip: Clip, case: Mapping[str, Any]) -> Learner:
    return FLYP(clip, case["config"]["classnames"], template=case["config"]["eval_template"])


def only(options: Mapping[str, Any], *known: str) -> None:
    """Refuse a case with options that nothing here follows."""
    assert set(options) <= {*known, "PREC"}, f"options without a form here: {sorted(set(options) - {*known, 'PREC'})}"


def mma(clip: Clip, case: Mapping[str, Any]) -> Learner:
    config = case["config"]
    options = config["trainer_options"]
    only(options, "TEXT_CTX_INIT", "ADAPTER_START", "ADAPTER_END", "ADAPTER_DIM", "ADAPTER_SCALE")
    assert options["ADAPTER_START"] > 0, "an adapter of the embeddings is not built"
    return MMA(
        clip,
        config["classnames"],
        template=options["TEXT_CTX_INIT"] + " {}.",
        first_layer=options["ADAPTER_START"] - 1,
        last_layer=options["ADAPTER_END"] - 1,
        dim=options["ADAPTER_DIM"],
        alpha=float(options["ADAPTER_SCALE"]),
    )


def mma_name(match: re.Match[str]) -> str:
    """The original counts blocks from 1."""
    layer, part = int(match[2]) - 1, match[3].replace("0.", "")
    if match[1] == "shared":
        return f"shared.{layer}.{part}"
    map_, _, kind = part.partition(".")
    return f"{map_}.{ {'visual': 'image'}.get(match[1], match[1]) }.{layer}.{kind}"


def clip_lora(clip: Clip, case: Mapping[str, Any]) -> Learner:
    config = case["config"]
    assert config["position"] == "all", "updates of some blocks alone are not built"
    return LoRA(
        replace(clip, scale=float(config["logit_scale"])),
        config["classnames"],
        template=config["template"],
        towers={"vision": "image"}.get(config["encoder"], config["encoder"]),
        sites=config["params"],
        rank=config["r"],
        alpha=float(config["alpha"]),
        scaling=config["scaling"],
    )


def prolip(clip: Clip, case: Mapping[str, Any]) -> Learner:
    config = case["config"]
    options = {name: value for name, value in config["cfg"].items() if name != "lr_v"}  # a run's own
    iterations, n_views, searches = (options.pop(name) for name in ("train_epoch", "aug_views", "search_lr"))
    by_shots, by_square, number = (
        options.pop(name, False) for name in ("lambda_funct_1_N", "lambda_funct_1_N2", "lambda_v")
    )
    shots = options.pop("shots")
    assert not options, f"unknown options: {', '.join(options)}"
    weight = "1/shots" if by_shots else "1/shots^2" if by_square else float(number)
    for run in case["runs"].values() if not searches else ():
        assert run["lambda"] == {"1/shots": 1 / shots, "1/shots^2": 1 / shots**2}.get(weight, weight)
    return ProLIP(
        replace(clip, scale=float(config["logit_scale"])),
        config["classnames"],
        templates=config["templates_in_order"],
        n_views=n_views,
        iterations=iterations,
        weight=weight,
        search_lr=config["lr_list"] if searches else None,
        search_weight=[float(value) for value in config["lambda_list"]] if searches else None,
    )


def texts_by_class(learner: Any) -> list[Prompts]:
    return [learner.text.prompts([name], template=t) for name in learner.classes for t in learner.templates]


def two_stage(clip: Clip, case: Mapping[str, Any]) -> Learner:
    config, options = case["config"], dict(case["config"]["trainer_options"])
    kind = options.pop("peft")
    encoder, towers = options.pop("encoder"), options.pop("ln_modality")  # the second: which tower gets gradients
    if kind != "ln" and towers == "both":
        towers = encoder
    assert kind == "ln" or encoder in ("both", towers), "a tower that is tuned gets no gradient"
    of_lora: dict[str, Any] = {}
    if kind == "lora":
        assert options.pop("position", "all") == "all", "updates of some blocks alone are not built"
        options.pop("backbone", None)  # which it takes the positions of
        names = {"params": "sites", "r": "rank", "alpha": "alpha", "dropout_rate": "dropout"}
        of_lora = {ours: options.pop(theirs) for theirs, ours in names.items() if theirs in options}
        of_lora |= {name: float(of_lora[name]) for name in ("alpha", "dropout") if name in of_lora}
    shots, n_iters, fraction = options.pop("shots"), options.pop("n_iters"), options.pop("n_iters_frac")
    first = {f"first_{t}_layer": options.pop(f"ln_{n}_start") for t, n in (("image", "vision"), ("text", "text"))}
    assert options.pop("setting") in ("base2new", "standard")
    assert not options, f"unknown options: {', '.join(options)}"
    learner = TwoStage(
        clip,
        config["classnames"],
        template=config["template"],
        stage1={"ln": "layer_norm"}.get(kind, kind),
        fraction=float(fraction),
        towers={"vision": "image"}.get(towers, towers),
        **first,
        **of_lora,
    )
    lengths = [run["steps"] for run in case["runs"].values()]
    total = shots * n_iters
    first_steps = [stage_of(step, learner.stages, total).number for step in range(total)].count(0)
    assert set(lengths) - {0} == {first_steps, total - first_steps} - {0}
    return learner


def vpt_vit(tensors: Mapping[str, Tensor], case: Mapping[str, Any]) -> Learner:
    """VPT's own supervised ViT: its backbone comes with the case."""
    config = case["config"]
    vit = VisionTransformer(
        img_size=config["image"],
        patch_size=config["patch"],
        embed_dim=config["hidden"],
        depth=config["layers"],
        num_heads=config["heads"],
        mlp_ratio=config["mlp_dim"] / config["hidden"],
        num_classes=0,
        norm_layer=partial(nn.LayerNorm, eps=config["layernorm_eps"]),
    )
    vit.load_state_dict(as_timm(tensors))
    clip = build_clip(Weights(vit), name="vptvit", preprocess=Preprocess(size=config["image"]), words=None)
    return VPT(
        clip,
        [f"class {i}" for i in range(config["n_classes"])],
        n_tokens=config["n_tokens"],
        depth=config["layers"] if config["deep"] else 1,
        head="linear",
        project=config["project"] if config["project"] > 0 else None,
    )


def as_timm(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`backbone.*` under timm's names, q, k and v stacked."""
    old = {k.removeprefix("backbone.transformer."): v.float() for k, v in tensors.items() if k.startswith("backbone.")}
    stacked = {}
    for name in [name for name in old if ".attn.query." in name]:
        parts = [old.pop(name.replace("query", part)) for part in ("query", "key", "value")]
        stacked[name.replace("query", "qkv")] = torch.cat(parts)
    renamed = {}
    for name, tensor in (old | stacked).items():
        for pattern, new in (
            (r"embeddings\.position_embeddings", "pos_embed"),
            (r"embeddings\.cls_token", "cls_token"),
            (r"embeddings\.patch_embeddings", "patch_embed.proj"),
            (r"encoder\.encoder_norm", "norm"),
            (r"encoder\.layer", "blocks"),
            (r"attention_norm", "norm1"),
            (r"ffn_norm", "norm2"),
            (r"ffn\.", "mlp."),
            (r"attn\.out\.", "attn.proj."),
        ):
            name = re.sub(pattern, new, name)
        renamed[name] = tensor
    return renamed


METHODS = {
    "ZeroshotCLIP": Original(zero_shot),
    "ZeroshotCLIP2": Original(zero_shot),
    "CoOp": Original(coop, FAMILY["CoOp"].tensors),
    "CoCoOp": Original(cocoop, FAMILY["CoCoOp"].tensors, values={"text_features_raw": conditional}),
    "MaPLe": Original(maple, FAMILY["MaPLe"].tensors),
    "IVLP": Original(ivlp, FAMILY["IVLP"].tensors),
    "VPT": Original(vpt, FAMILY["VPT"].tensors),
    "KgCoOp": Original(
        kgcoop,
        FAMILY["CoOp"].tensors,
        components=parts_of_kgcoop,
    ),
    "ProGrad": Original(
        prograd,
        FAMILY["CoOp"].tensors,
        components=parts_of_prograd,
    ),
    "TCP": Original(
        tcp,
        {
            r"prompt_learner\.ctx": "context",
            r"prompt_learner\.meta_net\.linear1\.(.*)": r"down.\1",
            r"prompt_learner\.meta_net\.linear2\.(.*)": r"up.\1",
        },
        components=parts_of_kgcoop,
        values={"class_prompt": lambda learner, images: learner.class_tokens()},
    ),
    "PromptSRC": Original(
        promptsrc,
        FAMILY["IVLP"].tensors,
        components=parts_of_promptsrc,
        values={
            "frozen_text_features_normalised": lambda learner, images: normalize(unnormalised_mean(learner, images)),
            "frozen_logits": lambda learner, images: scaled_cosine(
                learner.clip.image(images), unnormalised_mean(learner, images), learner.clip.scale
            ),
        },
    ),
    "CLIP_Adapter": Original(clip_adapter, {r"adapter\.fc\.(\d)\.weight": r"adapter.\1.weight"}),
    "TaskRes": Original(taskres, {r"prompt_learner\.text_feature_residuals": "residual"}),
    "tip_adapter": Original(tip_adapter),
    "tip_adapter_f": Original(
        partial(tip_adapter, finetune=True), {"adapter.weight": "keys", "adapter_weight": "keys"}
    ),
    "MMRL": Original(
        mmrl,
        {
            r"representation_learner\.compound_rep_tokens": "tokens",
            r"representation_learner\.compound_rep_tokens_r2vproj\.(.*)": r"maps.image.\1",
            r"representation_learner\.compound_rep_tokens_r2tproj\.(.*)": r"maps.text.\1",
            r"image_encoder\.proj_rep": "projection",
        },
        values={
            "logits_main": elsewhere,
            "logits_rep": lambda learner, images: scaled_cosine(
                learner.encode_both(images)[1], learner.encode_classes(), learner.clip.scale
            ),
            "image_features_rep_raw": lambda learner, images: learner.encode_both(images)[1],
        },
    ),
    "DePT": Original(
        dept,
        {
            r"film_lp_text\.scale": "text_channels.weight",
            r"film_lp_text\.bias": "text_channels.bias",
            r"film_lp_img\.scale": "image_channels.weight",
            r"film_lp_img\.bias": "image_channels.bias",
            r"linear_probe_proj\.(.*)": r"linear.\1",
            r"prompt_learner\..*": lambda m: f"inner.{of_inner(m[0])}",
        },
        components=parts_of_dept,
        values={
            "text_features_raw": lambda learner, images: (
                learner.encode_classes() if learner.encode_classes() is not None else text_of_images(learner, images)
            ),
            "logits_similarity": lambda learner, images: learner.inner.logits(images, learner.encode_classes()),
            "logits_head": lambda learner, images: learner.linear(
                learner.image_channels(learner.encode_images(images))
            ),
            "new_logits": of_new_classes,
            "logits_new": of_new_classes,
        },
    ),
    "PLOTPP": Original(
        plot_plus_plus,
        {r"prompt_learner\.ctx": "context", r"prompt_learner\.ctx_vision": "tokens"},
        texts=lambda learner: learner.texts(),
        values={
            "similarity": of_pairs,
            "transport": lambda learner, images: learner.plan(of_pairs(learner, images)),
            "logits_transport": by_transport,
            "logits_mean": lambda learner, images: learner.compare(
                learner.encode_images(images), learner.encode_classes()
            ),
            "image_features_raw": lambda learner, images: learner.encode_each(images).movedim(1, 0),
            "text_features_raw": lambda learner, images: learner.encode_classes().movedim(1, 0),
        },
    ),
    "FLYP": Original(flyp, {"logit_scale": "log_scale", r"(.+)": r"weights.\1"}, check=check_contrastive),
    "MMRLpp": Original(
        mmrl_plus_plus,
        {
            r"representation_learner\.compound_rep_tokens": "tokens",
            r"representation_learner\.srra_r2(.)proj\.weight": lambda m: f"maps.{TOWERS[m[1]]}.weight",
            r"representation_learner\.srra_r2(.)proj\.srra\.(\d+)\.([AB])": lambda m: (
                f"maps.{TOWERS[m[1]]}.residual.{m[3].lower()}[{m[2]}]"
            ),
            r"representation_learner\.srra_r2(.)proj\.srra\.(\d+)\.bias": lambda m: f"maps.{TOWERS[m[1]]}.bias[{m[2]}]",
            r"image_encoder\.([AB])": lambda m: f"residual.{m[1].lower()}",
        },
        values={
            "logits_main": at_beta("beta"),
            "logits_main_target_beta": at_beta("target_beta"),
            "logits_rep": lambda learner, images: scaled_cosine(
                learner.encode_both(images)[1], learner.encode_classes(), learner.clip.scale
            ),
            "image_features_rep_raw": lambda learner, images: learner.encode_both(images)[1],
        },
    ),
    "MMA": Original(
        mma,
        {r"adapter_learner\.(text|visual|shared)_adapter\.(\d+)\.(.*)": mma_name},
        values={
            "image_features_raw_without": lambda learner, images: learner.clip.image(images),
            "text_features_raw_without": lambda learner, images: learner.text(learner.prompts),
        },
    ),
    "LP++": Original(
        lp_plus_plus,
        {r"classifier\.(.*)": r"\1", "alpha_vec": "alpha"},
    ),
    "GDA": Original(
        parity_closed_form.gda,
        tolerances={"W_b_rel_l2": 2e-4, "logits_rel_l2": 1e-4},
        check=parity_closed_form.check_gda,
    ),
    "SS-Text": Original(
        parity_closed_form.ss_text,
        tolerances={"prototypes_rel_l2": 1e-5, "logits": {"atol": 1e-4}, "probabilities": {"atol": 1e-5}},
        check=parity_closed_form.check_ss_text,
    ),
    "open_world": Original(no_learner, check=parity_metrics.check_open_world),
    "calibration": Original(no_learner, check=check_calibration),
    "ZS-LP": Original(zs_lp, {"prototypes": "weight"}, texts=class_by_class),
    "CLAP": Original(zs_lp, {"prototypes": "weight"}, texts=class_by_class),
    "CrossModal": Original(
        cross_modal,
        {
            r"head\.weight": "weight",
            r"head\.1\.weight": "weight",
            r"head\.0\.fc\.(\d)\.weight": r"adapter.\1.weight",
        },
    ),
    "CLIP-LoRA": Original(
        clip_lora,
        {
            r"visual\.transformer\.resblocks\.(\d+)\.attn\.(\w+)\.w_lora_(.)": lambda m: lora_name("image", m),
            r"transformer\.resblocks\.(\d+)\.attn\.(\w+)\.w_lora_(.)": lambda m: lora_name("text", m),
        },
        tolerances={
            "init_logits": {"atol": 1e-4, "rtol": 1e-5},
            "parameter_rel_l2": 1e-3,
            "final_logits": {"atol": 1e-4},
        },
    ),
    "ProLIP": Original(prolip, texts=texts_by_class),
    "ZERO": Original(parity_test_time.learner, check=parity_test_time.check_zero),
    "MTA": Original(parity_test_time.learner, check=parity_test_time.check_mta),
    "TDA": Original(
        parity_test_time.learner,
        tolerances={"probabilities": {"atol": 1e-4}},
        check=parity_test_time.check_tda,
    ),
    "TPT": Original(parity_tpt.build, tolerances=parity_tpt.TOLERANCES, check=parity_tpt.check_tpt),
    "C-TPT": Original(parity_tpt.build, tolerances=parity_tpt.TOLERANCES, check=parity_tpt.check_tpt),
    "2SFS": Original(
        two_stage,
        {
            "classifier": "classifier",
            r"(visual\.transformer|transformer)\.resblocks\.(\d+)\.attn\.(\w+)\.w_lora_(.)": lambda m: (
                "tuned." + lora_name("image" if m[1] != "transformer" else "text", [m[0], *m.groups()[1:]])
            ),
            "(.+)": r"tuned.weights.\1",
        },
    ),
    "VPT (original, supervised ViT)": Original(
        vpt_vit,
        {
            r"transformer\.prompt_embeddings": "tokens[0:1]",
            r"transformer\.deep_prompt_embeddings": "tokens[1:]",
            r"transformer\.prompt_proj\.(.*)": r"project.\1",
            r"head\.(.*)": r"head.\1",
        },
        own_backbone=True,
        decay_all=True,
    ),
}


def of_inner(name: str) -> str:
    """A tensor of a prompt learner, of whichever it is, under our name."""
    ours = (METHODS[kind].names for kind in ("MaPLe", "CoCoOp"))  # which have CoOp's context, too
    return next(re.sub(old, new, name) for names in ours for old, new in names.items() if re.fullmatch(old, name))


def lora_name(tower: str, match: re.Match[str] | Sequence[Any]) -> str:
    site = {"proj": "o"}.get(match[2], match[2][0])
    return f"layers.{tower}.{match[1]}.{site}.{match[3].lower()}"
