"""Which divergences between two laws are formulas without an approximation.

NumPyro's `kl_divergence` knows pairs of laws; what it returns for Kumaraswamy and Beta is a series that is cut off, a pair may be
registered by anybody, and a subclass inherits the pair of its parent whatever its own density is. A pair counts here if it is one
of the list below, each of which is tested against quadrature in value and gradient, or one of this package.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from numpyro.distributions.kl import kl_divergence

from ._laws import base_of, is_masked

Array = jax.Array

_BETA, _GAMMA = (dist.Beta, dist.BetaProportion), (dist.Gamma, dist.Chi2)
EXACT: frozenset[tuple[type, type]] = frozenset(
    [
        (dist.Normal, dist.Normal),
        (dist.MultivariateNormal, dist.MultivariateNormal),
        (dist.Normal, dist.CirculantNormal),
        *((q, p) for q in _BETA for p in _BETA),
        *((q, p) for q in _GAMMA for p in _GAMMA),
        *((dist.Weibull, p) for p in _GAMMA),
        (dist.CategoricalProbs, dist.CategoricalProbs),
        (dist.Dirichlet, dist.Dirichlet),
    ]
)
_PACKAGE = __name__.rpartition(".ppl.")[0]


def exact_kl(q: dist.Distribution, p: dist.Distribution) -> Array | None:
    """KL(q || p) per batch element in nats, or None where no exact formula is known.

    With masks the log-ratio is no divergence: None.
    """
    if is_masked(q) or is_masked(p) or not is_exact_pair(q, p):
        return None
    if q.event_shape != p.event_shape or _num_classes(q) != _num_classes(p):
        return None
    try:
        kl = kl_divergence(q, p)
    except NotImplementedError:
        return None
    return jnp.broadcast_to(kl, jnp.broadcast_shapes(jnp.shape(kl), q.batch_shape))


def is_exact_pair(q: dist.Distribution, p: dist.Distribution) -> bool:
    """Whether the formula for the two laws, inside of event axes and expansions, is exact."""
    laws = type(base_of(q)), type(base_of(p))
    if laws[0] is dist.Delta or laws in EXACT:
        return True
    rules = (kl_divergence.dispatch(*pair) for pair in (laws, (type(_flat(q)), type(_flat(p)))))
    return any(rule is not None and rule.__module__.startswith(f"{_PACKAGE}.") for rule in rules)


def _flat(fn: dist.Distribution) -> dist.Distribution:
    while isinstance(fn, dist.ExpandedDistribution):
        fn = fn.base_dist
    return fn


def _num_classes(fn: dist.Distribution) -> int | None:
    base = base_of(fn)
    return jnp.shape(base.probs)[-1] if isinstance(base, dist.CategoricalProbs) else None
