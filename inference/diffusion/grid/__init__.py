"""What is known of a corrected diffusion before it runs: exponents and noise on a grid of times, and what is refused there.

Input: a composition, noising times and options. Output: the coefficients of the steps in double precision, a noise scale for
each, where the density ratios come from, and the law of the first points; errors and warnings where the target is none, or the
weights have no variance.
"""

from ._exponents import as_exponents as as_exponents
from ._finite_variance import warn_of_infinite_variance as warn_of_infinite_variance
from ._grid import (
    Grid as Grid,
    Ratios as Ratios,
    Weighting as Weighting,
    as_grid as as_grid,
    check_known as check_known,
    choose_ratios as choose_ratios,
    coefficients as coefficients,
    start_law as start_law,
)
from ._integrable import (
    Unseen as Unseen,
    check_exponents as check_exponents,
    check_target as check_target,
    penalty as penalty,
)
from ._noise_scale import NoiseScale as NoiseScale
from ._steps import Coefficients as Coefficients, Integrator as Integrator
