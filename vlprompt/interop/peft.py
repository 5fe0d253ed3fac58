"""Trained learners in the format of other libraries."""

import json
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from vlprompt.errors import UserError
from vlprompt.interop.folder import whole_folder
from vlprompt.learners.lora import LoRA

ENCODERS = {"image": "vision_model.encoder.layers", "text": "text_model.encoder.layers"}
MODULES = {
    "q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "o": "self_attn.out_proj",
    "fc1": "mlp.fc1", "fc2": "mlp.fc2",
}  # fmt: skip
"""By tower and by edit site: names within `transformers.CLIPModel`."""


CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"


def write_peft(learner: LoRA, folder: Path, *, force: bool = False) -> None:
    """Write `adapter_config.json` and `adapter_model.safetensors`, which PEFT reads onto `transformers.CLIPModel`.

    PEFT names the three projections one by one, as Transformers does; open_clip stacks them, so that PEFT cannot name
    its modules. Where ranks are nested, the one in use is written.

    Raises:
        UserError: a model that is no `transformers.CLIPModel` (open_clip's plain CLIP with a ViT is one), an adapter
            that is there already and not to be replaced (`force`), or a folder that cannot be written.
    """
    check_names(learner)
    config, tensors = peft_files(learner)
    with whole_folder(folder, (CONFIG, TENSORS), force=force) as draft:
        safetensors.torch.save_file(tensors, draft / TENSORS, metadata={"format": "pt"})
        (draft / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def peft_files(learner: LoRA) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The configuration and the tensors, under PEFT's names."""
    placed, tensors = learner.updates_by_site(), {}
    for (tower, layer, site), update in placed.items():
        a, b, _ = update.in_use()
        name = f"base_model.model.{ENCODERS[tower]}.{layer}.{MODULES[site]}"
        tensors[f"{name}.lora_A.weight"] = a.detach().cpu().clone().contiguous()
        tensors[f"{name}.lora_B.weight"] = b.detach().cpu().clone().contiguous()
    a, _, factor = next(iter(placed.values())).in_use()
    towers = "|".join(ENCODERS[tower].replace(".", r"\.") for tower in learner.towers)
    sites = "|".join(MODULES[site].replace(".", r"\.") for site in dict.fromkeys(site for _, _, site in placed))
    config = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": None,
        "r": len(a),
        "lora_alpha": factor * len(a),  # PEFT scales by lora_alpha / r
        "lora_dropout": next(iter(placed.values())).dropout.p,
        "target_modules": rf"(.*\.)?({towers})\.\d+\.({sites})",
        "bias": "none",
        "use_rslora": False,
        "inference_mode": True,
    }
    return config, tensors


def check_names(learner: LoRA) -> None:
    """Refuse a model whose blocks are not those of `transformers.CLIPModel`."""
    known = {"image": "visual.transformer.resblocks.", "text": "transformer.resblocks."}
    for tower, blocks in learner.towers.items():
        name = blocks.blocks[0].matrices["q"].name
        if not name.startswith(known[tower]):
            raise UserError(
                f"{learner.clip.name} has no counterpart in transformers.CLIPModel ('{name}'), whose names PEFT needs: "
                "export a learner on one of open_clip's plain CLIPs with a ViT"
            )
