"""Conjugate laws of a normal law's parameters, packed into one value: a mean and its variance, covariance or shared variances.

Each has its posterior, its divergence from another of its kind, and what a normal variable is under it: in expectation of the
natural parameters, at the mode, and with the parameters integrated out (Student t).
"""

from ._grouped_normal_inverse_gamma import GroupedNormalInverseGamma as GroupedNormalInverseGamma
from ._grouped_student_t import GroupedStudentT as GroupedStudentT
from ._groups import Groups as Groups
from ._normal_inverse_gamma import (
    ExpectedNormal as ExpectedNormal,
    NormalInverseGamma as NormalInverseGamma,
)
from ._normal_inverse_wishart import NormalInverseWishart as NormalInverseWishart
