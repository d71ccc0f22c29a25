"""Inference: objectives, fitting, diagnostics, export to ArviZ."""

from ._bounds import elbo as elbo
from ._bounds import iwelbo as iwelbo
from ._callbacks import EarlyStopping as EarlyStopping
from ._fit import fit as fit
from ._fit_result import Fit as Fit
from ._objective import Objective as Objective
from ._objective import objective as objective
