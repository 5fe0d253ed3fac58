"""How the options and tensors of the original implementations are called here: one entry a method."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from vlprompt.learners.base import Learner
from vlprompt.learners.coop import CoOp
from vlprompt.learners.zero_shot import ZeroShot
from vlprompt.towers import Clip


@dataclass(frozen=True)
class Original:
    """`build(clip, case)` makes the learner; `names` maps the original's trained tensors (patterns) to ours."""

    build: Callable[[Clip, Mapping[str, Any]], Learner]
    names: Mapping[str, str] = field(default_factory=dict)

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
        n_context=options["N_CTX"],
        ctx_init=phrase,
        class_specific=options["CSC"] and not phrase,  # the original ignores CSC beside CTX_INIT
        position=options["CLASS_TOKEN_POSITION"],
    )


def zero_shot(clip: Clip, case: Mapping[str, Any]) -> Learner:
    names = case["config"]["classnames"]
    templates = case["config"].get("templates")
    if not templates:  # a template that the original chose by data set: read it off its texts
        templates = [case["texts_tokenised_in_order"][0].replace(names[0].replace("_", " "), "{}")]
    return ZeroShot(clip, names, templates=templates)


METHODS = {
    "ZeroshotCLIP": Original(zero_shot),
    "ZeroshotCLIP2": Original(zero_shot),
    "CoOp": Original(coop, {r"prompt_learner\.ctx": "context"}),
}
NO_TARGETS = ("lora_nonzero_b_mergepath",)
"""Cases that document a fault of the original."""
