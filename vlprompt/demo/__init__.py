"""A small world to try everything on: drawn data sets, and a CLIP that was trained on such drawings."""

from pathlib import Path

BACKBONES = {"shapes_vit": Path(__file__).parent / "shapes_vit"}
"""Backbones that ship with the package, as folders that open_clip reads."""
