"""Test-time adaptation and calibration: what happens to a trained learner's logits."""

from vlprompt.inference.base import Adaptation, Adapter, ImageViews, views_of

__all__ = ["ADAPTATIONS", "Adaptation", "Adapter", "ImageViews", "views_of"]

_METHODS: tuple[type[Adaptation], ...] = ()
ADAPTATIONS: dict[str, type[Adaptation]] = {adaptation.name: adaptation for adaptation in _METHODS}
"""Test-time methods by the name that `test_time.name` has."""
