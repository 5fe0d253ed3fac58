"""Small random CLIPs of every supported kind."""

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
