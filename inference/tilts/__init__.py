"""Altering a trained model: how far a law is from the tilt that it stands for, and tilts of other origins than a reward.

The target
    TiltedProgram       the program of p(x) exp(reward(x) / temperature) / Z, by `inference.tilt`
    match_moments       the nearest law with given moments, as a tilt

How far a law is from it
    report              divergence, mean reward, entropy; what of it is exact
"""

from ._best_of import BestOf as BestOf, best_of as best_of
from ._moments import (
    MatchedMoments as MatchedMoments,
    match_moments as match_moments,
)
from ._report import report as report
from ._rewards import Reward as Reward
from ._tilt import TiltedProgram as TiltedProgram, tilt as tilt
from ._tilt_report import Measured as Measured, TiltReport as TiltReport

__all__ = ["TiltedProgram", "match_moments", "report"]
