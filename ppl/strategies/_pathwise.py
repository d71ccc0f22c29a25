"""Pathwise gradients: the law's own sampler is differentiated, explicitly or implicitly."""

from __future__ import annotations

import dataclasses

import numpyro.distributions as dist

from ._strategy import Strategy, element

GAMMA_FAMILY = frozenset(
    "Gamma Beta Dirichlet Chi2 InverseGamma StudentT BetaProportion LogGamma "
    "NormalInverseGamma NormalInverseWishart GroupedNormalInverseGamma GroupedStudentT".split()
)


@dataclasses.dataclass(frozen=True)
class Pathwise(Strategy):
    """Abstract: the distribution's own differentiable sampler."""

    allow_jumps: bool = False
    kind = "pathwise"
    serves_null_values = True  # a law that such a sampler draws from has none


@dataclasses.dataclass(frozen=True)
class Reparam(Pathwise):
    """Pathwise gradient: x = g(noise, parameters), differentiate through g.

    Args:
        allow_jumps: waive the search for jumps at this site.

    Validity: unbiased if g and everything downstream are continuous and piecewise smooth in x. Jumps are
    searched for at trace time and refused; `allow_jumps=True` waives this check for the site.
    Reference: Kingma and Welling 2014, arXiv:1312.6114; Rezende et al. 2014, arXiv:1401.4082.
    """

    name = "reparam"

    def refuse(self, distribution: dist.Distribution) -> str | None:
        if has_rsample(distribution):
            return None
        fixed = sorted(set(distribution.arg_constraints) - set(distribution.reparametrized_params))
        return f"needs a sampler differentiable in every parameter, but {type(distribution).__name__} has none for {fixed}"


@dataclasses.dataclass(frozen=True)
class Implicit(Pathwise):
    """Implicit reparameterisation: dx/dtheta = -(dF/dtheta) / p(x) with F the distribution function.

    For the Gamma family (Gamma, Beta, Dirichlet, Chi2, InverseGamma, StudentT, NormalInverseGamma, NormalInverseWishart,
    GroupedNormalInverseGamma, GroupedStudentT): the derivative that JAX's gamma sampler carries.

    Args:
        allow_jumps: waive the search for jumps at this site.

    Validity: as `Reparam`.
    Reference: Figurnov et al. 2018, arXiv:1805.08498.
    """

    name = "implicit"

    def refuse(self, distribution: dist.Distribution) -> str | None:
        base = type(distribution).__name__
        if base in GAMMA_FAMILY and has_rsample(distribution):
            return None
        return f"is implemented for {sorted(GAMMA_FAMILY)}, not for {base}"


def has_rsample(distribution: dist.Distribution) -> bool:
    if isinstance(distribution, dist.TransformedDistribution):
        return has_rsample(element(distribution.base_dist)[0])
    return bool(distribution.has_rsample)
