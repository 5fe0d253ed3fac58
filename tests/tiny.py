"""Small random CLIPs of every supported kind."""

from typing import Any

import torch
from torch import Tensor, nn

from vlprompt.towers.clip import Clip
from vlprompt.towers.tiny import RESNET, TEXT, VISION, VIT, tiny_clip

CONFIGS = {
    "vit": VIT,
    "vit_avg": {"embed_dim": 24, "vision_cfg": {**VISION, "pool_type": "avg"}, "text_cfg": TEXT},
    "vit_ls": {
        "embed_dim": 24,
        "vision_cfg": {**VISION, "no_ln_pre": True, "final_ln_after_pool": True, "ls_init_value": 0.3},
        "text_cfg": {**TEXT, "ls_init_value": 0.4, "proj_bias": True},
        "custom_text": True,
    },
    "resnet": RESNET,
    "timm": {
        "embed_dim": 24,
        "vision_cfg": {"timm_model_name": "test_vit", "timm_pool": "token", "timm_proj": "linear", "image_size": 160},
        "text_cfg": TEXT,
    },
    "siglip": {
        "embed_dim": 64,
        "vision_cfg": {"timm_model_name": "test_vit3", "timm_pool": "map", "timm_proj": "none", "image_size": 160},
        "text_cfg": {**TEXT, "context_length": 16, "no_causal_mask": True, "pool_type": "last", "proj_bias": True},
        "init_logit_bias": -10,
        "custom_text": True,
    },
}


def clip(kind: str = "vit", dtype: torch.dtype = torch.float64) -> tuple[Clip, nn.Module]:
    """The towers and the model that they borrow from."""
    made = tiny_clip(CONFIGS[kind], name=kind, dtype=dtype)
    return made, made.weights.root


def pixels(model: nn.Module, n: int = 2) -> Tensor:
    size = model.visual.image_size
    size = size[0] if isinstance(size, tuple) else size
    generator = torch.Generator().manual_seed(2)
    return torch.randn(n, 3, size, size, generator=generator).to(next(model.parameters()))


def in_transformers(clip: Clip) -> Any:
    """The same model as a `transformers.CLIPModel`, where the image tower is a ViT of open_clip's with QuickGELU."""
    from transformers import CLIPConfig, CLIPModel

    state, visual = clip.weights.root.state_dict(), clip.weights.root.visual
    towers = {"text": clip.text, "vision": clip.image}
    shapes: dict[str, dict[str, Any]] = {
        name: {
            "hidden_size": tower.width, "intermediate_size": 4 * tower.width, "num_hidden_layers": tower.depth,
            "num_attention_heads": tower.heads, "hidden_act": "quick_gelu", "projection_dim": clip.image.embed_dim,
        }
        for name, tower in towers.items()
    }  # fmt: skip
    shapes["text"] |= {"vocab_size": len(state["token_embedding.weight"]), "eos_token_id": 49407}
    shapes["vision"] |= {"image_size": visual.image_size[0], "patch_size": visual.patch_size[0]}
    config = CLIPConfig(text_config=shapes["text"], vision_config=shapes["vision"], projection_dim=clip.image.embed_dim)
    theirs = {
        "logit_scale": state["logit_scale"],
        "visual_projection.weight": state["visual.proj"].T,
        "text_projection.weight": state["text_projection"].T,
        "vision_model.embeddings.class_embedding": state["visual.class_embedding"],
        "vision_model.embeddings.patch_embedding.weight": state["visual.conv1.weight"],
        "vision_model.embeddings.position_embedding.weight": state["visual.positional_embedding"],
        "text_model.embeddings.token_embedding.weight": state["token_embedding.weight"],
        "text_model.embeddings.position_embedding.weight": state["positional_embedding"],
    }
    same = {"vision_model.pre_layrnorm": "visual.ln_pre", "vision_model.post_layernorm": "visual.ln_post",
            "text_model.final_layer_norm": "ln_final"}  # fmt: skip
    for name, prefix in (("vision", "visual."), ("text", "")):
        for layer in range(towers[name].depth):
            ours, block = f"{prefix}transformer.resblocks.{layer}", f"{name}_model.encoder.layers.{layer}"
            for kind in ("weight", "bias"):
                parts = state[f"{ours}.attn.in_proj_{kind}"].chunk(3)
                theirs |= {f"{block}.self_attn.{n}_proj.{kind}": t for n, t in zip("qkv", parts, strict=True)}
            same |= {f"{block}.layer_norm1": f"{ours}.ln_1", f"{block}.layer_norm2": f"{ours}.ln_2",
                     f"{block}.mlp.fc1": f"{ours}.mlp.c_fc", f"{block}.mlp.fc2": f"{ours}.mlp.c_proj",
                     f"{block}.self_attn.out_proj": f"{ours}.attn.out_proj"}  # fmt: skip
    theirs |= {f"{a}.{kind}": state[f"{b}.{kind}"] for a, b in same.items() for kind in ("weight", "bias")}
    model = CLIPModel(config).to(state["logit_scale"].dtype).eval()
    model.load_state_dict(theirs, strict=True)
    return model
