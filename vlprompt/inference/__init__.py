"""Test-time adaptation and calibration: what happens to a trained learner's logits."""

from vlprompt.inference.base import Adaptation
from vlprompt.inference.calibration import DAC, Calibration, Temperature

ADAPTATIONS: dict[str, type[Adaptation]] = {adaptation.name: adaptation for adaptation in ()}
"""Test-time methods by the name that `test_time.name` has."""
CALIBRATIONS: dict[str, type[Calibration]] = {calibration.name: calibration for calibration in (Temperature, DAC)}
"""Calibrations by the name that `calibration.name` has."""
