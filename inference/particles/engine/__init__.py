"""The particle filter: weigh, resample, move, and keep what was done.

Input: a program (with or without a proposal) or a `FeynmanKac` model, a scheme and a policy. Output: weighted particles, the
estimate of the evidence with E[exp(log_evidence)] = Z, and the record of the run: ancestors, paths, what backward sampling needs.
Particles can be split over devices (`Placement`) and meet those of other islands (`Exchange`) without another line in the step.
"""

from ._descent import (
    NO_PATH_GRADIENT as NO_PATH_GRADIENT,
    Filter as Filter,
    Segment as Segment,
    choose as choose,
)
from ._exchange import Exchange as Exchange
from ._feynman_kac import FeynmanKac as FeynmanKac
from ._filter import run_program as run_program
from ._mesh import (
    ONE_DEVICE as ONE_DEVICE,
    Axes as Axes,
    Placement as Placement,
    as_placement as as_placement,
    check_even as check_even,
)
from ._result import (
    SMCResult as SMCResult,
    check_increments as check_increments,
    warn_of_lost as warn_of_lost,
)
from ._run import (
    FilterOptions as FilterOptions,
    RunOptions as RunOptions,
    check_sizes as check_sizes,
    run as run,
    run_engine as run_engine,
)
from ._smc import smc as smc
from ._step import Cloud as Cloud, History as History, Moved as Moved, Settings as Settings
