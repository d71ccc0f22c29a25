"""Results as ArviZ reads them, and predictions from them: `to_arviz`, `moment_matching` and `predict`, on top of `inference`."""

from ._arviz import to_arviz as to_arviz
from ._moment_matching import MomentMatching as MomentMatching, moment_matching as moment_matching
from ._predict import predict as predict
