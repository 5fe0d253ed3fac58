"""Test-time adaptation and calibration: what happens to a trained learner's logits."""

from vlprompt.inference.base import Adaptation
from vlprompt.inference.mta import MTA
from vlprompt.inference.tda import TDA
from vlprompt.inference.zero import Zero

ADAPTATIONS: dict[str, type[Adaptation]] = {
    adaptation.name: adaptation
    for adaptation in (
        Zero,
        MTA,
        TDA,
    )
}
"""Test-time methods by the name that `test_time.name` has."""
