"""Results as ArviZ reads them, and predictions from them: `to_arviz` and `predict`, on top of `inference`."""

from ._arviz import to_arviz as to_arviz
from ._predict import predict as predict
