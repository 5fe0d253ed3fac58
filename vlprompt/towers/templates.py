"""Prompt templates published with CLIP, as strings with `{}` for the class name."""

import open_clip

from vlprompt.errors import unknown

ENSEMBLES = {
    "openai_80": tuple(template("{}") for template in open_clip.OPENAI_IMAGENET_TEMPLATES),
    "openai_7": tuple(template("{}") for template in open_clip.SIMPLE_IMAGENET_TEMPLATES),
}
"""Radford et al., 2021: the 80 templates of the ImageNet notebook and the 7 that its authors selected from them."""


def ensemble(name: str) -> tuple[str, ...]:
    """A published list of templates.

    Raises:
        UserError: an unknown name.
    """
    if name not in ENSEMBLES:
        raise unknown("template ensemble", name, ENSEMBLES)
    return ENSEMBLES[name]
