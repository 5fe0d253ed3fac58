"""Names of trained tensors: in the CoOp family's checkpoints, and here."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

Replacement = str | Callable[[re.Match[str]], str]


@dataclass(frozen=True)
class Original:
    """One of the family's models: its trained tensors (patterns, with their names here), those it cannot be without,
    and others' names for models of the same form.

    A name here may end in the index of a part: "tokens[2]".
    """

    tensors: Mapping[str, Replacement]
    needs: tuple[str, ...]
    also: tuple[str, ...] = ()

    def ours(self, name: str) -> str | None:
        """Our name of a trained tensor; None where this model has no such tensor."""
        for pattern, replacement in self.tensors.items():
            if re.fullmatch(pattern, name):
                return re.sub(pattern, replacement, name)
        return None

    def fits(self, names: Iterable[str]) -> bool:
        """Whether these can be the trained tensors of such a model."""
        names = set(names)
        return names.issuperset(self.needs) and all(self.ours(name) is not None for name in names)


def _moved(name: str, by: int) -> Callable[[re.Match[str]], str]:
    """`name` with an index that counts from elsewhere in the original."""
    return lambda match: name.format(int(match[1]) + by, *match.groups()[1:])


_CONTEXT: dict[str, Replacement] = {r"prompt_learner\.ctx": "context"}
_INDEX = r"(\d{1,3})"
_LATER_IMAGE = rf"image_encoder\.transformer\.resblocks\.{_INDEX}\.VPT_shallow"
_LATER_TEXT = rf"text_encoder\.transformer\.resblocks\.{_INDEX}\.VPT_shallow"

ORIGINALS = {
    "CoOp": Original(_CONTEXT, needs=("prompt_learner.ctx",), also=("KgCoOp",)),
    "ProGrad": Original(_CONTEXT, needs=("prompt_learner.ctx",)),
    "CoCoOp": Original(
        {**_CONTEXT, r"prompt_learner\.meta_net\.(linear[12]\.(?:weight|bias))": r"meta_net.\1"},
        needs=("prompt_learner.ctx", "prompt_learner.meta_net.linear2.weight"),
    ),
    "MaPLe": Original(
        {
            **_CONTEXT,
            r"prompt_learner\.proj\.(weight|bias)": r"coupling.0.\1",
            rf"prompt_learner\.compound_prompts_text\.{_INDEX}": _moved("deep.{}", 0),
            rf"prompt_learner\.compound_prompt_projections\.{_INDEX}\.(weight|bias)": _moved("coupling.{}.{}", 1),
        },
        needs=("prompt_learner.ctx", "prompt_learner.proj.weight"),
    ),
    "IVLP": Original(
        {
            **_CONTEXT,
            r"image_encoder\.VPT": "image_tokens.0",
            _LATER_IMAGE: _moved("image_tokens.{}", 0),
            _LATER_TEXT: _moved("deep.{}", -1),
        },
        needs=("prompt_learner.ctx",),
        also=("PromptSRC",),
    ),
    "VPT": Original(
        {r"image_encoder\.VPT": "tokens[0]", _LATER_IMAGE: _moved("tokens[{}]", 0)}, needs=("image_encoder.VPT",)
    ),
}
METHODS = {
    "coop": "CoOp",
    "prograd": "ProGrad",
    "cocoop": "CoCoOp",
    "maple": "MaPLe",
    "ivlp": "IVLP",
    "language_prompts": "IVLP",
    "vpt_shallow": "VPT",
    "vpt_deep": "VPT",
}
"""Our methods, and the original of each."""
FROZEN = (
    r"prompt_learner\.token_(prefix|suffix)",
    r"prompt_learner\.ZS_image_encoder\..+",  # PromptSRC's teacher
    r"(image|text)_encoder\.(?!.*VPT).+",
    r"logit_scale",
)
"""What checkpoints of the whole model hold apart from its trained tensors."""
KGCOOP_LEFTOVERS = (r"prompt_learner\.bias_vectors", r"prompt_learner\.meta_net\.linear1\.(weight|bias)")
"""What KgCoOp makes and neither uses nor trains."""


def split_names(names: Iterable[str]) -> tuple[set[str], bool]:
    """The names of trained tensors among all of a checkpoint, and whether they come with KgCoOp's leftovers."""
    trained = {name for name in names if not any(re.fullmatch(pattern, name) for pattern in FROZEN)}
    left = {name for name in trained if any(re.fullmatch(pattern, name) for pattern in KGCOOP_LEFTOVERS)}
    if left and trained - left == {"prompt_learner.ctx"}:
        return trained - left, True
    return trained, False
