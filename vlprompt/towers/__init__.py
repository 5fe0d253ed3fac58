"""Frozen towers as plain functions with named edit sites: everything that knows open_clip and timm."""

from vlprompt.towers.clip import Clip, Preprocess
from vlprompt.towers.edits import NO_EDITS, Edit, Edits, Prefix, merge
from vlprompt.towers.image import Images, ImageTower, NeedsPixels
from vlprompt.towers.loading import CONFIG_FILE, RANDOM, TOKENIZER_FILES, WEIGHTS_FILE, has_text, load_clip
from vlprompt.towers.templates import PLAIN, ensemble, expand_templates
from vlprompt.towers.text import Position, Prompts, TextTower

__all__ = [
    "CONFIG_FILE", "NO_EDITS", "PLAIN", "RANDOM", "TOKENIZER_FILES", "WEIGHTS_FILE", "Clip", "Edit", "Edits",
    "ImageTower", "Images", "NeedsPixels", "Position", "Prefix", "Preprocess", "Prompts", "TextTower", "ensemble",
    "expand_templates", "has_text", "load_clip", "merge",
]  # fmt: skip
