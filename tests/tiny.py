"""Small random CLIPs whose image, text and embedding widths all differ, so that mixing them up shows."""

import open_clip
import torch
from torch import Tensor, nn

from vlprompt.towers.clip import Clip, Preprocess
from vlprompt.towers.loading import clip_of, make_model

TEXT = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 3}
VIT = {"image_size": 32, "patch_size": 8, "width": 48, "head_width": 16, "layers": 3}
CONFIGS = {
    "vit": {"embed_dim": 24, "vision_cfg": VIT, "text_cfg": TEXT, "quick_gelu": True},
    "vit_avg": {"embed_dim": 24, "vision_cfg": {**VIT, "pool_type": "avg"}, "text_cfg": TEXT},
    "vit_ls": {
        "embed_dim": 24,
        "vision_cfg": {**VIT, "no_ln_pre": True, "final_ln_after_pool": True, "ls_init_value": 0.3},
        "text_cfg": {**TEXT, "ls_init_value": 0.4, "proj_bias": True},
        "custom_text": True,
    },
    "resnet": {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None},
        "text_cfg": TEXT,
        "quick_gelu": True,
    },
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
}  # fmt: skip


def net(kind: str = "vit", dtype: torch.dtype = torch.float64) -> nn.Module:
    """A random open_clip model with norms and biases randomised too, so that forgetting one shows."""
    model = make_model(CONFIGS[kind]).eval().to(dtype)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim == 1 and "logit" not in name:
                p.add_(0.1 * torch.randn(p.shape, generator=generator).to(p))
    return model


def clip(kind: str = "vit", dtype: torch.dtype = torch.float64) -> tuple[Clip, nn.Module]:
    """The towers and the model that they borrow from."""
    model = net(kind, dtype)
    length = CONFIGS[kind]["text_cfg"]["context_length"]
    tokenizer = open_clip.SimpleTokenizer(context_length=length)
    size = model.visual.image_size
    size = size[0] if isinstance(size, tuple) else size
    return clip_of(model, name=kind, preprocess=Preprocess(size=size), tokenizer=tokenizer), model


def pixels(model: nn.Module, n: int = 2) -> Tensor:
    size = model.visual.image_size
    size = size[0] if isinstance(size, tuple) else size
    generator = torch.Generator().manual_seed(2)
    return torch.randn(n, 3, size, size, generator=generator).to(next(model.parameters()))
