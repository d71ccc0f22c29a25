"""Paths given all data, drawn from the record of a filter, and the conditional filter that leaves their law invariant.

Input: the record of a run (states and weights before each step) and the densities of the steps ahead. Output: paths whose choices
are choices of the run's particles: from the genealogy, backwards, or where two filters meet.
"""

from ._conditional_smc import (
    Model as Model,
    Path as Path,
    conditional_smc as conditional_smc,
    pick as pick,
)
from ._methods import (
    BackwardMetropolis as BackwardMetropolis,
    BackwardRejection as BackwardRejection,
    FixedLag as FixedLag,
)
from ._smooth import Smoothing as Smoothing, smooth as smooth
from ._two_filter import InformationFilter as InformationFilter
