"""Test-time adaptation and calibration: what happens to a trained learner's logits."""

from vlprompt.inference.base import Adaptation, Adapter, ImageViews, views_of

__all__ = ["ADAPTATIONS", "Adaptation", "Adapter", "ImageViews", "views_of"]

ADAPTATIONS: dict[str, type[Adaptation]] = {adaptation.name: adaptation for adaptation in ()}
"""Test-time methods by the name that `test_time.name` has."""
