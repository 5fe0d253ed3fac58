"""Test-time adaptation and calibration: what happens to a trained learner's logits."""

from vlprompt.inference.base import Adaptation
from vlprompt.inference.tpt import CTPT, TPT

ADAPTATIONS: dict[str, type[Adaptation]] = {adaptation.name: adaptation for adaptation in (TPT, CTPT)}
"""Test-time methods by the name that `test_time.name` has."""
