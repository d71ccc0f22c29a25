"""Inference: objectives, fitting, diagnostics, export to ArviZ."""

from ._bounds import elbo as elbo
from ._bounds import iwelbo as iwelbo
from ._callbacks import EarlyStopping as EarlyStopping
from ._callbacks import FitInfo as FitInfo
from ._callbacks import LogEvery as LogEvery
from ._fit import fit as fit
from ._fit_result import Fit as Fit
from ._fit_result import Posterior as Posterior
from ._nonfinite import NonFiniteError as NonFiniteError
from ._objective import Objective as Objective
from ._objective import objective as objective
