"""How the options and tensors of the original implementations are called here: one entry a method."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from vlprompt.interop.dassl.names import ORIGINALS as FAMILY
from vlprompt.learners.base import Learner
from vlprompt.learners.clip_adapter import CLIPAdapter
from vlprompt.learners.cocoop import CoCoOp
from vlprompt.learners.coop import CoOp
from vlprompt.learners.ivlp import IVLP
from vlprompt.learners.kgcoop import KgCoOp
from vlprompt.learners.lora import LoRA
from vlprompt.learners.maple import MaPLe
from vlprompt.learners.prograd import ProGrad
from vlprompt.learners.promptsrc import PromptSRC
from vlprompt.learners.taskres import TaskRes
from vlprompt.learners.tcp import TCP
from vlprompt.learners.tip_adapter import TipAdapter
from vlprompt.learners.vpt import VPT
from vlprompt.learners.zero_shot import ZeroShot
from vlprompt.towers import Clip, Images, Preprocess
from vlprompt.towers.block import Weights
from vlprompt.towers.clip import build as build_clip


@dataclass(frozen=True)
class Original:
    """`build(clip, case)` makes the learner; `names` maps the original's trained tensors (patterns) to ours.

    A name may end in an index or a slice of our parameter. `logits` is an absolute bound, `parameters` one on the
    relative L2 distance after a step. With `own_backbone`, `build` gets the case's tensors for a clip.
    `parts` computes terms of a step's loss under the names of the case's `loss_components`.
    With `frozen_images` the case's image features are those of the unedited tower. With `decay_all` the case was made
    with one optimiser group, whatever groups the method asks for.
    """

    build: Callable[[Any, Mapping[str, Any]], Learner]
    names: Mapping[str, str | Callable[[re.Match[str]], str]] = field(default_factory=dict)
    logits: float = 2e-5
    parameters: float = 1e-5
    parts: Callable[[Any, Images, Tensor], Mapping[str, Tensor]] = lambda learner, images, labels: {}
    own_backbone: bool = False
    frozen_images: bool = False
    decay_all: bool = False

    def ours(self, name: str) -> str:
        for pattern, replacement in self.names.items():
            if re.fullmatch(pattern, name):
                return re.sub(pattern, replacement, name)
        raise KeyError(f"no name here for the original's {name}")


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
    """A template that the original chose by data set: read off the first of its texts that names a class."""
    name = case["config"]["classnames"][0].replace("_", " ")
    text: str = next(text for text in case["texts_tokenised_in_order"] if name in text)
    return text.replace(name, "{}")


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


def parts_of_tcp(learner: Any, images: Images, labels: Tensor) -> dict[str, Tensor]:
    classes = learner.encode_classes()
    return {"kg_score": learner.distance(classes), "ce": cross_entropy(learner.logits(images, classes), labels)}


def parts_of_prograd(learner: Any, images: Images, labels: Tensor) -> dict[str, Tensor]:
    features = learner.encode_images(images)
    return {"kl_loss": learner.divergence(learner.compare(features, learner.encode_classes()), features)}


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


def clip_lora(clip: Clip, case: Mapping[str, Any]) -> Learner:
    config = case["config"]
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
    "CoCoOp": Original(cocoop, FAMILY["CoCoOp"].tensors),
    "MaPLe": Original(maple, FAMILY["MaPLe"].tensors),
    "IVLP": Original(ivlp, FAMILY["IVLP"].tensors),
    "VPT": Original(vpt, FAMILY["VPT"].tensors),
    "KgCoOp": Original(kgcoop, FAMILY["CoOp"].tensors),
    "ProGrad": Original(prograd, FAMILY["CoOp"].tensors, parts=parts_of_prograd),
    "TCP": Original(
        tcp,
        {
            r"prompt_learner\.ctx": "context",
            r"prompt_learner\.meta_net\.linear1\.(.*)": r"down.\1",
            r"prompt_learner\.meta_net\.linear2\.(.*)": r"up.\1",
        },
        parts=parts_of_tcp,
    ),
    "PromptSRC": Original(promptsrc, FAMILY["IVLP"].tensors),
    "CLIP_Adapter": Original(clip_adapter, {r"adapter\.fc\.(\d)\.weight": r"adapter.\1.weight"}, frozen_images=True),
    "TaskRes": Original(taskres, {r"prompt_learner\.text_feature_residuals": "residual"}),
    **dict.fromkeys(("tip_adapter", "tip_adapter_synthetic"), Original(tip_adapter)),
    **dict.fromkeys(
        ("tip_adapter_f", "tip_adapter_f_synthetic"),
        Original(partial(tip_adapter, finetune=True), {"adapter.weight": "keys"}, parameters=1e-3),
    ),
    "CLIP-LoRA": Original(
        clip_lora,
        {
            r"visual\.transformer\.resblocks\.(\d+)\.attn\.(\w+)\.w_lora_(.)": lambda m: lora_name("image", m),
            r"transformer\.resblocks\.(\d+)\.attn\.(\w+)\.w_lora_(.)": lambda m: lora_name("text", m),
        },
        logits=1e-4,
        parameters=1e-3,
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
NO_TARGETS = ("lora_nonzero_b_mergepath",)
"""Cases that document a fault of the original."""


def lora_name(tower: str, match: re.Match[str]) -> str:
    site = {"proj": "o"}.get(match[2], match[2][0])
    return f"layers.{tower}.{match[1]}.{site}.{match[3].lower()}"
