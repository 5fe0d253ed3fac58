"""What the original implementations compute, through the library's own blocks: the baseline of benchmark_speed.py.

77 tokens for every class, in every layer; text encoded again in every batch; no caches. For a learner of vlprompt, and
from its parameters, as CoOp (Zhou et al.), CoCoOp, MaPLe, IVLP and VPT (Khattak et al.) have it, and LoRA on queries,
keys and values (Zanella and Ben Ayed).
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vlprompt.learners.cocoop import CoCoOp
from vlprompt.learners.coop import CoOp
from vlprompt.learners.ivlp import IVLP
from vlprompt.learners.lora import LoRA, LowRank
from vlprompt.learners.maple import MaPLe
from vlprompt.learners.vpt import VPT
from vlprompt.learners.zero_shot import ZeroShot
from vlprompt.towers import Images

Logits = Callable[[Images], Tensor]
Updates = dict[tuple[str, int, str], LowRank]  # by tower, layer and site


class PlainClip:
    """An open_clip model's two towers over whole sequences: [C, 77, d] and [B, 3, H, W].

    Within the towers tokens come first, then the batch, as in the originals: in the library's own order the projection
    to queries, keys and values costs the baseline up to half of its speed.
    """

    def __init__(self, model: Any, updates: Updates | None = None) -> None:
        self.model, self.scale, self.updates = model, model.logit_scale.exp().item(), updates or {}
        for block in (*model.transformer.resblocks, *model.visual.transformer.resblocks):
            block.attn.batch_first = False  # read by the library's own forward pass alone

    def encode_text(self, tokens: Tensor, eot: Tensor, deep: Sequence[Tensor] = ()) -> Tensor:
        """Un-normalised class features; `deep[i]` is written over the first context tokens of layer i + 1."""
        model = self.model
        x = (tokens + model.positional_embedding).permute(1, 0, 2)
        for layer, block in enumerate(model.transformer.resblocks):
            if 0 < layer <= len(deep):
                x = torch.cat([x[:1], spread(deep[layer - 1], x), x[1 + len(deep[layer - 1]) :]])
            x = self.run("text", layer, block, x, model.attn_mask)
        x = model.ln_final(x.permute(1, 0, 2))
        return x[torch.arange(len(x), device=x.device), eot] @ model.text_projection

    def encode_image(self, pixels: Tensor, prompts: Sequence[Tensor] = ()) -> Tensor:
        """Un-normalised image features; prompts after the patches, `prompts[i]` written in layer i."""
        visual = self.model.visual
        x = visual.conv1(pixels).flatten(2).mT
        x = torch.cat([visual.class_embedding.expand(len(x), 1, -1), x], 1) + visual.positional_embedding
        n_patches = x.shape[1]
        if prompts:
            x = torch.cat([x, prompts[0].expand(len(x), -1, -1)], 1)
        x = visual.ln_pre(x).permute(1, 0, 2)
        for layer, block in enumerate(visual.transformer.resblocks):
            if 0 < layer < len(prompts):
                x = torch.cat([x[:n_patches], spread(prompts[layer], x)])
            x = self.run("image", layer, block, x)
        return visual.ln_post(x[0]) @ visual.proj

    def run(self, tower: str, layer: int, block: Any, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """A block on [L, N, d]; where q, k or v have updates, in the steps that a layer with LoRA takes."""
        if not self.updates:
            return block(x, attn_mask=mask)
        attn, u = block.attn, block.ln_1(x)
        qkv = list(F.linear(u, attn.in_proj_weight, attn.in_proj_bias).chunk(3, -1))
        for i, site in enumerate("qkv"):
            if update := self.updates.get((tower, layer, site)):
                qkv[i] = qkv[i] + update(u)
        heads = [m.unflatten(-1, (attn.num_heads, -1)).permute(1, 2, 0, 3) for m in qkv]  # [N, h, L, c]
        mask = None if mask is None else mask.to(heads[0].dtype)
        mixed = F.scaled_dot_product_attention(*heads, attn_mask=mask)
        x = x + attn.out_proj(mixed.permute(2, 0, 1, 3).flatten(-2))
        return x + block.mlp(block.ln_2(x))

    def compare(self, image_features: Tensor, class_features: Tensor) -> Tensor:
        return self.scale * F.normalize(image_features, dim=-1) @ F.normalize(class_features, dim=-1).T


def spread(tokens: Tensor, x: Tensor) -> Tensor:
    """[n, d] for all of x's batch: [n, N, d]."""
    return tokens[:, None].expand(-1, x.shape[1], -1)


class PaddedPrompts:
    """Embedded class prompts in all their 77 tokens, made once, as the originals keep them."""

    def __init__(self, learner: Any, texts: Sequence[str]) -> None:
        ids = learner.text.tokenize(list(texts))
        self.eot, self.tokens = ids.argmax(-1), learner.text.embed(ids)
        self.name_lengths = [learner.text.count(name) for name in learner.classes]

    def with_context(self, context: Tensor, position: str) -> Tensor:
        """[C, 77, d]. Context [n, d], or [C, n, d], around the names."""
        if position == "end":
            return written(self.tokens, context, 1)
        n = context.shape[-2]
        before = n // 2 if position == "middle" else 0
        context = context.expand(len(self.tokens), -1, -1)
        rows = []
        for row, words, length in zip(self.tokens, context, self.name_lengths, strict=True):
            name, rest = row[1 + n : 1 + n + length], row[1 + n + length :]
            rows.append(torch.cat([row[:1], words[:before], name, words[before:], rest]))
        return torch.stack(rows)


def written(x: Tensor, tokens: Tensor, at: int) -> Tensor:
    """x [N, L, d] with tokens [n, d] or [N, n, d] from token `at` on."""
    return torch.cat([x[:, :at], tokens.expand(len(x), -1, -1), x[:, at + tokens.shape[-2] :]], 1)


def plain_logits(learner: Any) -> Logits:
    """The learner's logits of a batch, as the original implementation computes them."""
    updates = learner.updates_by_site() if isinstance(learner, LoRA) else None
    return {
        CoOp: of_coop, CoCoOp: of_cocoop, MaPLe: of_maple, IVLP: of_ivlp, VPT: of_vpt, LoRA: of_lora,
        ZeroShot: of_zero_shot,
    }[type(learner)](learner, PlainClip(learner.clip.weights.root, updates))  # fmt: skip


def context_prompts(learner: Any) -> PaddedPrompts:
    lead = learner.ctx_init or " ".join(["X"] * learner.n_context)
    return PaddedPrompts(learner, [f"{lead} {name}." for name in learner.classes])


def encoder(clip: PlainClip, images: Images) -> Tensor:
    """Features at hand (of the text side alone), or the image tower's."""
    return images.features if images.pixels is None else clip.encode_image(images.pixels)


def of_coop(learner: CoOp, clip: PlainClip) -> Logits:
    prompts = context_prompts(learner)

    def logits(images: Images) -> Tensor:
        features = encoder(clip, images)
        tokens = prompts.with_context(learner.context, learner.position)
        return clip.compare(features, clip.encode_text(tokens, prompts.eot))

    return logits


def of_cocoop(learner: CoCoOp, clip: PlainClip) -> Logits:
    prompts = context_prompts(learner)

    def logits(images: Images) -> Tensor:
        features = F.normalize(encoder(clip, images), dim=-1)
        contexts = learner.context + learner.meta_net(features)[:, None]
        rows = []
        for feature, context in zip(features, contexts, strict=True):
            classes = clip.encode_text(written(prompts.tokens, context, 1), prompts.eot)
            rows.append(clip.compare(feature[None], classes))
        return torch.cat(rows)

    return logits


def of_maple(learner: MaPLe, clip: PlainClip) -> Logits:
    prompts = context_prompts(learner)

    def logits(images: Images) -> Tensor:
        text = [learner.context, *learner.deep]
        visual = [couple(tokens) for couple, tokens in zip(learner.coupling, text, strict=True)]
        classes = clip.encode_text(written(prompts.tokens, text[0], 1), prompts.eot, text[1:])
        return clip.compare(clip.encode_image(images.pixels, visual), classes)

    return logits


def of_ivlp(learner: IVLP, clip: PlainClip) -> Logits:
    prompts = context_prompts(learner)

    def logits(images: Images) -> Tensor:
        tokens = written(prompts.tokens, learner.context, 1)
        classes = clip.encode_text(tokens, prompts.eot, list(learner.deep))
        return clip.compare(clip.encode_image(images.pixels, list(learner.image_tokens)), classes)

    return logits


def of_vpt(learner: VPT, clip: PlainClip) -> Logits:
    prompts = PaddedPrompts(learner, [learner.template.replace("{}", name) for name in learner.classes])
    with torch.no_grad():
        classes = clip.encode_text(prompts.tokens, prompts.eot)  # once, in the original too
    return lambda images: clip.compare(clip.encode_image(images.pixels, list(learner.tokens)), classes)


def of_lora(learner: LoRA, clip: PlainClip) -> Logits:
    prompts = PaddedPrompts(learner, [learner.template.replace("{}", name) for name in learner.classes])
    return lambda images: clip.compare(clip.encode_image(images.pixels), clip.encode_text(prompts.tokens, prompts.eot))


def of_zero_shot(learner: ZeroShot, clip: PlainClip) -> Logits:
    def logits(images: Images) -> Tensor:
        total: Any = 0
        for template in learner.templates:
            prompts = PaddedPrompts(learner, [template.replace("{}", name) for name in learner.classes])
            total = total + F.normalize(clip.encode_text(prompts.tokens, prompts.eot), dim=-1)
        return clip.compare(encoder(clip, images), total)

    return logits
