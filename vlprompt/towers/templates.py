"""Published prompt templates, as strings with `{}` for the class name."""

from collections.abc import Sequence

import open_clip

from vlprompt.errors import UserError, unknown

PLAIN = "a photo of a {}."
_ALL = tuple(template("{}") for template in open_clip.OPENAI_IMAGENET_TEMPLATES)
ENSEMBLES = {
    "openai_80": _ALL,
    "openai_7": tuple(template("{}") for template in open_clip.SIMPLE_IMAGENET_TEMPLATES),
    "promptsrc_60": (PLAIN, *(template for template in _ALL[:60] if template != PLAIN)),
}
"""Radford et al., 2021: the 80 templates of the ImageNet notebook and the 7 that its authors selected from them.
Khattak et al., 2023: its first 60, as PromptSRC's teacher reads them."""


def ensemble(name: str) -> tuple[str, ...]:
    """A published list of templates.

    Raises:
        UserError: an unknown name.
    """
    if name not in ENSEMBLES:
        raise unknown("template ensemble", name, ENSEMBLES)
    return ENSEMBLES[name]


def expand_templates(templates: str | Sequence[str]) -> tuple[str, ...]:
    """One template, several, or a published list by its name, as several.

    Raises:
        UserError: an unknown name, none at all, or a template without exactly one `{}`.
    """
    if isinstance(templates, str):
        templates = (templates,) if "{}" in templates else ensemble(templates)
    if not templates:
        raise UserError("method.templates is empty: give one template with {} for the class name, or several")
    if wrong := [template for template in templates if template.count("{}") != 1]:
        raise UserError(f"a template has exactly one {{}} for the class name, got '{wrong[0]}'")
    return tuple(templates)
