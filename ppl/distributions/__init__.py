"""Laws: the library's own, and what is asked of NumPyro's.

Laws for programs
    OneHotCategorical                           a category as a vector, with values that can be relaxed
    Chosen                                      one of several laws, by an index
    NormalInverseGamma, NormalInverseWishart    a mean and its variance or covariance
    GroupedNormalInverseGamma                   means, and variances that they share by groups
    GroupedStudentT                             a vector whose groups are multivariate Student t
    Orthonormal, UniformFrames                  orthonormal columns: a constraint, the uniform law
    LinearConstraints, TruncatedInTurn          coordinates that keep linear relations: a constraint, a law
    Polyline                                    points on a curve, with normal noise

For the library: formulas of NumPyro's that some versions get wrong (`mends`); and questions: where a law can be
(`_inclusion.py` before anything is drawn, `_supports.py` with what the set depends on), whether two laws have an exact
divergence, which of their values have probability 0.

Knows nothing of programs, sites or jaxprs.
"""

from . import mends as mends
from ._chosen import Chosen as Chosen
from ._convolution import convolved as convolved
from ._distribution_functions import (
    LAWS as LAWS,
    has_boundary_law as has_boundary_law,
    law_parameters as law_parameters,
)
from ._exact_kl import exact_kl as exact_kl
from ._frames import Orthonormal as Orthonormal, UniformFrames as UniformFrames
from ._inclusion import (
    NOWHERE_KNOWN as NOWHERE_KNOWN,
    Extent as Extent,
    is_outside as is_outside,
    misplaced as misplaced,
    support_known as support_known,
)
from ._laws import (
    CENSORED as CENSORED,
    at_own_draw as at_own_draw,
    base_of as base_of,
    is_boolean as is_boolean,
    is_hidden as is_hidden,
    is_masked as is_masked,
    is_on_sphere as is_on_sphere,
    is_one_way as is_one_way,
    is_unbounded as is_unbounded,
    log_prob_at as log_prob_at,
    of_elements as of_elements,
)
from ._missing import NormalCells as NormalCells, law_of_cells as law_of_cells
from ._null_values import (
    LIMIT as LIMIT,
    alarm as alarm,
    alarms as alarms,
    probabilities as probabilities,
    sound as sound,
    unlogged as unlogged,
)
from ._one_hot import OneHotCategorical as OneHotCategorical
from ._polyline import Polyline as Polyline
from ._supports import (
    Support as Support,
    is_known_sampler as is_known_sampler,
    same_support as same_support,
    support_of_law as support_of_law,
)
from .conjugate import (
    ExpectedNormal as ExpectedNormal,
    GroupedNormalInverseGamma as GroupedNormalInverseGamma,
    GroupedStudentT as GroupedStudentT,
    Groups as Groups,
    NormalInverseGamma as NormalInverseGamma,
    NormalInverseWishart as NormalInverseWishart,
)
from .linear import LinearConstraints as LinearConstraints, TruncatedInTurn as TruncatedInTurn
from .mends import CONTINUOUS as CONTINUOUS

__all__ = [
    "OneHotCategorical",
    "Chosen",
    "NormalInverseGamma",
    "NormalInverseWishart",
    "GroupedNormalInverseGamma",
    "GroupedStudentT",
    "Orthonormal",
    "UniformFrames",
    "LinearConstraints",
    "TruncatedInTurn",
    "Polyline",
]
