"""Where published weights come from: their repository on the hub, and their licence."""

from typing import NamedTuple

import open_clip
import timm

from vlprompt.towers import timm_models
from vlprompt.towers.loading import PRETRAINED

HUB = "hf-hub:"
LICENSES = {
    "openai": "mit", "laion": "mit", "datacomp_": "mit", "commonpool_": "mit", "webli": "apache-2.0",
    "metaclip_": "cc-by-nc-4.0",
}  # fmt: skip
"""Of open_clip's weights, by the start of their tag, as their publishers state them."""


class Origin(NamedTuple):
    repository: str | None  # owner/name on the hub
    license: str | None  # the hub's name of it


def origin_of(model: str, weights: str) -> Origin:
    """What is known of published weights, by the backbone's settings; nothing is fetched."""
    if model.startswith(HUB):
        return Origin(model.removeprefix(HUB), None)
    if timm_models.is_timm(model):
        published = timm.get_pretrained_cfg(model.removeprefix(timm_models.PREFIX))
        if weights != PRETRAINED or published is None:
            return Origin(None, None)
        repository = (published.hf_hub_id or "").removesuffix("/")
        if repository == "timm":  # which stands for the model's name there
            repository = f"timm/{published.architecture}.{published.tag}".removesuffix(".")
        return Origin(repository or None, published.license)
    published = open_clip.get_pretrained_cfg(model, weights)
    owner, _, name = str(published.get("hf_hub") or "").removesuffix("/").partition("/")
    known = next((license for tag, license in LICENSES.items() if published and weights.startswith(tag)), None)
    return Origin(f"{owner}/{name}" if name else None, known)
