"""Fitting: the training loop, its data, checkpoints and result."""

from ._by_row import by_row as by_row
from ._callbacks import EarlyStopping as EarlyStopping, FitInfo as FitInfo, LogEvery as LogEvery
from ._fit import fit as fit
from ._fit_result import Fit as Fit, Posterior as Posterior
from ._keep_best import KeepBest as KeepBest
from ._nonfinite import NonFiniteError as NonFiniteError
