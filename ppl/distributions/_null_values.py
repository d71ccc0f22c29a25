"""Values of probability exactly 0 that a parameter moves: no estimator made of draws alone serves them.

For a discrete law p, d/dtheta E[f] = sum_k f(k) dp_k. Where p_k = 0 and dp_k is not, the term of k needs f(k), and k is
never drawn: a score, an antithetic pair, or a control variate made of the law's logits leaves it out, and the estimate is
biased without a sign of it. So does the logarithm of a sum over k, as in `ppl.eliminate`: exp(log p_k + log f(k)) has no
derivative at -inf. Whether there is such a k is known at run time only. `alarms` are numbers that are always 0; their derivative
in each probability that is 0 is `ALARM`, so that gradients of such programs are beyond all reason, and `sound` makes them NaN.
At the first call, where the parameters are numbers, they are refused by name (`checks/_null_probe.py`).

A probability that a mask or the clip of a network holds at 0 has a derivative of exactly 0 and raises no alarm: which is why
`ALARM` is finite, as infinity times zero is no number. One that rounding brought to 0 or 1 has a derivative in its log-odds
below the resolution of the floating-point type; `LIMIT / ALARM` tells it from one that truly is there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from numpyro.distributions.discrete import ZeroInflatedProbs

Array = jax.Array
ALARM = 1e24
LIMIT = 1e20


def probabilities(law: dist.Distribution, shape: tuple[int, ...]) -> list[Array]:
    """Probabilities of values, or of sets of values, where these may be 0; each [*elements, values].

    Args:
        law: the law of one element.
        shape: shape of the elements.
    """
    found = [jnp.asarray(p, jnp.result_type(float)) for p in _probabilities(law)]
    return [jnp.broadcast_to(p, shape + p.shape[-1:]) for p in found]


def unlogged(law: dist.Distribution, shape: tuple[int, ...]) -> list[Array]:
    """Those whose logarithm is -inf at 0, without a derivative there; NumPyro cuts those of events off just inside."""
    is_cut = isinstance(law, dist.BernoulliProbs | dist.BinomialProbs)
    return [] if is_cut else probabilities(law, shape)


@jax.custom_jvp
def alarms(probabilities: Array) -> Array:
    """0 for each element, [*elements, values] -> [*elements], with the derivative `ALARM` in each probability that is 0."""
    return (0.0 * probabilities).sum(-1)  # for the analysis, it does depend on them


@alarms.defjvp
def _alarms_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (probabilities,), (moved,) = primals, tangents
    return alarms(probabilities), jnp.where(probabilities == 0, ALARM * moved, 0.0).sum(-1)


def alarm(probabilities: Iterable[Array]) -> Array:
    """The sum of all alarms."""
    return sum((alarms(p).sum() for p in probabilities), jnp.zeros(()))


def sound(gradient: list[Array]) -> list[Array]:
    """The gradient, NaN where an alarm is in it."""
    return jax.tree.map(lambda g: jnp.where(jnp.abs(g) > LIMIT, jnp.nan, g), gradient)


def _probabilities(law: dist.Distribution) -> Iterator[Array]:
    if isinstance(law, dist.TransformedDistribution):
        yield from _probabilities(law.base_dist)
        return
    if isinstance(law, dist.MixtureSameFamily):
        parts = law.component_distribution
        for p in _probabilities(parts):
            p = jnp.broadcast_to(p, parts.batch_shape + p.shape[-1:])
            yield p.reshape(law.batch_shape + (-1,))
    if isinstance(law, dist.MixtureGeneral):
        yield from _probabilities(
            law.mixing_distribution
        )  # another component may have another support
        for part in law.component_distributions:
            yield from _probabilities(part)
    if isinstance(law, dist.Poisson):
        yield jnp.asarray(law.rate)[..., None]
    for name, constraint in law.arg_constraints.items():
        if constraint is dist.constraints.simplex:
            yield jnp.asarray(getattr(law, name))
        elif constraint is dist.constraints.unit_interval:
            p = jnp.asarray(getattr(law, name))
            # Without inflation all values are still drawn.
            is_gate = isinstance(law, ZeroInflatedProbs)
            yield jnp.stack([1 - p] if is_gate else [1 - p, p], -1)
