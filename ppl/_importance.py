"""The score function under a proposal: draws from a law of one's own choice, weighted."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist

from ._strategy import Draw, Strategy, element, probability_of, stop
from ._supports import same_support, support_of_law

Array = jax.Array


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
    differ or depend on parameters) and the weights have a finite variance (not checked: h needs heavier tails than p).
    Reference: Kloek and van Dijk 1978; Ruiz et al. 2016, arXiv:1603.01140.
    """

    proposal: Any
    name = "importance"
    is_enumerated = True
    is_weighted = True

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
        return stop(jnp.asarray(self._of(base).expand(shape).sample(key)))

    def log_weight(self, draw: Draw) -> Array:
        log_proposal = self._of(draw.distribution).log_prob(draw.value)
        return draw.log_prob - stop(jnp.broadcast_to(log_proposal, draw.shape))

    def local(self, draw: Draw) -> Any:
        probability = probability_of(draw.distribution, draw.value)
        if probability is None:
            return ()
        log_proposal = stop(jnp.asarray(self._of(draw.distribution).log_prob(draw.value)))
        return jnp.broadcast_to(probability * jnp.exp(-log_proposal), draw.shape)

    def _of(self, base: dist.Distribution) -> dist.Distribution:
        if isinstance(self.proposal, dist.Distribution):
            return element(self.proposal)[0]
        return element(self.proposal(base))[0]
