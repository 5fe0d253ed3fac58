"""Test-time adaptation and calibration: what happens to a trained learner's logits."""

from vlprompt.inference.base import Adaptation, Adapter, ImageViews, views_of
from vlprompt.inference.calibration import DAC, Calibration, Temperature
from vlprompt.inference.mta import MTA
from vlprompt.inference.tda import TDA
from vlprompt.inference.tpt import CTPT, TPT
from vlprompt.inference.zero import Zero

__all__ = [
    "ADAPTATIONS",
    "CALIBRATIONS",
    "DAC",
    "Adaptation",
    "Adapter",
    "Calibration",
    "ImageViews",
    "Temperature",
    "views_of",
]

_METHODS: tuple[type[Adaptation], ...] = (TPT, CTPT, Zero, MTA, TDA)
ADAPTATIONS: dict[str, type[Adaptation]] = {method.name: method for method in _METHODS}
"""Test-time methods by the name that `test_time.name` has."""
CALIBRATIONS: dict[str, type[Calibration]] = {calibration.name: calibration for calibration in (Temperature, DAC)}
"""Calibrations by the name that `calibration.name` has."""
