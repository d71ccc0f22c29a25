"""Values of probability exactly 0 that a parameter moves: no estimator made of draws alone serves them.

For a discrete law p, d/dtheta E[f] = sum_k f(k) dp_k. Where p_k = 0 and dp_k is not, the term of k needs f(k), and k is
never drawn: a score, an antithetic pair, or a control variate made of the law's logits leaves it out, and the estimate is
biased without a sign of it. Whether there is such a k is known at run time only. `alarm` is a number that is always 0; its
derivative in each probability that is 0 is `ALARM`, so that gradients of such programs are beyond all reason, and `sound`
makes them NaN. At the first call, where the parameters are numbers, they are refused by name (`_null_probe.py`).

A probability that a mask or the clip of a network holds at 0 has a derivative of exactly 0 and raises no alarm: which is why
`ALARM` is finite, as infinity times zero is no number. One that rounding brought to 0 or 1 has a derivative in its log-odds
below the resolution of the floating-point type; `LIMIT / ALARM` tells it from one that truly is there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from numpyro.distributions.discrete import ZeroInflatedProbs

from ._strategy import stop

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


def alarm(probabilities: Iterable[Array]) -> Array:
    """0, with the derivative `ALARM` in each probability that is 0."""
    parts = [jnp.where(p == 0, (p - stop(p)) * ALARM, 0.0) for p in probabilities]
    return sum((part.sum() for part in parts), jnp.zeros(()))


def sound(gradient: Any) -> Any:
    """The gradient, NaN where an alarm is in it."""
    return jax.tree.map(lambda g: jnp.where(jnp.abs(g) > LIMIT, jnp.nan, g), gradient)


def _probabilities(law: dist.Distribution) -> Iterator[Array]:
    if isinstance(law, dist.TransformedDistribution):
        yield from _probabilities(law.base_dist)
        return
    if isinstance(law, dist.Poisson):
        yield jnp.asarray(law.rate)[..., None]
    for name, constraint in law.arg_constraints.items():
        if constraint is dist.constraints.simplex:
            yield jnp.asarray(getattr(law, name))
        elif constraint is dist.constraints.unit_interval:
            p = jnp.asarray(getattr(law, name))
            # Without inflation all values are still drawn.
            is_gate = isinstance(law, ZeroInflatedProbs)
            yield jnp.stack([1 - p] if is_gate else [p, 1 - p], -1)
