"""A budget with a guarantee on one's own prompts: the smallest whose loss is rarely too large."""

from kvpolicy.evaluation.calibration.calibrate import Calibration, Candidate, calibrate
from kvpolicy.evaluation.calibration.guarantee import least_samples

__all__ = ["Calibration", "Candidate", "calibrate", "least_samples"]
