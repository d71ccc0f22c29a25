"""Programs whose densities are sums or estimates over another program's choices.

`marginal` and `normalize` estimate (unbiasedly: E[exp] = p, and E[1 / exp] = 1 / p for their own draws), `eliminate` sums
discrete sites and integrates normal ones exactly, `perturb` adds noise to a site and to its law. These four stand on top of
`ppl`. What they make:

Programs
    StochasticProgram       a program whose density is estimated
    Eliminated              what `eliminate` makes: a density without estimates, a posterior, a mode
"""

from ._eliminate import eliminate as eliminate
from ._eliminated import Eliminated as Eliminated
from ._kalman_proposal import KalmanProposal as KalmanProposal, kalman_proposal as kalman_proposal
from ._lost_digits import has_nan as has_nan, lost_digits as lost_digits
from ._marginal import Marginal as Marginal, marginal as marginal
from ._normalize import Normalized as Normalized, normalize as normalize
from ._perturb import perturb as perturb
from ._stochastic import (
    Ambient as Ambient,
    Constrained as Constrained,
    StochasticProgram as StochasticProgram,
    as_arrays as as_arrays,
    estimated as estimated,
    log_mean_exp as log_mean_exp,
    refuse_scaled as refuse_scaled,
)
from ._sums import Summed as Summed

__all__ = [
    "StochasticProgram",
    "Eliminated",
]
