"""A merged learner as a checkpoint of open_clip."""

from pathlib import Path

from vlprompt import demo
from vlprompt.errors import UserError
from vlprompt.interop.folder import whole_folder
from vlprompt.learners.base import Learner
from vlprompt.towers.loading import CONFIG_FILE, TOKENIZER_FILES, WEIGHTS_FILE
from vlprompt.towers.saving import save_open_clip

MERGEABLE = (
    "bitfit, clip_lora, dylora, flyp, full_finetune, intrinsic_dimension, ln_tuning, lora, lora_plus, prolip, "
    "qlora (with method.head=text)"
)
"""The methods that leave nothing but other weights, in words."""


def write_open_clip(learner: Learner, model: str, folder: Path, *, force: bool = False) -> list[str]:
    """Write `open_clip_config.json` and `open_clip_model.safetensors`, for open_clip's `local-dir:FOLDER`.

    `model` is the backbone's as in the settings. With the learner's template and class names the model classifies as
    the learner does; both stand in the configuration, where open_clip does not read them. -> the files' names.

    Raises:
        UserError: a learner that is not mergeable; files that are there already, unless `force`; a full disk.
    """
    if not learner.mergeable:
        what = "a linear head, which open_clip's models lack" if learner.has_head else "no form as plain weights"
        raise UserError(f"{type(learner).__name__} has {what}: allowed are the mergeable methods, {MERGEABLE}")
    about = {"template": learner.template, "classes": list(learner.classes)}
    source = str(demo.BACKBONES.get(model, model))
    with whole_folder(folder, (CONFIG_FILE, WEIGHTS_FILE, *TOKENIZER_FILES), force=force) as draft:
        save_open_clip(learner.merged(), source, draft, {"vlprompt": about})
        return sorted(path.name for path in draft.iterdir())
