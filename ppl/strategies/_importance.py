"""The score function under a proposal: draws from a law of one's own choice, weighted."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import PyTree

from ..distributions import same_support, support_of_law
from ._enum import probability_of
from ._strategy import Draw, Strategy, element, stop

Array = jax.Array
NEVER = -80.0


@dataclasses.dataclass(frozen=True, eq=False)
class Importance(Strategy):
    """Draw x from a proposal h and weight what is downstream: value rho f(x), gradient f(x) d rho + rho df, rho = p(x) / h(x).

    An element's weight meets only the terms that it can influence: rows that separate keep weights of their own; elements that
    meet, and the steps of a scan that later ones depend on, contribute the product of theirs, whose variance grows
    with their number.

    Args:
        proposal: a distribution of one element (batch axes broadcast to the site's elements), or a function that makes one
            from the site's own, e.g. `lambda p: dist.Normal(p.loc, 2 * p.scale)`. Its parameters get no gradient.

    Validity: value and gradient are unbiased if h(x) > 0 wherever p(x) > 0 (the supports are compared, refused where they
    differ or depend on parameters; NaN where h is 0 at one of finitely many values, and p is not) and the weights have a
    finite variance (not checked: h needs heavier tails than p).
    Reference: Kloek and van Dijk 1978; Ruiz et al. 2016, arXiv:1603.01140.
    """

    proposal: Any
    name = "importance"
    kind = "weighted"
    serves_null_values = True

    def refuse(self, distribution: dist.Distribution) -> str | None:
        try:
            proposal = self._of(distribution)
        except (AttributeError, TypeError) as err:
            return f"could not make its proposal from {type(distribution).__name__}: {err}"
        ours, theirs = type(distribution).__name__, type(proposal).__name__
        if isinstance(distribution, dist.Delta):
            return "needs a density, but Delta has none"
        if distribution.event_shape != proposal.event_shape:
            return (
                f"needs a proposal of event shape {distribution.event_shape}, but {theirs} has {proposal.event_shape}; "
                "give the proposal of one element"
            )
        support, own = support_of_law(distribution), support_of_law(proposal)
        if not same_support(support, own):
            return (
                f"needs a proposal with the support of {ours}, {support}, but that of {theirs} is "
                f"{own} or could not be compared"
            )
        return None

    def draw(self, fn: dist.Distribution, key: Array) -> Array:
        base, shape = element(fn)
        return jnp.asarray(self._of(base).expand(shape).sample(key))

    def log_weight(self, draw: Draw) -> Array:
        return draw.log_prob - self._log_density(draw)

    def local(self, draw: Draw) -> PyTree:
        probability = probability_of(draw.distribution, draw.value)
        return () if probability is None else probability * jnp.exp(-self._log_density(draw))

    def _log_density(self, draw: Draw) -> Array:
        """Log-density of the draw under the proposal; NaN if that does not reach all that the law does."""
        proposal = self._of(draw.distribution)
        log_density = proposal.log_prob(draw.value)
        if proposal.has_enumerate_support:
            log_density = jnp.where(_misses(proposal, draw.distribution), jnp.nan, log_density)
        return stop(jnp.broadcast_to(log_density, draw.shape))

    def _of(self, base: dist.Distribution) -> dist.Distribution:
        if isinstance(self.proposal, dist.Distribution):
            return element(self.proposal)[0]
        return element(self.proposal(base))[0]


def _misses(proposal: dist.Distribution, law: dist.Distribution) -> Array:
    """Whether a law of finitely many values has one that its proposal never makes."""
    values = law.enumerate_support(expand=False)
    log_h, log_p = (stop(jnp.asarray(d.log_prob(values))) for d in (proposal, law))
    # NumPyro's log-probabilities of events stay finite where they are impossible: -87 in place of -inf.
    return ((log_h < NEVER) & (log_p > log_h + 40)).any(0)
