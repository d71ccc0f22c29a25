"""Inference: objectives, fitting, diagnostics, export to ArviZ."""

from ._arviz import to_arviz as to_arviz
from ._bounds import elbo as elbo, iwelbo as iwelbo
from ._callbacks import EarlyStopping as EarlyStopping, FitInfo as FitInfo, LogEvery as LogEvery
from ._fit import fit as fit
from ._fit_result import Fit as Fit, Posterior as Posterior
from ._nonfinite import NonFiniteError as NonFiniteError
from ._objective import Objective as Objective, objective as objective
from ._weights import (
    ImportanceDiagnostics as ImportanceDiagnostics,
    importance_diagnostics as importance_diagnostics,
)
