"""Which second derivatives a local Laplace approximation expands a loss with, and how far they are computed."""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

CurvatureKind = Literal[
    "hessian", "gauss_newton", "diagonal_gauss_newton", "low_rank_gauss_newton", "sgld_variance"
]


@dataclasses.dataclass(frozen=True)
class Curvature:
    """The matrix A_i in l_i(x) = c - b_i'x + x'A_i x / 2.

    Args:
        kind: "hessian"; "gauss_newton", the Fisher information of the observations pulled back by the Jacobian U of
            their parameters, U'U; "diagonal_gauss_newton", its diagonal; "low_rank_gauss_newton", U'U kept as a factor, for long
            vectors with few observations: O(d m^2 + m^3); "sgld_variance", one over the variance of the draws of `SGLD`, less P.
            "hessian" needs P + A_i to be positive definite at the point reached, the others always are.
        rank: of "low_rank_gauss_newton", for many observations: the m outputs projected on at most `rank` directions, which
            hold most of what the prior leaves open; what is left out makes q wider. O(d m rank), exact where m is at most `rank`.
        largest: upper end of a diagonal A_i; the lower end is 0.
        jacobian: "whole": one pullback for each of the m rows of U. "by_observation": one for each parameter of an observation,
            whatever their number. It promises that an observation depends on the site's value at its own place only, and that
            the model takes a value with the batch shape of the observations, by broadcasting as plates do. `rank` then leaves
            each of a row's n observations `rank` / n of its directions, first the one in which its loss falls, if `rank` is at
            least n. A broken promise makes q worse, and no bound wrong.

    Raises:
        ValueError: an unknown kind or Jacobian; a rank or a limit of another kind.
    """

    kind: CurvatureKind = "hessian"
    rank: int | None = None
    largest: float | None = None
    jacobian: Literal["whole", "by_observation"] = "whole"

    def __post_init__(self) -> None:
        problems = []
        if self.kind not in get_args(CurvatureKind):
            problems.append(f"kind must be one of {get_args(CurvatureKind)}, got {self.kind!r}")
        if self.largest is not None and self.kind not in ("diagonal_gauss_newton", "sgld_variance"):
            problems.append(f"largest bounds a diagonal, and {self.kind!r} is a matrix")
        if self.rank is not None and (self.rank < 1 or self.kind != "low_rank_gauss_newton"):
            problems.append(
                f"rank is the positive rank of 'low_rank_gauss_newton', got {self.rank!r} with {self.kind!r}"
            )
        if self.jacobian not in ("whole", "by_observation"):
            problems.append(f"jacobian must be 'whole' or 'by_observation', got {self.jacobian!r}")
        if problems:
            raise ValueError("Curvature: " + ";\n".join(problems) + ". Change or leave them out.")
