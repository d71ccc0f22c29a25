"""Fitting: the training loop, its data, checkpoints and result.

`fit`, `Fit` and `Posterior` stand on top of `inference`. What else there is, by task:

Optimisers
    by_row                  for tables of which a batch reads some rows
    settling                slows down once the value has settled, and ends the run

Without noise
    fit_fixed_draws         L-BFGS on a bound whose draws are fixed once; standard errors, linear response

Data
    ProcessLocal            of which each process has its own rows

Starts
    AutoWhitenedNormal      the guide of a model alone: a Normal that begins near the best one, and in its units
    AutoMeanField           that of very many coordinates: one vector without correlations, begun at the prior's median
    pathfinder              parameters near the Normal that Pathfinder finds (BlackJAX)

Callbacks
    EarlyStopping           stop where the objective no longer improves
    KeepBest                keep the parameters for which a validation loss is least
    LogEvery                print every so many steps
    Profile                 record some steps with JAX's profiler
    FitInfo                 what a callback sees

Errors
    NonFiniteError          a step that went wrong, by site
"""

from ._fit import fit as fit
from ._fit_result import Fit as Fit
from ._fixed_draws import FixedDrawsFit as FixedDrawsFit, fit_fixed_draws as fit_fixed_draws
from ._pathfinder import pathfinder as pathfinder
from .data import ProcessLocal as ProcessLocal
from .prediction import Posterior as Posterior
from .starts import AutoMeanField as AutoMeanField, AutoWhitenedNormal as AutoWhitenedNormal
from .stationarity import Averaging as Averaging, settling as settling
from .training import (
    EarlyStopping as EarlyStopping,
    FitInfo as FitInfo,
    KeepBest as KeepBest,
    LogEvery as LogEvery,
    NonFiniteError as NonFiniteError,
    Profile as Profile,
    by_row as by_row,
)

__all__ = [
    "by_row",
    "settling",
    "fit_fixed_draws",
    "ProcessLocal",
    "AutoWhitenedNormal",
    "AutoMeanField",
    "pathfinder",
    "EarlyStopping",
    "KeepBest",
    "LogEvery",
    "Profile",
    "FitInfo",
    "NonFiniteError",
]
