"""Frozen towers as plain functions with named edit sites: everything that knows open_clip and timm."""

from vlprompt.towers.clip import Clip
from vlprompt.towers.edits import NO_EDITS, Edit, Edits, Prefix, merge
from vlprompt.towers.image import Images, ImageTower, NeedsPixels
from vlprompt.towers.loading import RANDOM, check_model, files_of, has_text, load_clip
from vlprompt.towers.preprocess import Preprocess
from vlprompt.towers.templates import PLAIN, ensemble, expand_templates
from vlprompt.towers.text import Position, Prompts, TextTower
from vlprompt.towers.timm_models import full_name, is_timm, published_preprocess

__all__ = [
    "NO_EDITS", "PLAIN", "RANDOM", "Clip", "Edit", "Edits", "ImageTower", "Images", "NeedsPixels", "Position", "Prefix",
    "Preprocess", "Prompts", "TextTower", "check_model", "ensemble", "expand_templates", "files_of", "full_name",
    "has_text", "is_timm", "load_clip", "merge", "published_preprocess",
]  # fmt: skip
